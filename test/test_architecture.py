# SPDX-License-Identifier: Apache-2.0
"""The house of docs/architecture.md: what may import what, what a process loads, and how large a file may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from netwarp_ros.models import shipped_models

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "netwarp_ros"

MAY_IMPORT: dict[str, set[str]] = {
    "environment": set(),
    "resources": set(),
    "timing": set(),
    "mailbox": set(),
    "ops": set(),
    "flow": {"ops"},
    "metrics": set(),
    "street": set(),
    "view": set(),
    "classes": {"resources"},
    "recordings": {"classes", "resources"},
    "datasets": {"classes", "recordings", "street"},
    "models": {"classes", "ops", "resources"},
    "engines": {"models", "ops", "resources"},
    "rivals": {"engines", "models", "ops"},
    "segmenter": {"classes", "engines", "flow", "models", "ops", "resources", "rivals", "timing"},
    "offline": {"classes", "flow", "models", "recordings", "resources", "segmenter"},
    "training": {
        "classes", "datasets", "engines", "flow", "metrics", "models", "ops", "recordings", "resources", "segmenter",
    },
    "evaluation": {
        "classes", "engines", "flow", "mailbox", "metrics", "offline", "ops", "recordings", "resources", "segmenter",
        "timing",
    },
    "quantization": {"classes", "engines", "evaluation", "models", "recordings", "resources", "segmenter"},
    "benchmarks": {"engines", "evaluation", "flow", "models", "ops", "recordings", "rivals", "segmenter", "training"},
    "node": {
        "classes", "engines", "environment", "flow", "mailbox", "models", "msg", "ops", "recordings", "resources",
        "segmenter", "timing",
    },
    "node.tools": {
        "benchmarks", "classes", "environment", "evaluation", "metrics", "models", "msg", "node", "recordings",
        "resources", "segmenter", "street", "timing", "view",
    },
    "cli": {
        "benchmarks", "classes", "datasets", "engines", "environment", "evaluation", "flow", "models", "node.tools",
        "node", "offline", "quantization", "recordings", "resources", "segmenter", "street", "timing", "training",
    },
}  # fmt: skip
"""What each package, and each module beside the packages, may import of the others; the lowest come first."""

ROS = {"rclpy", "launch", "launch_ros", "ament_index_python", "cv_bridge", "diagnostic_updater"}

SEGMENT_NODE_LOADS = {
    "classes", "engines", "environment", "flow", "mailbox", "models", "msg", "node", "ops", "recordings.ego_masks",
    "recordings.image_codecs", "recordings.image_messages", "recordings.messages", "resources", "segmenter", "timing",
}  # fmt: skip
"""What the robot's process consists of."""

COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
"""PyTorch's compiler and the largest library that it needs."""

MOST_LINES, MOST_MODULES = 500, 8
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".js", ".css", ".html", ".jinja", ".sh")


def module_name(path: Path) -> str:
    """Return the full name of the module that a file of the package is."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} has a relative import: write the full name"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {member if member in MODULES else node.module for member in members}
    return names


def place(module: str) -> str:
    """Return the key of `MAY_IMPORT` that a module of this package belongs to."""
    parts = module.split(".")[1:]
    return "node.tools" if parts[:2] == ["node", "tools"] else parts[0] if parts else ""


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "netwarp_ros"}


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a process has loaded after a statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules, sep='\\n')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


def sources() -> Iterator[Path]:
    for folder in ("netwarp_ros", "csrc", "launch", "scripts", "studies", "test", "tools"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES)


def test_every_package_has_its_place() -> None:
    assert {place(module) for module in MODULES} - {"", "msg"} == set(MAY_IMPORT)


@pytest.mark.parametrize("key", MAY_IMPORT)
def test_imports_run_one_way(key: str) -> None:
    for module, path in MODULES.items():
        if place(module) == key:
            assert {place(name) for name in ours(imported(path))} - {key, ""} <= MAY_IMPORT[key], path


def test_the_order_has_no_circle() -> None:
    assert list(TopologicalSorter(MAY_IMPORT).static_order())


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: ours(imported(path)) - {module} for module, path in MODULES.items() if module != "netwarp_ros"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_only_the_node_imports_ros() -> None:
    for module, path in MODULES.items():
        if place(module) not in ("node", "node.tools", "msg"):
            roots = {name.split(".")[0] for name in imported(path)}
            messages = {root for root in roots if root.endswith(("_msgs", "_srvs", "_interfaces"))}
            assert not (roots & ROS) | messages, path


def test_importing_the_package_is_quick_and_free_of_ros() -> None:
    loaded = {name.split(".")[0] for name in loaded_by("import netwarp_ros; netwarp_ros.__version__")}
    assert not loaded & {*ROS, "torch", "cv2", "numpy"}


def test_the_exported_names_are_those_of_their_modules() -> None:
    import netwarp_ros
    from netwarp_ros.models import augment
    from netwarp_ros.segmenter import Segmenter, Stream

    assert (netwarp_ros.augment, netwarp_ros.Segmenter, netwarp_ros.Stream) == (augment, Segmenter, Stream)
    assert {*netwarp_ros.__all__} == {"Segmenter", "Stream", "augment", "__version__"} <= {*dir(netwarp_ros)}
    with pytest.raises(AttributeError, match="'netwarp_ros' has no attribute 'Segmentor'"):
        _ = netwarp_ros.Segmentor


@pytest.mark.ros
def test_the_robots_process_loads_what_it_needs_to_segment() -> None:
    loaded = loaded_by("import netwarp_ros.node.segment_node")
    for name in ours(loaded) - {"netwarp_ros", "netwarp_ros.recordings"}:
        inner = name.removeprefix("netwarp_ros.")
        assert {inner, inner.split(".")[0]} & SEGMENT_NODE_LOADS, name
        assert not inner.startswith("node.tools"), name
    assert not {name.split(".")[0] for name in loaded} & {"matplotlib", "av", "typer", "ray"}


@pytest.mark.parametrize("model", shipped_models())
def test_loading_and_segmenting_does_not_load_the_compiler(model: str) -> None:
    """PyTorch's compiler takes as long to import as PyTorch itself. Many functions of PyTorch import it."""
    loaded = loaded_by(f"from netwarp_ros import Segmenter; Segmenter({model!r}, engine='torch').warm_up()")
    assert "torch" in loaded and not COMPILER & loaded


def test_a_cached_engine_does_not_load_the_compiler(model: Path, tmp_path: Path) -> None:
    """What the robot's process needs is in the cache after its first start."""
    options = f"{str(model)!r}, engine='openvino', engine_cache={str(tmp_path)!r}"
    segmenter = f"from netwarp_ros import Segmenter; Segmenter({options})"
    assert COMPILER & loaded_by(segmenter)
    assert not COMPILER & loaded_by(segmenter)


def test_building_a_host_to_load_its_weights_does_not_load_the_compiler() -> None:
    hosts = "from netwarp_ros.models.hosts import HOSTS; import torch"
    loaded = loaded_by(f"{hosts}\nwith torch.device('meta'): [host(num_classes=11) for host in HOSTS.values()]")
    assert "torch" in loaded and not COMPILER & loaded


def test_the_architecture_shows_in_one_look() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_MODULES


def test_no_file_is_too_long_to_read() -> None:
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_nothing_unpickles() -> None:
    """No module imports pickle, and every torch.load is told to load weights only."""
    for path in MODULES.values():
        assert not {"pickle", "joblib", "dill"} & {name.split(".")[0] for name in imported(path)}, path
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(call), path
