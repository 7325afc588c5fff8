# SPDX-License-Identifier: Apache-2.0
"""The YAML files of trainings: what they may say, and what the errors name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from netwarp_ros.training.config import (
    CamVidConfig,
    ClipConfig,
    ModelConfig,
    NetWarpConfig,
    OptimiserConfig,
    StreetConfig,
    TrainingConfig,
    difference,
    load_config,
)

LEAST = {"model": {"host": "h"}, "data": [{"kind": "camvid", "root": "x"}]}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_config_takes_what_is_given_and_defaults_the_rest(tmp_path: Path) -> None:
    content = {
        "model": {"initial": "m", "netwarp": {"layers": ["a", "b"]}},
        "data": [{"kind": "camvid", "root": "x", "per_batch": 3, "names": ["0*"]}, {"kind": "street", "rate": 15}],
        "clip": {"length": 2},
        "optimiser": {"rate": 1, "steps": 7},
        "device": "cuda",
    }
    assert load_config(write(tmp_path, content)) == TrainingConfig(
        model=ModelConfig(initial="m", netwarp=NetWarpConfig(("a", "b"))),
        data=(CamVidConfig(root="x", per_batch=3, names=("0*",)), StreetConfig(rate=15.0)),
        clip=ClipConfig(length=2),
        optimiser=OptimiserConfig(rate=1.0, steps=7),
        device="cuda",
    )
    assert load_config(write(tmp_path, content)).batch == 4


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "config" / "training").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(path).output == f"out/training/{path.stem}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {"step": 3}}, r"unknown key optimiser\.step; did you mean optimiser\.steps\?"),
        ({"zebra": 3}, "unknown key zebra; known are model, data"),
        ({"optimiser": {"steps": 0}}, r"optimiser\.steps is 0, must be at least 1"),
        ({"optimiser": {"steps": True}}, r"optimiser\.steps is True, must be of type int"),
        ({"optimiser": {"rate": "1e-3"}}, r"optimiser\.rate is '1e-3', must be of type float; .* write 1\.0e-3"),
        ({"optimiser": {"rate": float("nan")}}, r"optimiser\.rate is nan, must be from 0\.0 to 1\.0"),
        ({"augment": {"min_scale": 0.05}}, r"augment\.min_scale is 0\.05, must be from 0\.1 to 8\.0"),
        (
            {"augment": {"min_scale": 2.5}},
            r"augment\.min_scale is 2\.5, must be at most augment\.max_scale, which is 2",
        ),
        ({"precision": "float64"}, "precision is 'float64', must be one of float32, bfloat16, float16"),
        ({"precision": "float16"}, "precision is float16, which CPUs compute slowly"),
        ({"loss": 3}, "loss is 3, must be a mapping with class_balance"),
        ({"model": {}}, "model: give one of host, .* and initial"),
        ({"model": {"host": "a", "initial": "b"}}, "model: give one of host, .* and initial"),
        ({"model": {"host": 3}}, r"model\.host is 3, must be of type str"),
        ({"model": {"host": "a", "netwarp": {}}}, r"model\.netwarp\.layers is missing"),
        (
            {"model": {"host": "a", "netwarp": {"layers": "b"}}},
            r"model\.netwarp\.layers is 'b', must be a list of name",
        ),
        ({"model": {"host": "a", "netwarp": {"layers": ["b"], "remember": "all"}}}, r"must be one of before, after"),
        ({"data": {"kind": "camvid"}}, r"data is {'kind': 'camvid'}, must be a list of sources"),
        ({"data": []}, "data is empty"),
        ({"data": [{"root": "x"}]}, r"data\[0\] is .* whose kind is one of camvid, cityscapes, folder, bag, street"),
        ({"data": [{"kind": "camvid"}]}, r"data\[0\]\.root is missing"),
        ({"data": [{"kind": "street", "seed": 3}]}, r"unknown key data\[0\]\.seed; did you mean data\[0\]\.seeds\?"),
        ({"validation": [{"kind": "cityscapes", "root": "x", "split": "test"}]}, r"validation\[0\]\.split is 'test'"),
        ({"clip": {"loss_on": "all-but-first"}}, r"clip\.loss_on is all-but-first, but clip\.length is 1"),
    ],
)
def test_config_errors_name_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, {**LEAST, **changes}))


def test_config_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the configuration is None, must be a mapping"):
        load_config(write(tmp_path, None))
    (tmp_path / "broken.yaml").write_text("data: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
        load_config(tmp_path / "broken.yaml")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"output": "elsewhere", "workers": 5, "validation": [{"kind": "street"}]}, None),
        ({"optimiser": {"rate": 0.5}}, "optimiser.rate is 0.002 instead of 0.5"),
        ({"model": {"host": "h", "netwarp": {"layers": ["a"]}}}, "model.netwarp is None instead of {'layers': ('a',)"),
        ({"data": [{"kind": "camvid", "root": "y"}]}, "data[0].root is 'x' instead of 'y'"),
        ({"data": [{"kind": "street"}]}, "data[0].per_batch"),
        ({"data": [*LEAST["data"], {"kind": "street"}]}, "data is ("),
    ],
)
def test_what_differs_between_two_configurations(tmp_path: Path, changes: dict[str, Any], expected: str | None) -> None:
    one, other = (
        dataclasses.asdict(load_config(write(tmp_path, content))) for content in (LEAST, {**LEAST, **changes})
    )
    found = difference(one, other)
    assert found is None if expected is None else found is not None
    if expected and not expected.startswith("data[0].per_batch"):
        assert str(found).startswith(expected)
