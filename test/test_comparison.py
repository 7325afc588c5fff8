# SPDX-License-Identifier: Apache-2.0
"""Comparisons: values, verdicts, and files that cannot be compared."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netwarp_ros import cli
from netwarp_ros.evaluation import observations as observations_module
from netwarp_ros.evaluation.comparison import Difference, compare, describe, select_gates
from netwarp_ros.evaluation.observations import read_pair
from netwarp_ros.evaluation.result_files import write_json
from netwarp_ros.evaluation.results import sparse
from netwarp_ros.metrics import iou, miou

CLASSES = ("sky", "road")


def frames(
    count: int, right: float, *, seed: int = 0, labelled: bool = True, took_ms: float = 10.0
) -> list[dict[str, Any]]:
    """Frames of 100 pixels of each class; about ``right`` of them are predicted correctly."""
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        hits = np.clip(rng.normal(100 * right, 5, 2).round(), 0, 100).astype(int)
        counts = np.array([[hits[0], 100 - hits[0]], [100 - hits[1], hits[1]]])
        records.append(
            {
                "name": f"f{index}",
                "camera": "",
                "stages_ms": {"network": took_ms + index, "flow": 1.0},
                "confusion": sparse(counts) if labelled else None,
                "tiou": {"2": sparse(counts)} if labelled else {},
                "tc": sparse(counts) if index else None,
                "tc_unmasked": sparse(counts) if index else None,
            }
        )
    return records


def write(path: Path, records: list[dict[str, Any]], classes: tuple[str, ...] = CLASSES) -> Path:
    path.parent.mkdir(exist_ok=True)
    widths = {width: 1.0 for record in records for width in record["tiou"]}
    path.write_text(json.dumps({"iou": dict.fromkeys(classes), "tiou": widths, "per_frame": records}))
    return path


def by_measure(differences: list[Difference]) -> dict[str, Difference]:
    return {difference.measure: difference for difference in differences}


def test_values_are_those_of_all_frames_together(tmp_path: Path) -> None:
    first, second = read_pair(write(tmp_path / "a.json", frames(9, 0.8)), write(tmp_path / "b.json", frames(9, 0.9)))
    differences = by_measure(compare(first, second))
    assert set(differences) == {
        "miou", "iou.sky", "iou.road", "tiou.2", "tc", "flicker.sky", "flicker.road", "tc_unmasked", "total_ms",
    }  # fmt: skip
    for observations, name in ((first, "first"), (second, "second")):
        counts = observations.counts["iou"].sum(axis=0)
        assert getattr(differences["miou"], name) == pytest.approx(miou(counts))
        assert getattr(differences["iou.road"], name) == pytest.approx(iou(counts)[1])
        consistency = observations.counts["tc"].sum(axis=0)
        assert getattr(differences["tc"], name) == pytest.approx(miou(consistency))
        assert getattr(differences["flicker.road"], name) == pytest.approx(100 - iou(consistency)[1])
    total = differences["total_ms"]
    assert total.first == pytest.approx(15) and total.low == total.high == 0
    assert differences["miou"].first < differences["miou"].second
    for measure in ("miou", "tc", "flicker.road"):
        assert differences[measure].is_better() and not differences[measure].is_worse()


def test_the_same_results_do_not_differ(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", frames(6, 0.8))
    for difference in compare(*read_pair(file, file)):
        assert (difference.low, difference.high) == (0, 0) and difference.first == difference.second
        assert not difference.is_worse() and not difference.is_better()


def test_pairs_are_kept_together(tmp_path: Path) -> None:
    """Frames differ more from one another than the two results do, and yet the interval excludes 0."""
    easy, hard = frames(20, 0.9), frames(20, 0.4)
    mixed = [(easy if index % 2 else hard)[index] for index in range(20)]
    better = json.loads(json.dumps(mixed))
    for record in better:
        counts = record["confusion"]
        record["confusion"] = [
            value + (1 if place in (1, 7) else -1 if place in (3, 5) else 0) for place, value in enumerate(counts)
        ]
    differences = by_measure(compare(*read_pair(write(tmp_path / "a.json", mixed), write(tmp_path / "b.json", better))))
    assert differences["miou"].low > 0 and differences["miou"].second - differences["miou"].first < 3


def test_bags_are_drawn_where_folders_are_given(tmp_path: Path) -> None:
    for name, right in (("a", 0.8), ("b", 0.85)):
        for bag in range(4):
            write(tmp_path / name / f"drive{bag}.json", frames(3 + bag, right, seed=bag))
    first, second = read_pair(tmp_path / "a", tmp_path / "b")
    assert first.names == [f"drive{bag}.json" for bag in range(4)]
    assert first.counts["iou"].shape == (4, 2, 2) and first.counts["iou"][3].sum() == 6 * 200
    assert first.times[:, 1].tolist() == [3, 4, 5, 6]
    assert by_measure(compare(first, second))["miou"].is_better()
    (tmp_path / "a" / "drive0.json").unlink()
    with pytest.raises(ValueError, match=r"must hold JSON files of the same names, but there is drive0\.json in one"):
        read_pair(tmp_path / "a", tmp_path / "b")


def test_without_labels_consistency_is_compared(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", frames(9, 0.8, labelled=False)) for name in ("a", "b")]
    differences = compare(*read_pair(*files))
    assert [difference.measure for difference in differences] == [
        "tc", "flicker.sky", "flicker.road", "tc_unmasked", "total_ms",
    ]  # fmt: skip
    assert [difference.measure for difference in select_gates(differences, [])] == ["tc"]
    with pytest.raises(ValueError, match="there is no miou in both results: choose one of tc, flicker.sky, "):
        select_gates(differences, ["miou"])


def test_what_is_worse_depends_on_the_measure() -> None:
    slower, lower = Difference("total_ms", 10, 12, 1, 3, 9), Difference("miou", 70, 68, -3, -1, 9)
    for difference in (slower, lower):
        assert difference.is_worse() and difference.is_worse(0.9) and not difference.is_worse(1.1)
        assert not difference.is_better()
    unsure = Difference("miou", 70, 68, -3, 0.1, 9)
    assert not unsure.is_worse() and not unsure.is_better()
    assert Difference("total_ms", 10, 8, -3, -1, 9).is_better()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"records": frames(4, 0.8)}, "a.json has 5 frames, .*b.json has 4: give results on the same frames"),
        ({"records": frames(6, 0.8)[1:]}, "a frame is f0 in .*a.json, but f1 in .*b.json"),
        (
            {"records": frames(5, 0.8), "classes": ("sky", "tree")},
            "a.json has the classes sky, road, .*b.json sky, tree",
        ),
        ({"records": frames(5, 0.8, labelled=False)}, "f0 has another label in .*a.json than in .*b.json"),
        ({"records": [{"name": "f0", "tiou": {}}] * 5}, "b.json has frames that cannot be read: 'confusion'"),
    ],
)
def test_files_that_do_not_match_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    first, second = write(tmp_path / "a.json", frames(5, 0.8)), write(tmp_path / "b.json", **other)
    with pytest.raises(ValueError, match=message):
        read_pair(first, second)


@pytest.mark.parametrize("content", ["no json", "[1]", "{}", '{"iou": {}, "tiou": {}, "per_frame": 3}'])
def test_a_file_without_scores_by_frame_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json has no scores by frame: give a file"):
        read_pair(tmp_path / "a.json", tmp_path / "a.json")


def test_the_confidence_is_checked(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", frames(3, 0.8))
    with pytest.raises(ValueError, match="confidence is 100"):
        compare(*read_pair(file, file), confidence=100)


def test_few_frames_of_one_drive_show_little(tmp_path: Path) -> None:
    """What differs in all of four frames is not known, in thirty it is."""
    for count, is_known in ((4, False), (30, True)):
        pair = read_pair(*(write(tmp_path / f"{right}.json", frames(count, right)) for right in (0.8, 0.9)))
        (miou,) = select_gates(compare(*pair), [])
        assert miou.is_known == miou.is_better() == is_known and not miou.is_worse()
        verdict = describe(miou, pair[0])
        if is_known:
            assert re.fullmatch(
                r"miou: B is better, \+1\d\.\d\d ± \d\.\d\d "
                r"\(30 frames of one drive, which count as \d+\.\d independent pieces\)", verdict
            )  # fmt: skip
        else:
            assert verdict == "miou: not known, it occurs in too few of the 4 frames: give at least 5, or 2 recordings"
            assert miou.to_json() == {
                "measure": "miou", "first": miou.first, "second": miou.second, "low": None, "high": None, "units": 0,
                "difference": miou.second - miou.first,
            }  # fmt: skip


def test_a_long_recording_is_added_up_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{right}.json", frames(45, right)) for right in (0.8, 0.85)]
    frame_by_frame = read_pair(*files)
    monkeypatch.setattr(observations_module, "MAX_GROUPS", 10)
    grouped = read_pair(*files)
    assert grouped[0].times[:, 1].tolist() == [8, 8, 8, 8, 8, 5]
    assert list(grouped[0].names) == ["f0", "f8", "f16", "f24", "f32", "f40"]
    for ours, theirs in zip(grouped, frame_by_frame, strict=True):
        assert ours.frames == theirs.frames == 45 and not ours.independent
        for measure, counts in theirs.counts.items():
            np.testing.assert_array_equal(ours.counts[measure][1], counts[8:16].sum(axis=0))
            np.testing.assert_array_equal(ours.counts[measure].sum(axis=0), counts.sum(axis=0))


def test_recordings_in_one_file_are_told_apart(tmp_path: Path) -> None:
    """The JSON of many recordings names that of each frame."""
    for name, right in (("a", 0.8), ("b", 0.9)):
        named = [{**frame, "recording": f"drive{bag}"} for bag in range(4) for frame in frames(3, right, seed=bag)]
        write(tmp_path / f"{name}.json", named)
    first, second = read_pair(tmp_path / "a.json", tmp_path / "b.json")
    assert first.independent and second.independent and first.times[:, 1].tolist() == [3] * 4
    miou = by_measure(compare(first, second))["miou"]
    assert miou.units == 4 and miou.is_better()
    assert describe(miou, first).endswith("(4 recordings, 12 frames)")


def test_frames_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that `write_json` wrote needs as much memory for 800 frames as for 200."""
    monkeypatch.setattr(observations_module, "MAX_GROUPS", 50)
    cells = [number for cell in range(361) for number in (cell, 1000 + cell)]
    frame = {**frames(1, 0.8)[0], "confusion": cells, "tiou": {}, "tc": None, "tc_unmasked": None}
    peaks = []
    for count in (200, 800):
        file, scores = tmp_path / f"{count}.json", {"iou": dict.fromkeys(map(str, range(19))), "tiou": {}}
        write_json(file, scores, ({**frame, "name": f"f{index}"} for index in range(count)))
        tracemalloc.start()
        pair = read_pair(file, file)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pair[0].frames == count and len(pair[0].names) == 50
    assert peaks[1] < 1.2 * peaks[0]


