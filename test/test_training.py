# SPDX-License-Identifier: Apache-2.0
"""The training loop, its losses and its configuration, on a made-up CamVid of a few small pictures."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from netwarp_ros.data.camvid import VOID, CamVid
from netwarp_ros.losses import class_weights, lovasz_softmax, segmentation_loss
from netwarp_ros.models import load_model
from netwarp_ros.training import Batches, learning_rate, normalise, street_samples, train, update_average
from netwarp_ros.training_config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    OptimiserConfig,
    TrainingConfig,
    load_config,
)


def configure(camvid: Path, output: Path, *, steps: int, **changes: Any) -> TrainingConfig:
    return TrainingConfig(
        data=DataConfig(camvid=str(camvid)),
        augment=AugmentConfig(height=64, width=64),
        optimiser=OptimiserConfig(steps=steps, batch=2, rate=1e-3, warm_up=2, average=0.8),
        output=str(output),
        **{"workers": 0, "precision": "float32", **changes},
    )


class KilledError(Exception):
    pass


def test_learns_sky_from_road_and_writes_a_model(camvid: Path, tmp_path: Path) -> None:
    steps = []
    config = configure(camvid, tmp_path / "out", steps=40, evaluate_every=16)
    path = train(config, evaluate=lambda network, step: steps.append((step, network.training)))
    assert steps == [(16, False), (32, False), (40, False)]

    model = load_model(path)
    assert model.spec.host_arguments == {"num_classes": 11}
    assert not any("auxiliary" in name for name, _ in model.network.named_parameters())
    still = CamVid(camvid)[1]
    with torch.inference_mode():
        logits, _ = model.network(normalise(torch.from_numpy(still.image[None])), None, None)
    full = nn.functional.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    assert (full.argmax(1)[0].numpy() == still.label).mean() > 0.9


def test_a_killed_training_ends_as_if_it_had_not_been(camvid: Path, tmp_path: Path) -> None:
    def weights(path: Path) -> dict[str, Tensor]:
        return load_model(path).network.state_dict()

    def kill(_network: nn.Module, step: int) -> None:
        if step == 2:
            raise KilledError

    whole = configure(camvid, tmp_path / "whole", steps=4, workers=1)
    halved = configure(camvid, tmp_path / "halved", steps=4, evaluate_every=2, checkpoint_every=2)
    expected = weights(train(whole))
    with pytest.raises(KilledError):
        train(halved, evaluate=kill)
    resumed = weights(train(halved))
    assert expected.keys() == resumed.keys()
    assert [name for name in expected if not torch.equal(expected[name], resumed[name])] == []


def test_each_epoch_shows_every_still_once(camvid: Path, tmp_path: Path) -> None:
    stills = list(CamVid(camvid))
    batches = Batches(stills, [], configure(camvid, tmp_path, steps=8))
    names = [batches._still(position).name for position in range(16)]
    epochs = [names[start : start + 4] for start in range(0, 16, 4)]
    assert all(sorted(epoch) == ["0", "1", "2", "3"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_street_frames_join_each_batch(camvid: Path, tmp_path: Path) -> None:
    config = configure(camvid, tmp_path, steps=3)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, street_per_batch=1, street_seeds=2, street_frames=2)
    )
    street = street_samples(config)
    assert [sample.name for sample in street] == ["street_1000_0", "street_1000_12", "street_1001_0", "street_1001_12"]
    assert all(sample.image.shape == (64, 64, 3) and sample.label.shape == (64, 64) for sample in street)
    images, labels = Batches(list(CamVid(camvid)), street, config)[0]
    assert images.shape == (3, 64, 64, 3)
    assert set(labels[:2].unique().tolist()) <= {0, 3, VOID}
    assert not set(labels[2].unique().tolist()) <= {0, 3, VOID}


def test_normalise_turns_bgr_bytes_into_normalised_rgb() -> None:
    images = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    expected = [(0.2 - 0.485) / 0.229, (0.0 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]
    torch.testing.assert_close(normalise(images).flatten(), torch.tensor(expected))


def test_learning_rate_rises_stays_and_falls() -> None:
    config = OptimiserConfig(steps=100, rate=1.0, warm_up=10, decay_from=0.5)
    assert [learning_rate(step, config) for step in (0, 4, 9, 10, 50)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert learning_rate(75, config) == pytest.approx(0.5)
    assert learning_rate(99, config) == pytest.approx(0.02)


def test_average_moves_weights_and_norm_statistics() -> None:
    average, network = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    nn.init.constant_(network.weight, 3.0)
    network(torch.full((1, 1, 2, 2), 100.0))  # moves its running mean from 0 to 10
    update_average(average, network, decay=0.75)
    assert average.weight.item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert average.state_dict()["running_mean"].item() == pytest.approx(2.5)


def test_class_weights_by_hand() -> None:
    label = np.array([0] * 8 + [1] * 2 + [2] * 2 + [3] * 4, np.uint8)  # 3 is void
    weights = class_weights([label.reshape(4, 4)], num_classes=3, balance=1.0)
    # Frequencies 2/3, 1/6, 1/6 have the median 1/6; raw weights 1/4, 1, 1 weigh a pixel 1/2 on average.
    torch.testing.assert_close(weights, torch.tensor([0.5, 2.0, 2.0]))
    torch.testing.assert_close(class_weights([label], 3, balance=0.0), torch.ones(3))


def jaccard_loss(prediction: tuple[int, ...], label: tuple[int, ...], classes: set[int]) -> float:
    """Mean of 1 - IoU over the classes of the label."""
    losses = []
    for index in classes:
        both = sum(p == index and t == index for p, t in zip(prediction, label, strict=True))
        either = sum(p == index or t == index for p, t in zip(prediction, label, strict=True))
        losses.append(1 - both / either)
    return sum(losses) / len(losses)


def test_lovasz_equals_jaccard_on_hard_predictions() -> None:
    label = (0, 0, 1, 2)
    for prediction in itertools.product(range(3), repeat=4):
        logits = 200.0 * nn.functional.one_hot(torch.tensor(prediction), 3).T.reshape(1, 3, 2, 2).float()
        loss = lovasz_softmax(logits, torch.tensor(label, dtype=torch.uint8).reshape(1, 2, 2))
        assert loss.item() == pytest.approx(jaccard_loss(prediction, label, set(label)), abs=1e-6)


def test_lovasz_leaves_void_out() -> None:
    logits = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, :2] = 1
    padded = nn.functional.pad(label, (0, 4), value=3)
    noise = torch.cat([logits, 50 * torch.ones_like(logits)], dim=3)
    torch.testing.assert_close(lovasz_softmax(noise, padded), lovasz_softmax(logits, label))
    assert lovasz_softmax(logits, torch.full_like(label, 3)).item() == 0.0


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    logits, auxiliary = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 1, 1)
    label = torch.tensor([[[0, 1, 2, 3]] * 4], dtype=torch.uint8)
    entropy = np.log(3)

    def loss(lovasz: float, auxiliary_weight: float) -> float:
        config = LossConfig(lovasz=lovasz, auxiliary=auxiliary_weight)
        return segmentation_loss(logits, auxiliary, label, torch.ones(3), config).item()

    assert loss(0.0, 0.0) == pytest.approx(entropy)
    assert loss(0.0, 0.5) == pytest.approx(1.5 * entropy)
    # On the logits' grid two pixels are class 1 and two void; at 1/3 for each, class 1 errs by 2/3 everywhere.
    assert loss(1.0, 0.0) == pytest.approx(entropy + 2 / 3)


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "training.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_config_takes_what_is_given_and_defaults_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, {"data": {"camvid": "x"}, "optimiser": {"rate": 1, "steps": 7}, "device": "cuda"})
    assert load_config(path) == TrainingConfig(
        data=DataConfig(camvid="x"), optimiser=OptimiserConfig(rate=1.0, steps=7), device="cuda"
    )


@pytest.mark.parametrize("path", sorted((Path(__file__).parent.parent / "config" / "training").glob("*.yaml")))
def test_shipped_configs_are_valid(path: Path) -> None:
    assert load_config(path).optimiser.steps > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimiser": {"step": 3}}, r"unknown key optimiser\.step; did you mean optimiser\.steps\?"),
        ({"zebra": 3}, "unknown key zebra; known are data, augment"),
        ({"optimiser": {"steps": 0}}, r"optimiser\.steps is 0, must be at least 1"),
        ({"optimiser": {"steps": True}}, r"optimiser\.steps is True, must be of type int"),
        ({"optimiser": {"rate": "1e-3"}}, r"optimiser\.rate is '1e-3', must be of type float; .* write 1\.0e-3"),
        ({"optimiser": {"rate": float("nan")}}, r"optimiser\.rate is nan, must be from 0\.0 to 1\.0"),
        ({"augment": {"min_scale": 1.5}}, r"augment\.min_scale is 1\.5, must be from 0\.1 to 1\.0"),
        ({"precision": "float16"}, "precision is 'float16', must be one of float32, bfloat16"),
        ({"loss": 3}, "loss is 3, must be a mapping with class_balance"),
        ({"data": {}}, r"data\.camvid is missing"),
        ({"data": {"camvid": 3}}, r"data\.camvid is 3, must be of type str"),
    ],
)
def test_config_errors_name_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, {"data": {"camvid": "x"}, **changes}))


def test_config_that_is_no_mapping(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the configuration is None, must be a mapping"):
        load_config(write(tmp_path, None))
    (tmp_path / "broken.yaml").write_text("data: [")
    with pytest.raises(ValueError, match=r"broken\.yaml is not valid YAML"):
        load_config(tmp_path / "broken.yaml")
