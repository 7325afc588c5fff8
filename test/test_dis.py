# SPDX-License-Identifier: Apache-2.0
"""Our DIS optical flow in plain PyTorch: its pyramid, the flow of textures and of the street, and what it refuses.

`assert_dis_equals_the_reference` compares the compiled operator with it, bit for bit, on any device: test_cuda.py calls
it for a GPU, cuda_emulation/cases.py for the emulated kernels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_operator import LAYOUTS
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.flow import PRESETS, DisFlow
from netwarp_ros.flow.tensor_dis import SEARCHES, TensorDis
from netwarp_ros.ops import compiled, dis_reference
from netwarp_ros.ops.dis import LEAST_SIDE, Search, dis_flow, dis_pyramid, last_level, pyramid_pixels
from netwarp_ros.street import Street, StreetFrame

OPS = torch.ops.netwarp_ros
Size = tuple[int, int]
SMALL = Search(finest=1, stride=4, rounds=3, steps=3)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a texture of small and large spots, so that every level of a pyramid has some."""
    noise = np.random.default_rng(seed).standard_normal((height + 100, width + 100))
    octaves = [sigma * cv2.GaussianBlur(noise, (0, 0), sigma)[50:-50, 50:-50] for sigma in (2, 6, 18)]
    return np.clip(128 + 60 * sum(octaves), 0, 255).astype(np.uint8)


