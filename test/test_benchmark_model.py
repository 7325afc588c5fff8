# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark model`` compares a video CNN with its host on the same frames. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from netwarp_ros import cli
from netwarp_ros.benchmarks import model as benchmark
from netwarp_ros.models import DEFAULT_MODEL, load_model
from netwarp_ros.segmenter import Result, Stream

IMAGES = list(np.random.default_rng(0).integers(0, 256, (3, 36, 48, 3), dtype=np.uint8))


def test_overhead_is_the_median_ratio_without_first_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Stream.segment, []

    def timed(stream: Stream, image: np.ndarray, stamp_ns: int) -> Result:
        result = real(stream, image, stamp_ns)
        temporal = stream.segmenter.uses_netwarp
        seen.append((temporal, stamp_ns, result.reason))
        result.stages_ms.update(prepare=0.0, flow=1.0 if temporal else 0.0, network=3.0 + stamp_ns)
        return result

    monkeypatch.setattr(Stream, "segment", timed)
    result = benchmark.measure_overhead(IMAGES, load_model(DEFAULT_MODEL), passes=2, input_height=36)
    assert result.frames == 4  # two passes over the two frames that have one before them
    assert result.overhead_percent == pytest.approx(100 * ((6 / 5 + 7 / 6) / 2 - 1))
    assert result.stages_ms["host"] == {"prepare": 0.0, "flow": 0.0, "network": 5.5, "total": 5.5}
    assert result.stages_ms["netwarp"]["total"] == 6.5
    calls = seen[4:]  # after the warm-up of both
    assert [(temporal, stamp) for temporal, stamp, _ in calls] == 2 * [
        (temporal, stamp) for stamp in (1, 2, 3) for temporal in (False, True)
    ]
    assert [reason for temporal, _, reason in calls if temporal] == 2 * ["request", "", ""]


def test_an_image_cnn_and_a_single_frame_are_refused() -> None:
    with pytest.raises(ValueError, match="ddrnet23slim-camvid is an image CNN"):
        benchmark.measure_overhead(IMAGES, load_model("ddrnet23slim-camvid"))
    with pytest.raises(ValueError, match="1 images: give at least 2"):
        benchmark.measure_overhead(IMAGES[:1], load_model(DEFAULT_MODEL))


def test_the_command_writes_json(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["benchmark", "model", "--frames", "2", "--passes", "1", "--input-height", "36", "--json", str(file)])
    assert not end.value.code
    written = json.loads(file.read_text())
    assert (written["engine"], written["engine_problem"]) == ("torch", "")
    assert written["frames"] == 1 and written["settings"]["model"] == DEFAULT_MODEL
    assert written["stages_ms"]["host"]["flow"] == 0 < written["stages_ms"]["netwarp"]["flow"]  # the host has no flow
    host, video = (written["stages_ms"][name]["total"] for name in ("host", "netwarp"))
    assert written["overhead"] == pytest.approx(100 * (video / host - 1))
