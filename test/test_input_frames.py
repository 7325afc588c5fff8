# SPDX-License-Identifier: Apache-2.0
"""Images become frames of a size that the network takes, and masks lose the padding again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netwarp_ros.classes import load_classes
from netwarp_ros.models import Inference, InputSize, Model, ModelSpec, VideoCNN, augment
from netwarp_ros.models.input_frames import InputFrames
from netwarp_ros.segmenter import Segmenter

SPEC = ModelSpec("test", load_classes("camvid"), {"num_classes": 11}, input_height=24)


class Picky(nn.Module):
    """Gives class k where the red channel is k / 10, on frames of some sizes only; and remembers their sizes."""

    def __init__(self, taken: InputSize) -> None:
        super().__init__()
        self.taken, self.seen = taken, set[tuple[int, int]]()
        self.features, self.scores = nn.Conv2d(3, 1, 1, bias=False), nn.Conv2d(1, 11, 1)
        with torch.no_grad():
            self.features.weight[:] = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
            values = torch.linspace(0, 1, 11)
            self.scores.weight[:, 0, 0, 0], self.scores.bias[:] = 2 * values, -(values**2)

    def forward(self, frame: Tensor) -> Tensor:
        height, width = frame.shape[-2:]
        if (
            self.taken.fixed not in (None, (height, width))
            or height % self.taken.multiple
            or width % self.taken.multiple
        ):
            raise ValueError(f"{height}x{width} is not taken")
        self.seen.add((height, width))
        return self.scores(self.features(frame))


def segmenter(taken: InputSize, **options: Any) -> Segmenter:
    spec = replace(SPEC, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), input_size=taken)
    host = Picky(taken)
    example = torch.rand(1, 3, *taken.example)
    video_cnn = augment(host, ["features"], flow_cnn=False, example=example)
    return Segmenter(Model(video_cnn, spec, "picky"), engine="torch", precision="float32", **options)


def image(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image whose columns are of one class each, and its mask."""
    mask = np.broadcast_to(np.arange(width) % 11, (height, width)).astype(np.uint8)
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 2] = np.round(mask * 25.5)
    return picture, mask


@pytest.mark.parametrize(
    ("taken", "size", "frame"),
    [
        (InputSize(), (24, 33), (24, 33)),
        (InputSize(multiple=16), (24, 33), (32, 48)),
        (InputSize(multiple=8), (24, 32), (24, 32)),
        (InputSize(fixed=(40, 48)), (24, 48), (40, 48)),
        (InputSize(fixed=(40, 48)), (40, 20), (40, 48)),
    ],
    ids=str,
)
def test_the_network_sees_sizes_that_it_takes_and_masks_are_those_of_the_images(
    taken: InputSize, size: tuple[int, int], frame: tuple[int, int]
) -> None:
    stream = segmenter(taken).stream()
    host = stream.segmenter.network.host
    host.seen.clear()  # type: ignore[operator,union-attr]
    picture, mask = image(*size)
    for stamp_ns in (1, 2, 3):
        result = stream.segment(picture, stamp_ns).mask
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, mask)
    assert host.seen == {frame}


def test_padding_repeats_the_edge() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 33, 3), np.uint8)
    padded = InputFrames(replace(SPEC, input_size=InputSize(multiple=16)), 24, 4096).frame(picture)
    assert padded.shape == (32, 48, 3)
    np.testing.assert_array_equal(padded[:24, :33], picture)
    assert (padded[24:, :33] == picture[-1]).all() and (padded[:24, 33:] == picture[:, -1:]).all()


def test_an_image_that_needs_nothing_is_not_copied() -> None:
    frames = InputFrames(replace(SPEC, input_size=InputSize(multiple=8)), 24, 4096)
    picture = np.zeros((24, 32, 3), np.uint8)
    assert frames.frame(picture) is picture


def test_a_flow_of_any_grid_is_padded_with_its_image() -> None:
    frames = InputFrames(replace(SPEC, input_size=InputSize(multiple=16)), 24, 4096)
    flow = np.random.default_rng(0).random((12, 15, 2), np.float32)  # of an image that is scaled to 24x30
    padded = frames.pad_flow(flow, (48, 60))
    assert padded.shape == (16, 16, 2)
    np.testing.assert_array_equal(padded[:12, :15], flow)
    assert (padded[12:, :15] == flow[-1]).all() and (padded[:12, 15:] == flow[:, -1:]).all()
    assert InputFrames(SPEC, 24, 4096).pad_flow(flow, (48, 60)) is flow


