# SPDX-License-Identifier: Apache-2.0
"""Class scores are found in what hosts return: tensors, dicts, dataclasses, tuples, and queries with masks."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, DeepLab, Tokens, UNet
from torch import Tensor, nn

from netwarp_ros.classes import load_classes
from netwarp_ros.models import InputSize, Model, ModelSpec, VideoCNN, augment, build, class_scores
from netwarp_ros.models.building import insert_netwarp
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.models.outputs import query_scores
from netwarp_ros.models.spec import WeightsError
from netwarp_ros.segmenter import Segmenter

SCORES = torch.randn(1, 11, 4, 6)
SPEC = ModelSpec("test", load_classes("camvid"), {"num_classes": 11}, input_height=64)


@dataclass
class Output:
    loss: Tensor | None
    logits: Tensor


Named = namedtuple("Named", ["out", "aux"])


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"logits": SCORES, "features": torch.zeros(1, 3, 4, 6)},
        {"out": SCORES, "aux": torch.zeros(1, 11, 4, 6)},
        {"segmentation": SCORES, "loss": None, "classes": torch.zeros(1, 11)},
        Output(None, SCORES),
        Named(SCORES, torch.zeros(1, 11, 4, 6)),
        (SCORES, torch.zeros(1, 11, 8, 12)),
        [SCORES],
    ],
    ids=["tensor", "logits", "out", "only map", "dataclass", "named tuple", "tuple", "list"],
)
def test_class_scores_are_found(output: Any) -> None:
    assert class_scores(output) is SCORES


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(1, 11), r"output of the host is \(1, 11\): class scores are \(B, K, h, w\)"),
        ({"logits": torch.zeros(1, 11)}, r"logits of the host is \(1, 11\)"),
        ({"a": SCORES, "b": SCORES}, r"gives a dict with a, b: name its class scores \(B, K, h, w\) logits or out"),
        ((None, SCORES), r"a tuple that does not begin with class scores"),
        ((), "a tuple that does not begin"),
        (None, r"the host gives a NoneType, not class scores"),
        (
            {"class_queries_logits": torch.zeros(1, 5, 3), "masks_queries_logits": torch.zeros(1, 4, 8, 8)},
            r"\(1, 5, 3\)",
        ),
    ],
)
def test_what_is_no_class_scores_is_named(output: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_scores(output)


def test_scores_of_queries_by_hand() -> None:
    """Two queries: one of class 0 on the left, one of class 1, half sure, on the right; class 2 is no object."""
    big = 50.0
    classes = torch.tensor([[[big, 0, 0], [0, 0, 0]]])
    classes[0, 1] = torch.tensor([-big, 0.0, 0.0])
    masks = torch.tensor([[[[big, -big]], [[-big, big]]]])
    scores = query_scores(classes, masks).exp()
    torch.testing.assert_close(scores, torch.tensor([[[[1.0, 0.0]], [[0.0, 0.5]]]]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["mask2former", "eomt"])
def test_masks_of_queries_are_those_of_transformers(name: str) -> None:
    host = ARCHITECTURES[name]()
    output = host(torch.randn(1, 3, 64, 64))
    probabilities = output.class_queries_logits.softmax(-1)[..., :-1]
    expected = torch.einsum("bqc,bqhw->bchw", probabilities, output.masks_queries_logits.sigmoid())
    scores = class_scores(output)
    torch.testing.assert_close(scores.exp(), expected)
    assert torch.equal(scores.argmax(1), expected.argmax(1))


@torch.no_grad()
@pytest.mark.parametrize("engine", ["torch", "openvino"])
@pytest.mark.parametrize(
    ("make", "layer", "taken"),
    [
        (DeepLab, "backbone.layer4", 1),
        (Tokens, "blocks.1", 8),
        (UNet, "merge.0", 8),
        (ARCHITECTURES["mask2former"], None, 32),
    ],
    ids=["dict", "tuple", "dict with another name", "queries"],
)
def test_the_segmenter_takes_every_output(make: Any, layer: str | None, taken: int, engine: str) -> None:
    torch.manual_seed(0)
    host = make().eval()
    if layer:
        network = augment(host, [layer], flow_grid="features")
        nn.init.constant_(network.netwarps[0].w2, 0.5)
    else:
        network = VideoCNN(host, {})
    spec = replace(SPEC, input_size=InputSize(multiple=taken))
    segmenter = Segmenter(Model(network, spec, "test"), engine=engine, precision="float32")
    assert segmenter.engine.name == engine
    stream, image = segmenter.stream(), np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for stamp_ns in (1, 2):
        mask = stream.segment(image, stamp_ns).mask
        assert mask.shape == (60, 90) and mask.max() < 11


class Scores(nn.Module):
    """Gives a number of scores that may differ from its number of classes."""

    def __init__(self, num_classes: int, count: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(3, count, 1)

    def forward(self, frame: Tensor) -> Tensor:
        return self.classifier(frame)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (12, "the host gives 12 scores, but camvid has 11 classes: give the classes that it was trained on"),
        (1, "the host gives one score: let it give one for each of two classes"),
    ],
)
def test_scores_and_classes_must_agree(monkeypatch: pytest.MonkeyPatch, count: int, message: str) -> None:
    monkeypatch.setitem(HOSTS, "test", lambda num_classes: Scores(num_classes, count))
    with pytest.raises(WeightsError, match=message):
        build(SPEC)


def test_a_host_that_cannot_be_run_is_named() -> None:
    host = nn.Conv2d(4, 11, 1)
    with pytest.raises(WeightsError, match="cannot run test: .*expected input"):
        insert_netwarp(host, SPEC)