def shifted(size: Size, flow: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Return the present and the previous frame, (1, 1, H, W) uint8, between which everything has this flow (u, v)."""
    (height, width), (u, v) = size, flow
    scene = torch.from_numpy(texture(height + abs(v), width + abs(u), seed))[None, None]
    corners = (max(v, 0), max(u, 0)), (max(-v, 0), max(-u, 0))
    return [scene[..., y : y + height, x : x + width] for y, x in corners]


def frames_of(size: Size, batch: int, channels: int) -> list[Tensor]:
    """Return present and previous frames (B, C, H, W): textures, with a motion of its own for each of the batch."""
    pairs = [
        [shifted(size, (3 - 2 * image, 2 + image), seed=10 * image + channel) for channel in range(channels)]
        for image in range(batch)
    ]
    empty = torch.zeros((0, channels, *size), dtype=torch.uint8)
    return [torch.cat([empty, *(torch.cat([c[end] for c in image], 1) for image in pairs)]) for end in (0, 1)]


def find(frames: Sequence[Tensor], search: Search, start: Tensor | None = None, level: int = 0) -> Tensor:
    """Return the flow from a present to a previous frame."""
    present, previous = (dis_pyramid(frame, search.first) for frame in frames)
    return dis_flow(present, previous, (frames[0].shape[2], frames[0].shape[3]), search, start, level)


def constant(flow: tuple[float, float], size: Size, batch: int = 1) -> Tensor:
    return torch.tensor(flow, dtype=torch.float32).view(1, 2, 1, 1).repeat(batch, 1, *size)


def errors(flow: Tensor, truth: tuple[float, float] | Tensor) -> Tensor:
    """Return the end-point error of each pixel, (B, h, w)."""
    exact = truth if isinstance(truth, Tensor) else torch.tensor(truth, dtype=flow.dtype).view(1, 2, 1, 1)
    return (flow - exact).norm(dim=1)


# The compiled operator


def _random_start(size: Size, batch: int) -> Tensor:
    return 6 * torch.randn((batch, 2, *size), generator=torch.Generator().manual_seed(1))


def _not_finite_start(size: Size, batch: int) -> Tensor:
    start = _random_start(size, batch)
    start[..., ::3, ::2], start[..., 1::5, 1::3], start[:, 1, 2::7] = math.nan, math.inf, -math.inf
    return start


STARTS: dict[str, Callable[[Size, int], Tensor | None]] = {
    "no start": lambda size, batch: None,
    "start": _random_start,
    "start that is not finite": _not_finite_start,
    "start on another grid": lambda size, batch: _random_start((size[0] // 3, size[1] // 5), batch),
    "start on one cell": lambda size, batch: _random_start((1, 1), batch),
    "transposed start": lambda size, batch: _random_start(size[::-1], batch).transpose(2, 3),
    "expanded start": lambda size, batch: _random_start((1, size[1]), 1).expand(batch, 2, *size),
}  # fmt: skip


SIZES = st.tuples(st.integers(LEAST_SIDE, 70), st.integers(LEAST_SIDE, 70))
SEARCHED = st.builds(
    Search, st.integers(0, 2), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), refinements=st.integers(0, 2)
)
ANY_DIS = given(
    size=SIZES,
    batch=st.integers(0, 3),
    search=SEARCHED,
    level=st.integers(0, 8),
    start=st.sampled_from(sorted(STARTS)),
    channels=st.sampled_from([1, 3]),
    layout=st.sampled_from(sorted(LAYOUTS)),
)


def assert_dis_equals_the_reference(
    device: str | torch.device,
    size: Size,
    batch: int,
    search: Search,
    level: int = 0,
    start: str = "no start",
    channels: int = 3,
    layout: str = "contiguous",
) -> Tensor:
    """Assert that the operators on a device equal `dis_reference` on the CPU, bit for bit; return the flow."""
    frames = frames_of(size, batch, channels)
    last = last_level(size)
    searched = (search.first, search.finest, search.coarsest(size))
    tail = (*size, level, *searched, search.stride, search.rounds, search.steps, search.refinements)
    here = [LAYOUTS[layout](frame.to(device)) for frame in frames]
    pyramids = [OPS.dis_pyramid(frame, search.first, last) for frame in here]
    expected = [dis_reference.dis_pyramid(frame.cpu(), search.first, last) for frame in here]
    for name, got, want in zip(("present", "previous"), pyramids, expected, strict=True):
        assert torch.equal(got.cpu(), want), f"pyramid of {name}"
    begin = STARTS[start](size, batch)
    flow = OPS.dis_flow(*pyramids, None if begin is None else begin.to(device), *tail).cpu()
    wanted = dis_reference.dis_flow(expected[0], expected[1], begin, *tail)
    assert flow.shape == wanted.shape and flow.isfinite().all(), "shape, or not finite"
    assert torch.equal(flow, wanted), f"flow differs by up to {(flow - wanted).abs().max():g}"
    assert batch == 0 or flow.any(), "no flow"
    return flow


@pytest.mark.skipif(not compiled.DIS_DEVICES, reason="the operator library has no DIS: it is compiled for CUDA only")
def test_opcheck_of_dis() -> None:
    for device in sorted(compiled.DIS_DEVICES):
        frames = [frame.to(device) for frame in frames_of((33, 40), 2, 3)]
        torch.library.opcheck(OPS.dis_pyramid.default, (frames[0], 1, 2))
        pyramids = [OPS.dis_pyramid(frame, 1, 2) for frame in frames]
        for start in (None, constant((1, 2), (5, 7), 2).to(device)):
            torch.library.opcheck(OPS.dis_flow.default, (*pyramids, start, 33, 40, 1, 1, 1, 2, 4, 2, 2, 1))


@pytest.mark.skipif(not compiled.DEVICES, reason="the compiled operators are not built: `make setup`")
@pytest.mark.parametrize(("size", "level"), [((33, 41), 0), ((33, 41), 1), ((64, 70), 3)])
def test_fake_results_have_the_shape_and_type_of_real_ones(size: Size, level: int) -> None:
    frames = frames_of(size, 2, 3)
    fakes = [OPS.dis_pyramid(frame.to("meta"), 1, last_level(size)) for frame in frames]
    real = dis_pyramid(frames[0])
    assert (fakes[0].shape, fakes[0].dtype) == (real.shape, real.dtype)
    fake, flow = (
        OPS.dis_flow(*fakes, None, *size, level, 1, 1, SMALL.coarsest(size), 4, 3, 3, 0),
        find(frames, SMALL, level=level),
    )
    assert (fake.shape, fake.dtype, fake.stride()) == (flow.shape, flow.dtype, flow.stride())


# The pyramid


def test_grey_is_that_of_opencv() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    image[:2, :128] = np.arange(256, dtype=np.uint8).reshape(2, 128, 1)
    pyramid = dis_pyramid(torch.from_numpy(image).permute(2, 0, 1)[None], first=0)
    np.testing.assert_array_equal(pyramid[0, : 256 * 256].view(256, 256), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def test_a_level_rounds_the_means_of_four_pixels_and_leaves_out_an_odd_last_row_and_column() -> None:
    """By hand: a mean of 0.25 becomes 0, and 0.5 becomes 1; (255 * 3 + 254) / 4 = 254.75 becomes 255."""
    grey = torch.zeros((1, 1, 33, 35), dtype=torch.uint8)
    grey[..., 32, :], grey[..., :, 34] = 200, 200
    grey[0, 0, 0, 1] = 1
    grey[0, 0, 0, 2] = grey[0, 0, 1, 3] = 1
    grey[0, 0, 2:4, 4:6] = torch.tensor([[255, 255], [254, 255]])
    expected = torch.zeros((16, 17), dtype=torch.uint8)
    expected[0, 1], expected[1, 2] = 1, 255
    assert torch.equal(dis_pyramid(grey)[0, : 16 * 17].view(16, 17), expected)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_levels_are_halvings_of_the_one_before(first: int) -> None:
    """Of 141x75 pixels, levels are 70x37, 35x18 and 17x9; a patch fits into the last one."""
    images = [texture(75, 141, seed) for seed in (0, 1)]
    expected = []
    for image in images:
        levels = [image]
        for height, width in ((37, 70), (18, 35), (9, 17)):
            fours = levels[-1][: 2 * height, : 2 * width].reshape(height, 2, width, 2).astype(float)
            levels.append(np.floor(fours.mean((1, 3)) + 0.5).astype(np.uint8))
        expected.append(np.concatenate([level.ravel() for level in levels[first:]]))
    pyramid = dis_pyramid(torch.from_numpy(np.stack(images))[:, None], first)
    assert pyramid.dtype == torch.uint8 and pyramid.shape == (2, pyramid_pixels((75, 141), first))
    np.testing.assert_array_equal(pyramid, np.stack(expected))


@pytest.mark.parametrize(
    ("size", "finest", "coarsest", "last"),
    [
        ((360, 480), 2, 4, 5),  # a quarter of 480, 120, is 7.5 pixels of level 4
        ((1080, 1920), 1, 6, 7),
        ((32, 600), 2, 2, 2),  # a patch is as high as level 2
        ((63, 1000), 0, 2, 2),
        ((64, 1000), 0, 3, 3),
        ((32, 32), 0, 0, 2),
        ((32, 32), 2, 2, 2),
    ],
)
def test_the_search_begins_where_a_patch_reaches_large_motion(
    size: Size, finest: int, coarsest: int, last: int
) -> None:
    search = replace(SMALL, finest=finest)
    assert search.coarsest(size) == search.coarsest(size[::-1]) == coarsest
    assert last_level(size) == last_level(size[::-1]) == last and search.first == min(finest, 1)
    assert pyramid_pixels(size, search.first) == sum(
        (size[0] >> k) * (size[1] >> k) for k in range(search.first, last + 1)
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_strides_of_frames_do_not_matter(channels: int, layout: str) -> None:
    frame = LAYOUTS[layout](frames_of((37, 50), 2, channels)[0])
    assert torch.equal(dis_pyramid(frame), dis_pyramid(frame.contiguous()))


# The flow


@pytest.mark.parametrize("flow", [(-3, -2), (5, 1), (0, -4)], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_flow_points_from_present_to_previous(preset: str, flow: tuple[int, int]) -> None:
    found = find(shifted((96, 128), flow), SEARCHES[preset])
    assert found.shape == (1, 2, 96, 128) and found.dtype == torch.float32 and found.is_contiguous()
    error = errors(found, flow)
    assert error.median() < 0.2 and error[:, 8:-8, 8:-8].mean() < 0.3, (error.median(), error[:, 8:-8, 8:-8].mean())


@pytest.mark.parametrize("preset", PRESETS)
def test_large_motion_is_found_without_a_start(preset: str) -> None:
    error = errors(find(shifted((160, 320), (-30, 4), seed=1), SEARCHES[preset]), (-30, 4))[..., 40:]
    assert error.median() < 0.3 and error.mean() < 3, (error.median(), error.mean())


def test_motion_that_comes_into_view_leaves_the_rest_of_the_border_right() -> None:
    """The flow leads 6 pixels to the left: out of the image at its left border, into it at the right one."""
    flow = find(shifted((96, 128), (-6, 0)), SEARCHES["medium"])
    error = errors(flow, (-6, 0))
    assert error[..., -6:].mean() < 0.3
    assert flow.isfinite().all() and flow.abs().max() < 32


@pytest.mark.parametrize("size", [(96, 128), (97, 131), (99, 130)], ids=str)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_level_is_the_grid_of_the_result(size: Size, level: int) -> None:
    """A cell has the mean flow of its pixels, in cells: 1 / 2^level of the pixels."""
    cell = 2**level
    frames = shifted(size, (-4, 3))
    pixels, cells = find(frames, SEARCHES["medium"]), find(frames, SEARCHES["medium"], level=level)
    assert cells.shape == (1, 2, math.ceil(size[0] / cell), math.ceil(size[1] / cell)) and cells.is_contiguous()
    means = F.avg_pool2d(pixels, cell, ceil_mode=True, count_include_pad=False) / cell
    difference = (cells - means).abs()
    assert difference.mean() < 0.02 and difference[..., 2:-2, 2:-2].max() < 0.5, (difference.mean(), difference.max())
    assert errors(cells, (-4 / cell, 3 / cell)).median() < 0.1 / cell


def test_a_batch_gives_the_flow_of_each_of_its_pairs() -> None:
    frames, start = frames_of((64, 83), 3, 3), _random_start((20, 30), 3)
    for search in (SMALL, replace(SMALL, refinements=2)):
        together = find(frames, search, start)
        assert torch.equal(together, find(frames, search, start))
        for index in range(3):
            one = slice(index, index + 1)
            assert torch.equal(together[one], find([frame[one] for frame in frames], search, start[one]))
    assert find([frame[:0] for frame in frames], SMALL).shape == (0, 2, 64, 83)


def test_a_good_start_finds_motion_that_is_too_large_without_it() -> None:
    frames, truth = shifted((160, 320), (-100, 0)), (-100, 0)
    search, inner = SEARCHES["fast"], (..., slice(108, None))
    assert errors(find(frames, search), truth)[inner].mean() > 3
    begin = constant(truth, (160, 320))
    warm = find(frames, search, begin)
    assert errors(warm, truth)[inner].mean() < 0.3
    assert torch.equal(begin, constant(truth, (160, 320)))  # it is only read
    quarter = find(frames, search, constant((-25, 0), (40, 80)))  # in pixels of its own grid
    assert (quarter - warm).abs().max() < 1e-3
    uneven = find(frames, search, constant((-25, 0), (7, 80)))
    assert errors(uneven, truth)[inner].mean() < 0.3


def test_a_wrong_start_is_no_worse_than_none() -> None:
    frames, wrong = shifted((96, 128), (-3, 2)), constant((40, -30), (96, 128))
    assert errors(find(frames, SEARCHES["ultrafast"], wrong), (-3, 2)).median() < 0.2


def test_an_infinite_start_is_limited_to_the_size_of_the_image() -> None:
    frames = shifted((96, 128), (-3, 2))
    found = find(frames, SMALL, constant((math.inf, -math.inf), (96, 128)))
    assert found.isfinite().all() and torch.equal(found, find(frames, SMALL, constant((128, -96), (96, 128))))


def test_nan_in_a_start_counts_as_no_displacement() -> None:
    frames = shifted((96, 128), (-3, 2))
    none = find(frames, SMALL, torch.full((1, 2, 96, 128), math.nan))
    assert torch.equal(none, find(frames, SMALL, torch.zeros((1, 2, 96, 128))))
    for start in (_not_finite_start((96, 128), 1), _not_finite_start((11, 13), 1)):
        assert find(frames, SMALL, start).isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
def test_images_without_texture_have_no_flow(preset: str) -> None:
    present, previous = (torch.full((1, 1, 96, 128), grey, dtype=torch.uint8) for grey in (90, 130))
    assert not find([present, previous], SEARCHES[preset]).any()


@pytest.mark.parametrize("preset", PRESETS)
def test_motion_is_found_although_the_exposure_changes(preset: str) -> None:
    present, previous = shifted((96, 128), (-3, 2))
    darker = (0.8 * present.float() + 20).round().to(torch.uint8)
    brighter = [(0.8 * frame.float() + offset).to(torch.uint8) for frame, offset in ((present, 51), (previous, 0))]
    assert errors(find([darker, previous], SEARCHES[preset]), (-3, 2)).median() < 0.5
    assert errors(find(brighter, SEARCHES[preset]), (-3, 2)).median() < 0.3


@settings(max_examples=25)
@given(size=SIZES, search=SEARCHED, level=st.integers(0, 8), start=st.sampled_from(sorted(STARTS)))
def test_any_frames_give_finite_flow_and_equal_ones_none(size: Size, search: Search, level: int, start: str) -> None:
    present, previous = frames_of(size, 2, 1)
    begin = STARTS[start](size, 2)
    flow = find([present, previous], search, begin, level)
    assert flow.shape == (2, 2, *(math.ceil(side / 2**level) for side in size)) and flow.isfinite().all()
    assert not find([present, present], search, level=level).any()
    alone = find([present[1:], previous[1:]], search, None if begin is None else begin[1:], level)
    assert torch.equal(flow[1:], alone)


# The street, of which the flow is known


@pytest.fixture(scope="module")
def streets() -> list[list[StreetFrame]]:
    streets = [Street(seed=seed) for seed in (1, 2, 3)]
    return [[street.frame(index) for index in range(3)] for street in streets]


def street_error(
    streets: list[list[StreetFrame]],
    estimator: Callable[[np.ndarray, np.ndarray], np.ndarray],
    average: Callable[[np.ndarray], np.floating] = np.mean,
) -> float:
    """Return the mean end-point error, or another average of it, where the flow is visible."""
    found = []
    for frames in streets:
        for previous, present in pairwise(frames):
            flow = estimator(present.image, previous.image)
            found.append(average(np.linalg.norm(flow - present.flow, axis=-1)[present.valid]))
    return float(np.mean(found))


@pytest.mark.parametrize("preset", ["ultrafast", "fast"])
def test_the_flow_of_a_street_is_as_exact_as_that_of_opencv(streets: list[list[StreetFrame]], preset: str) -> None:
    ours, theirs = (street_error(streets, flow) for flow in (TensorDis(preset, "cpu"), DisFlow(preset)))
    assert 0.5 < ours < 1.05 * theirs, (ours, theirs)


def test_refinement_makes_the_flow_of_a_street_more_exact(streets: list[list[StreetFrame]]) -> None:
    refined, plain = TensorDis("fast", "cpu"), TensorDis("fast", "cpu")
    plain.search = replace(plain.search, refinements=0)
    better, worse = (street_error(streets[:1], flow, np.median) for flow in (refined, plain))
    assert better < 0.9 * worse, (better, worse)


# TensorDis


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 200), (24, 600), (31, 32), (600, 5)])
def test_small_and_narrow_images_give_finite_flow(preset: str, size: Size) -> None:
    for fine in (False, True):
        dis = TensorDis(preset, "cpu", fine=fine)
        images = texture(*size), texture(*size, seed=1)
        flow = dis(*images)
        assert flow.shape == (*size, 2) and flow.dtype == np.float32 and np.isfinite(flow).all()
        again = dis(*images, start=flow)
        assert again.shape == (*size, 2) and np.isfinite(again).all()
    assert TensorDis(preset, "cpu", level=2)(*images).shape == (math.ceil(size[0] / 4), math.ceil(size[1] / 4), 2)


@pytest.mark.parametrize("level", [0, 1])
def test_arrays_and_tensors_give_the_same_flow(level: int) -> None:
    size, frames, dis = (61, 83), frames_of((61, 83), 1, 3), TensorDis("fast", "cpu", level=level)
    images = [cv2.cvtColor(frame[0].permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR) for frame in frames]
    (present, previous), start = map(dis.pyramid, frames), constant((2.6, 1.7), (-(-61 >> level), -(-83 >> level)))
    cold, warm = dis.flow(present, previous, size), dis.flow(present, previous, size, start)
    np.testing.assert_array_equal(dis(images[0], images[1]), cold[0].permute(1, 2, 0))
    np.testing.assert_array_equal(
        dis(images[0], images[1], start[0].permute(1, 2, 0).numpy()), warm[0].permute(1, 2, 0)
    )
    assert not torch.equal(cold, warm)


def test_the_fine_search_goes_on_for_one_level() -> None:
    assert [TensorDis(preset, fine=True).search for preset in PRESETS] == [
        replace(SEARCHES["ultrafast"], finest=1, stride=5),
        replace(SEARCHES["fast"], finest=1, stride=5),
        replace(SEARCHES["medium"], finest=0, stride=5),
    ]
    assert set(SEARCHES) == set(PRESETS)


# Errors


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("finest", -1, "0 to 2"), ("finest", 3, "0 to 2"), ("stride", 0, "1 to 8"), ("stride", 9, "1 to 8"),
        ("rounds", 0, "1 to 100"), ("rounds", 101, "1 to 100"), ("steps", 0, "1 to 100"), ("steps", 101, "1 to 100"),
        ("refinements", -1, "0 to 100"), ("refinements", 101, "0 to 100"),
    ],
)  # fmt: skip
def test_a_search_out_of_range_is_refused(name: str, value: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}: give {allowed}$"):
        replace(SMALL, **{name: value})


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "frame is (3, 32, 32) torch.uint8: give (B, 3, H, W)"),
        (torch.zeros(1, 2, 32, 32, dtype=torch.uint8), "frame is (1, 2, 32, 32) torch.uint8"),
        (torch.zeros(1, 1, 32, 32), "frame is (1, 1, 32, 32) torch.float32"),
        (torch.zeros(1, 1, 31, 40, dtype=torch.uint8), "frames are 40x31: give 32 to 16384 pixels in each direction"),
        (torch.zeros(1, 1, 40, 31, dtype=torch.uint8), "frames are 31x40"),
        (torch.zeros(1, dtype=torch.uint8).expand(1, 1, 32, 16385), "frames are 16385x32"),
    ],
    ids=lambda value: "" if isinstance(value, Tensor) else value,
)  # fmt: skip
def test_wrong_frames_are_refused(frame: Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        dis_pyramid(frame)
    for first in (-1, 3):
        with pytest.raises(ValueError, match=f"first is {first}: give 0 to 2"):
            dis_pyramid(torch.zeros(1, 1, 32, 32, dtype=torch.uint8), first)


def test_wrong_arguments_of_the_flow_are_refused() -> None:
    """Of 40x32 pixels, levels 1 and 2 have 20x16 + 10x8 = 400."""
    present, previous = (dis_pyramid(frame) for frame in frames_of((32, 40), 2, 1))
    size = (32, 40)  # height and width

    def refused(complaint: str, *arguments: object, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=re.escape(complaint)):
            dis_flow(*arguments)  # type: ignore[arg-type]

    wanted = "give (B, 400) uint8, the pyramid from level 1 on of frames of 40x32"
    refused(f"present is (2, 399) torch.uint8: {wanted}", present[:, 1:], previous, size, SMALL)
    refused("present is (400,) torch.uint8", present[0], previous, size, SMALL)
    refused(f"previous is (2, 400) torch.float32: {wanted}", present, previous.float(), size, SMALL)
    wanted, full = "give (B, 1680) uint8, the pyramid from level 0 on", replace(SMALL, finest=0)
    refused(f"present is (2, 400) torch.uint8: {wanted}", present, previous, size, full)
    refused("present has 2 frames, previous 1: give as many", present, previous[:1], size, SMALL)
    refused("frames are 40x31: give 32 to 16384", present, previous, (31, 40), SMALL)
    for level in (-1, 9):
        refused(f"level is {level}: give 0 to 8", present, previous, size, SMALL, None, level)
    for shape in ((2, 32, 40), (1, 2, 32, 40), (2, 3, 32, 40), (2, 2, 0, 40)):
        wanted = f"start is {shape} torch.float32: give (2, 2, h, w) float32"
        refused(wanted, present, previous, size, SMALL, torch.zeros(shape))
    start = torch.zeros(2, 2, 32, 40)
    refused("start is (2, 2, 32, 40) torch.float64", present, previous, size, SMALL, start.double())
    elsewhere = "tensors are on different devices (present on cpu, previous on meta): move them to one"
    refused(elsewhere, present, previous.to("meta"), size, SMALL, kind=RuntimeError)
    elsewhere = "present on cpu, previous on cpu, start on meta"
    refused(elsewhere, present, previous, size, SMALL, start.to("meta"), kind=RuntimeError)


def test_errors_of_tensor_dis_name_the_value() -> None:
    with pytest.raises(ValueError, match="'slow'.*ultrafast, fast, medium"):
        TensorDis("slow")
    dis = TensorDis(device="cpu")
    with pytest.raises(ValueError, match=r"previous is \(96, 127\)"):
        dis(texture(96, 128), texture(96, 127))
    with pytest.raises(ValueError, match="previous is .* float32"):
        dis(texture(96, 128), texture(96, 128).astype(np.float32))
    with pytest.raises(ValueError, match=r"start is \(1, 2, 96, 128\) torch.float64"):
        dis(texture(96, 128), texture(96, 128), np.zeros((96, 128, 2)))
    with pytest.raises(ValueError, match=r"start is \(1, 2, 48, 64\): give \(B, 2, 96, 128\)"):
        dis(texture(96, 128), texture(96, 128), np.zeros((48, 64, 2), np.float32))
