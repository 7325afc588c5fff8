# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark engines`` compares engines with PyTorch on the same frames. No time is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import run

from netwarp_ros.benchmarks.engines import REFERENCE, compare_engines
from netwarp_ros.models import DEFAULT_MODEL, load_model
from netwarp_ros.segmenter import Result, Stream

IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 36, 48, 3), dtype=np.uint8))
BFLOAT16 = {"engine": "torch", "precision": "bfloat16"}


def test_engines_are_compared_with_pytorch_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames take 3 ms in float32 and 1 ms in bfloat16, where NetWarp also changes the first row of the mask."""
    real = Stream.segment

    def timed(stream: Stream, image: np.ndarray, stamp_ns: int) -> Result:
        result, fast = real(stream, image, stamp_ns), stream.segmenter.precision == "bfloat16"
        result.stages_ms.update(prepare=0.0, flow=float(stream.segmenter.uses_netwarp), network=1.0 if fast else 3.0)
        mask = np.zeros_like(result.mask)
        mask[0] = fast and stream.segmenter.uses_netwarp
        return replace(result, mask=mask)

    monkeypatch.setattr(Stream, "segment", timed)
    unavailable = {"engine": "onnxruntime", "precision": "bfloat16"}
    results, notes = compare_engines(
        IMAGES, load_model(DEFAULT_MODEL), [unavailable, BFLOAT16, REFERENCE], passes=2, input_height=36
    )
    assert notes == ["engine onnxruntime: precision is bfloat16, it has float32"]
    reference, half = results
    assert (reference.engine, reference.precision, half.engine, half.precision) == (
        "torch", "float32", "torch", "bfloat16",
    )  # fmt: skip
    assert (reference.host_ms, reference.frame_ms, reference.p99_ms) == (3, 4, 4)
    assert (half.host_ms, half.frame_ms, half.p99_ms) == (1, 2, 2)
    assert (reference.overhead_percent, half.overhead_percent) == (pytest.approx(100 / 3), pytest.approx(100))
    assert (reference.speedup, half.speedup) == (1, 2)
    assert (reference.changed_percent, half.changed_percent) == (0, pytest.approx(100 / 36))


def test_an_image_cnn_is_refused() -> None:
    with pytest.raises(ValueError, match="ddrnet23slim-camvid is an image CNN"):
        compare_engines(IMAGES, load_model("ddrnet23slim-camvid"), [])


def test_the_command_writes_json_and_names_what_it_could_not_use(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, engines = tmp_path / "engines.json", "onnxruntime:bfloat16,torch:bfloat16"
    assert run("benchmark", "engines", "--engines", engines, "--frames", 2, "--passes", 1, "--json", file) == 0
    assert "engine onnxruntime: precision is bfloat16, it has float32" in capfd.readouterr().err
    written = json.loads(file.read_text())
    assert written["settings"]["model"] == DEFAULT_MODEL and written["settings"]["frames"] == 2
    assert written["not used"] == ["engine onnxruntime: precision is bfloat16, it has float32"]
    assert [result["precision"] for result in written["results"]] == ["float32", "bfloat16"]
    for result in written["results"]:
        assert result["host_ms"] > 0 and 0 < result["frame_ms"] <= result["p99_ms"] and result["speedup"] > 0
    assert [result["changed_percent"] < 5 for result in written["results"]] == [True, True]


@pytest.mark.parametrize("engines", ["openvino", "torch:float32:default:more"])
def test_engines_without_a_precision_are_refused(engines: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("benchmark", "engines", "--engines", engines) == 2
    assert f"engine {engines!r}: give NAME:PRECISION, such as openvino:float32" in capsys.readouterr().err
