# SPDX-License-Identifier: Apache-2.0
"""Where NetWarp is proposed in networks that nobody has tried yet."""

from __future__ import annotations

import pytest
import torch
from architectures import ARCHITECTURES, FRAMES
from torch import Tensor, nn

from netwarp_ros.models import augment, load_model
from netwarp_ros.models.insertion import example_frame
from netwarp_ros.models.proposals import STRIDES, propose


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("swiftnet-lite0-camvid", ["up16", "up8", "up4"]),
        ("swiftnet-lite2-camvid", ["up16", "up8", "up4"]),
        ("ddrnet23slim-camvid", ["head.reduce", "head.refine"]),
    ],
)
def test_proposals_for_the_shipped_hosts(model: str, layers: list[str]) -> None:
    """The layers that training has shown to be good are among them: docs/models.md."""
    host = load_model(model).network.host
    candidates = propose(host, example_frame(host))
    assert [one.name for one in candidates if one.proposed] == layers
    assert all(one.stride in STRIDES and not one.tokens for one in candidates)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_proposal_is_accepted_by_augment(name: str) -> None:
    torch.manual_seed(0)
    host = ARCHITECTURES[name]().eval()
    size = FRAMES.get(name, (128, 128))
    example = example_frame(host, size)
    candidates = propose(host, example)
    assert not any("forward" in vars(module) for module in host.modules())  # the host is as it was
    layers = [one.name for one in candidates if one.proposed]
    video_cnn = augment(host, layers, example=example)
    with torch.no_grad():  # BEiT's library keeps a table for the whole process, which inference may have made before
        _, memory = video_cnn(example)
    for one in candidates:
        if one.proposed:
            features = memory.representations[one.name]
            assert features.shape[1:] == (one.channels, size[0] // one.stride, size[1] // one.stride)


def test_only_the_transformer_without_maps_has_its_tokens_proposed() -> None:
    def proposed(name: str) -> set[bool]:
        torch.manual_seed(0)
        host = ARCHITECTURES[name]().eval()
        return {one.tokens for one in propose(host, example_frame(host, (64, 64))) if one.proposed}

    assert proposed("eomt") == {True} and proposed("beit") == {False}


class Branches(nn.Module):
    """Two branches of which one hardly counts, and a layer before them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4, 1)
        self.middle, self.much, self.little = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3))
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, frame: Tensor) -> Tensor:
        middle = self.middle(self.stem(frame))
        return self.head(self.much(middle) + 0.01 * self.little(middle))


def test_shares_tell_how_much_of_the_scores_comes_through_a_layer() -> None:
    torch.manual_seed(0)
    host = Branches()
    shares = {one.name: one.share for one in propose(host, example_frame(host))}
    assert shares["stem"] == shares["middle"] == pytest.approx(1, abs=1e-5)
    assert 0.97 < shares["much"] < 1 and shares["little"] < 0.03


def test_a_branch_that_hardly_counts_is_not_proposed() -> None:
    torch.manual_seed(0)
    host = Branches()
    assert [one.name for one in propose(host, example_frame(host)) if one.proposed] == ["much"]


def test_without_a_fitting_layer_the_error_says_what_was_looked_for() -> None:
    host = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 5, 1))  # nothing but stride 2
    with pytest.raises(
        ValueError, match=r"no layer of Sequential can be proposed: none .* stride of 4, 8, 16.* Name layers"
    ):
        propose(host, example_frame(host))
