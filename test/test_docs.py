# SPDX-License-Identifier: Apache-2.0
"""Names and defaults in the documents are those in the code."""

from __future__ import annotations

import ast
import importlib
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from netwarp_ros.datasets.camvid import ORIGINAL_COLORS
from netwarp_ros.evaluation.results import EvaluationResults
from netwarp_ros.models import NetWarpSpec
from netwarp_ros.training.config import (
    AugmentConfig,
    ClipConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    SourceConfig,
    TrainingConfig,
)

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def rows(document: str) -> dict[str, str]:
    """Return the second cell of each table row whose first is a name in backticks."""
    lines = (ROOT / "docs" / document).read_text(encoding="utf-8").splitlines()
    return {match[1]: match[2].strip("` ") for line in lines if (match := re.match(r"\| `(\w+)` \| ([^|]*)\|", line))}


@pytest.mark.ros
@pytest.mark.parametrize(
    "kind", ["segment_node.SegmentParameters", "diagnostics.Thresholds", "replay_node.ReplayParameters"]
)
def test_every_parameter_is_documented_with_its_default(kind: str) -> None:
    documented = rows("node.md")
    module, name = kind.split(".")
    for parameter in fields(getattr(importlib.import_module(f"netwarp_ros.node.{module}"), name)):
        default, text = parameter.default, documented[parameter.name]
        if isinstance(default, tuple):
            assert tuple(ast.literal_eval(text)) == default
        else:
            assert text == (str(default).lower() if isinstance(default, bool) else str(default)), parameter.name


def test_every_key_of_a_recipe_is_documented_with_its_default() -> None:
    documented = rows("training.md")
    sections = (ModelConfig, NetWarpSpec, SourceConfig, ClipConfig, AugmentConfig, LossConfig, OptimiserConfig)
    for section in (*sections, TrainingConfig):
        for key in fields(section):
            if key.default_factory is MISSING and key.name not in ("model", "data", "validation"):  # no section
                shown = {MISSING: "needed", (): "[]"}.get(key.default, str(key.default))
                assert documented[key.name] == (shown.lower() if key.default in (True, False, None) else shown), key


def test_every_key_of_results_is_documented() -> None:
    text = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("evaluation.md", "metrics.md"))
    keys = [field.name for field in fields(EvaluationResults) if field.name != "records"]
    assert [key for key in (*keys, "per_frame", "damage", "settings", "inputs") if f"`{key}`" not in text] == []


def test_the_32_classes_of_camvid_are_documented_with_their_colours() -> None:
    documented = {}
    for line in (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (\d+) \| \w+ \| (.*) \|", line):
            for name, *color in re.findall(r"(\w+) \((\d+) (\d+) (\d+)\)", row[2]):
                documented[tuple(map(int, color))] = name, int(row[1])
    assert documented == ORIGINAL_COLORS


def anchors(document: Path) -> set[str]:
    """Return the anchors of a page's headings, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_link_targets_exist(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", document.read_text(encoding="utf-8")):
        path = document.parent / target if target else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in DOCUMENTS:
        named = re.findall(r"(?:\$ |`|ROS=\w+ )make ([\w-]+)", document.read_text(encoding="utf-8"))
        assert set(named) <= targets, document
