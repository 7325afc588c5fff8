# SPDX-License-Identifier: Apache-2.0
"""Point the CMake exports of the ROS 2 wheels in this environment at this interpreter.

The wheels' CMake files name the Python of the machine that built them (`/opt/python/cp311-cp311/...`), and CMake
refuses include folders that do not exist. Run this with the environment's own interpreter after installing the wheels.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

BUILDER = r"/opt/python/cp3\d+-cp3\d+"
HERE = (
    (rf"{BUILDER}/lib/python3\.\d+/site-packages", sysconfig.get_path("purelib")),
    (rf"{BUILDER}/include/python3\.\d+", sysconfig.get_path("include")),
    (BUILDER, sys.base_prefix),
)


def main() -> None:
    """Rewrite every text file of the environment's share/ that names the builder's Python."""
    for path in Path(sys.prefix, "share").rglob("*"):
        if not path.is_file() or b"/opt/python/cp3" not in (content := path.read_bytes()):
            continue
        text = content.decode()
        for builder, here in HERE:
            text = re.sub(builder, here, text)
        path.write_text(text)


if __name__ == "__main__":
    main()
