# SPDX-License-Identifier: Apache-2.0
"""Metrics: numbers worked out by hand, comparison with plain loops, and properties of any input."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from netwarp_ros.metrics import (
    ConfusionMatrix,
    TemporalConsistency,
    TrimapIoU,
    VideoConsistency,
    boundary_distance,
    confusion,
    flows_agree,
    iou,
    warp_nearest,
)

K, VOID = 4, 9
shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))


def label_maps(shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 3, VOID]))


def masks(shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.uint8, shape, elements=st.integers(0, K - 1))


pairs = shapes.flatmap(lambda shape: st.tuples(masks(shape), label_maps(shape)))


def matrix_of(prediction: np.ndarray, label: np.ndarray) -> ConfusionMatrix:
    matrix = ConfusionMatrix(K, VOID)
    matrix.update(prediction, label)
    return matrix


# IoU


def test_iou_by_hand() -> None:
    label = np.array([[0, 0, 0, 1], [1, 1, VOID, VOID]], np.uint8)
    prediction = np.array([[0, 0, 1, 1], [1, 2, 3, 0]], np.uint8)
    matrix = matrix_of(prediction, label)
    # 0: 2 of {2 right, 1 missed}; 1: 2 of {2 right, 1 missed, 1 too many}; 2: never labelled, once predicted; 3: only
    # predicted under void, so in neither.
    np.testing.assert_allclose(matrix.iou(), [200 / 3, 50, 0, np.nan])
    assert matrix.miou() == pytest.approx((200 / 3 + 50) / 2)
    assert matrix.counts.sum() == 6


def test_iou_is_not_a_mean_over_frames() -> None:
    matrix = ConfusionMatrix(2, VOID)
    matrix.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))  # by itself 100 %
    matrix.update(np.zeros((1, 3), np.uint8), np.ones((1, 3), np.uint8))  # by itself 0 %
    np.testing.assert_allclose(matrix.iou(), [25, 0])


def test_pixels_where_the_mask_is_false_do_not_count() -> None:
    matrix = ConfusionMatrix(K, VOID)
    matrix.update(np.array([[0, 77]]), np.array([[0, 88]]), where=np.array([[True, False]]))
    assert matrix.counts.tolist() == np.diag([1, 0, 0, 0]).tolist()


@given(pairs)
def test_iou_equals_its_definition_by_sets(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, label = pair
    pixels = [(int(p), int(t)) for p, t in zip(prediction.flat, label.flat, strict=True) if t != VOID]
    for k, value in enumerate(matrix_of(prediction, label).iou()):
        intersection = sum(p == k and t == k for p, t in pixels)
        union = sum(p == k or t == k for p, t in pixels)
        assert math.isnan(value) if union == 0 else value == pytest.approx(100 * intersection / union)


@given(pairs)
def test_a_perfect_prediction_scores_100(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, label = pair
    label = label.copy()
    label[0, 0] = 0
    matrix = matrix_of(np.where(label == VOID, prediction, label), label)
    assert matrix.miou() == 100


@given(pairs, st.permutations(range(K)), st.integers(0, 99))
def test_iou_does_not_depend_on_the_order_of_pixels_or_the_ids_of_classes(
    pair: tuple[np.ndarray, np.ndarray], renamed: list[int], seed: int
) -> None:
    prediction, label = pair
    order = np.random.default_rng(seed).permutation(label.size)
    names = np.arange(256)
    names[:K] = renamed
    again = matrix_of(
        names[prediction.reshape(1, -1)[:, order]].astype(np.uint8),
        names[label.reshape(1, -1)[:, order]].astype(np.uint8),
    )
    np.testing.assert_allclose(again.iou()[renamed], matrix_of(prediction, label).iou())


@given(pairs)
def test_the_counts_of_frames_add_up(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, label = pair
    parts = ConfusionMatrix(K, VOID)
    for row in range(len(label)):
        of_row = parts.update(prediction[row : row + 1], label[row : row + 1])
        np.testing.assert_array_equal(of_row, matrix_of(prediction[row : row + 1], label[row : row + 1]).counts)
    np.testing.assert_array_equal(parts.counts, matrix_of(prediction, label).counts)


def test_iou_of_an_array_of_matrices() -> None:
    matrices = np.random.default_rng(0).integers(0, 9, (2, 5, K, K))
    matrices[0, 0, 1] = matrices[0, 0, :, 1] = 0
    scores = iou(matrices)
    assert scores.shape == (2, 5, K) and math.isnan(scores[0, 0, 1])
    for index in np.ndindex(2, 5):
        np.testing.assert_array_equal(scores[index], iou(matrices[index]))


def test_the_score_is_nan_before_the_first_pixel() -> None:
    matrix = ConfusionMatrix(K, VOID)
    assert np.isnan(matrix.iou()).all() and math.isnan(matrix.miou())


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), r"prediction is \(2, 2\), label is \(2, 3\)"),
        (np.zeros((2, 2), float), np.zeros((2, 2), int), "prediction is .* float64: give .* integer"),
        (np.zeros((2, 2), int), np.zeros((2, 2, 1), int), r"label is \(2, 2, 1\)"),
        (np.full((1, 1), K), np.zeros((1, 1), int), "prediction holds the id 4: classes are 0 to 3"),
        (np.zeros((1, 1), int), np.full((1, 1), 7), "label holds the id 7: classes are 0 to 3 and 9 for void"),
        (np.zeros((1, 1), int), np.full((1, 1), -1), "label holds the id -1"),
    ],
)
def test_bad_class_ids_are_rejected(prediction: np.ndarray, label: np.ndarray, message: str) -> None:
    matrix = ConfusionMatrix(K, VOID)
    with pytest.raises(ValueError, match=message):
        matrix.update(prediction, label)
    assert not matrix.counts.any()


def test_where_must_be_a_mask_of_the_same_size() -> None:
    ids = np.zeros((2, 2), int)
    for where in (np.ones((2, 3), bool), np.ones((2, 2), int)):
        with pytest.raises(ValueError, match=r"where is .*: give \(2, 2\) bool"):
            ConfusionMatrix(K, VOID).update(ids, ids, where=where)


@given(shapes.flatmap(lambda shape: st.tuples(masks(shape), label_maps(shape), masks(shape))))
def test_pixels_without_a_predicted_class_do_not_count(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """They count as those that are left out by hand."""
    prediction, label, choice = case
    kept = choice > 0
    partial = np.where(kept, prediction, 255)
    left_out, by_hand = ConfusionMatrix(K, VOID), ConfusionMatrix(K, VOID)
    np.testing.assert_array_equal(left_out.update(partial, label), by_hand.update(prediction, label, kept))
    bands, distance = TrimapIoU(K, VOID, [1]), boundary_distance(label)
    expected = ConfusionMatrix(K, VOID).update(prediction, label, kept & (distance <= 1))
    np.testing.assert_array_equal(bands.update(partial, label)[1], expected)


def test_255_may_be_the_id_of_a_class() -> None:
    matrix = ConfusionMatrix(256, void=-1)
    assert matrix.update(np.array([[255]]), np.array([[255]]))[255, 255] == 1


def test_void_must_not_be_the_id_of_a_class() -> None:
    with pytest.raises(ValueError, match="void is 3, the id of a class: give an id that is not in 0 to 3"):
        ConfusionMatrix(4, 3)
    with pytest.raises(ValueError, match="num_classes is 0"):
        ConfusionMatrix(0, 255)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(confusion, extraglobs={"np": np}).failed == 0


# Trimap


def test_distance_by_hand() -> None:
    label = np.array([[0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], np.uint8)
    expected = [
        [4, 3, 2, 1, 1],
        [4, 3, 2, 1, 1],
        [math.sqrt(17), math.sqrt(10), math.sqrt(5), math.sqrt(2), 1],
    ]
    # Both pixels of class 1 have a neighbour of class 0 to their left.
    np.testing.assert_allclose(boundary_distance(label), expected)


@given(shapes.flatmap(label_maps))
def test_distance_equals_a_search_over_all_pixels(label: np.ndarray) -> None:
    distance = boundary_distance(label)
    places = np.argwhere(np.ones_like(label, bool))
    for place in places:
        others = [math.dist(place, other) for other in places if label[tuple(other)] != label[tuple(place)]]
        assert distance[tuple(place)] == pytest.approx(min(others, default=math.inf))


def test_distance_is_exact_on_a_large_map() -> None:
    label = np.zeros((200, 300), np.uint8)
    label[0, 0] = 1
    y, x = np.mgrid[:200, :300]
    expected = np.hypot(y, x)
    expected[0, 0] = 1
    np.testing.assert_allclose(boundary_distance(label), expected, rtol=1e-12)


def test_trimap_by_hand() -> None:
    # The boundary is between columns 3 and 4; the prediction has it between 2 and 3, and is also wrong at column 7.
    label = np.repeat([[0, 0, 0, 0, 1, 1, 1, 1]], 3, axis=0).astype(np.uint8)
    prediction = np.repeat([[0, 0, 0, 1, 1, 1, 1, 0]], 3, axis=0).astype(np.uint8)
    trimap = TrimapIoU(K, VOID, widths=[4, 1, 2])
    trimap.update(prediction, label)
    scores = trimap.miou()
    assert list(scores) == [1, 2, 4]
    # Columns 3 and 4: class 0 is missed; class 1 has one true and one false positive.
    assert scores[1] == pytest.approx((0 + 50) / 2)
    assert scores[2] == pytest.approx((50 + 200 / 3) / 2)  # columns 2 to 5
    assert scores[4] == pytest.approx((300 / 5 + 300 / 5) / 2)  # all


def test_the_edge_of_void_is_a_boundary_but_void_is_not_scored() -> None:
    label = np.array([[0, 0, 0, VOID, 1, 1, 1]], np.uint8)
    prediction = np.array([[1, 0, 0, 2, 1, 0, 1]], np.uint8)
    trimap = TrimapIoU(K, VOID, widths=[1, 2])
    trimap.update(prediction, label)
    assert trimap.matrices[1].counts.sum() == 2 and trimap.miou()[1] == 100
    assert trimap.matrices[2].counts.sum() == 4 and trimap.miou()[2] == pytest.approx((200 / 3 + 50) / 2)


@given(pairs)
def test_a_trimap_as_wide_as_the_image_holds_all_pixels(pair: tuple[np.ndarray, np.ndarray]) -> None:
    prediction, label = pair
    trimap = TrimapIoU(K, VOID, widths=[100])
    trimap.update(prediction, label)
    expected = matrix_of(prediction, label).counts if len(np.unique(label)) > 1 else np.zeros((K, K))
    np.testing.assert_array_equal(trimap.matrices[100].counts, expected)


@pytest.mark.parametrize("widths", [[], [0], [2, -1]])
def test_widths_must_be_above_zero(widths: list[int]) -> None:
    with pytest.raises(ValueError, match="widths is .*: give at least one, each > 0"):
        TrimapIoU(K, VOID, widths)


# Temporal consistency


def flow_of(u: float, v: float, shape: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(np.float32([u, v]), (*shape, 2)).copy()


def test_warp_by_hand() -> None:
    previous = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    warped, inside = warp_nearest(previous, flow_of(1, 0, (2, 3)))
    assert warped.tolist() == [[2, 3, 0], [5, 6, 0]]
    assert inside.tolist() == [[True, True, False]] * 2
    warped, inside = warp_nearest(previous, flow_of(-0.4, -0.6, (2, 3)))
    assert warped.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert inside.tolist() == [[False] * 3, [True] * 3]


@given(
    shapes.flatmap(
        lambda shape: st.tuples(
            masks(shape),
            arrays(
                np.float32, (*shape, 2), elements=st.floats(width=32, min_value=-9, max_value=9, allow_subnormal=False)
            ),
        )
    )
)
def test_warp_equals_a_plain_loop(case: tuple[np.ndarray, np.ndarray]) -> None:
    ids, flow = case
    warped, inside = warp_nearest(ids, flow)
    height, width = ids.shape
    for y in range(height):
        for x in range(width):
            at = round(y + float(flow[y, x, 1])), round(x + float(flow[y, x, 0]))
            within = 0 <= at[0] < height and 0 <= at[1] < width
            assert inside[y, x] == within
            assert warped[y, x] == (ids[at] if within else 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_flow_that_is_not_finite_or_huge_is_outside(bad: float) -> None:
    flow = flow_of(0, 0, (2, 3))
    flow[1, 1, 0] = bad
    _, inside = warp_nearest(np.ones((2, 3), np.uint8), flow)
    assert np.argwhere(~inside).tolist() == [[1, 1]]
    assert np.argwhere(~flows_agree(flow, flow_of(0, 0, (2, 3)))).tolist() == [[1, 1]]
    assert not flows_agree(flow_of(0, 0, (2, 3)), flow)[1, 1]


def test_consistency_by_hand() -> None:
    previous = np.array([[0, 0, 1, 1]], np.uint8)
    present = np.array([[0, 1, 1, 0]], np.uint8)
    # All moved one pixel to the left; the last pixel of the present frame was outside the image before.
    consistency = TemporalConsistency(2)
    consistency.update(present, previous, flow_of(1, 0, (1, 4)))
    assert consistency.miou() == 100
    still = TemporalConsistency(2)
    still.update(present, previous, flow_of(0, 0, (1, 4)))
    assert still.miou() == pytest.approx(100 / 3)  # of each class one pixel agrees and two do not
    of_pair = still.update(present, previous, flow_of(0, 0, (1, 4)), where=np.array([[True, False, True, False]]))
    np.testing.assert_array_equal(of_pair, [[1, 0], [0, 1]])
    np.testing.assert_array_equal(still.matrix.counts, [[2, 1], [1, 2]])


def test_pixels_without_a_class_in_either_mask_do_not_count_in_consistency() -> None:
    previous = np.array([[255, 0, 1, 1, 0]], np.uint8)
    present = np.array([[0, 255, 1, 0, 0]], np.uint8)
    consistency = TemporalConsistency(2)
    assert consistency.update(present, previous, flow_of(0, 0, (1, 5))).tolist() == [[1, 1], [0, 1]]
    moved = TemporalConsistency(2)  # the first pixel was at the second
    assert moved.update(present, previous, flow_of(1, 0, (1, 5))).tolist() == [[2, 0], [0, 1]]


def test_flicker_by_hand() -> None:
    previous = np.array([[0, 0, 0, 0, 1, 1]], np.uint8)
    present = np.array([[0, 0, 0, 1, 1, 1]], np.uint8)
    consistency = TemporalConsistency(3)
    consistency.update(present, previous, flow_of(0, 0, (1, 6)))
    # Of four pixels that have class 0 in either mask, one does not in both; of three with class 1, one.
    assert consistency.flicker() == pytest.approx([25, 100 / 3, math.nan], nan_ok=True)


@given(shapes.flatmap(masks))
def test_a_mask_that_does_not_change_is_consistent(mask: np.ndarray) -> None:
    consistency = TemporalConsistency(K)
    consistency.update(mask, mask, flow_of(0, 0, mask.shape))
    assert consistency.miou() == 100


def test_flows_that_lead_back_agree() -> None:
    shape = (5, 6)
    agree = flows_agree(flow_of(2, 0, shape), flow_of(-2, 0, shape))
    assert agree.tolist() == [[True, True, True, True, False, False]] * 5  # the last two columns lead out of the image
    assert not flows_agree(flow_of(1, 0, shape), flow_of(1, 0, shape)).any()
    # |r + f|² = 0.49 passes for any flow, 0.81 only if |r|² + |f|² is 31 or more.
    assert flows_agree(flow_of(0.7, 0, shape), flow_of(0, 0, shape))[:, :5].all()
    assert not flows_agree(flow_of(0.9, 0, shape), flow_of(0, 0, shape)).any()


def test_flows_disagree_where_the_background_was_hidden() -> None:
    """An object three pixels wide moves three pixels to the right over a background at rest."""
    reverse, forward = flow_of(0, 0, (4, 12)), flow_of(0, 0, (4, 12))
    forward[:, 2:5, 0] = 3
    reverse[:, 5:8, 0] = -3
    agree = flows_agree(reverse, forward)
    assert (~agree).nonzero()[1].tolist() == [2, 3, 4] * 4  # the background it uncovers


@pytest.mark.parametrize(
    "flow", [np.zeros((2, 3, 2)), np.zeros((3, 2, 2), np.float32), np.zeros((2, 2, 3), np.float32)]
)
def test_a_flow_of_another_shape_or_type_is_rejected(flow: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"flow is .*: give \(2, 3, 2\) float32"):
        warp_nearest(np.zeros((2, 3), np.uint8), flow)
    with pytest.raises(ValueError, match=r"forward is .*: give \(2, 3, 2\) float32"):
        flows_agree(flow_of(0, 0, (2, 3)), flow)


def test_ids_of_another_type_are_rejected() -> None:
    with pytest.raises(ValueError, match="ids is .* int64: give"):
        warp_nearest(np.zeros((2, 3), np.int64), flow_of(0, 0, (2, 3)))


# Video consistency


def consistency_of(predictions: list[list[int]], labels: list[list[int]], *lengths: int) -> dict[int, float]:
    """Return VC_n of frames of one row each."""
    video = VideoConsistency(VOID, lengths)
    for prediction, label in zip(predictions, labels, strict=True):
        video.update(np.array([prediction]), np.array([label]))
    return video.score()


def test_video_consistency_by_hand() -> None:
    labels = [[0, 1, 1, 2, VOID], [0, 1, 1, 3, VOID], [0, 1, 2, 3, VOID], [0, 1, 2, 3, 0]]
    predictions = [[0, 1, 2, 2, 0], [0, 0, 1, 3, 0], [0, 1, 1, 3, 0], [0, 1, 2, 0, 0]]
    # Pixels whose label stays the same, and those of them that are correct, window by window.
    # n = 2: 0, 1, 2, and 0; 0, 1, 3, and 0, 3; 0, 1, 2, 3, and 0, 1. n = 3: 0, 1, and 0; 0, 1, 3, and 0.
    assert consistency_of(predictions, labels, 3, 2) == pytest.approx(
        {2: 100 * (1 / 3 + 2 / 3 + 2 / 4) / 3, 3: 100 * (1 / 2 + 1 / 3) / 2}
    )


def test_windows_of_a_pixel_without_a_predicted_class_do_not_count() -> None:
    assert consistency_of([[255, 0], [1, 1], [1, 0]], [[1, 0]] * 3, 2) == pytest.approx({2: 100 * (0 + 1 / 2) / 2})
    assert consistency_of([[255, 0], [1, 255]], [[1, 0]] * 2, 2) == pytest.approx({2: math.nan}, nan_ok=True)


def test_steady_but_wrong_is_not_consistent_with_the_labels() -> None:
    assert consistency_of([[1, 1]] * 3, [[0, 1]] * 3, 2) == {2: 50}


def test_videos_whose_frames_alternate_are_scored_separately() -> None:
    rng = np.random.default_rng(0)
    recordings = {name: [rng.integers(0, 2, (2, 4, 5)) for _ in range(6)] for name in ("left", "right")}
    alternating, alone = VideoConsistency(VOID, [2, 3]), VideoConsistency(VOID, [2, 3])
    for pair in zip(*recordings.values(), strict=True):
        for name, (prediction, label) in zip(recordings, pair, strict=True):
            alternating.update(prediction, label, name)
    for recording in recordings.values():
        alone.restart()
        for prediction, label in recording:
            alone.update(prediction, label)
    assert alternating.score() == pytest.approx(alone.score())
    alternating.restart("left")
    alternating.update(np.zeros((9, 9), int), np.zeros((9, 9), int), "left")
    with pytest.raises(ValueError, match=r"\(9, 9\), but the previous frame is \(4, 5\)"):
        alternating.update(np.zeros((9, 9), int), np.zeros((9, 9), int), "right")


def test_no_window_spans_a_restart() -> None:
    video = VideoConsistency(VOID, [2])
    frame = np.zeros((1, 2), int)
    video.update(frame, frame)
    video.restart()
    video.update(np.zeros((3, 1), int), np.zeros((3, 1), int))
    assert math.isnan(video.score()[2])
    video.update(np.array([[0], [1], [1]]), np.zeros((3, 1), int))
    assert video.score()[2] == pytest.approx(100 / 3)


@given(
    st.integers(2, 4).flatmap(
        lambda count: st.tuples(
            st.lists(masks((2, 3)), min_size=count, max_size=6), st.lists(label_maps((2, 3)), min_size=6, max_size=6)
        )
    )
)
def test_video_consistency_equals_its_definition_by_sets(case: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    predictions, labels = case[0], case[1][: len(case[0])]

    def common(maps: list[np.ndarray]) -> set[tuple[int, int]]:
        return set.intersection(*({pair for pair in enumerate(ids.flat) if pair[1] != VOID} for ids in maps))

    video = VideoConsistency(VOID, [2, 3])
    for prediction, label in zip(predictions, labels, strict=True):
        video.update(prediction, label)
    for n, score in video.score().items():
        starts = range(len(labels) - n + 1)
        windows = [(common(labels[i : i + n]), common(predictions[i : i + n])) for i in starts]
        shares = [len(truth & predicted) / len(truth) for truth, predicted in windows if truth]
        assert score == pytest.approx(100 * np.mean(shares)) if shares else math.isnan(score)


@pytest.mark.parametrize("lengths", [[], [1], [0, 8]])
def test_lengths_must_be_above_one(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths is .*: give at least one, each > 1"):
        VideoConsistency(VOID, lengths)


def test_a_change_of_size_is_rejected() -> None:
    video = VideoConsistency(VOID, [2])
    video.update(np.zeros((2, 2), int), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"prediction is \(2, 3\), but the previous frame is \(2, 2\)"):
        video.update(np.zeros((2, 3), int), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="label is .* float64: give .* integer"):
        video.update(np.zeros((2, 2), int), np.zeros((2, 2)))