@pytest.mark.parametrize("multiple", [1, 32])
def test_padding_changes_nothing_at_the_edge_that_memory_comes_in_from(multiple: int) -> None:
    """The image is of one class; the memory moves in from beyond its right edge."""
    stream = segmenter(InputSize(multiple=multiple)).stream()
    netwarp = stream.segmenter.network.netwarps[0]
    nn.init.constant_(netwarp.w1, 0.5)
    nn.init.constant_(netwarp.w2, 0.5)
    picture = np.zeros((24, 40, 3), np.uint8)
    picture[..., 2] = round(5 * 25.5)
    flow = np.full((24, 40, 2), (8.0, 8.0), np.float32)
    stream.segment(picture, 1)
    np.testing.assert_array_equal(stream.segment(picture, 2, flow=flow).mask, np.full((24, 40), 5))


def test_padding_does_not_hold_back_the_estimated_flow() -> None:
    """A texture moves by 8 pixels: the flow that the network gets is 8 pixels up to the edge."""
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 200, 3), np.uint8), (0, 0), 3)
    stream = segmenter(InputSize(multiple=64), input_height=96).stream()
    given: list[Tensor] = []
    network = stream.segmenter.network
    transform = network.transform_flow
    network.transform_flow = lambda flows, *rest: (given.extend(flows.values()), transform(flows, *rest))[1]  # type: ignore[method-assign]
    for step in range(2):
        stream.segment(np.ascontiguousarray(texture[:, 8 * step : 8 * step + 120]), step + 1)
    (flow,) = given
    assert flow.shape == (1, 2, 128, 128)
    assert (flow[0, 0, 8:88, 8:110] - 8).abs().median() < 0.3
    assert (flow[0, 0, 8:88, 100:128] - 8).abs().median() < 1


def test_a_known_flow_moves_the_memory_by_as_much_as_the_image() -> None:
    """With w1 = 0 and w2 = 1 the mask is the previous one, moved."""
    stream = segmenter(InputSize(multiple=16)).stream()
    netwarp = stream.segmenter.network.netwarps[0]
    nn.init.zeros_(netwarp.w1)
    nn.init.ones_(netwarp.w2)
    picture, mask = image(48, 60)
    flow = np.zeros((48, 60, 2), np.float32)
    flow[..., 0] = -22  # 11 pixels of the frame: one period of the columns
    wide = np.repeat(picture[:, :30], 2, axis=1)  # columns of two pixels, so that half the size loses nothing
    expected = np.repeat(mask[:, :30], 2, axis=1)
    stream.segment(wide, 1)
    moved = stream.segment(np.zeros_like(wide), 2, flow=flow).mask
    np.testing.assert_array_equal(moved[:, 24:], expected[:, 24:])


def test_several_scales_give_sizes_that_the_network_takes() -> None:
    taken = InputSize(multiple=16)
    stream = segmenter(taken, inference=Inference(scales=(0.5, 1.0, 1.5), flip=True)).stream()
    host = stream.segmenter.network.host
    host.seen.clear()  # type: ignore[operator,union-attr]
    stream.segment(image(24, 40)[0], 1)
    assert host.seen == {(16, 32), (32, 48), (48, 64)}


@pytest.mark.parametrize(
    ("taken", "options", "message"),
    [
        (
            InputSize(fixed=(40, 48)),
            {"input_height": 24},
            "input_height is 24, and the network takes images of 48x40 only: give 0",
        ),
        (
            InputSize(fixed=(40, 48)),
            {"inference": Inference(scales=(0.5,))},
            "takes images of 48x40 only: give no windows",
        ),
        (InputSize(fixed=(40, 48)), {"inference": Inference(window=24)}, "takes images of 48x40 only: give no windows"),
        (
            InputSize(multiple=16),
            {"inference": Inference(window=24)},
            "window is 24, and .* sides are multiples of 16",
        ),
    ],
)
def test_what_the_network_does_not_take_is_refused(taken: InputSize, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(taken, **options)


def test_a_host_alone_is_padded_too() -> None:
    taken = InputSize(multiple=16)
    model = Model(VideoCNN(Picky(taken), {}), replace(SPEC, mean=(0.0,) * 3, std=(1.0,) * 3, input_size=taken), "picky")
    picture, mask = image(24, 33)
    for engine in ("torch", "openvino"):
        stream = Segmenter(model, engine=engine, precision="float32").stream()
        np.testing.assert_array_equal(stream.segment(picture, 1).mask, mask)
