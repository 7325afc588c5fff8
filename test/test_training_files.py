# SPDX-License-Identifier: Apache-2.0
"""Files that a training finds: damaged checkpoints and images, and what it must not overwrite."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_training import configure
from torch.optim.optimizer import register_optimizer_step_pre_hook

from netwarp_ros import cli
from netwarp_ros.models import load_model
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.training import trainer as training


@pytest.fixture(autouse=True)
def tiny_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, host in tiny.HOSTS.items():
        monkeypatch.setitem(HOSTS, name, host)


def errors_of_train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """Run `netwarp train` on the file that `configure` wrote; return the one line that it prints."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", str(tmp_path / "training.yaml")])
    assert ended.value.code == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if "step/s" not in line and "s/step" not in line]
    assert len([line for line in lines if line.strip()]) == 1, lines
    return lines[-1]


@pytest.mark.parametrize("content", ["empty", "a byte", "half", "all but the end", "zeros", "other", "a list"])
def test_a_checkpoint_that_cannot_be_read_is_named_in_one_line(
    tmp_path: Path, camvid: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    training.train(configure(tmp_path, camvid))
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    data = checkpoint.read_bytes()
    cuts = {"empty": 0, "a byte": 1, "half": len(data) // 2, "all but the end": len(data) - 1}
    if content in cuts:
        checkpoint.write_bytes(data[: cuts[content]])
    elif content == "zeros":
        checkpoint.write_bytes(bytes(1000))
    else:
        torch.save({"weights": torch.ones(2)} if content == "other" else [1], checkpoint)
    line = errors_of_train(tmp_path, capfd)
    problem = r"holds more than weights, or is damaged \(.+\)|is not a checkpoint of this program"
    pattern = rf"netwarp: {re.escape(str(checkpoint))} ({problem}): it cannot be resumed. To start anew, remove it"
    assert re.fullmatch(pattern, line), line
    assert len(line) < 500
    checkpoint.unlink()
    (tmp_path / "out" / "model.safetensors").unlink()
    assert load_model(training.train(configure(tmp_path, camvid))).name == "model"


def test_a_checkpoint_with_other_weights_is_named(
    tmp_path: Path, camvid: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    training.train(configure(tmp_path, camvid))
    checkpoint = tmp_path / "out" / "checkpoint.pt"
    stored = torch.load(checkpoint, weights_only=True)
    del stored["network"]["host.classifier.bias"]
    torch.save(stored, checkpoint)
    line = errors_of_train(tmp_path, capfd)
    assert line.startswith(f"netwarp: {checkpoint} does not fit the network (Error(s) in loading state_dict")
    assert line.endswith("To start anew, remove the checkpoint") and len(line) < 500


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_even_by_a_worker(
    tmp_path: Path, camvid: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    configure(tmp_path, camvid, workers=workers, loss={"class_balance": 0.0})
    image = camvid / "images" / "2.png"
    image.write_bytes(image.read_bytes()[:200])
    line = errors_of_train(tmp_path, capfd)
    assert line.startswith("netwarp: ") and str(image) in line and len(line) < 400


def norms(tmp_path: Path, camvid: Path, clip: float) -> list[float]:
    """Train for a few steps; return the norm of the gradient that each step of the optimiser got."""
    seen: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        groups = itertools.chain.from_iterable(group["params"] for group in optimiser.param_groups)
        gradients = [parameter.grad for parameter in groups if parameter.grad is not None]
        seen.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    handle = register_optimizer_step_pre_hook(note)
    try:
        training.train(configure(tmp_path, camvid, output=str(tmp_path / f"out {clip}"), optimiser={"clip": clip}))
    finally:
        handle.remove()
    return seen


def test_a_clip_of_0_leaves_the_gradients_as_they_are(tmp_path: Path, camvid: Path) -> None:
    unlimited, limited = (norms(tmp_path, camvid, clip) for clip in (0.0, 0.01))
    assert min(unlimited) > 0.02
    assert limited == pytest.approx([0.01] * 4, rel=1e-3)
