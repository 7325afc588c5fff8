# SPDX-License-Identifier: Apache-2.0
"""The package as colcon, pip and its users see it: one name, one version, one licence, and nothing unpinned."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from netwarp_ros.resources import resource

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(*files: Path) -> dict[str, str]:
    """The pinned version of every distribution that the files name."""
    pinned = {}
    for file in files:
        for line in file.read_text().splitlines():
            requirement = line.split("#")[0].split(";")[0].strip()
            if requirement:
                name, version = requirement.split("==")
                pinned[canonical(name)] = version
    return pinned


def message_fields() -> list[tuple[str, str]]:
    """Type and name of the fields and constants of msg/FrameTiming.msg."""
    lines = (ROOT / "msg" / "FrameTiming.msg").read_text().splitlines()
    declarations = [line.split("#")[0].split() for line in lines]
    return [(kind, name) for kind, name in filter(None, declarations)]


def test_package_xml_is_of_format_3_and_in_the_interface_group() -> None:
    assert MANIFEST.get("format") == "3"
    assert MANIFEST.findtext("export/build_type") == "ament_cmake"
    assert MANIFEST.findtext("member_of_group") == "rosidl_interface_packages"


def test_cmake_and_setup_py_build_the_package_that_package_xml_names() -> None:
    described = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--name", "--version", "--license"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert described == [MANIFEST.findtext("name"), MANIFEST.findtext("version"), MANIFEST.findtext("license")]
    assert re.findall(r"project\((\w+)\)", (ROOT / "CMakeLists.txt").read_text()) == ["netwarp_ros"]


def test_the_licence_is_the_apache_licence_everywhere() -> None:
    assert MANIFEST.findtext("license") == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


@pytest.mark.parametrize(
    "folder", ["netwarp_ros", "test", "tools", "scripts", "launch", "config", "msg", "requirements"]
)
def test_every_text_file_names_its_licence(folder: str) -> None:
    suffixes = {"", ".py", ".sh", ".yaml", ".msg", ".txt"}
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in suffixes]
    unnamed = [str(path) for path in files if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]]
    assert unnamed == []


def test_cmake_finds_what_package_xml_declares_for_the_build() -> None:
    declared = {element.text for tag in ("buildtool_depend", "depend") for element in MANIFEST.iter(tag)}
    found = set(re.findall(r"find_package\((\w+) REQUIRED\)", (ROOT / "CMakeLists.txt").read_text()))
    assert found == declared


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
    ]


@pytest.mark.ros
def test_the_built_message_is_the_described_one() -> None:
    from netwarp_ros.msg import FrameTiming

    described = {name: kind for kind, name in message_fields() if "=" not in name}
    built = FrameTiming.get_fields_and_field_types()
    assert {
        name: kind.replace("float", "float32") if kind == "float" else kind for name, kind in built.items()
    } == described
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


def test_every_folder_of_modules_is_a_package_that_pip_installs() -> None:
    folders = {path.parent for path in (ROOT / "netwarp_ros").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned(file: Path) -> None:
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    loose = [
        line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+(; python_version < \"[\d.]+\")?", line)
    ]
    assert loose == []


def test_what_pip_installs_the_set_up_installs_too() -> None:
    setup = ast.parse((ROOT / "setup.py").read_text())
    (wanted,) = (
        node.value for node in ast.walk(setup) if isinstance(node, ast.keyword) and node.arg == "install_requires"
    )
    names = {canonical(re.split("[<>=]", requirement)[0]) for requirement in ast.literal_eval(wanted)}
    assert names - pins(ROOT / "requirements" / "python.txt").keys() == set()


def test_nothing_that_the_set_up_installed_is_unpinned() -> None:
    environment = os.environ.get("NETWARP_ENV", "")
    if not (ROOT / "requirements" / f"ros-{environment}.txt").exists():
        pytest.skip("not in an environment that `make setup` made from PyPI alone")
    site_packages = Path(importlib.util.find_spec("pytest").origin).parent.parent  # type: ignore[union-attr, arg-type]
    pinned = pins(
        *(ROOT / "requirements" / f"{name}.txt" for name in ("python", "no-deps", "build", f"ros-{environment}"))
    )
    installed = {
        canonical(found.metadata["Name"]): found.version.split("+")[0]
        for found in importlib.metadata.distributions(path=[str(site_packages)])
        if found.read_text("INSTALLER") == "pip\n"
    }
    # The builds of PyTorch for a GPU pin the CUDA libraries that they bring along themselves.
    unpinned = {name: version for name, version in installed.items() if not re.match("nvidia-|cuda-|triton", name)}
    assert {name: version for name, version in unpinned.items() if pinned.get(name) != version} == {}


def test_resource_finds_config_and_says_what_there_is_instead() -> None:
    assert resource("classes", "camvid.yaml").is_file()
    with pytest.raises(
        FileNotFoundError, match=r"no 'kitti.yaml' in .*classes, which holds camvid.yaml, cityscapes.yaml"
    ):
        resource("classes", "kitti.yaml")
