# SPDX-License-Identifier: Apache-2.0
"""Optical flow: direction, units and errors, on textures shifted by a known amount; and flow files."""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from netwarp_ros.flow import ESTIMATORS, PRESETS, DeepFlow, DisFlow, FlowFolder, create_estimator, read_flo, write_flo


def texture(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


@pytest.mark.parametrize("preset", PRESETS)
def test_flow_points_from_present_to_previous(preset: str) -> None:
    """After a shift by 3 to the right and 2 down, the flow is 3 to the left and 2 up."""
    previous = texture()
    present = np.roll(previous, (2, 3), axis=(0, 1))
    flow = DisFlow(preset)(present, previous)
    assert flow.shape == (96, 128, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (-3, -2), atol=0.2)


def test_a_color_image_gives_the_flow_of_its_grey_one() -> None:
    frames = [cv2.merge([texture(seed=s), texture(seed=s + 1), texture(seed=s + 2)]) for s in (0, 0)]
    frames[1] = np.roll(frames[1], 2, axis=1)
    grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    np.testing.assert_array_equal(DisFlow()(*frames), DisFlow()(*grey))


def test_grey_frames_need_not_be_dense() -> None:
    frames = texture(96, 256), texture(96, 256, seed=1)
    np.testing.assert_array_equal(
        DisFlow()(*(frame[:, ::2] for frame in frames)), DisFlow()(*(frame[:, ::2].copy() for frame in frames))
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_result_depends_on_its_arguments_alone(preset: str) -> None:
    """One estimator serves many cameras: earlier calls, with or without a start, leave no trace."""
    first, second = texture(), np.roll(texture(), 3, axis=1)
    start = np.full((96, 128, 2), -2, np.float32)
    cold, warm = DisFlow(preset)(second, first), DisFlow(preset)(second, first, start)
    dis = DisFlow(preset)
    for _ in range(2):
        dis(texture(seed=7), texture(seed=8))
        np.testing.assert_array_equal(dis(second, first, start), warm)
        dis(texture(seed=7), texture(seed=8), 9 * start)
        np.testing.assert_array_equal(dis(second, first), cold)


def test_a_good_start_finds_motion_that_is_too_large_without_it() -> None:
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


def test_every_name_has_its_estimator() -> None:
    assert ESTIMATORS == ("ultrafast", "fast", "medium", "deepflow", "nvidia")
    for name in PRESETS:
        dis = create_estimator(name)
        assert isinstance(dis, DisFlow) and dis.preset == name
    assert isinstance(create_estimator("deepflow"), DeepFlow)
    with pytest.raises(
        ValueError, match="unknown flow 'slow': choose one of ultrafast, fast, medium, deepflow, nvidia"
    ):
        create_estimator("slow")


def test_deepflow_points_from_present_to_previous() -> None:
    previous, deep = texture(), DeepFlow()
    flow = deep(np.roll(previous, (2, 3), axis=(0, 1)), previous)
    assert flow.shape == (96, 128, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (-3, -2), atol=0.05)
    assert deep(texture(seed=1), texture(seed=2)).any()
    np.testing.assert_array_equal(deep(np.roll(previous, (2, 3), axis=(0, 1)), previous), flow)
    assert deep(texture(1, 1), texture(1, 1)).shape == (1, 1, 2)
    with pytest.raises(ValueError, match=r"previous is \(96, 127\)"):
        deep(texture(), texture(96, 127))


def test_deepflow_needs_the_contributed_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(ValueError, match="install opencv-contrib-python-headless"):
        create_estimator("deepflow")


def test_a_flo_file_byte_by_byte(tmp_path: Path) -> None:
    """One pixel over another, written by hand: width 1, height 2, then (u, v) = (1, -2) and (0.5, 0)."""
    content = struct.pack("<fii4f", 202021.25, 1, 2, 1.0, -2.0, 0.5, 0.0)
    (tmp_path / "a.flo").write_bytes(content)
    flow = read_flo(tmp_path / "a.flo")
    assert flow.dtype == np.float32 and flow.tolist() == [[[1.0, -2.0]], [[0.5, 0.0]]]
    write_flo(tmp_path / "b.flo", flow.astype(np.float64))
    assert (tmp_path / "b.flo").read_bytes() == content
    np.testing.assert_array_equal(cv2.readOpticalFlow(str(tmp_path / "b.flo")), flow)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "begins with b'', not b'PIEH'"),
        (struct.pack(">fii2f", 202021.25, 1, 1, 0, 0), "begins with b'HEIP'"),
        (struct.pack("<fi", 202021.25, 1), "has 8 bytes, less than its header of 12"),
        (struct.pack("<fii", 202021.25, -1, 2), "says -1x2 pixels: width and height must be 1 to 65536"),
        (struct.pack("<fii", 202021.25, 2**30, 2**30), "says 1073741824x1073741824 pixels"),
        (struct.pack("<fii3f", 202021.25, 2, 1, 0, 0, 0), "has 24 bytes, but 2x1 pixels need 28"),
        (struct.pack("<fii3f", 202021.25, 1, 1, 0, 0, 0), "has 24 bytes, but 1x1 pixels need 20"),
        (struct.pack("<fii4f", 202021.25, 2, 1, 0, 0, 1.7e9, 0), "has 1 pixels of unknown flow"),
        (struct.pack("<fii4f", 202021.25, 2, 1, 0, math.nan, 0, -math.inf), "has 2 pixels of unknown flow"),
    ],
)
def test_a_damaged_flo_file_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "damaged.flo").write_bytes(content)
    with pytest.raises(ValueError, match=rf"damaged\.flo {re.escape(complaint)}"):
        read_flo(tmp_path / "damaged.flo")


@pytest.mark.parametrize("shape", [(2, 2), (2, 2, 3), (0, 2, 2)])
def test_an_array_of_another_shape_is_not_written(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"flow is {shape}: give (H, W, 2)")):
        write_flo(tmp_path / "a.flo", np.zeros(shape, np.float32))


def test_a_flow_folder_gives_the_flow_of_each_frame_that_has_a_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no .flo file: give a folder of .flo files"):
        FlowFolder(tmp_path)
    write_flo(tmp_path / "f1.flo", np.full((2, 3, 2), 7, np.float32))
    flows = FlowFolder(tmp_path)
    assert flows("f0") is None
    known = flows("f1")
    assert known is not None and known.shape == (2, 3, 2) and (known == 7).all()
