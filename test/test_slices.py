# SPDX-License-Identifier: Apache-2.0
"""Recordings evaluated in slices: how they are cut, what they add up to, and that Ray gives the same results."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from netwarp_ros.classes import load_classes
from netwarp_ros.evaluation.ray_runner import ray_cluster, run_on_ray
from netwarp_ros.evaluation.results import PartialResults
from netwarp_ros.evaluation.scoring import Labels, evaluate, summarise
from netwarp_ros.evaluation.slices import (
    EvaluatedSlice,
    Slice,
    SliceResults,
    SliceSettings,
    cut_slices,
    evaluate_slices,
    prefix_cameras,
)
from netwarp_ros.models.weights import DEFAULT_MODEL, find_weights
from netwarp_ros.recordings.bag_reader import BagReader
from netwarp_ros.recordings.bag_writer import write_bag
from netwarp_ros.recordings.frames import Frame, FrameSource, stamp
from netwarp_ros.segmenter import Segmenter

CAMVID = load_classes("camvid")
COUNT = 12
SEGMENTER = {
    "engine": "torch",
    "model": str(find_weights(DEFAULT_MODEL)),
    "flow": "fast",
    "precision": "float32",
    "input_height": 32,
}
SETTINGS = SliceSettings(SEGMENTER, CAMVID, ["/image"], ["/label"], host=True, widths=[2])
FIRST_STAMP_NS = 10**9


def frames() -> Iterator[Frame]:
    noise = np.random.default_rng(0).integers(0, 256, (32, 48 + 2 * COUNT, 3), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    for index in range(COUNT):
        image = np.ascontiguousarray(texture[:, 2 * index : 2 * index + 48])
        yield Frame(index, FIRST_STAMP_NS + stamp(index, 15), f"{index:06d}", image)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moving texture. Its labels are stripes at rest, so many pixels are predicted wrong."""
    label = np.repeat(np.arange(8, dtype=np.uint8) % 11, 4)[:, None].repeat(48, axis=1)
    path = tmp_path_factory.mktemp("recording") / "drive.mcap"
    write_bag(path, frames(), topic="/image", labels=lambda frame: label, label_topic="/label")
    return path


@pytest.fixture(scope="module")
def slices(bag: Path) -> list[Slice]:
    return cut_slices(SETTINGS, [bag], seconds=0.2, warm_up=2)


@pytest.fixture(scope="module")
def serial(slices: list[Slice], tmp_path_factory: pytest.TempPathFactory) -> list[SliceResults]:
    return evaluate_slices(SETTINGS, slices, tmp_path_factory.mktemp("serial"), {slices[0].recording: 1})


def without_times(results: Sequence[SliceResults]) -> list[dict[str, Any]]:
    """Return all that must be the same, bit for bit."""
    contents = [of_slice.results.to_json() for of_slice in results]
    for content, of_slice in zip(contents, results, strict=True):
        del content["wall_s"]
        content["frames"] = list(of_slice.file.frames())
        for frame in content["frames"]:
            del frame["stages_ms"]
    return contents


# Slices


def test_recordings_are_cut_by_their_rate(bag: Path, slices: list[Slice], tmp_path: Path) -> None:
    assert cut_slices(SETTINGS, [bag]) == [Slice(bag, 0, 0, None)]
    assert [(slice_.read_from, slice_.score_from, slice_.end) for slice_ in slices] == [
        (0, 0, 3), (1, 3, 6), (4, 6, 9), (7, 9, None),
    ]  # fmt: skip
    assert [slice_.name for slice_ in slices[:2]] == ["drive-000000", "drive-000003"]
    two = tmp_path / "two.mcap"
    alternating = [dataclasses.replace(frame, stamp_ns=FIRST_STAMP_NS + frame.index * 10**8) for frame in frames()]
    write_bag(two, alternating, topic="/image", labels=lambda frame: frame.image[..., 0], label_topic="/label")
    both = dataclasses.replace(SETTINGS, topics=["/image", "/label"], label_topics=[])
    # Ten frames a second of each camera.
    cut = cut_slices(both, [two], seconds=1, warm_up=3)
    assert [(slice_.read_from, slice_.score_from) for slice_ in cut] == [(0, 0), (14, 20)]


