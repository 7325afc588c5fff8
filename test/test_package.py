# SPDX-License-Identifier: Apache-2.0
"""The package as colcon, pip and its users see it: one name, one version, one licence, and nothing left out."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

import netwarp_ros
from netwarp_ros.resources import resource

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()


def message_fields() -> list[tuple[str, str]]:
    """Type and name of the fields and constants of msg/FrameTiming.msg."""
    lines = (ROOT / "msg" / "FrameTiming.msg").read_text().splitlines()
    declarations = [line.split("#")[0].split() for line in lines]
    return [(kind, name) for kind, name in filter(None, declarations)]


def test_package_xml_is_of_format_3_and_in_the_interface_group() -> None:
    assert MANIFEST.get("format") == "3"
    assert MANIFEST.findtext("export/build_type") == "ament_cmake"
    assert MANIFEST.findtext("member_of_group") == "rosidl_interface_packages"


def test_pyproject_and_cmake_describe_the_package_as_package_xml_does() -> None:
    assert PROJECT["name"] == MANIFEST.findtext("name")
    assert PROJECT["description"] == " ".join((MANIFEST.findtext("description") or "").split())
    maintainer = MANIFEST.find("maintainer")
    assert maintainer is not None
    assert PROJECT["maintainers"] == [{"name": maintainer.text, "email": maintainer.get("email")}]
    assert re.findall(r"project\((\w+)\)", (ROOT / "CMakeLists.txt").read_text()) == ["netwarp_ros"]


def test_pyproject_and_package_xml_give_the_same_addresses() -> None:
    addresses = {url.get("type"): url.text for url in MANIFEST.iter("url")}
    urls = PROJECT["urls"]
    assert addresses == {
        "website": urls["Homepage"], "repository": urls["Repository"], "bugtracker": urls["Issues"],
    }  # fmt: skip


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "netwarp_ros.__version__"}
    assert MANIFEST.findtext("version") == netwarp_ros.__version__
    newest = re.search(r"^\d+\.\d+\.\d+", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[0] == netwarp_ros.__version__


def test_the_licence_is_the_apache_licence_everywhere() -> None:
    assert MANIFEST.findtext("license") == PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


@pytest.mark.parametrize(
    "folder", ["netwarp_ros", "csrc", "test", "studies", "tools", "scripts", "launch", "config", "msg", "requirements"]
)
def test_every_text_file_names_its_licence(folder: str) -> None:
    without = {".json", ".pyc", ".safetensors", ".so", ".typed"}  # they have no comments
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in without]
    unnamed = [str(path) for path in files if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]]
    assert unnamed == []


def test_cmake_finds_what_package_xml_declares_for_the_build() -> None:
    declared = {element.text for tag in ("buildtool_depend", "depend") for element in MANIFEST.iter(tag)}
    build, tests = (ROOT / "CMakeLists.txt").read_text().split("if(BUILD_TESTING)")
    assert set(re.findall(r"find_package\((\w+) REQUIRED\)", build)) == declared
    needed = set(re.findall(r"find_package\((\w+) REQUIRED\)", tests))
    assert needed == {"ament_cmake_pytest"}
    assert needed <= {element.text for element in MANIFEST.iter("test_depend")}


def test_frame_timing_says_where_the_time_went() -> None:
    assert message_fields() == [
        ("uint8", "MEMORY_NEW=0"),
        ("uint8", "MEMORY_KEPT=1"),
        ("std_msgs/Header", "header"),
        ("uint64", "sequence"),
        ("float32", "receive_ms"),
        ("float32", "wait_ms"),
        ("float32", "decode_ms"),
        ("float32", "prepare_ms"),
        ("float32", "flow_ms"),
        ("float32", "network_ms"),
        ("float32", "publish_ms"),
        ("float32", "total_ms"),
        ("float32", "age_ms"),
        ("uint64", "dropped"),
        ("uint8", "memory"),
        ("string", "reason"),
        ("bool", "is_key"),
    ]


@pytest.mark.ros
def test_the_built_message_is_the_described_one() -> None:
    from netwarp_ros.msg import FrameTiming

    described = {name: kind for kind, name in message_fields() if "=" not in name}
    built = FrameTiming.get_fields_and_field_types()
    assert {name: {"float": "float32", "boolean": "bool"}.get(kind, kind) for name, kind in built.items()} == described
    assert (FrameTiming.MEMORY_NEW, FrameTiming.MEMORY_KEPT) == (0, 1)


@pytest.mark.ros
def test_ros_finds_the_executables_and_the_parameters() -> None:
    from ament_index_python.packages import get_package_prefix, get_package_share_directory

    executables = Path(get_package_prefix("netwarp_ros"), "lib", "netwarp_ros")
    assert sorted(path.name for path in executables.iterdir() if os.access(path, os.X_OK)) == [
        "replay_node",
        "segment_node",
    ]
    share = Path(get_package_share_directory("netwarp_ros"))
    for name in (
        "classes/camvid.yaml",
        "segmenter.yaml",
        "segmenter.rviz",
        "foxglove_layout.json",
        "sros2_policy.xml",
        "fastdds_large_images.xml",
    ):
        assert (share / "config" / name).is_file(), name
    for name in ("segment", "replay"):
        assert (share / "launch" / f"{name}.launch.py").is_file(), name


@pytest.mark.parametrize("module", ["netwarp_ros.cli", "netwarp_ros.node.segment_node", "netwarp_ros.node.replay_node"])
def test_the_module_of_every_executable_has_a_main(module: str) -> None:
    path = ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    assert re.search(r"^def main\(", source, re.MULTILINE)
    scripts = [path.read_text() for path in (ROOT / "scripts").iterdir()]
    assert sum(f"from {module} import main\n" in script for script in scripts) == 1


def test_pip_installs_every_folder_of_modules() -> None:
    folders = {path.parent for path in (ROOT / "netwarp_ros").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
    packages = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == packages | {"netwarp_ros.config"}


def test_pip_installs_every_file_that_is_not_a_module() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    installed = set()
    for package, patterns in settings["package-data"].items():
        folder = ROOT / settings["package-dir"].get(package, package.replace(".", "/"))
        for pattern in patterns:
            matches = set(folder.glob(pattern))
            assert matches, f"{package}: nothing matches {pattern}"
            installed |= matches
    files = {path for folder in ("netwarp_ros", "config") for path in (ROOT / folder).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc", ".so")} == installed


def test_resource_finds_config_and_says_what_there_is_instead() -> None:
    assert resource("classes", "camvid.yaml").is_file()
    with pytest.raises(
        FileNotFoundError, match=r"no 'kitti.yaml' in .*classes, which holds ade20k.yaml, camvid.yaml, cityscapes.yaml"
    ):
        resource("classes", "kitti.yaml")
