# SPDX-License-Identifier: Apache-2.0
"""Evaluation with a small network of random weights, and labels made from its own masks."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from netwarp_ros.classes import ClassSet, load_classes
from netwarp_ros.evaluation.frame_scorer import consistency_flow
from netwarp_ros.evaluation.results import FrameCounts
from netwarp_ros.evaluation.scoring import ScoredFrame, evaluate
from netwarp_ros.metrics import miou
from netwarp_ros.models import Model, ModelSpec, augment
from netwarp_ros.recordings.frames import Frame, stamp
from netwarp_ros.segmenter import Result, Segmenter, Stream
from netwarp_ros.timing import percentiles

CAMVID = load_classes("camvid")
SPEC = ModelSpec(host="ddrnet23slim", classes=CAMVID, host_arguments={"num_classes": 11}, input_height=48)
SHIFT = 3
"""Motion to the right in pixels per frame."""


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Tanh(), nn.Conv2d(8, 11, 1, bias=False)).eval()
    network = augment(host, ["0"], flow_grid="features")
    nn.init.constant_(network.netwarps[0].w2, 0.8)
    return Segmenter(Model(network, SPEC, "small"), precision="float32")


def frames(count: int, height: int = 48, width: int = 96) -> list[Frame]:
    """A window that moves over a texture: all but SHIFT columns of a frame are in the frame before."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width + SHIFT * count, 3), np.uint8)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    starts = [SHIFT * (count - index) for index in range(count)]
    return [
        Frame(index, stamp(index, 15), f"{index:06d}", np.ascontiguousarray(texture[:, start : start + width]))
        for index, start in enumerate(starts)
    ]


def masks_of(segmenter: Segmenter, recording: list[Frame], *, stills: bool = False) -> dict[str, np.ndarray]:
    stream = segmenter.stream()
    masks = {}
    for frame in recording:
        if stills:
            stream.reset()
        masks[frame.name] = stream.segment(frame.image, frame.stamp_ns).mask
    return masks


def labels_from(masks: dict[str, np.ndarray]) -> Callable[[Frame], np.ndarray | None]:
    return lambda frame: masks.get(frame.name)


def test_labels_that_are_the_masks_score_100(segmenter: Segmenter) -> None:
    recording = frames(4)
    masks = masks_of(segmenter, recording)
    present = np.unique(np.stack(list(masks.values())))
    results = evaluate(iter(recording), labels_from(masks), segmenter, CAMVID, widths=[2, 5])
    assert results.frames == results.labelled == 4
    assert results.miou == 100 and results.tiou == {2: 100, 5: 100}
    assert list(results.iou) == list(CAMVID.names)
    for k, value in enumerate(results.iou.values()):
        assert value == 100 if k in present else math.isnan(value)
    assert results.resets == {"first frame": 1}


def test_scores_are_of_all_frames_without_void_pixels(segmenter: Segmenter) -> None:
    recording = frames(2)
    masks = masks_of(segmenter, recording)
    first, second = recording
    common = int(np.bincount(masks[first.name].ravel()).argmax())
    other = (common + 1) % len(CAMVID)
    label = np.full((48, 96), CAMVID.void, np.uint8)
    at = np.argwhere(masks[first.name] == common)[:3]
    label[tuple(at[:2].T)] = common
    label[tuple(at[2])] = other
    unlabelled = np.full((48, 96), CAMVID.void, np.uint8)
    results = evaluate(recording, labels_from({first.name: label, second.name: unlabelled}), segmenter, CAMVID)
    assert results.iou[CAMVID.names[common]] == pytest.approx(200 / 3)
    assert results.iou[CAMVID.names[other]] == 0
    assert results.miou == pytest.approx(100 / 3)


def test_instance_iou_with_object_numbers(segmenter: Segmenter) -> None:
    recording = frames(2)
    masks = masks_of(segmenter, recording)
    common = int(np.bincount(masks["000001"].ravel()).argmax())
    label = np.full((48, 96), CAMVID.void, np.uint8)
    found, missed = np.argwhere(masks["000001"] == common)[:4], np.argwhere(masks["000001"] != common)[:1]
    objects = np.zeros((48, 96), np.uint16)
    for number, at in ((1, found), (2, missed)):
        label[tuple(at.T)], objects[tuple(at.T)] = common, number
    with_objects = evaluate(
        recording,
        labels_from({"000001": label}),
        segmenter,
        CAMVID,
        instances=lambda frame: objects,
        sizes={common: 3.0},
    )
    assert with_objects.iiou == {CAMVID.names[common]: pytest.approx(50)} and with_objects.miiou == pytest.approx(50)
    assert with_objects.miou == pytest.approx(80)
    without = evaluate(recording, labels_from({"000001": label}), segmenter, CAMVID)
    assert without.iiou == {} and math.isnan(without.miiou)


