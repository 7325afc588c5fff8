# SPDX-License-Identifier: Apache-2.0
"""Imports run one way (docs/architecture.md), and ROS stays in its corner."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import netwarp_ros.ops

PACKAGE = Path(netwarp_ros.ops.__file__).parent.parent
ROS = {"rclpy", "launch", "launch_ros", "ament_index_python", "cv_bridge", "diagnostic_updater"}
MAY_IMPORT = {
    "ops": set(),
    "classes": {"resources"},
    "models": {"ops", "classes"},
    "flow": set(),
    "metrics": set(),
    "data": {"classes", "resources"},
    "segmenter": {"models", "flow"},
}


def imports(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules(part: str) -> list[Path]:
    return sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    for path in modules(part):
        ours = {name.split(".")[1] for name in imports(path) if name.startswith("netwarp_ros.")}
        assert ours - {part} <= MAY_IMPORT[part], path


def test_only_the_node_imports_ros() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in ("node", "msg"):
            roots = {name.split(".")[0] for name in imports(path)}
            messages = {root for root in roots if root.endswith("_msgs")}
            assert not (roots & ROS) | messages, path


def test_nothing_unpickles() -> None:
    """No module imports pickle, and every torch.load is told to load weights only."""
    for path in PACKAGE.rglob("*.py"):
        assert not {"pickle", "joblib", "dill"} & {name.split(".")[0] for name in imports(path)}, path
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(call), path
