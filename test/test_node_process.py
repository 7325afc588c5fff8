# SPDX-License-Identifier: Apache-2.0
"""How the process of a node starts: its environment, signals before its modules are imported, and its ROS arguments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from ament_index_python.packages import get_package_prefix
from graph import PYTHON

from netwarp_ros.node import process
from netwarp_ros.node.process import ros_process

pytestmark = pytest.mark.ros

VARIABLES = ("GOMP_SPINCOUNT", "OPENCV_IO_MAX_IMAGE_PIXELS")
BARE = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "OMP_WAIT_POLICY")}

# Does something at the moment when the program first imports ROS, PyTorch or OpenCV.
AT_FIRST_IMPORT = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in ("rclpy", "torch", "cv2"):
            {action}
sys.meta_path.insert(0, Finder())
runpy.{run}({program!r}, run_name="__main__")
"""


def at_first_import(program: str, action: str) -> subprocess.CompletedProcess[str]:
    """Run the module or the executable of a node, until it imports something large."""
    if program.startswith("netwarp_ros."):
        run = "run_module"
    else:
        run, program = "run_path", str(Path(get_package_prefix("netwarp_ros"), "lib", "netwarp_ros", program))
    code = AT_FIRST_IMPORT.format(action=action, run=run, program=program)
    return subprocess.run([*PYTHON, "-c", code], env=BARE, capture_output=True, text=True, timeout=100)


MODULES = [f"netwarp_ros.node.{name}" for name in ("segment_node", "replay_node", "lifecycle")]
NODES = pytest.mark.parametrize("program", ["segment_node", "replay_node", *MODULES])


@NODES
def test_a_node_configures_the_libraries_before_it_imports_them(program: str) -> None:
    action = f"print(*map(os.environ.get, {VARIABLES})); sys.stdout.flush(); os._exit(0)"
    assert at_first_import(program, action).stdout == f"1000 {8192**2}\n"


@NODES
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_node_imports_its_modules_ends_it_quietly(program: str, number: signal.Signals) -> None:
    ended = at_first_import(program, f"os.kill(os.getpid(), {int(number)})")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_signal_while_ros_starts_ends_a_program_quietly() -> None:
    code = """
import os, signal, rclpy
from netwarp_ros.node.process import ros_process
rclpy.init = lambda: os.kill(os.getpid(), signal.SIGTERM)
with ros_process("node"):
    print("the body")
"""
    ended = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_a_signal_while_the_executor_makes_a_task_ends_a_program_quietly() -> None:
    code = """
import os, signal
from rclpy import task
from netwarp_ros.node.process import ros_process
task.Future.__init__ = lambda *_arguments, **_named: os.kill(os.getpid(), signal.SIGTERM)
with ros_process("node"):
    task.Task(print)
"""
    ended = subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, timeout=100)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_importing_the_nodes_does_not_configure_the_libraries() -> None:
    code = f"""
import os
import netwarp_ros.node.segment_node, netwarp_ros.node.replay_node
print(*map(os.environ.get, {VARIABLES}))
"""
    assert subprocess.check_output([*PYTHON, "-c", code], env=BARE, text=True) == "None None\n"


@pytest.mark.parametrize(
    ("content", "arguments", "problem"),
    [
        ("a: {ros__parameters: {cameras: [front", ["--params-file", "{file}"], "'--params-file {file}'"),
        ("a: {ros__parameters: {cameras: [front, 1]}}", ["--params-file", "{file}"], "'--params-file {file}'"),
        ("", ["--params-file", "absent.yaml"], "'--params-file absent.yaml'. Error: Error opening YAML file"),
        ("", ["-p", "max_gap"], "'-p max_gap'"),
        ("", ["-r", "__ns:=/a-b"], "'-r __ns:=/a-b'"),
        ("", ["--log-level", "loud"], "'--log-level loud'. Error: Argument does not use a valid severity level"),
        ("", ["--parms"], "UnknownROSArgsError: ['--parms']"),
    ],
)
def test_ros_arguments_that_ros_refuses_give_one_line(
    ros_domain: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    content: str,
    arguments: list[str],
    problem: str,
) -> None:
    file = tmp_path / "parameters.yaml"
    file.write_text(content)
    monkeypatch.setattr(sys, "argv", ["segment_node", "--ros-args", *(part.format(file=file) for part in arguments)])
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended, ros_process("segment_node"):
        pytest.fail("ROS must refuse its arguments")
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("segment_node: ROS cannot start: ")
    assert problem.format(file=file) in message and ".c:" not in message
    assert message.endswith("Correct the arguments after --ros-args, or the environment.\n")
    assert message.count("\n") == 1
    assert not rclpy.ok() and signal.getsignal(signal.SIGINT) is handler


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Set the handlers again: after a signal, `ros_process` leaves signals ignored, which later processes inherit."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signal_handlers")
def test_the_signal_thread_of_rclpy_ends_before_what_it_uses(ros_domain: int, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(process, "uninstall_signal_handlers", lambda: order.append("thread"))
    with ros_process("node"):
        node = rclpy.create_node("node")
        monkeypatch.setattr(node, "destroy_node", lambda: order.append("node"))
        with process.executing(node):
            os.kill(os.getpid(), signal.SIGINT)
    assert order[0] == "thread" and set(order[1:]) == {"node"}  # Kilted's rclpy may destroy the node once more