def test_a_stream_keeps_its_memory_and_stills_reset_it(segmenter: Segmenter) -> None:
    recording = frames(3)
    kept, stills = masks_of(segmenter, recording), masks_of(segmenter, recording, stills=True)
    assert any((kept[name] != stills[name]).any() for name in kept)
    assert evaluate(recording, labels_from(kept), segmenter, CAMVID).miou == 100
    assert evaluate(recording, labels_from(stills), segmenter, CAMVID).miou < 100
    results = evaluate(recording, labels_from(stills), segmenter, CAMVID, stills=True)
    assert results.miou == 100 and math.isnan(results.tc)
    assert results.resets == {"request": 3}


def test_frames_without_label_are_segmented_but_not_scored(segmenter: Segmenter) -> None:
    recording = frames(3)
    masks = masks_of(segmenter, recording)
    last = recording[-1].name
    results = evaluate(recording, labels_from({last: masks[last]}), segmenter, CAMVID)
    assert (results.frames, results.labelled, results.miou) == (3, 1, 100)


def test_consistency_follows_the_motion(segmenter: Segmenter) -> None:
    """Consistency of images at rest, in steady motion, and in motion that no flow can follow."""
    steady = frames(5)
    still = [dataclasses.replace(frame, image=steady[0].image) for frame in steady]
    shuffled = [dataclasses.replace(frame, image=np.roll(frame.image, 48 * (frame.index % 2), 1)) for frame in steady]
    host = Segmenter(segmenter.model, precision="float32", host_only=True)
    moving, resting, jumping = (
        evaluate(recording, labels_from(masks_of(host, recording)), host, CAMVID).tc
        for recording in (steady, still, shuffled)
    )
    assert resting == 100
    assert 60 < moving < 100
    assert jumping < moving


def test_unmasked_consistency_counts_pixels_whose_flow_is_unreliable(segmenter: Segmenter) -> None:
    recording = frames(4)
    for frame in recording[1:]:
        frame.image[16:32, 32:64] = np.random.default_rng(frame.index).integers(0, 256, (16, 32, 3), np.uint8)
    results = evaluate(recording, labels_from(masks_of(segmenter, recording)), segmenter, CAMVID)
    assert 0 < results.tc_unmasked < results.tc < 100
    assert math.isnan(evaluate(recording[:1], labels_from(masks_of(segmenter, recording)), segmenter, CAMVID).tc)


def test_frames_are_compared_only_within_the_greatest_gap(segmenter: Segmenter) -> None:
    steady = frames(4)
    stamps = [0, 1, 10**10, 10**10 - 1]  # together, then a gap, then backwards
    apart = [dataclasses.replace(frame, stamp_ns=time) for frame, time in zip(steady, stamps, strict=True)]
    labels = labels_from(masks_of(segmenter, apart))
    joined = evaluate(steady[:2], labels, segmenter, CAMVID)
    assert evaluate(apart, labels, segmenter, CAMVID).tc == joined.tc
    assert evaluate(apart, labels, segmenter, CAMVID).tc != evaluate(steady, labels, segmenter, CAMVID).tc


def test_video_consistency_needs_labels_in_a_row(segmenter: Segmenter) -> None:
    still = [dataclasses.replace(frame, image=frames(1)[0].image) for frame in frames(17)]
    host = Segmenter(segmenter.model, precision="float32", host_only=True)
    labels = masks_of(host, still)
    for label in labels.values():
        label[:12] = (label[:12] + 1) % 11  # wrong in a quarter of each frame
    assert evaluate(still, labels_from(labels), host, CAMVID).vc == {8: 75, 16: 75}
    del labels["000009"]
    sparse = evaluate(still, labels_from(labels), host, CAMVID).vc
    assert sparse[8] == 75 and math.isnan(sparse[16])
    stills = evaluate(still, labels_from(labels), host, CAMVID, stills=True).vc
    assert all(math.isnan(value) for value in stills.values())


def test_timings_are_given_by_stage(segmenter: Segmenter) -> None:
    recording = frames(3)
    results = evaluate(recording, labels_from(masks_of(segmenter, recording)), segmenter, CAMVID)
    assert set(results.stages_ms) == {"prepare", "flow", "network", "total"}
    for values in results.stages_ms.values():
        assert 0 <= values["p50"] <= values["p95"] <= values["p99"]
    assert results.fps > 0


def test_percentiles_by_hand() -> None:
    assert percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99}


def test_no_label_and_no_frame_are_errors(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="none of the 2 frames has a label"):
        evaluate(frames(2), labels_from({}), segmenter, CAMVID)
    with pytest.raises(ValueError, match="there is no frame to evaluate"):
        evaluate([], labels_from({}), segmenter, CAMVID)


