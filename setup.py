# SPDX-License-Identifier: Apache-2.0
"""pip's build of the Python package that CMakeLists.txt builds for colcon; it has no messages, so it runs no node.

The operator's library is built by csrc/CMakeLists.txt either way. Where that fails, for want of CMake, a compiler or
PyTorch, the package is installed without it, and plain PyTorch serves in its place.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
MANIFEST = ElementTree.parse(HERE / "package.xml").getroot()


class CMakeBuild(build_ext):
    """Has CMake build the library and install it into netwarp_ros/ops."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library is not a Python module, so its name has no Python version in it."""
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).absolute()
        destination = Path(self.get_ext_fullpath(ext.name)).absolute().parent
        try:
            for arguments in (
                ["-S", str(HERE / "csrc"), "-B", str(build), f"-DPython3_EXECUTABLE={sys.executable}"],
                ["--build", str(build), "--config", "Release", "--parallel"],
                ["--install", str(build), "--config", "Release", "--prefix", str(destination)],
            ):
                subprocess.run(["cmake", *arguments], check=True)  # noqa: S607 - the cmake of the build environment
        except (OSError, subprocess.CalledProcessError) as error:
            logging.warning("the operator is not built, plain PyTorch will serve in its place: %s", error)


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
    package_data={
        "netwarp_ros": ["weights/*.safetensors", "evaluation/report/*.jinja", "view/page.*"],
        "netwarp_ros.config": ["**/*.yaml", "*.rviz", "*.json", "*.xml"],
    },
    ext_modules=[Extension("netwarp_ros.ops.libnetwarp_ops", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
    entry_points={"console_scripts": ["netwarp=netwarp_ros.cli:main"]},
    install_requires=[
        "imageio-ffmpeg",
        "numpy",
        "opencv-contrib-python-headless",
        "PyYAML",
        "rich",
        "rosbags",
        "safetensors",
        "torch>=2.10",
        "tqdm",
        "typer",
    ],
    extras_require={
        "plot": ["jinja2", "matplotlib"],
        "ray": ["ray"],
        "train": ["tensorboard"],
        "view": ["starlette", "uvicorn"],
    },
)
