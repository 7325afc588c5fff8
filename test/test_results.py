# SPDX-License-Identifier: Apache-2.0
"""Results written as JSON and CSV."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netwarp_ros.evaluation.result_files import FramesFile, FrameSpool, write_csv, write_json
from netwarp_ros.evaluation.results import EvaluationResults, FrameCounts, FrameRecord, Scores, dense, sparse

NAN = math.nan


def scores(**changes: Any) -> dict[str, Any]:
    values = {
        "miou": 50.0,
        "iou": {"sky": NAN, "road": 50.0},
        "miiou": NAN,
        "iiou": {"road": 40.0},
        "tiou": {2: NAN},
        "tc": NAN,
        "tc_unmasked": 80.0,
        "flicker": {"sky": NAN, "road": 12.0},
        "vc": {8: 70.0, 16: NAN},
    }
    return {**values, **changes}


def record(name: str = "f0", **changes: Any) -> FrameRecord:
    return FrameRecord(name=name, camera="", stamp_ns=7, stages_ms={"flow": 1.00049, "network": 2.0}, **changes)


def results(records: list[FrameRecord], host: Scores | None = None) -> EvaluationResults:
    return EvaluationResults(
        **scores(),
        frames=len(records),
        labelled=1,
        host=host,
        disagreement=NAN,
        stages_ms={"flow": {"p50": 1.0}},
        fps=9.0,
        resets={"gap": 1},
        dropped={},
        latency_ms={},
        age_ms={"p50": NAN},
        wall_s={"reading": 0.5, "segmenting": 9.5},
        records=records,
    )


def test_results_as_json_have_no_nan(tmp_path: Path) -> None:
    counts = np.array([[0, 5], [7, 0]], np.int32)
    records = [
        record("f0", reason="first frame", labelled=True, miou=0.0),
        record("f1", tc=0.0, disagreement=3.5, wait_ms=1.0, age_ms=4.0, host_miou=30.0),
    ]
    counts_of = [FrameCounts(confusion=counts, trimap={2: counts}), FrameCounts(consistency=counts, unmasked=counts)]
    file = tmp_path / "deep" / "scores.json"
    frames = [one.to_json(of_frame) for one, of_frame in zip(records, counts_of, strict=True)]
    head = {**results(records, Scores(**scores(miou=40.0))).to_json(), "settings": {"model": "small"}}
    write_json(file, head, frames)
    head = {"generator": "written by netwarp evaluate", **json.loads(json.dumps(head))}
    assert FramesFile(file).head == head and list(FramesFile(file).frames()) == frames
    for one, frame in zip(records, frames, strict=True):
        again = FrameRecord.from_json(frame, 2)
        assert repr(again) == repr(dataclasses.replace(one, stages_ms={"flow": 1.0, "network": 2.0}))
    plain = {
        "miou": 50,
        "iou": {"sky": None, "road": 50},
        "miiou": None,
        "iiou": {"road": 40},
        "tiou": {"2": None},
        "tc": None,
        "tc_unmasked": 80,
        "flicker": {"sky": None, "road": 12},
        "vc": {"8": 70, "16": None},
    }
    common = {"camera": "", "stamp_ns": 7, "stages_ms": {"flow": 1.0, "network": 2.0}}
    assert json.loads(file.read_text()) == {
        "generator": "written by netwarp evaluate",
        "frames": 2,
        "labelled": 1,
        **plain,
        "host": {**plain, "miou": 40},
        "disagreement": None,
        "stages_ms": {"flow": {"p50": 1}},
        "key_frames": 2,
        "fps": 9,
        "resets": {"gap": 1},
        "dropped": {},
        "latency_ms": {},
        "age_ms": {"p50": None},
        "wall_s": {"reading": 0.5, "segmenting": 9.5},
        "share": 95,
        "settings": {"model": "small"},
        "per_frame": [
            {
                "name": "f0",
                **common,
                "reason": "first frame",
                "is_key": True,
                "wait_ms": 0,
                "age_ms": None,
                "disagreement": None,
                "confusion": [1, 5, 2, 7],
                "tiou": {"2": [1, 5, 2, 7]},
                "tc": None,
                "tc_unmasked": None,
                "host_miou": None,
                "host_tc": None,
            },
            {
                "name": "f1",
                **common,
                "reason": "",
                "is_key": True,
                "wait_ms": 1,
                "age_ms": 4,
                "disagreement": 3.5,
                "confusion": None,
                "tiou": {},
                "tc": [1, 5, 2, 7],
                "tc_unmasked": [1, 5, 2, 7],
                "host_miou": 30,
                "host_tc": None,
            },
        ],
    }


def test_results_without_frames_are_json_too(tmp_path: Path) -> None:
    write_json(tmp_path / "scores.json", results([]).to_json(), [])
    assert json.loads((tmp_path / "scores.json").read_text())["per_frame"] == []
    assert list(FramesFile(tmp_path / "scores.json").frames()) == []


def test_a_file_that_was_written_again_is_read_as_well(tmp_path: Path) -> None:
    file, frames = tmp_path / "scores.json", [{"name": "f0"}, {"name": "f1"}]
    for indent in (None, 1, 4):
        file.write_text(json.dumps({"per_frame": frames, "miou": 50}, indent=indent))
        again = FramesFile(file)
        assert again.head == {"miou": 50} and list(again.frames()) == frames


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    write_json(file, {"miou": 50}, [{"name": "f0"}, {"name": "f1"}])
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-2]))
    with pytest.raises(ValueError, match="the file is cut off"):
        list(FramesFile(file).frames())
    file.write_text("".join(lines[:-3]) + '    {"name": "f')
    with pytest.raises(ValueError, match="Unterminated string"):
        list(FramesFile(file).frames())


def test_frames_wait_in_a_file_without_a_name(tmp_path: Path) -> None:
    with FrameSpool(tmp_path) as spool:
        for index in range(3):
            spool.add({"name": f"f{index}"})
        assert list(tmp_path.iterdir()) == []
        assert [frame["name"] for frame in spool] == ["f0", "f1", "f2"]


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "frames.csv"
    file.write_text("name,camera,stamp_ns,reason,old")
    broken = [record("f0"), FrameRecord("f1", "", 0, {})]
    with pytest.raises(KeyError):
        write_csv(file, broken)
    assert file.read_text().endswith("old") and list(tmp_path.iterdir()) == [file]
    write_csv(file, broken[:1])
    assert file.read_text().splitlines() == [
        "name,camera,stamp_ns,reason,is_key,flow_ms,network_ms,total_ms,wait_ms,age_ms,miou,tc,disagreement",
        "f0,,7,,1,1.000,2.000,3.000,0.000,,,,",
    ]


def test_dense_undoes_sparse() -> None:
    counts = np.random.default_rng(0).integers(0, 3, (5, 5))
    np.testing.assert_array_equal(dense(json.loads(json.dumps(sparse(counts))), 5), counts)
    np.testing.assert_array_equal(dense([], 5), np.zeros((5, 5)))
    assert sparse(np.zeros((2, 2), np.int32)) == [] and sparse(None) is None
    for wrong in ([1], [25, 3], [-1, 3], [3, -1]):
        with pytest.raises(ValueError, match="numbers are not pairs of cell and count for 5 classes"):
            dense(wrong, 5)