def test_a_wrong_label_is_named_by_its_frame(segmenter: Segmenter) -> None:
    label = np.full((48, 96), 200, np.uint8)
    with pytest.raises(ValueError, match="the label of 000001 does not fit: label holds the id 200"):
        evaluate(frames(2), labels_from({"000001": label}), segmenter, CAMVID)


def test_classes_must_be_those_of_the_model(segmenter: Segmenter) -> None:
    cityscapes: ClassSet = load_classes("cityscapes")
    with pytest.raises(ValueError, match="model small has the classes of camvid, not of cityscapes"):
        evaluate(frames(1), labels_from({}), segmenter, cityscapes)


# Without labels


def test_without_labels_only_scores_against_labels_are_missing(segmenter: Segmenter) -> None:
    recording = frames(4)
    labelled = evaluate(recording, labels_from(masks_of(segmenter, recording)), segmenter, CAMVID)
    unlabelled = evaluate(recording, None, segmenter, CAMVID)
    assert (unlabelled.frames, unlabelled.labelled) == (4, 0)
    assert all(math.isnan(value) for value in (unlabelled.miou, *unlabelled.iou.values(), *unlabelled.tiou.values()))
    for key in ("tc", "tc_unmasked", "flicker", "resets"):
        assert unlabelled.to_json()[key] == labelled.to_json()[key]
    assert set(unlabelled.measures()) == {"temporal consistency", "temporal consistency, unmasked"}


def test_the_host_is_scored_on_the_same_frames(segmenter: Segmenter) -> None:
    recording = frames(5)
    labels = labels_from(masks_of(segmenter, recording))
    host = Segmenter(segmenter.model, precision="float32", host_only=True)
    seen: list[ScoredFrame] = []
    results = evaluate(recording, labels, segmenter, CAMVID, host=True, on_frame=seen.append)
    alone = evaluate(recording, labels, host, CAMVID)
    assert results.miou == 100 and results.host is not None
    assert results.host.to_json() == {key: alone.to_json()[key] for key in results.host.to_json()}
    theirs, ours = masks_of(host, recording), masks_of(segmenter, recording)
    differing = [100 * np.mean(theirs[name] != ours[name]) for name in ours]
    assert [record.disagreement for record in results.records] == pytest.approx(differing)
    for record, other in zip(results.records, alone.records, strict=True):
        assert (record.host_miou, record.host_tc) == pytest.approx((other.miou, other.tc), nan_ok=True)
    assert differing[0] == 0 and results.disagreement == pytest.approx(np.mean(differing)) and results.disagreement > 0
    for scored, record, frame in zip(seen, results.records, recording, strict=True):
        assert scored.record is record and scored.frame is frame
        np.testing.assert_array_equal(scored.mask, ours[frame.name])
        np.testing.assert_array_equal(scored.host_mask, theirs[frame.name])
        np.testing.assert_array_equal(scored.label, ours[frame.name])
    assert math.isnan(alone.disagreement) and alone.host is None


# Frame by frame


def test_counts_of_frames_add_up_to_the_scores(segmenter: Segmenter) -> None:
    recording = frames(4)
    labels = masks_of(segmenter, recording)
    labels["000001"][:16] = 3
    del labels["000002"]
    counts: list[FrameCounts] = []
    results = evaluate(
        recording, labels_from(labels), segmenter, CAMVID, widths=[2, 4],
        on_frame=lambda scored: counts.append(scored.counts),
    )  # fmt: skip
    records = results.records
    assert [record.name for record in records] == [frame.name for frame in recording]
    assert [record.reason for record in records] == ["first frame", "", "", ""]
    assert [record.labelled for record in records] == [True, True, False, True]
    assert [of_frame.confusion is None for of_frame in counts] == [False, False, True, False]
    assert [of_frame.consistency is None for of_frame in counts] == [True, False, False, False]
    for record, of_frame in zip(records, counts, strict=True):
        for score, matrix in ((record.miou, of_frame.confusion), (record.tc, of_frame.consistency)):
            assert math.isnan(score) if matrix is None else score == miou(matrix)
    assert records[0].miou == 100 and records[1].miou < 100
    labelled = [of_frame for of_frame in counts if of_frame.confusion is not None]
    assert miou(sum(of_frame.confusion for of_frame in labelled)) == results.miou
    for width, score in results.tiou.items():
        assert miou(sum(of_frame.trimap[width] for of_frame in labelled)) == score
    assert miou(sum(of_frame.consistency for of_frame in counts[1:])) == results.tc
    assert miou(sum(of_frame.unmasked for of_frame in counts[1:])) == results.tc_unmasked


