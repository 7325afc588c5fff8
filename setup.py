# SPDX-License-Identifier: Apache-2.0
"""pip's build of the Python package that CMakeLists.txt builds for colcon; it has no messages, so it runs no node."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

HERE = Path(__file__).parent
MANIFEST = ElementTree.parse(HERE / "package.xml").getroot()

setup(
    name=MANIFEST.findtext("name"),
    version=MANIFEST.findtext("version"),
    description=" ".join((MANIFEST.findtext("description") or "").split()),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license=MANIFEST.findtext("license"),
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # config/ lies beside the package in the tree and inside it once installed, where netwarp_ros.resources finds it.
    packages=[*find_packages(include=["netwarp_ros", "netwarp_ros.*"]), "netwarp_ros.config"],
    package_dir={"netwarp_ros.config": "config"},
    package_data={"netwarp_ros": ["weights/*.safetensors"], "netwarp_ros.config": ["**/*.yaml"]},
    entry_points={"console_scripts": ["netwarp=netwarp_ros.cli:main"]},
    install_requires=[
        "imageio-ffmpeg",
        "numpy",
        "opencv-contrib-python",
        "PyYAML",
        "rich",
        "rosbags",
        "rosbags-image",
        "safetensors",
        "torch>=2.10",
        "tqdm",
        "typer",
    ],
)
