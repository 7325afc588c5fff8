# SPDX-License-Identifier: Apache-2.0
"""The operator library for pip; everything else about the package is in pyproject.toml.

csrc/CMakeLists.txt builds the library here as in colcon's build. Where that fails, because CMake, a compiler or PyTorch
is missing, the package is installed without the library and uses plain PyTorch instead.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent


class CMakeBuild(build_ext):
    """Builds the library with CMake and installs it into netwarp_ros/ops."""

    def get_ext_filename(self, fullname: str) -> str:
        """Return a name without a Python version: the library is not a Python module."""
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
            logging.warning("the operator is not built, the package will use plain PyTorch: %s", error)


setup(
    ext_modules=[Extension("netwarp_ros.ops.libnetwarp_ops", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
