# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark ops`` compares equal computations and writes its figures. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from netwarp_ros import cli
from netwarp_ros.benchmarks import ops

CPU = torch.device("cpu")
SMALL = ops.Case("small", (1, 8, 9, 12), torch.float32, "channels_last")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_the_implementations_compute_the_same(layout: str, dtype: torch.dtype, tolerance: float) -> None:
    setup = ops._Setup(ops.Case("small", (1, 8, 9, 12), dtype, layout), CPU, None)
    for calls, of_maps in ((setup.forward(), slice(None)), (setup.backward(), 0)):
        results = {name: call()[of_maps] for name, (call, _) in calls.items()}
        for ours, theirs in (("warp", "grid_sample"), ("warp_combine", "grid_sample + mul + add")):
            torch.testing.assert_close(results[ours], results[theirs], atol=tolerance, rtol=0)


def test_results_are_compared_with_the_copy_and_with_grid_sample() -> None:
    results = list(ops.run([SMALL], CPU, with_compiled=False, seconds=0))
    forward = {r.implementation: r for r in results if (r.direction, r.memory) == ("forward", "kept")}
    assert {(r.direction, r.memory) for r in results} == {
        (direction, state) for direction in ("forward", "backward") for state in ("fresh", "kept")
    }
    assert list(forward) == ["copy", "warp", "grid_sample", "warp_combine", "grid_sample + mul + add"]
    assert [r.bytes // SMALL.bytes for r in forward.values()] == [2, 2, 2, 3, 3]
    copy, combine = forward["copy"], forward["warp_combine"]
    assert combine.vs_copy == pytest.approx(combine.time_ms / copy.time_ms)
    assert combine.vs_grid_sample == pytest.approx(forward["grid_sample + mul + add"].time_ms / combine.time_ms)
    assert copy.vs_grid_sample is None


def test_the_command_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "standard_cases", lambda device: [SMALL])
    file = tmp_path / "figures" / "ops.json"
    with pytest.raises(SystemExit) as end:
        cli.main(["benchmark", "ops", "--no-compiled", "--json", str(file)])
    assert not end.value.code
    written = json.loads(file.read_text())
    assert written["environment"]["torch"] == torch.__version__
    first = written["results"][0]
    assert first["shape"] == [1, 8, 9, 12] and first["dtype"] == "float32" and first["implementation"] == "copy"
    assert set(first) >= {"time_ms", "vs_copy", "vs_grid_sample", "bytes", "gb_s"}
    assert first["gb_s"] == pytest.approx(first["bytes"] / first["time_ms"] / 1e6)


def test_the_paper_and_the_shipped_models_are_among_the_cases() -> None:
    for device, half in (("cpu", torch.bfloat16), ("cuda", torch.float16)):
        cases = ops.standard_cases(torch.device(device))
        assert {(case.shape, case.dtype) for case in cases} == {
            (shape, dtype)
            for shape in ((1, 1024, 128, 128), (1, 128, 45, 60), (1, 64, 90, 120), (1, 32, 180, 240))
            for dtype in (torch.float32, half)
        } | {((1, 128, 64, 80), torch.float32)}