def test_memory_grows_little_with_the_number_of_frames(segmenter: Segmenter) -> None:
    """Nine matrices of counts for 11 classes would take 4 kB a frame."""
    label = (np.arange(48 * 96) % 11).astype(np.uint8).reshape(48, 96)
    used: list[int] = []
    tracemalloc.start()
    try:
        evaluate(
            (frame for _ in range(30) for frame in frames(4)), lambda frame: label, segmenter, CAMVID,
            on_frame=lambda scored: used.append(tracemalloc.get_traced_memory()[0]),
        )  # fmt: skip
    finally:
        tracemalloc.stop()
    assert len(used) == 120 and used[-1] - used[39] < 80 * 1000


def test_each_camera_is_a_stream_of_its_own(segmenter: Segmenter) -> None:
    left, right = frames(4), [dataclasses.replace(frame, image=frame.image[::-1].copy()) for frame in frames(4)]
    alternating = [
        dataclasses.replace(frame, camera=camera, name=f"{camera} {frame.name}")
        for pair in zip(left, right, strict=True)
        for frame, camera in zip(pair, ("left", "right"), strict=True)
    ]
    labels = {
        f"{camera} {name}": mask
        for camera, recording in (("left", left), ("right", right))
        for name, mask in masks_of(segmenter, recording).items()
    }
    results = evaluate(alternating, labels_from(labels), segmenter, CAMVID)
    assert results.miou == 100 and results.resets == {"first frame": 2}
    alone = [evaluate(recording, None, segmenter, CAMVID).records for recording in (left, right)]
    for index, record in enumerate(results.records):
        assert record.tc == pytest.approx(alone[index % 2][index // 2].tc, nan_ok=True)


def test_a_change_of_frame_id_or_encoding_resets_the_memory_as_in_the_node(segmenter: Segmenter) -> None:
    first, second, third = frames(3)
    recording = [
        dataclasses.replace(first, frame_id="front"),
        dataclasses.replace(second, frame_id="rear"),
        dataclasses.replace(third, frame_id="rear", encoding="rgb8"),
    ]
    results = evaluate(recording, None, segmenter, CAMVID)
    assert [record.reason for record in results.records] == ["first frame", "change of frame_id", "change of encoding"]


# In real time


class SlowSegmenter(Segmenter):
    """Reports 150 ms for every frame."""

    def stream(self, *arguments: Any, **options: Any) -> Stream:
        return SlowStream(self)


class SlowStream(Stream):
    def segment(self, *arguments: Any, **options: Any) -> Result:
        result = super().segment(*arguments, **options)
        return dataclasses.replace(result, stages_ms={"prepare": 0.0, "flow": 50.0, "network": 100.0})


def test_in_real_time_newer_frames_replace_waiting_ones(segmenter: Segmenter) -> None:
    recording = [
        dataclasses.replace(frame, stamp_ns=frame.index * 10**8, recorded_ns=frame.index * 10**8 + 5 * 10**6)
        for frame in frames(6)
    ]  # 10 Hz, each recorded 5 ms after it was taken
    slow = SlowSegmenter(segmenter.model, precision="float32")
    results = evaluate(recording, None, slow, CAMVID, realtime=True)
    assert [record.name for record in results.records] == ["000000", "000001", "000003", "000004", "000005"]
    assert [record.wait_ms for record in results.records] == pytest.approx([0, 50, 0, 50, 100])
    assert results.dropped == {"": 1}
    assert [record.age_ms for record in results.records] == pytest.approx([155, 205, 155, 205, 255])
    assert results.latency_ms["p50"] == pytest.approx(200) and results.age_ms["p50"] == pytest.approx(205)


def test_a_fast_segmenter_drops_nothing_in_real_time(segmenter: Segmenter) -> None:
    recording = [dataclasses.replace(frame, stamp_ns=frame.index * 10**12) for frame in frames(3)]
    results = evaluate(recording, None, segmenter, CAMVID, realtime=True)
    assert results.frames == 3 and results.dropped == {} and [record.wait_ms for record in results.records] == [0, 0, 0]
    without = evaluate(recording, None, segmenter, CAMVID)
    assert without.latency_ms == without.age_ms == {} and math.isnan(without.records[0].age_ms)


def test_the_host_cannot_be_scored_in_real_time(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="the host cannot be scored in real time"):
        evaluate(frames(1), None, segmenter, CAMVID, realtime=True, host=True)


def test_the_flow_of_consistency_is_reverse_flow_in_pixels() -> None:
    previous, present = (cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY) for frame in frames(2))
    flow = consistency_flow(present, previous)
    assert flow.shape == (48, 96, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow.reshape(-1, 2), axis=0), [-SHIFT, 0], atol=0.1)
