# SPDX-License-Identifier: Apache-2.0
"""The YAML files of trainings: their keys, and their errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from netwarp_ros.models import NetWarpSpec
from netwarp_ros.training.config import (
    CamVidConfig,
    ClipConfig,
    ModelConfig,
    OptimiserConfig,
    StreetConfig,
    TrainingConfig,
    difference,
    load_config,
)

LEAST = {"model": {"host": "h"}, "data": [{"kind": "camvid", "root": "x"}]}
LOSSES = "class_balance, lovasz, auxiliary, consistency, distillation"


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
        model=ModelConfig(initial="m", netwarp=NetWarpSpec(("a", "b"))),
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
        ({"optimiser": {"step": 3}}, r": optimiser has the unknown key step: did you mean steps\?"),
        ({"zebra": 3}, " has the unknown key zebra: give model, data, .*, evaluate_every"),
        ({7: 3}, " has the unknown key 7: give model, data, .*, evaluate_every"),
        ({"optimiser": {"steps": 0}}, r": optimiser\.steps is 0, must be greater than or equal to 1"),
        ({"optimiser": {"steps": True}}, r": optimiser\.steps is True, must be a valid integer"),
        ({"optimiser": {"steps": 3.0}}, r": optimiser\.steps is 3\.0, must be a valid integer"),
        (
            {"optimiser": {"rate": "1e-3"}},
            r": optimiser\.rate is '1e-3', must be a valid number; YAML reads 1e-3 as text, write 1\.0e-3",
        ),
        ({"optimiser": {"rate": True}}, r": optimiser\.rate is True, must be a valid number"),
        ({"optimiser": {"rate": float("nan")}}, r": optimiser\.rate is nan, must be less than or equal to 1"),
        ({"augment": {"min_scale": 0.05}}, r": augment\.min_scale is 0\.05, must be greater than or equal to 0\.1"),
        ({"augment": {"min_scale": 2.5}}, r": augment: min_scale is 2\.5, must be at most max_scale, which is 2\.0"),
        ({"precision": "float64"}, ": precision is 'float64', must be 'float32', 'bfloat16' or 'float16'"),
        (
            {"precision": "float16"},
            ": precision is float16, which CPUs compute slowly: give bfloat16 or float32",
        ),
        ({"loss": 3}, f": loss is 3, must be a mapping with {LOSSES}"),
        ({"loss": None}, f": loss is None, must be a mapping with {LOSSES}"),
        ({"model": {}}, ": model: give either host, for random weights, or initial, a model to start from"),
        ({"model": {"host": "a", "initial": "b"}}, ": model: give either host, for random weights, or initial, a .*"),
        ({"model": {"host": 3}}, r": model\.host is 3, must be a valid string"),
        ({"model": {"host": "a", "train_host": 1}}, r": model\.train_host is 1, must be a valid boolean"),
        ({"model": {"host": "a", "netwarp": {}}}, r": model\.netwarp\.layers is missing"),
        ({"model": {"host": "a", "netwarp": {"layers": "b"}}}, r": model\.netwarp\.layers is 'b', must be a list"),
        (
            {"model": {"host": "a", "netwarp": {"layers": [3]}}},
            r": .*\.layers\[0\] is 3, must be a valid string",
        ),
        (
            {"model": {"host": "a", "netwarp": {"layers": ["b"], "remember": "all"}}},
            r": model\.netwarp\.remember is 'all', must be 'before' or 'after'",
        ),
        ({"data": {"kind": "camvid"}}, r": data is {'kind': 'camvid'}, must be a list"),
        ({"data": []}, r": data is \[\], must have at least 1 item, not 0"),
        (
            {"data": [{"root": "x"}]},
            r": data\[0\] is {'root': 'x'}, must be a mapping whose kind is one of camvid, .*, street",
        ),
        ({"data": [3]}, r": data\[0\] is 3, must be a mapping whose kind is one of camvid, .*"),
        ({"data": [{"kind": "camvid"}]}, r": data\[0\]\.root is missing"),
        (
            {"data": [{"kind": "street", "per_batch": 10**12}]},
            r": data\[0\]\.per_batch is 10{12}, must be less than or equal to 1024",
        ),
        (
            {"data": [{"kind": "street", "seeds": 10**12}]},
            r": data\[0\]\.seeds is 10{12}, must be less than or equal to 10000",
        ),
        ({"augment": {"width": 10**6}}, r": augment\.width is 1000000, must be less than or equal to 8192"),
        ({"optimiser": {"steps": 10**12}}, r": optimiser\.steps is 10{12}, must be less than or equal to 1000000000"),
        ({"data": [{"kind": "street", "seed": 3}]}, r": data\[0\] has the unknown key seed: did you mean seeds\?"),
        (
            {"validation": [{"kind": "street"}, {"kind": "cityscapes", "root": "x", "split": "test"}]},
            r": validation\[1\]\.split is 'test', must be 'train' or 'val'",
        ),
        ({"clip": {"loss_on": "all-but-first"}}, r": clip: loss_on is all-but-first, but length is 1: give .*"),
    ],
)
def test_config_errors_name_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"training\.yaml{message}$"):
        load_config(write(tmp_path, {**LEAST, **changes}))


def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.yaml is None, must be a mapping with model, data, "):
        load_config(write(tmp_path, None))
    (tmp_path / "broken.yaml").write_text("data: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML: while parsing a flow node .*$"):
        load_config(tmp_path / "broken.yaml")
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"output": "elsewhere", "workers": 5, "validation": [{"kind": "street"}]}, None),
        ({"optimiser": {"rate": 0.5}}, "optimiser.rate is 0.002 instead of 0.5"),
        ({"model": {"host": "h", "netwarp": {"layers": ["a"]}}}, "model.netwarp is None instead of {'layers': ('a',)"),
        ({"data": [{"kind": "camvid", "root": "y"}]}, "data[0].root is 'x' instead of 'y'"),
        ({"data": [{"kind": "street"}]}, "data[0].kind is 'camvid' instead of 'street'"),
        ({"data": [*LEAST["data"], {"kind": "street"}]}, "data is ("),
    ],
)
def test_the_first_difference_is_named(tmp_path: Path, changes: dict[str, Any], expected: str | None) -> None:
    one, other = (
        dataclasses.asdict(load_config(write(tmp_path, content))) for content in (LEAST, {**LEAST, **changes})
    )
    text = difference(one, other)
    assert text is None if expected is None else str(text).startswith(expected)
