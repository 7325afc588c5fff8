# SPDX-License-Identifier: Apache-2.0
"""`resize_argmax`: it gives the classes that float64 scores would, in every layout, type and size.

Every test of a value runs twice: on the reference in plain PyTorch, and on the compiled operator.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from netwarp_ros.ops import compiled, resize_argmax

needs_compiled = pytest.mark.skipif(
    "cpu" not in compiled.DEVICES, reason="the compiled operator is not built: `make setup`, with a C++ compiler"
)


@pytest.fixture(scope="module", params=["reference", pytest.param("compiled", marks=needs_compiled)])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "reference":
            patch.setattr(compiled, "DEVICES", frozenset())
        yield request.param


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels-last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "class step": lambda t: t.repeat_interleave(2, dim=1)[:, ::2],
    "cropped": lambda t: F.pad(t, (1, 2, 3, 1))[..., 3:-1, 1:-2],
    "channels-last, cropped": lambda t: LAYOUTS["channels-last"](F.pad(t, (1, 2, 3, 1)))[..., 3:-1, 1:-2],
    "channels-last, some classes": lambda t: LAYOUTS["channels-last"](torch.cat((t, t), 1))[:, : t.shape[1]],
    "column step": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda t: t[:, :, :1].expand(t.shape),
}
SIDE = st.integers(1, 40) | st.sampled_from([1, 2, 64, 200])
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def interpolate(scores: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(scores, size, mode="bilinear", align_corners=False) if scores.shape[2:] != size else scores


def assert_greatest(mask: Tensor, scores: Tensor, size: tuple[int, int], implementation: str) -> None:
    """Assert that the mask has the class of the greatest float64 score, wherever it leads by more than 1e-5.

    The reference rounds coordinates to float32, to 6e-5 pixels at column 600; the compiled operator rounds fractions.
    """
    assert mask.dtype == torch.uint8 and mask.shape == (scores.shape[0], *size) and mask.is_contiguous()
    exact = interpolate(scores.double(), size)
    behind = exact.amax(1) - exact.gather(1, mask.long().unsqueeze(1))[:, 0]
    assert behind.numel() == 0 or behind.max() <= (1e-5 if implementation == "compiled" else 1e-3)


@settings(max_examples=120, deadline=None)
@given(
    batch=st.integers(0, 2),
    classes=st.integers(1, 20) | st.sampled_from([1, 11, 19, 256]),
    shape=st.tuples(SIDE, SIDE),
    size=st.tuples(SIDE, SIDE),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_equals_float64(
    implementation: str,
    batch: int,
    classes: int,
    shape: tuple[int, int],
    size: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, classes, *shape, generator=random)
    scores = LAYOUTS[layout](scores.to(dtype))
    assert_greatest(resize_argmax(scores, size), scores, size, implementation)


@pytest.mark.parametrize("classes", [11, 19])
@pytest.mark.parametrize(("shape", "size"), [((90, 120), (360, 480)), ((45, 300), (90, 1200)), ((50, 900), (17, 301))])
def test_masks_of_several_tiles(
    implementation: str, classes: int, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    scores = torch.randn(2, classes, *shape, generator=torch.Generator().manual_seed(0))
    for layout in ("contiguous", "channels-last"):
        assert_greatest(resize_argmax(LAYOUTS[layout](scores), size), scores, size, implementation)


def test_values_worked_out_by_hand(implementation: str) -> None:
    """From 2 to 8 columns, class 0 falls from 1 to 0: it is 1, 1, 7/8, 5/8, 3/8, 1/8, 0, 0. Class 1 stays at 0.5."""
    scores = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).view(1, 2, 1, 2)
    assert resize_argmax(scores, (1, 8)).tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]]]
    assert resize_argmax(scores.transpose(2, 3), (8, 1)).flatten().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    # From 4 to 2 columns without antialiasing, the mean of each two.
    scores = torch.tensor([[3.0, -2.0, -3.0, 2.0], [0.0, 0.0, 0.0, 0.0]]).view(1, 2, 1, 4)
    assert resize_argmax(scores, (1, 2)).tolist() == [[[0, 1]]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(6, 7), (12, 14), (3, 40)])
def test_the_lowest_of_equal_classes_counts(implementation: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    scores = torch.randint(-1, 2, (2, 5, 6, 7), generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = torch.cat((scores - 9, scores, scores), 1)
    for layout in LAYOUTS.values():
        mask = resize_argmax(layout(scores), size)
        assert mask.min() >= 5 and mask.max() <= 9
    assert torch.equal(resize_argmax(torch.zeros_like(scores), size), torch.zeros(2, *size, dtype=torch.uint8))


@pytest.mark.parametrize("size", [(6, 20), (12, 40), (24, 80), (3, 5), (6, 40), (12, 20), (3, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_count_as_in_interpolate_and_argmax(
    implementation: str, size: tuple[int, int], value: float
) -> None:
    """The ratios of the sizes are powers of two: in float32 too, weights are 0 just where they should be."""
    random = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 4, 6, 20, generator=random)
    scores[torch.rand(scores.shape, generator=random) < 0.05] = value
    scores[0, 1, 2, 3] = math.inf
    for layout in ("contiguous", "channels-last"):
        mask = resize_argmax(LAYOUTS[layout](scores), size)
        assert torch.equal(mask, interpolate(scores, size).argmax(1).to(torch.uint8))
    everywhere = torch.full_like(scores, value)
    assert not resize_argmax(everywhere, size).any()


def test_half_precision_is_interpolated_in_float32(implementation: str) -> None:
    """Rounded to the type of the scores, both classes would be equal in the middle, and class 0 would win."""
    for dtype in (torch.float16, torch.bfloat16):
        step = torch.finfo(dtype).eps
        scores = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0 + step, 1.0]], dtype=dtype).view(1, 2, 1, 3)
        assert resize_argmax(scores, (1, 12)).tolist() == [[[0] * 2 + [1] * 8 + [0] * 2]]


def test_all_halves_are_read_exactly() -> None:
    """Every finite value beats 0 if it is greater, in each layout; subnormals too."""
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite()].view(1, 1, -1, 16)
        for value in (0.0, 1.0, -3.0):
            scores = torch.cat((torch.full_like(every, value), every), 1)
            for layout in ("contiguous", "channels-last"):
                assert torch.equal(resize_argmax(LAYOUTS[layout](scores), every.shape[2:]), (every > value)[:, 0])


@needs_compiled
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_the_result_is_the_same_in_every_layout_and_with_any_number_of_threads(dtype: torch.dtype) -> None:
    scores = torch.randn(2, 11, 30, 500, generator=torch.Generator().manual_seed(0)).to(dtype)
    layouts = ("contiguous", "channels-last", "class step", "cropped", "transposed")
    threads = torch.get_num_threads()
    try:
        for size in ((61, 1009), (7, 90), (30, 500)):
            torch.set_num_threads(1)
            expected = resize_argmax(scores, size)
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                for layout in layouts:
                    assert torch.equal(resize_argmax(LAYOUTS[layout](scores), size), expected), (layout, count)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(1, 3, 4), (3, 4, 5), (1, 1, 3, 4, 5)], ids=str)
def test_scores_of_another_number_of_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"scores is \({', '.join(map(str, shape))}\) torch.float32.*\(B, C, H, W\)"):
        resize_argmax(torch.zeros(shape), (4, 4))


@pytest.mark.parametrize(
    ("scores", "size", "message"),
    [
        (torch.zeros(1, 3, 4, 5, dtype=torch.int64), (4, 4), r"scores is \(1, 3, 4, 5\) torch.int64"),
        (torch.zeros(1, 257, 2, 2), (4, 4), "scores have 257 classes: give 1 to 256"),
        (torch.zeros(1, 0, 2, 2), (4, 4), "scores have 0 classes: give 1 to 256"),
        (torch.zeros(1, 3, 0, 2), (4, 4), r"scores are \(1, 3, 0, 2\): give at least one pixel"),
        (torch.zeros(1, 3, 2, 2), (0, 4), r"size is \(0, 4\): give 1 to 2\*\*24 pixels"),
        (torch.zeros(1, 3, 2, 2), (4, -1), r"size is \(4, -1\)"),
        (torch.zeros(1, 3, 2, 2), (4, 2**24 + 1), r"size is \(4, 16777217\)"),
    ],
)
def test_wrong_arguments_are_refused(scores: Tensor, size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_argmax(scores, size)


@needs_compiled
@pytest.mark.parametrize(
    ("scores", "size", "message"),
    [
        (torch.zeros(3, 4, 5), (4, 4), "3 dimensions"),
        (torch.zeros(1, 3, 4, 5).double(), (4, 4), "must be float32, float16 or bfloat16"),
        (torch.zeros(1, 257, 2, 2), (4, 4), "scores have 257 classes: give 1 to 256"),
        (torch.zeros(1, 0, 2, 2), (4, 4), "scores have 0 classes"),
        (torch.zeros(1, 3, 2, 0), (4, 4), "scores have no pixels"),
        (torch.zeros(1, 3, 2, 2), (4, 0), "size is 4 x 0"),
    ],
)
def test_direct_calls_are_checked(scores: Tensor, size: tuple[int, int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.netwarp_ros.resize_argmax(scores, *size)


def test_it_has_no_gradient(implementation: str) -> None:
    scores = torch.randn(1, 3, 4, 5, requires_grad=True)
    assert not resize_argmax(scores, (8, 9)).requires_grad


@needs_compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "cropped"])
@pytest.mark.parametrize("size", [(8, 9), (4, 5)])
def test_opcheck(layout: str, size: tuple[int, int]) -> None:
    scores = LAYOUTS[layout](torch.randn(2, 3, 4, 5))
    torch.library.opcheck(torch.ops.netwarp_ros.resize_argmax.default, (scores, *size))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_a_graph_break(implementation: str, dynamic: bool) -> None:
    def mask(features: Tensor) -> Tensor:
        return resize_argmax(features.relu(), (2 * features.shape[2], 2 * features.shape[3])) + 1

    torch.compiler.reset()
    graph = torch.compile(mask, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 3, 4, 5), (2, 3, 6, 7)):
        scores = torch.randn(shape)
        assert torch.equal(graph(scores), mask(scores))


@needs_compiled
def test_exports() -> None:
    class Mask(torch.nn.Module):
        def forward(self, scores: Tensor) -> Tensor:
            return resize_argmax(scores, (2 * scores.shape[2], 2 * scores.shape[3]))

    example = torch.randn(2, 3, 4, 5)
    height, width = torch.export.Dim("height", max=4096), torch.export.Dim("width", max=4096)
    program = torch.export.export(Mask(), (example,), dynamic_shapes=({2: height, 3: width},))
    assert "netwarp_ros.resize_argmax" in str(program.graph)
    for scores in (example, torch.randn(2, 3, 9, 8)):
        assert torch.equal(program.module()(scores), Mask()(scores))


@needs_compiled
def test_lesser_instruction_sets_pass_the_same_tests() -> None:
    values = "float64 or tiles or hand or lowest or finite or halves or threads"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    runs = [
        subprocess.Popen(
            [*command, "-k", f"({values}) and not reference"],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability}, stdout=subprocess.PIPE, text=True,
        )
        for capability in ("default", "avx2")
    ]  # fmt: skip
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0 and "48 passed" in output, output
