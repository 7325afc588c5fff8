# SPDX-License-Identifier: Apache-2.0
# `. tools/env.sh` puts a shell (bash or zsh) into the environment that `make setup` made: the Python virtual
# environment, ROS 2 and the built workspace.
#
#   ROS=jazzy|kilted   the ROS 2 from PyPI to use (default jazzy)
#
# If a ROS 2 installation is sourced already (ROS_DISTRO is set), that one is used instead of PyPI's. It sets:
#
#   NETWARP_ENV      jazzy, kilted, or <distro>-sourced: the name of this environment and its build
#   NETWARP_VENV     its virtual environment
#   NETWARP_PREFIX   the folder that colcon installs the workspace into

_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"

_env="${ROS:-${NETWARP_ENV:-jazzy}}"
if [ -n "${ROS_DISTRO:-}" ] && [ "${NETWARP_ENV:-$ROS_DISTRO-sourced}" = "$ROS_DISTRO-sourced" ]; then
    if [ "${ROS:-$ROS_DISTRO}" != "$ROS_DISTRO" ]; then
        echo "tools/env.sh: ROS=$ROS, but ROS 2 $ROS_DISTRO is sourced: leave ROS out, or use a shell where it is not sourced" >&2
        return 1
    fi
    _env="$ROS_DISTRO-sourced"
elif [ "${NETWARP_ENV:-$_env}" != "$_env" ]; then
    echo "tools/env.sh: ROS=$_env, but this shell is in the environment $NETWARP_ENV: use another shell" >&2
    return 1
elif [ ! -e "$_root/requirements/ros-$_env.txt" ]; then
    echo "tools/env.sh: ROS=$_env is unknown: give jazzy or kilted, or source a ROS 2 installation" >&2
    return 1
fi

export NETWARP_ENV="$_env"
export NETWARP_VENV="$_root/.venv-$_env"
[ "$_env" = jazzy ] && NETWARP_VENV="$_root/.venv"
export NETWARP_PREFIX="$_root/install/$_env"

export VIRTUAL_ENV="$NETWARP_VENV"
export PATH="$NETWARP_VENV/bin:$PATH"
# `python -m` must import the installed package, which has the messages, and not the source tree in the current folder.
export PYTHONSAFEPATH=1
# Do not exchange messages with robots on the same network.
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"

case "$_env" in
*-sourced) ;;
*)
    export ROS_DISTRO="$_env"
    export AMENT_PREFIX_PATH="$NETWARP_VENV"
    export CMAKE_PREFIX_PATH="$NETWARP_VENV"
    # The ROS wheels start every Python a second time to set this path, unless the variable after it says that it is set.
    _libs="$(find "$NETWARP_VENV/lib" -maxdepth 3 -name 'ros_*.libs' -printf ':%p' 2>/dev/null || true)"
    export LD_LIBRARY_PATH="$NETWARP_VENV/lib$_libs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
    ;;
esac

if [ -e "$NETWARP_PREFIX/local_setup.sh" ]; then
    COLCON_CURRENT_PREFIX="$NETWARP_PREFIX" . "$NETWARP_PREFIX/local_setup.sh"
elif [ "${0##*/}" != setup.sh ]; then
    echo "tools/env.sh: nothing is built for $_env yet: run \`make setup\`, then source this again" >&2
fi
unset _root _env _libs
