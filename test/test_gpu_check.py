# SPDX-License-Identifier: Apache-2.0
"""`tools/gpu_check.sh` reports each step, those that fail too. What its steps do needs a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_flow
import gpu_models
import gpu_report
import pytest
import torch

from netwarp_ros.engines import EngineOptions

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU: this tests what is reported without one")
def test_a_step_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": "ops machine"}
    command = [ROOT / "tools" / "gpu_check.sh", tmp_path / "gpu"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    content = json.loads((tmp_path / "gpu" / "gpu.json").read_text())
    assert [step["name"] for step in content["steps"]] == ["machine", "ops"]
    machine, ops = (step["status"] for step in content["steps"])
    assert machine == 0 and ops not in (0, 124, 127)
    assert content["ops"] is None and content["models"] is None
    assert f"| ops | failed: {ops} |" in (tmp_path / "gpu" / "gpu.md").read_text()
    assert "== ops: exit status" in (tmp_path / "gpu" / "log.txt").read_text()


def test_models_are_timed_and_an_engine_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as far as it carries."""
    small = {"model": gpu_models.MODELS[0], "size": (64, 48), "flow_cnn": True}
    wanted = [
        {**small, "engine": "torch", "compile": "none"},
        {**small, "engine": "torch", "compile": "none", "flow_cnn": False},
        {**small, "engine": "cudagraphs", "compile": "none"},
        {**small, "engine": "torch", "compile": "reduce-overhead"},
    ]
    monkeypatch.setattr(gpu_models, "configurations", lambda: iter(wanted))
    monkeypatch.setattr(gpu_models, "PASSES", 1)
    monkeypatch.setattr(torch, "compile", lambda module, **_options: module)
    gpu_models.main("cpu", tmp_path / "models.json")
    results = json.loads((tmp_path / "models.json").read_text())["results"]
    assert [result["engine"] for result in results] == ["torch", "torch", "cudagraphs", "torch"]
    assert ["stages_ms" in result and "error" not in result for result in results] == [True, True, False, False]
    assert "engine cudagraphs: the device is cpu, it needs cuda" in results[2]["error"]
    assert results[3]["error"].startswith("compile reduce-overhead: the device is cpu")
    gpu_report.models_table(results)


def test_flow_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, as far as it carries."""
    monkeypatch.setattr(gpu_flow, "SIZES", ((64, 48),))
    monkeypatch.setattr(gpu_flow, "REPEATS", 1)
    gpu_flow.main("cpu", tmp_path / "flow.json")
    results = json.loads((tmp_path / "flow.json").read_text())["results"]
    assert [result["preset"] for result in results] == ["ultrafast", "fast", "medium"]
    assert all(0 < result["error_px"] < 3 and result["ms"] > 0 and result["opencv_ms"] > 0 for result in results)
    gpu_report.flow_table(results)


def test_every_configuration_of_a_model_is_different_and_can_be_loaded() -> None:
    wanted = list(gpu_models.configurations())
    assert len({json.dumps(one, sort_keys=True) for one in wanted}) == len(wanted)
    for one in wanted:
        EngineOptions(one["engine"], "cuda", one.get("precision", "auto"), one["compile"])


def test_the_report_has_the_figures_of_all_steps(tmp_path: Path) -> None:
    parts, folder = tmp_path / "parts", tmp_path
    parts.mkdir()
    (parts / "steps.tsv").write_text("ops\t0\t61000\nmodels\t124\t180000\n")
    common = {"case": "paper", "shape": [1, 8, 4, 4], "dtype": "float16", "layout": "channels_last",
              "direction": "forward", "memory": "cold"}  # fmt: skip
    ops = [{**common, "implementation": "copy", "time_ms": 0.02, "gb_s": 3000.0},
           {**common, "implementation": "warp_combine", "time_ms": 0.04, "gb_s": 2400.0}]  # fmt: skip
    stages = {
        "host": {"total": 5.0, "flow": 0.0, "network": 5.0},
        "netwarp": {"total": 8.0, "flow": 2.0, "network": 6.0},
    }
    settings = {"size": [480, 360], "engine": "torch"}
    models = [{"model": "a", **settings, "compile": "none", "flow_cnn": True, "stages_ms": stages, "overhead": 60.0},
              {"model": "b", **settings, "compile": "default", "flow_cnn": False, "error": "no memory"}]  # fmt: skip
    (parts / "ops.json").write_text(json.dumps({"results": ops}))
    flow = {"size": [1024, 512], "preset": "fast", "ms": 0.25, "opencv_ms": 5.0, "error_px": 2.25}
    (parts / "flow.json").write_text(json.dumps({"results": [flow]}))
    (parts / "models.json").write_text(json.dumps({"results": models}))
    subprocess.run([sys.executable, ROOT / "tools" / "gpu_report.py", parts, folder], check=True, capture_output=True)
    text = (folder / "gpu.md").read_text()
    assert "| ops | passed | 61 |" in text and "| models | ran out of time | 180 |" in text
    assert "| paper 1×8×4×4, float16, channels_last | 20.0 (1.00) | 40.0 (0.80) |" in text
    assert "| fast, 1024×512 | 0.250 | 5.00 | 20.0 | 2.25 |" in text
    assert "| a | 480×360 | torch | yes | 5.00 | 8.00 | 2.00 | 1.00 | 60.0 % |" in text
    assert "| b | 480×360 | torch, default | no | no memory |" in text