def test_slices_that_cannot_be_cut_are_refused(bag: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="slice is -1 s, warm-up is 0: give seconds >= 0 and frames >= 0"):
        cut_slices(SETTINGS, [bag], seconds=-1)
    other = tmp_path / "drive.mcap"
    other.symlink_to(bag)
    with pytest.raises(ValueError, match="have the same name, and so would their results: rename one"):
        cut_slices(SETTINGS, [bag, other])


def test_one_slice_of_a_whole_recording_scores_as_evaluate_does(bag: Path, tmp_path: Path) -> None:
    (whole,) = evaluate_slices(SETTINGS, cut_slices(SETTINGS, [bag]), tmp_path, {bag: 1})
    opened, labels = SETTINGS.open(bag)
    alone = evaluate(opened, labels, Segmenter(**SEGMENTER), CAMVID, host=True, widths=[2]).to_json()
    sliced = summarise([whole.results], CAMVID, labelled=True, widths=[2]).to_json()
    assert 0 < alone["miou"] < 100 and alone["resets"] == {"first frame": 1}
    for scores in (alone, sliced):
        for key in ("stages_ms", "fps", "wall_s", "share"):
            del scores[key]
    assert sliced == alone


def test_slices_score_every_frame_once_after_a_warm_up(bag: Path, serial: list[SliceResults]) -> None:
    records = [record for slice_results in serial for record in slice_results.results.records]
    assert [record.name for record in records] == [frame.name for frame in frames()]
    assert [record.name for record in records if record.reason or math.isnan(record.tc)] == ["000000"]
    partial = [slice_results.results for slice_results in serial]
    assert summarise(partial, CAMVID, labelled=True, widths=[2]).resets == {"first frame": 1}
    cold = evaluate_slices(SETTINGS, cut_slices(SETTINGS, [bag], seconds=0.4), bag.with_name("cold"), {bag: 1})
    resets = [record.name for slice_results in cold for record in slice_results.results.records if record.reason]
    assert resets == ["000000", "000006"]


