# SPDX-License-Identifier: Apache-2.0
"""The probe of `augment`: it refuses a layer whose output is read from before the blend, or has no effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import DeepLab
from torch import Tensor, nn

from netwarp_ros.models import LayerOutput, augment


class Recording(nn.Module):
    """A host that is computed from what a hook of its own recorded of a part of a layer."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.GELU())
        self.body = nn.Conv2d(8, 8, 3, 1, 1)
        self.head = nn.Conv2d(8, 5, 1)
        self.copied, self.recorded = copied, torch.empty(0)
        self.stem[1].register_forward_hook(self.record)

    def record(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.recorded = output.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) if self.copied else output

    def forward(self, frame: Tensor) -> Tensor:
        return self.head(self.body(self.stem(frame)) + self.recorded)


@pytest.mark.parametrize("copied", [False, True], ids=["the tensor", "a copy in another order"])
def test_a_layer_whose_output_is_recorded_before_the_blend_is_refused(copied: bool) -> None:
    host = Recording(copied)
    with pytest.raises(
        ValueError, match=r"layer 'stem': the host also reads its output from before the blend \(in add\)"
    ):
        augment(host, ["stem"])
    assert "forward" not in vars(host.stem)  # the host is as it was
    assert augment(host, ["stem.1"]).layers == ("stem.1",)  # the way out


def test_a_layer_without_an_effect_on_the_class_scores_is_refused() -> None:
    host = DeepLab()
    with pytest.raises(ValueError, match="layer 'aux_classifier': the class scores do not depend on its output"):
        augment(host, ["aux_classifier"])
    assert "forward" not in vars(host.aux_classifier)


def test_a_host_whose_scores_are_constant_is_taken() -> None:
    """As a classifier that starts at zero: nothing has an effect yet."""
    host = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1))
    nn.init.zeros_(host[1].weight)
    assert augment(host, ["0"]).layers == ("0",)


def test_an_identity_is_taken_although_its_input_is_read_elsewhere() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.dropout, self.head = nn.Conv2d(3, 8, 1), nn.Dropout(), nn.Conv2d(8, 5, 1)

        def forward(self, frame: Tensor) -> Tensor:
            z = self.stem(frame)
            return self.head(z + self.dropout(z))

    assert augment(Residual(), ["dropout"]).layers == ("dropout",)


def test_a_host_that_fails_under_the_probe_is_left_as_it_was() -> None:
    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.seen = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1), list[Tensor]()

        def forward(self, frame: Tensor) -> Tensor:
            self.seen.append(self.stem(frame))
            if not torch.equal(self.seen[0], self.seen[-1]):
                raise RuntimeError("the values are not as they were")
            return self.head(self.seen[-1])

    host = Fragile()
    with pytest.raises(RuntimeError, match="the values are not as they were"):
        augment(host, ["stem"])
    assert "forward" not in vars(host.stem)


class Writing(nn.Module):
    """Writes what it recorded of a part of a layer into a map."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.head, self.how = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.GELU()), nn.Conv2d(16, 5, 1), how
        self.recorded = torch.empty(0)
        self.stem[1].register_forward_hook(self.record)

    def record(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.recorded = output

    def forward(self, frame: Tensor) -> Tensor:
        z = self.stem(frame)
        canvas = z.new_zeros(z.shape[0], 16, *z.shape[2:])
        canvas[:, :8] = z
        if self.how == "item":
            canvas[:, 8:] = self.recorded
        else:
            canvas[:, 8:] = torch.from_numpy(self.recorded.numpy().copy())
        return self.head(canvas)


@pytest.mark.parametrize("how", ["item", "numpy"])
def test_what_reads_without_giving_a_tensor_is_seen(how: str) -> None:
    with pytest.raises(ValueError, match="layer 'stem': the host also reads its output from before the blend"):
        augment(Writing(how), ["stem"])


def test_a_neighbour_in_the_same_memory_is_no_reader() -> None:
    """The two halves of a tensor alternate in memory."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.split, self.head = Split(), nn.Linear(8, 5)

        def forward(self, frame: Tensor) -> Tensor:
            one, two = self.split(frame.permute(0, 2, 3, 1))
            return self.head(one * two.sigmoid()).permute(0, 3, 1, 2)

    class Split(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return super().forward(x).chunk(2, dim=-1)

    video_cnn = augment(Halves(), {"split": LayerOutput(member=0)})
    assert video_cnn.layers == ("split",)
