# SPDX-License-Identifier: Apache-2.0
"""DIS flow: its direction, units and errors, on textures moved by a known amount."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from netwarp_ros.flow import PRESETS, DisFlow


def texture(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize("preset", PRESETS)
def test_flow_points_from_present_to_previous(preset: str) -> None:
    """What moves right by 3 and down by 2 was, in the previous frame, 3 to the left and 2 above."""
    previous = texture()
    present = np.roll(previous, (2, 3), axis=(0, 1))
    flow = DisFlow(preset)(present, previous)
    assert flow.shape == (96, 128, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (-3, -2), atol=0.2)


def test_colour_gives_the_flow_of_its_grey_image() -> None:
    frames = [cv2.merge([texture(seed=s), texture(seed=s + 1), texture(seed=s + 2)]) for s in (0, 0)]
    frames[1] = np.roll(frames[1], 2, axis=1)
    grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    np.testing.assert_array_equal(DisFlow()(*frames), DisFlow()(*grey))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_result_depends_on_its_arguments_alone(preset: str) -> None:
    """One estimator serves many cameras: what it was given before, with a start or without, leaves no trace."""
    first, second = texture(), np.roll(texture(), 3, axis=1)
    start = np.full((96, 128, 2), -2, np.float32)
    cold, warm = DisFlow(preset)(second, first), DisFlow(preset)(second, first, start)
    dis = DisFlow(preset)
    for _ in range(2):
        dis(texture(seed=7), texture(seed=8))
        np.testing.assert_array_equal(dis(second, first, start), warm)
        dis(texture(seed=7), texture(seed=8), 9 * start)
        np.testing.assert_array_equal(dis(second, first), cold)


def test_a_start_near_the_truth_finds_motion_too_large_for_a_cold_one() -> None:
    previous = texture(160, 320)
    present = np.roll(previous, 30, axis=1)
    truth = np.zeros((160, 320, 2), np.float32)
    truth[..., 0] = -30
    inner = (slice(None), slice(40, -40))
    cold = np.abs(DisFlow("fast")(present, previous) - truth)[inner].mean()
    warm = np.abs(DisFlow("fast")(present, previous, start=truth)[inner] - truth[inner]).mean()
    assert warm < 0.5 < cold


def test_the_start_is_not_written_to() -> None:
    start = np.ones((96, 128, 2), np.float32)
    DisFlow()(np.roll(texture(), 3, axis=1), texture(), start=start)
    assert (start == 1).all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 200), (24, 600), (31, 32), (600, 5)])
def test_small_and_narrow_images_give_finite_flow(preset: str, size: tuple[int, int]) -> None:
    flow = DisFlow(preset)(texture(*size), texture(*size, seed=1))
    assert flow.shape == (*size, 2)
    assert np.isfinite(flow).all()


def test_errors_name_the_value() -> None:
    with pytest.raises(ValueError, match="'slow'.*ultrafast, fast, medium"):
        DisFlow("slow")
    with pytest.raises(ValueError, match=r"previous is \(96, 127\)"):
        DisFlow()(texture(), texture(96, 127))
    with pytest.raises(ValueError, match="previous is .* float32"):
        DisFlow()(texture(), texture().astype(np.float32))
    with pytest.raises(ValueError, match=r"start is \(48, 64, 2\) float32: give \(96, 128, 2\)"):
        DisFlow()(texture(), texture(), start=np.zeros((48, 64, 2), np.float32))