def test_a_slice_reads_its_own_messages_alone(
    bag: Path, slices: list[Slice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening reads the first and the last image, for the rate, and the stamps of the label maps, for all slices."""
    read: Counter[str] = Counter()
    read_messages = BagReader.messages

    def counted(bag: BagReader, *args: Any) -> Iterator[Any]:
        for item in read_messages(bag, *args):
            read[item[1].topic] += 1
            yield item

    monkeypatch.setattr(BagReader, "messages", counted)
    assert cut_slices(SETTINGS, [bag], seconds=0.2, warm_up=2) == slices
    assert read == {"/image": 2}
    read.clear()
    evaluate_slices(SETTINGS, slices, tmp_path, {bag: 1})
    lengths = [(slice_.end or COUNT) - slice_.read_from for slice_ in slices]
    assert lengths == [3, 5, 5, 5]
    # An iteration stops at the frame after its last one, except at the end of the bag.
    assert read == {"/image": 2 + sum(lengths) + 3, "/label": COUNT + sum(lengths)}


def test_a_camera_is_named_by_its_recording_too(bag: Path, serial: list[SliceResults]) -> None:
    prefixed = prefix_cameras(bag, serial[0].results)
    assert [record.camera for record in prefixed.records] == ["drive /image"] * 3


# Files of results


def test_a_stopped_run_resumes_and_changed_input_is_evaluated_again(
    bag: Path, slices: list[Slice], serial: list[SliceResults], tmp_path: Path
) -> None:
    evaluated: list[Slice] = []
    known = {
        slice_: (slice_, {"results": of_slice.results.to_json(), "damage": []}, list(of_slice.file.frames()))
        for slice_, of_slice in zip(slices, serial, strict=True)
    }

    def interrupted(settings: SliceSettings, todo: Sequence[Slice], folder: Path) -> Iterator[EvaluatedSlice]:
        for slice_ in todo[:2]:
            yield known[slice_]
        raise KeyboardInterrupt

    def recording(settings: SliceSettings, todo: Sequence[Slice], folder: Path) -> Iterable[EvaluatedSlice]:
        evaluated[:] = todo
        return [known[slice_] for slice_ in todo]

    with pytest.raises(KeyboardInterrupt):
        evaluate_slices(SETTINGS, slices, tmp_path, {bag: 1}, interrupted)
    shown: list[Slice] = []
    results = evaluate_slices(SETTINGS, slices, tmp_path, {bag: 1}, recording, shown.append)
    assert evaluated == slices[2:] and shown == slices
    assert without_times(results) == without_times(serial)

    cut = tmp_path / "drive-000006.json"
    cut.write_text("".join(cut.read_text().splitlines(keepends=True)[:-3]))
    evaluate_slices(SETTINGS, slices, tmp_path, {bag: 1}, recording)
    assert evaluated == [slices[2]]
    evaluate_slices(SETTINGS, slices[:1], tmp_path, {bag: "other weights"}, recording)
    assert evaluated == slices[:1]


def test_results_survive_json(serial: list[SliceResults]) -> None:
    for results in (slice_results.results for slice_results in serial):
        again = PartialResults.from_json(json.loads(json.dumps(results.to_json())), results.records)
        assert again.to_json() == results.to_json()
        for ours, theirs in zip(again.totals, results.totals, strict=True):
            assert {name: values.dtype for name, values in ours.items()} == {
                name: values.dtype for name, values in theirs.items()
            }


# On Ray

# The first of these tests starts Ray, whose workers import PyTorch: 20 s on two cores, and minutes on a slow machine
# that has other work to do.
PATIENCE = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for the whole module; two workers, so that slices may be done out of order."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("no Ray: pip install ray")
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    with ray_cluster("local", workers=2):
        yield


@dataclasses.dataclass(frozen=True)
class FatalSettings(SliceSettings):
    """Kills the process that evaluates with them, once, in the middle of a slice."""

    died: Path = Path()

    def open(self, recording: Path) -> tuple[FrameSource, Labels | None]:
        opened, labels = super().open(recording)
        assert labels is not None

        def dying(frame: Frame) -> np.ndarray | None:
            if frame.index == 7 and not self.died.exists():
                self.died.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return labels(frame)

        return opened, dying


@PATIENCE
def test_ray_scores_as_the_serial_run_does(
    ray: None, slices: list[Slice], serial: list[SliceResults], tmp_path: Path
) -> None:
    assert len(slices) == 4
    results = evaluate_slices(SETTINGS, slices, tmp_path, {slices[0].recording: 1}, run_on_ray)
    assert without_times(results) == without_times(serial)
    totals = [
        [network for slice_results in run for network in slice_results.results.totals] for run in (results, serial)
    ]
    for ours, theirs in zip(*totals, strict=True):
        for name, values in ours.items():
            np.testing.assert_array_equal(values, theirs[name])


@PATIENCE
def test_a_lost_worker_changes_nothing(
    ray: None, slices: list[Slice], serial: list[SliceResults], tmp_path: Path
) -> None:
    settings = FatalSettings(**vars(SETTINGS), died=tmp_path / "died")
    results = evaluate_slices(settings, slices, tmp_path, {slices[0].recording: 1}, run_on_ray)
    assert int(settings.died.read_text()) != os.getpid()
    assert without_times(results) == without_times(serial)


@PATIENCE
def test_errors_on_ray_are_those_of_the_serial_run(ray: None, slices: list[Slice], tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, classes=load_classes("cityscapes"))
    with pytest.raises(ValueError, match="has the classes of camvid, not of cityscapes"):
        evaluate_slices(settings, slices[:1], tmp_path, {slices[0].recording: 1}, run_on_ray)


def test_only_a_local_cluster_takes_a_number_of_workers() -> None:
    with (
        pytest.raises(ValueError, match="workers is 2, but the cluster at ray:6379 has its own workers"),
        ray_cluster("ray:6379", workers=2),
    ):
        pass