# The command


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_the_exit_status_is_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(tmp_path / "good.json", frames(30, 0.9)), write(tmp_path / "bad.json", frames(30, 0.8, took_ms=1))
    assert run("compare", bad, good, "--json", tmp_path / "deep" / "differences.json") == 0
    shown = capsys.readouterr()
    assert "miou" in shown.out and "better" in shown.out and shown.err == ""
    written = json.loads((tmp_path / "deep" / "differences.json").read_text())
    assert written["failed"] == []
    assert written["differences"][0]["measure"] == "miou" and written["differences"][0]["difference"] > 0

    assert run("compare", good, bad, "--json", tmp_path / "differences.json") == 1
    assert f"netwarp: {bad} is worse than {good} in miou" in capsys.readouterr().err
    assert json.loads((tmp_path / "differences.json").read_text())["failed"] == ["miou"]
    assert run("compare", good, bad, "--margin", 50) == 0
    assert run("compare", good, bad, "--gate", "total_ms") == 0
    assert run("compare", bad, good, "--gate", "total_ms", "--gate", "tc") == 1
    assert run("compare", good, bad, "--gate", "iou.tree") == 2
    assert run("compare", good, tmp_path / "absent.json") == 2


def test_a_gate_that_cannot_judge_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = (write(tmp_path / f"{right}.json", frames(4, right)) for right in (0.9, 0.5))
    assert run("compare", good, bad) == 0
    assert "miou: not known, it occurs in too few of the 4 frames: give at least 5" in capsys.readouterr().out
