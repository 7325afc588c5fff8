# SPDX-License-Identifier: Apache-2.0
"""Recordings judged slice by slice: what slices are, what they add up to, and that all judge them alike."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from netwarp_ros.classes import load_classes
from netwarp_ros.evaluation import slices as fleet
from netwarp_ros.evaluation.ray_runner import ray_cluster, run_on_ray
from netwarp_ros.evaluation.results import PartialResults
from netwarp_ros.evaluation.scoring import Labels, evaluate, summarise
from netwarp_ros.evaluation.slices import Slice, SliceResults, SliceSettings, cut_slices, evaluate_slices
from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.frames import Frame, FrameSource, stamp
from netwarp_ros.segmenter import Segmenter

CAMVID = load_classes("camvid")
COUNT = 24
SETTINGS = {"model": str(find_weights(DEFAULT_MODEL)), "flow": "fast", "precision": "float32", "input_height": 32}
JOB = SliceSettings(SETTINGS, CAMVID, ["/image"], ["/label"], host=True, widths=[2])
T0 = 10**9


def frames() -> Iterator[Frame]:
    noise = np.random.default_rng(0).integers(0, 256, (32, 48 + 2 * COUNT, 3), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    for index in range(COUNT):
        yield Frame(index, T0 + stamp(index, 15), f"{index:06d}", np.ascontiguousarray(texture[:, 2 * index :][:, :48]))


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels are stripes that lie still, so that a good part of them is wrong."""
    label = np.repeat(np.arange(8, dtype=np.uint8) % 11, 4)[:, None].repeat(48, axis=1)
    path = tmp_path_factory.mktemp("fleet") / "drive.mcap"
    write_bag(path, frames(), topic="/image", labels=lambda frame: label, label_topic="/label")
    return path


@pytest.fixture(scope="module")
def slices(bag: Path) -> list[Slice]:
    return cut_slices(JOB, [bag], seconds=0.2, warm_up=2)


@pytest.fixture(scope="module")
def serial(slices: list[Slice], tmp_path_factory: pytest.TempPathFactory) -> list[SliceResults]:
    return evaluate_slices(JOB, slices, tmp_path_factory.mktemp("serial"), {slices[0].recording: 1})


def without_times(found: Sequence[SliceResults]) -> list[dict[str, Any]]:
    """Return all that must be the same, bit for bit."""
    parts = [each.results.to_json() for each in found]
    for part in parts:
        del part["wall_s"]
        for record in part["records"]:
            del record["stages_ms"]
    return parts


# Slices


def test_recordings_are_cut_by_their_rate(bag: Path, slices: list[Slice], tmp_path: Path) -> None:
    assert cut_slices(JOB, [bag]) == [Slice(bag, 0, 0, None)]
    assert [(each.start, each.begin, each.end) for each in slices] == [
        (0, 0, 3), (1, 3, 6), (4, 6, 9), (7, 9, 12), (10, 12, 15), (13, 15, 18), (16, 18, 21), (19, 21, None),
    ]  # fmt: skip
    assert [each.name for each in slices[:2]] == ["drive-000000", "drive-000003"]
    two = tmp_path / "two.mcap"
    by_turns = [dataclasses.replace(frame, stamp_ns=T0 + frame.index * 10**8) for frame in frames()]
    write_bag(two, by_turns, topic="/image", labels=lambda frame: frame.image[..., 0], label_topic="/label")
    both = dataclasses.replace(JOB, topics=["/image", "/label"], label_topics=[])
    assert [(each.start, each.begin) for each in cut_slices(both, [two], seconds=1, warm_up=3)] == [
        (0, 0), (14, 20), (34, 40),
    ]  # fmt: skip  # ten frames a second of each camera


