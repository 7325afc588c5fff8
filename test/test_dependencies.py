# SPDX-License-Identifier: Apache-2.0
"""pyproject.toml or package.xml declares every import, and requirements/ pins all that `make setup` installs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import sys
import tomllib
from itertools import chain
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MANIFEST = ElementTree.parse(ROOT / "package.xml").getroot()
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))

DISTRIBUTIONS = {
    "PIL": "pillow",
    "backports.zstd": "backports.zstd",
    "cv2": "opencv-contrib-python-headless",
    "google.protobuf": "protobuf",
    "rerun": "rerun-sdk",
    "torch.utils.tensorboard": "tensorboard",
    "yaml": "PyYAML",
}
"""Distributions whose modules have another name."""

NOT_INSTALLED = {*sys.stdlib_module_names, "_typeshed", "compression", "netwarp_ros"}
"""Python's own modules (`_typeshed` is mypy's, `compression` comes with Python 3.14), and ours."""


UNDECLARED = {"tensorrt"}
"""NVIDIA's own, which comes with the machine: its wheels are not on PyPI."""


NOT_PINNED = {"timm"}
"""Extras that `make setup` does not install: timm needs torchvision, and the tests only check that it is asked for."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(source: str) -> set[str]:
    """Return the dotted names that a module imports, and not those of Python or this package."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] not in NOT_INSTALLED}


def distribution(module: str) -> str:
    """Return the name of the distribution or ROS package that a module comes from."""
    renamed = [name for prefix, name in DISTRIBUTIONS.items() if f"{module}.".startswith(f"{prefix}.")]
    return canonical(renamed[0] if renamed else module.split(".")[0])


def declared() -> dict[str, str]:
    """Return the least version, or "", of every requirement in pyproject.toml, extras included."""
    versions = {}
    for requirement in chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        match = re.fullmatch(r"([\w.-]+)(?:>=([\d.]+))?(?:; .+)?", requirement)
        assert match, f"{requirement!r}: write NAME, NAME>=VERSION or NAME; MARKER"
        versions[canonical(match[1])] = match[2] or ""
    return versions


def pins(*files: Path) -> dict[str, str]:
    """Return the pinned version of every distribution that requirements files name."""
    pinned = {}
    for file in files:
        for line in file.read_text().splitlines():
            requirement = line.split("#")[0].split(";")[0].strip()
            if requirement:
                name, version = requirement.split("==")
                pinned[canonical(name)] = version
    return pinned


def release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def test_every_import_is_declared_and_nothing_else() -> None:
    sources = [path.read_text() for path in (ROOT / "netwarp_ros").rglob("*.py")]
    imported = {distribution(module) for source in sources for module in imported_modules(source)}
    ros = {canonical(element.text or "") for tag in ("depend", "exec_depend") for element in MANIFEST.iter(tag)}
    assert imported - ros - UNDECLARED == declared().keys()


def test_an_import_is_found_wherever_it_stands() -> None:
    source = """
def f():
    import os, cv2
    from backports import zstd
    from torch.utils.tensorboard import SummaryWriter
"""
    assert {distribution(module) for module in imported_modules(source)} == {
        "backports-zstd",
        "opencv-contrib-python-headless",
        "tensorboard",
    }


def test_every_declared_requirement_is_pinned_at_its_least_version_or_later() -> None:
    pinned = pins(*(ROOT / "requirements" / f"{name}.txt" for name in ("python", "rerun")))
    assert declared().keys() - pinned.keys() == NOT_PINNED
    least = {name: version for name, version in declared().items() if version}
    assert {name for name, version in least.items() if release(pinned[name]) < release(version)} == set()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("python3-numpy", "numpy"),
        ("python3-opencv", "opencv-contrib-python-headless"),
        ("python3-pydantic", "pydantic"),
        ("python3-pytorch-pip", "torch"),
    ],
)
def test_package_xml_states_the_least_version_of_pyproject(key: str, name: str) -> None:
    assert declared()[name]
    assert {element.get("version_gte") for element in MANIFEST.iter() if element.text == key} == {declared()[name]}


def test_the_oldest_requirements_are_the_least_versions_of_pyproject() -> None:
    oldest = pins(ROOT / "requirements" / "oldest.txt")
    for name, version in oldest.items():
        least = release(declared()[name])
        assert least and release(version)[: len(least)] == least


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda path: path.stem)
def test_every_requirement_is_pinned(file: Path) -> None:
    lines = [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    loose = [
        line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+(; python_version < \"[\d.]+\")?", line)
    ]
    assert loose == []


def test_nothing_that_the_set_up_installed_is_unpinned() -> None:
    environment = os.environ.get("NETWARP_ENV", "")
    if not (ROOT / "requirements" / f"ros-{environment}.txt").exists():
        pytest.skip("not an environment with ROS 2 from PyPI: `make setup` in a shell without a sourced ROS 2")
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
