# SPDX-License-Identifier: Apache-2.0
"""The synthetic street: repeatability, labels, flow and validity."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from netwarp_ros.street import Street, StreetFrame

CLASSES = 11
WIDTH, HEIGHT = 160, 120


@pytest.fixture(scope="module")
def street() -> Street:
    return Street(WIDTH, HEIGHT)


def assert_same(first: StreetFrame, second: StreetFrame) -> None:
    np.testing.assert_array_equal(first.image, second.image)
    np.testing.assert_array_equal(first.label, second.label)
    np.testing.assert_array_equal(first.flow, second.flow)
    np.testing.assert_array_equal(first.valid, second.valid)


def places(flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return x + flow[..., 0], y + flow[..., 1]


def test_shapes_and_types(street: Street) -> None:
    frame = street.frame(7)
    assert frame.image.shape == (HEIGHT, WIDTH, 3) and frame.image.dtype == np.uint8
    assert frame.label.shape == (HEIGHT, WIDTH) and frame.label.dtype == np.uint8
    assert frame.flow.shape == (HEIGHT, WIDTH, 2) and frame.flow.dtype == np.float32
    assert frame.valid.shape == (HEIGHT, WIDTH) and frame.valid.dtype == bool
    assert np.isfinite(frame.flow).all()


def test_first_frame_has_no_motion(street: Street) -> None:
    frame = street.frame(0)
    assert not frame.flow.any() and not frame.valid.any()


def test_frames_in_order_equal_frames_alone(street: Street) -> None:
    in_order = [street.frame(index) for index in range(20, 23)]
    alone = Street(WIDTH, HEIGHT)
    for index in (22, 20, 21):
        assert_same(alone.frame(index), in_order[index - 20])


def test_seeds_differ() -> None:
    first, second = (Street(64, 48, seed=seed).frame(3) for seed in (1, 2))
    assert np.mean(first.label != second.label) > 0.05
    assert np.abs(first.image.astype(int) - second.image).mean() > 10


def test_rate_sets_the_time_of_a_frame(street: Street) -> None:
    slow, fast = street.frame(4), Street(WIDTH, HEIGHT, rate=20).frame(8)
    np.testing.assert_array_equal(slow.label, fast.label)
    assert np.abs(fast.flow[slow.label == 3]).mean() < 0.7 * np.abs(slow.flow[slow.label == 3]).mean()


@pytest.mark.parametrize("first", [24, 62])
def test_warping_along_the_flow_gives_the_present_frame(street: Street, first: int) -> None:
    previous = street.frame(first - 1)
    for index in range(first, first + 3):
        present = street.frame(index)
        assert present.valid.mean() > 0.85
        x, y = places(present.flow)
        label = cv2.remap(previous.label, x, y, cv2.INTER_NEAREST)
        assert np.mean((label == present.label)[present.valid]) > 0.995
        warped = cv2.remap(previous.image, x, y, cv2.INTER_LINEAR).astype(int)
        error = np.abs(warped - present.image).mean(-1)
        unmoved = np.abs(previous.image.astype(int) - present.image).mean(-1)
        assert np.median(error[present.valid]) < 4  # each frame has noise of 2.2 and its own exposure
        assert error[present.valid].mean() < 0.5 * unmoved[present.valid].mean()
        previous = present


def test_flow_is_exact_to_less_than_a_quarter_pixel(street: Street) -> None:
    """A shift of the flow by a quarter pixel, either way on either axis, makes the match worse."""
    previous, present = street.frame(63), street.frame(64)
    sure = present.valid & (cv2.erode(present.valid.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)

    def mismatch(dx: float, dy: float) -> float:
        x, y = places(present.flow + np.array([dx, dy], np.float32))
        warped = cv2.remap(previous.image, x, y, cv2.INTER_LINEAR).astype(np.float64)
        return float(np.square(warped - present.image)[sure].mean())

    for shift in (0.25, -0.25):
        assert mismatch(0, 0) < mismatch(shift, 0)
        assert mismatch(0, 0) < mismatch(0, shift)


def test_road_flow_is_that_of_a_plane(street: Street) -> None:
    """A homography explains the road's flow to a hundredth of a pixel."""
    frame = street.frame(30)
    road = frame.label == 3
    x, y = places(np.zeros_like(frame.flow))
    before_x, before_y = places(frame.flow)
    present = np.stack([x[road], y[road]], -1).astype(np.float64)
    before = np.stack([before_x[road], before_y[road]], -1).astype(np.float64)
    homography, _ = cv2.findHomography(present, before)
    predicted = cv2.perspectiveTransform(present[:, None], homography)[:, 0]
    assert np.abs(predicted - before).max() < 0.01
    assert before[:, 1].mean() < present[:, 1].mean()  # the road ahead comes closer


def test_flow_is_invalid_where_a_surface_was_hidden_or_out_of_view(street: Street) -> None:
    frame = street.frame(41)
    x, y = places(frame.flow)
    outside = (x < 0) | (x > WIDTH - 1) | (y < 0) | (y > HEIGHT - 1)
    assert not frame.valid[outside].any()
    assert (~frame.valid & ~outside).any()


def test_every_class_in_sensible_proportion() -> None:
    street = Street(WIDTH, HEIGHT)
    counts = np.zeros(256)
    for index in range(0, 90, 6):
        counts += np.bincount(street.frame(index).label.ravel(), minlength=256)
    share = counts / counts.sum()
    assert share[CLASSES:].sum() == 0
    assert (share[:CLASSES] > 0.0005).all()
    sky, building, _, road, pavement, tree, _, _, car = share[:9]
    assert 0.08 < sky < 0.35 and 0.08 < building < 0.45 and 0.2 < road < 0.5
    assert pavement > 0.01 and tree > 0.01 and 0.01 < car < 0.25


@pytest.mark.parametrize("size", [(32, 32), (97, 61), (200, 64), (48, 300)])
def test_any_size(size: tuple[int, int]) -> None:
    street = Street(*size, seed=5)
    for index in (0, 1, 5000):
        frame = street.frame(index)
        assert frame.image.shape == (size[1], size[0], 3)
        assert frame.label.max() < CLASSES
    assert frame.valid.mean() > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 16}, r"width is 16: give a whole number of pixels from 32 to 4096"),
        ({"height": 5000}, r"height is 5000: give a whole number of pixels from 32 to 4096"),
        ({"width": 480.5}, r"width is 480\.5: give a whole number of pixels from 32 to 4096"),
        ({"seed": -1}, r"seed is -1: give 0 or more"),
        ({"rate": 0.0}, r"rate is 0\.0: give 1 to 240 Hz"),
        ({"rate": float("nan")}, r"rate is nan: give 1 to 240 Hz"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Street(**arguments)  # type: ignore[arg-type]


def test_bad_index_is_named(street: Street) -> None:
    with pytest.raises(ValueError, match="index is -1: give 0 or more"):
        street.frame(-1)