def test_what_cannot_be_cut_is_told(bag: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slice is -1 s, warm-up is 0: give seconds >= 0 and frames >= 0"):
        cut_slices(JOB, [bag], seconds=-1)
    other = tmp_path / "drive.mcap"
    other.symlink_to(bag)
    with pytest.raises(ValueError, match="have the same name, which results go by: rename one"):
        cut_slices(JOB, [bag, other])


def test_a_whole_recording_scores_as_by_itself(bag: Path, tmp_path: Path) -> None:
    found = evaluate_slices(JOB, cut_slices(JOB, [bag]), tmp_path, {bag: 1})
    opened, labels = JOB.open(bag)
    alone = evaluate(opened, labels, Segmenter(**SETTINGS), CAMVID, host=True, widths=[2]).to_json()
    together = summarise([found[0].results], CAMVID, labelled=True, widths=[2]).to_json()
    assert 0 < alone["miou"] < 100 and alone["resets"] == {"first frame": 1}
    for scores in (alone, together):
        for key in ("stages_ms", "fps", "wall_s", "share"):
            del scores[key]
        for record in scores["per_frame"]:
            del record["stages_ms"]
    assert together == alone


def test_slices_take_every_frame_once_and_remember_those_before(bag: Path, serial: list[SliceResults]) -> None:
    records = [record for each in serial for record in each.results.records]
    assert [record.name for record in records] == [frame.name for frame in frames()]
    assert [record.name for record in records if record.reason or record.consistency is None] == ["000000"]
    assert summarise([each.results for each in serial], CAMVID, labelled=True, widths=[2]).resets == {"first frame": 1}
    cold = evaluate_slices(JOB, cut_slices(JOB, [bag], seconds=0.8), bag.with_name("cold"), {bag: 1})
    assert [record.name for each in cold for record in each.results.records if record.reason] == ["000000", "000012"]


def test_recordings_are_told_apart(bag: Path, serial: list[SliceResults]) -> None:
    named = fleet.prefix_cameras(bag, serial[0].results)
    assert [record.camera for record in named.records] == ["drive /image"] * 3


# What is kept


def test_a_second_run_goes_on(bag: Path, slices: list[Slice], serial: list[SliceResults], tmp_path: Path) -> None:
    judged: list[Slice] = []
    known = {piece: {"part": each.results.to_json(), "damage": []} for piece, each in zip(slices, serial, strict=True)}

    def breaking_off(job: SliceSettings, pieces: Sequence[Slice]) -> Iterator[tuple[Slice, dict[str, Any]]]:
        for piece in pieces[:3]:
            yield piece, known[piece]
        raise KeyboardInterrupt

    def counting(job: SliceSettings, pieces: Sequence[Slice]) -> Iterable[tuple[Slice, dict[str, Any]]]:
        judged[:] = pieces
        return [(piece, known[piece]) for piece in pieces]

    with pytest.raises(KeyboardInterrupt):
        evaluate_slices(JOB, slices, tmp_path, {bag: 1}, breaking_off)
    shown: list[Slice] = []
    found = evaluate_slices(JOB, slices, tmp_path, {bag: 1}, counting, shown.append)
    assert judged == slices[3:] and shown == slices
    assert without_times(found) == without_times(serial)

    (tmp_path / "drive-000006.json").write_text("{}")
    evaluate_slices(JOB, slices, tmp_path, {bag: 1}, counting)
    assert judged == [slices[2]]
    evaluate_slices(JOB, slices[:1], tmp_path, {bag: "other weights"}, counting)
    assert judged == slices[:1]


def test_parts_come_back_from_json(serial: list[SliceResults]) -> None:
    for part in (each.results for each in serial):
        again = PartialResults.from_json(part.to_json(), len(CAMVID))
        assert again.to_json() == part.to_json()
        for ours, theirs in zip(again.totals, part.totals, strict=True):
            assert {name: values.dtype for name, values in ours.items()} == {
                name: values.dtype for name, values in theirs.items()
            }


# On Ray


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install netwarp_ros[ray]")
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    with ray_cluster("local", workers=2):
        yield


@dataclasses.dataclass(frozen=True)
class FatalJob(SliceSettings):
    """Kills the process that works on it, once, in the middle of a slice."""

    died: Path = Path()

    def open(self, recording: Path) -> tuple[FrameSource, Labels | None]:
        opened, labels = super().open(recording)
        assert labels is not None

        def dying(frame: Frame) -> np.ndarray | None:
            if frame.index == 11 and not self.died.exists():
                self.died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return labels(frame)

        return opened, dying


def test_ray_scores_as_the_serial_run_does(
    ray: None, slices: list[Slice], serial: list[SliceResults], tmp_path: Path
) -> None:
    assert len(slices) == 8
    found = evaluate_slices(JOB, slices, tmp_path, {slices[0].recording: 1}, run_on_ray)
    assert without_times(found) == without_times(serial)
    totals = [[network for each in run for network in each.results.totals] for run in (found, serial)]
    for ours, theirs in zip(*totals, strict=True):
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])


def test_a_lost_worker_changes_nothing(
    ray: None, slices: list[Slice], serial: list[SliceResults], tmp_path: Path
) -> None:
    job = FatalJob(**vars(JOB), died=tmp_path / "died")
    found = evaluate_slices(job, slices, tmp_path, {slices[0].recording: 1}, run_on_ray)
    assert int(job.died.read_text()) != os.getpid()
    assert without_times(found) == without_times(serial)


def test_what_is_wrong_on_ray_is_told_as_elsewhere(ray: None, slices: list[Slice], tmp_path: Path) -> None:
    job = dataclasses.replace(JOB, classes=load_classes("cityscapes"))
    with pytest.raises(ValueError, match="has the classes of camvid, not of cityscapes"):
        evaluate_slices(job, slices[:1], tmp_path, {slices[0].recording: 1}, run_on_ray)


def test_workers_are_of_a_cluster_of_ones_own() -> None:
    with (
        pytest.raises(ValueError, match="2 workers are wanted, but the cluster at ray:6379 has its own"),
        ray_cluster("ray:6379", workers=2),
    ):
        pass
