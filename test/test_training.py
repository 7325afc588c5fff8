# SPDX-License-Identifier: Apache-2.0
"""Training of image and video CNNs on a synthetic CamVid of four small images."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_float32 import is_full, settings
from torch import Tensor, nn
from torch.nn import functional as F

from netwarp_ros.classes import load_classes
from netwarp_ros.datasets.camvid import CamVid
from netwarp_ros.models import ModelSpec, NetWarpSpec, build, load_model, save_model
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.training import trainer as training
from netwarp_ros.training.config import OptimiserConfig, TrainingConfig, load_config
from netwarp_ros.training.data import Batch, Batches, open_sources
from netwarp_ros.training.losses import ClipLoss, labelled_weight, normalise, segmentation_loss
from netwarp_ros.training.trainer import build_network, learning_rate, parameter_groups, update_average

CAMVID = load_classes("camvid")
MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (ModelSpec.mean, ModelSpec.std))


@pytest.fixture(autouse=True)
def tiny_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, host in tiny.HOSTS.items():
        monkeypatch.setitem(HOSTS, name, host)


def configure(tmp_path: Path, camvid: Path, **sections: Any) -> TrainingConfig:
    """Return the configuration of an image CNN with some sections changed, written to a file and read from it."""
    content: dict[str, Any] = {
        "model": {"host": "tiny"},
        "data": [{"kind": "camvid", "root": str(camvid), "per_batch": 2}],
        "augment": {"height": 32, "width": 48},
        "optimiser": {"steps": 4, "rate": 1e-2, "warm_up": 2, "average": 0.8},
        "output": str(tmp_path / "out"),
        "precision": "float32",
        "workers": 0,
    }
    for name, section in sections.items():
        merge = isinstance(section, Mapping) and name in content
        content[name] = {**content[name], **section} if merge else section
    file = tmp_path / "training.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_config(file)


def video(camvid: Path, **clip: Any) -> dict[str, Any]:
    """Return sections for `configure` that train NetWarp."""
    return {
        "model": {"netwarp": {"layers": ["features"]}},
        "data": [{"kind": "camvid", "root": str(camvid), "stills": True, "per_batch": 2}],
        "clip": {"length": 3, "loss_on": "all-but-first", **clip},
    }


def weights_of(file: Path) -> dict[str, Tensor]:
    return load_model(file).network.state_dict()


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def test_training_learns_sky_and_road_and_writes_a_model(
    tmp_path: Path, camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [{"kind": "camvid", "root": str(camvid)}]
    config = configure(
        tmp_path, camvid, validation=data, evaluate_every=20,
        augment={"height": 64, "width": 64}, optimiser={"steps": 30, "rate": 0.03},
    )  # fmt: skip
    model = load_model(training.train(config))
    assert model.spec == ModelSpec("tiny", CAMVID, {"num_classes": 11}, input_height=64)
    assert not any("auxiliary" in name for name, _ in model.network.named_parameters())
    still = CamVid(camvid)[1]
    with torch.inference_mode():
        logits, _ = model.network(normalise(torch.from_numpy(still.image[None]), MEAN, STD))
    full = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    assert (full.argmax(1)[0].numpy() == still.label).mean() > 0.9
    events = EventAccumulator(config.output).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 31))
    assert events.Scalars("loss")[-1].value < 0.5 * events.Scalars("loss")[0].value
    assert [round(event.value, 4) for event in events.Scalars("rate")[:3]] == [0.015, 0.03, 0.03]
    scores = [line.split() for line in capsys.readouterr().out.splitlines() if "mIoU" in line]
    assert [int(line[1].rstrip(":")) for line in scores] == [20, 30]
    assert [event.step for event in events.Scalars("miou")] == [20, 30]
    assert float(scores[-1][-1]) == pytest.approx(events.Scalars("miou")[-1].value, abs=0.01)
    assert float(scores[-1][-1]) > 90


def test_training_is_in_full_float32_in_both_directions(
    tmp_path: Path, camvid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, bool] = {}

    class Noting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Tensor) -> Tensor:
            seen["forward"] = is_full(settings())
            return loss.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen["backward"] = is_full(settings())
            return grad

    forward = ClipLoss.forward
    monkeypatch.setattr(ClipLoss, "forward", lambda loss, *batch: Noting.apply(forward(loss, *batch)))
    training.train(configure(tmp_path, camvid, optimiser={"steps": 1}))
    assert seen == {"forward": True, "backward": True}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_an_interrupted_training_resumes_and_ends_with_the_same_weights(
    tmp_path: Path, camvid: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sections = video(camvid) if kind == "video" else {}
    expected = weights_of(training.train(configure(tmp_path, camvid, output=str(tmp_path / "whole"), **sections)))
    config = configure(tmp_path, camvid, output=str(tmp_path / "halved"), checkpoint_every=2, workers=1, **sections)
    step = training.train_step

    def stop(state: training.TrainingState, batch: Batch) -> float:
        if state.step == 3:
            raise KeyboardInterrupt
        return step(state, batch)

    monkeypatch.setattr(training, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(config)
    monkeypatch.setattr(training, "train_step", step)
    torch.manual_seed(17)  # the state of the generator must not matter
    assert differing(expected, weights_of(training.train(config))) == []


def test_a_killed_process_resumes_and_ends_with_the_same_weights(tmp_path: Path, camvid: Path) -> None:
    sections = video(camvid, length=2)
    sections["model"] = {"host": "ddrnet23slim", "netwarp": {"layers": ["head.refine"], "flow_grid": "features"}}
    options = {**sections, "checkpoint_every": 2, "optimiser": {"steps": 8}}
    expected = weights_of(training.train(configure(tmp_path, camvid, output=str(tmp_path / "whole"), **options)))

    config = configure(tmp_path, camvid, output=str(tmp_path / "killed"), **options)
    command = [sys.executable, "-m", "netwarp_ros.cli", "train", str(tmp_path / "training.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stderr is not None
        seen = b""
        while not re.search(rb"\b[3-7]/8 ", seen) and (shown := process.stderr.read(64)):
            seen += shown
        process.kill()
    assert process.returncode == -signal.SIGKILL, seen.decode()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["step"] in (2, 4, 6)
    assert differing(expected, weights_of(training.train(config))) == []


def test_two_processes_train_as_one(tmp_path: Path, camvid: Path) -> None:
    """Two processes end with the weights of one process, with unevenly split clips and labels.

    Batch norm and Lovász-softmax are left out: each process computes them for its own clips.
    """
    sections = video(camvid, length=2)
    sections["model"] |= {"host": "tiny-plain"}
    sections["data"][0] |= {"per_batch": 3}
    options = {**sections, "loss": {"lovasz": 0.0}}
    expected = weights_of(training.train(configure(tmp_path, camvid, output=str(tmp_path / "one"), **options)))

    configure(tmp_path, camvid, output=str(tmp_path / "two"), **options)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", tiny.__file__]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    subprocess.run([*command, str(tmp_path / "training.yaml")], env=environment, check=True)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert differing(first, second) == []
    for name, value in weights_of(tmp_path / "two" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_each_process_needs_a_clip_and_a_device(tmp_path: Path, camvid: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="3 processes share a batch of 2 clips"):
        training.train(configure(tmp_path, camvid))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="PyTorch sees 2 CUDA devices for process 2 on this machine"):
        training.train(configure(tmp_path, camvid, device="cuda"))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, camvid: Path) -> None:
    training.train(configure(tmp_path, camvid))
    training.train(configure(tmp_path, camvid, checkpoint_every=3))
    with pytest.raises(
        ValueError, match=r"checkpoint\.pt belongs to another training: optimiser\.rate is 0\.01 instead of"
    ):
        training.train(configure(tmp_path, camvid, optimiser={"rate": 0.02}))
    with pytest.raises(ValueError, match=r"training: data\[0\]\.per_batch is 2 instead of 3\. Give another"):
        training.train(configure(tmp_path, camvid, data=[{"kind": "camvid", "root": str(camvid), "per_batch": 3}]))


def test_netwarp_is_trained_with_a_frozen_host(tmp_path: Path, camvid: Path) -> None:
    spec = ModelSpec("tiny", CAMVID, {"num_classes": 11}, mean=(0.5, 0.5, 0.5))
    torch.manual_seed(0)
    file = save_model(tmp_path / "host.safetensors", build(spec), spec, dtype=torch.float32)
    sections = video(camvid)
    sections["model"] |= {"host": None, "initial": str(file), "train_host": False}
    model = load_model(training.train(configure(tmp_path, camvid, **sections)))
    assert model.spec == dataclasses.replace(spec, netwarp=NetWarpSpec(("features",)), input_height=64)
    trained, before = model.network.host.state_dict(), load_model(file).network.host.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(trained[name], value.half().float() if value.ndim > 1 else value, rtol=0, atol=0)
    assert model.network.netwarps[0].w2.abs().min() > 0
    assert model.network.flow_cnn is not None and model.network.flow_cnn.conv4.bias.abs().sum() > 0

    sections["model"] = {"host": None, "initial": str(tmp_path / "out" / "model.safetensors")}
    again = load_model(training.train(configure(tmp_path, camvid, output=str(tmp_path / "again"), **sections)))
    assert again.spec == model.spec
    assert differing(again.network.state_dict(), model.network.state_dict()) != []


def test_the_loss_at_the_start_is_that_of_the_host(tmp_path: Path, camvid: Path) -> None:
    """At the start w2 is 0, so that the memory has no effect."""
    for loss_on, scored in (("last", [2]), ("all-but-first", [1, 2]), ("all", [0, 1, 2])):
        config = configure(tmp_path, camvid, **video(camvid, loss_on=loss_on))
        datasets = open_sources(config.data, config.augment)
        network, spec = build_network(config, datasets[0].classes, 64)
        batch = Batches(datasets, config)[0]
        images, labels = batch.images, batch.labels
        weights = torch.linspace(0.5, 1.5, 11)
        with torch.no_grad():
            loss = ClipLoss(network, spec, weights, config).eval()(*batch)
            seen = images[:, scored].flatten(0, 1)
            logits, auxiliary = network.host(normalise(seen, MEAN, STD), auxiliary=True)
        label = labels[:, scored].flatten(0, 1)
        total = labelled_weight(label, weights)
        expected = segmentation_loss(logits, auxiliary, label, weights, total, config.loss)
        torch.testing.assert_close(loss, expected)


def test_the_gradient_goes_back_through_the_memory_unless_it_is_detached(tmp_path: Path, camvid: Path) -> None:
    def gradient(**clip: Any) -> Tensor:
        config = configure(tmp_path, camvid, **video(camvid, loss_on="last", **clip))
        datasets = open_sources(config.data, config.augment)
        torch.manual_seed(0)
        network, spec = build_network(config, datasets[0].classes, 64)
        nn.init.constant_(network.netwarps[0].w2, 0.5)
        loss = ClipLoss(network, spec, torch.ones(11), config).eval()
        loss(*Batches(datasets, config)[0]).backward()
        return network.host.get_parameter("features.0.weight").grad

    through, cut = gradient(), gradient(detach_every=1)
    assert (through - cut).abs().max() > 1e-3 * through.abs().max()


def test_checkpointing_keeps_fewer_activations_and_changes_no_weight(tmp_path: Path, camvid: Path) -> None:
    """In one step, dropout draws the same masks, and norm statistics are updated once per frame."""
    states, kept = [], []
    for checkpointing in (False, True):
        config = configure(tmp_path, camvid, **video(camvid, length=4, checkpointing=checkpointing))
        datasets = open_sources(config.data, config.augment)
        torch.manual_seed(0)
        network, spec = build_network(config, datasets[0].classes, 64)
        nn.init.constant_(network.netwarps[0].w2, 0.5)
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        state = training.TrainingState(network, spec, torch.ones(11), config)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            training.train_step(state, Batches(datasets, config)[0])
        states.append(network.state_dict())
        kept.append(sum(sizes))
    assert states[0]["host.backbone.1.num_batches_tracked"] == 4
    assert differing(*states) == []
    assert kept[1] < 0.6 * kept[0]


def test_a_batch_without_labels_makes_no_weight_nan(tmp_path: Path, camvid: Path) -> None:
    config = configure(tmp_path, camvid, **video(camvid))
    datasets = open_sources(config.data, config.augment)
    network, spec = build_network(config, datasets[0].classes, 64)
    batch = Batches(datasets, config)[0]
    state = training.TrainingState(network, spec, torch.ones(11), config)
    assert training.train_step(state, batch._replace(labels=torch.full_like(batch.labels, 11))) == 0
    assert all(value.isfinite().all() for value in network.state_dict().values())


def test_frames_without_labels_do_not_count(tmp_path: Path, camvid: Path) -> None:
    config = configure(tmp_path, camvid, **video(camvid, loss_on="all"))
    datasets = open_sources(config.data, config.augment)
    network, spec = build_network(config, datasets[0].classes, 64)
    batch = Batches(datasets, config)[0]
    batch.labels[:, :2] = 11
    last = dataclasses.replace(config, clip=dataclasses.replace(config.clip, loss_on="last"))
    sparse, only = (ClipLoss(network, spec, torch.ones(11), each).eval()(*batch) for each in (config, last))
    torch.testing.assert_close(sparse, only)


def test_each_part_of_the_network_has_its_own_rate_and_weight_decay(tmp_path: Path, camvid: Path) -> None:
    optimiser = {"backbone_rate": 0.25, "netwarp_rate": 10, "flow_cnn_rate": 3, "weight_decay": 0.1}
    config = configure(tmp_path, camvid, **video(camvid), optimiser=optimiser)
    network, _ = build_network(config, open_sources(config.data, config.augment)[0].classes, 64)
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = {
        names[parameter]: (group["factor"], group["weight_decay"])
        for group in parameter_groups(network, config.optimiser)
        for parameter in group["params"]
    }
    assert groups.keys() == set(names.values())
    assert groups["host.backbone.0.weight"] == (0.25, 0.1) and groups["host.backbone.1.weight"] == (0.25, 0.0)
    assert groups["host.features.0.weight"] == (1.0, 0.1) and groups["host.classifier.bias"] == (1.0, 0.0)
    assert groups["netwarps.0.w1"] == groups["netwarps.0.w2"] == (10, 0.0)
    assert groups["flow_cnn.conv1.weight"] == (3, 0.1) and groups["flow_cnn.conv1.bias"] == (3, 0.0)
    network.host.backbone.requires_grad_(False)
    with pytest.raises(ValueError, match=r"optimiser\.backbone_rate is 0\.25, but the network has no such part"):
        parameter_groups(network, config.optimiser)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"clip": {"length": 1}}, r"clip\.length is 1, but the model has NetWarp"),
        ({"model": {"host": "tinny"}}, "unknown host 'tinny'"),
        ({"model": {"netwarp": None, "train_host": False}}, r"model\.train_host is false and the model has no NetWarp"),
        ({"model": {"netwarp": {"layers": ["feature"]}}}, "has no layer 'feature': did you mean 'features'"),
        ({"model": {"host": None, "initial": "absent"}}, "no model named 'absent'"),
        ({"data": []}, r"data is \[\], must have at least 1 item"),
        ({"data": [{"kind": "street"}, {"kind": "camvid", "root": "absent"}]}, "absent is not CamVid"),
    ],
)
def test_errors_name_key_and_value(tmp_path: Path, camvid: Path, sections: dict[str, Any], message: str) -> None:
    content = video(camvid) | {name: section for name, section in sections.items() if name != "model"}
    content["model"] |= sections.get("model", {})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        training.train(configure(tmp_path, camvid, **content))


def test_normalise_turns_bgr_bytes_into_normalised_rgb() -> None:
    images = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    expected = [(0.2 - 0.485) / 0.229, (0.0 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]
    torch.testing.assert_close(normalise(images, MEAN, STD).flatten(), torch.tensor(expected))


@pytest.mark.parametrize(("remember", "most"), [("after", 1 - 1 / 3), ("before", 1.5)])
def test_a_memory_does_not_outlast_the_clips(tmp_path: Path, camvid: Path, remember: Any, most: float) -> None:
    """Only a memory that holds the blend is a sum over frames."""
    netwarp = NetWarpSpec(layers=("features",), remember=remember)
    spec = ModelSpec("tiny", load_classes("camvid"), {"num_classes": 11}, netwarp, input_height=32)
    network = build(spec)
    nn.init.constant_(network.netwarps[0].w2, 1.5)
    initial = save_model(tmp_path / "initial.safetensors", network, spec)
    sections = {**video(camvid), "model": {"host": None, "initial": str(initial)}}
    config = configure(tmp_path, camvid, **sections, optimiser={"steps": 1, "rate": 1e-6, "average": 0.0})
    torch.testing.assert_close(
        load_model(training.train(config)).network.netwarps[0].w2, torch.full((8,), most), rtol=0, atol=1e-3
    )


def test_the_learning_rate_rises_stays_and_falls() -> None:
    config = OptimiserConfig(steps=100, rate=1.0, warm_up=10, decay_from=0.5)
    assert [learning_rate(step, config) for step in (0, 4, 9, 10, 50)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate(75, config) == pytest.approx(0.5)
    assert learning_rate(99, config) == pytest.approx(0.02)
    assert learning_rate(75, dataclasses.replace(config, power=2.0)) == pytest.approx(0.25)


def test_the_average_includes_norm_statistics() -> None:
    average, network = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    nn.init.constant_(network.weight, 3.0)
    network(torch.full((1, 1, 2, 2), 100.0))  # moves its running mean from 0 to 10
    update_average(average, network, decay=0.75)
    assert average.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert average.state_dict()["running_mean"].item() == pytest.approx(2.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: run this on a machine with one")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_trains_on_a_gpu(tmp_path: Path, camvid: Path, precision: str) -> None:
    options = {**video(camvid, checkpointing=True), "device": "cuda", "precision": precision, "checkpoint_every": 2}
    options["validation"] = options["data"]
    training.train(configure(tmp_path, camvid, **options))
    further = configure(tmp_path, camvid, **options, workers=1)
    assert all(value.isfinite().all() for value in weights_of(training.train(further)).values())
