# SPDX-License-Identifier: Apache-2.0
"""Where NetWarp may be inserted into a host that nobody has tried yet: its layers, seen by a probe, and a proposal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from netwarp_ros.models.insertion import augment, evaluating
from netwarp_ros.models.layer_outputs import find_map
from netwarp_ros.models.outputs import class_scores
from netwarp_ros.models.video_cnn import map_size

STRIDES = (4, 8, 16)
"""Strides of the layers that are proposed. Finer maps cost much time, coarser ones say little of where things are."""

LEAST_SHARE = 0.1
"""Least `Candidate.share` of a layer that is proposed, as a fraction of the greatest."""


@dataclass(frozen=True)
class Candidate:
    """A layer that NetWarp may be inserted behind.

    Attributes:
        name: Name of the submodule.
        stride: Pixels of the frame per cell of its map.
        channels: Channels of its map.
        tokens: Whether it gives tokens, not a map.
        share: How much of the class scores comes through the layer, from 0 to 1: by how much less they differ between
            two frames if both have the map of the first.
        proposed: Whether NetWarp should be inserted here.
    """

    name: str
    stride: int
    channels: int
    tokens: bool
    share: float
    proposed: bool = False


def propose(host: nn.Module, example: Tensor) -> list[Candidate]:
    """Return the layers at `STRIDES` that NetWarp may be inserted behind, some of which are proposed.

    A candidate has weights, gives one map or tokens of a grid, and passes the probe of `augment`. Neither what gives
    the class scores themselves is one, nor what is inside a layer that gives one map.

    At each stride, the last layer is proposed: it holds most of what the network knows, and the least has to be
    computed from its blend. But only if it ends among the second half of the candidates, and its share is at least
    half of the greatest at this stride (a layer beside others, such as one branch of several, has less) and
    `LEAST_SHARE` of the greatest of all. Layers that give tokens are proposed only if none gives a map.

    Args:
        host: The host. It stays as it is.
        example: A frame ``(1, 3, H, W)`` that it can be run on.

    Returns:
        The candidates, in the order that they end in.

    Raises:
        ValueError: If there is no layer to propose.
    """
    with evaluating(host):
        scores, others = (class_scores(host(frame)).float() for frame in (example, _other(example)))
    candidates = [
        Candidate(name, stride, channels, tokens, share)
        for name, stride, channels, tokens in _layers(host, example)
        if (share := _share(host, name, example, scores, others)) is not None
    ]
    later = candidates[len(candidates) // 2 :]
    greatest = max((one.share for one in later), default=0.0)
    best: dict[int, Candidate] = {}
    for tokens in (False, True):
        for stride in STRIDES:
            fitting = [one for one in later if one.stride == stride and one.tokens == tokens]
            least = max([LEAST_SHARE * greatest, *(one.share / 2 for one in fitting)])
            if sharing := [one for one in fitting if one.share >= least]:
                best[stride] = sharing[-1]
        if best:
            break
    if not best:
        raise ValueError(
            f"no layer of {type(host).__name__} can be proposed: none with weights gives a map at a stride of "
            f"{', '.join(map(str, STRIDES))}, runs once, and has a share in the class scores that counts. Name layers"
        )
    return [replace(candidate, proposed=candidate in best.values()) for candidate in candidates]


def _layers(host: nn.Module, example: Tensor) -> Iterator[tuple[str, int, int, bool]]:
    """Run the host once; yield name, stride and channels of each candidate, and whether it gives tokens."""
    outputs: dict[str, Any] = {}
    runs: Counter[str] = Counter()

    def record(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        runs[name] += 1
        outputs[name] = output

    modules = {name: module for name, module in host.named_modules() if name}
    handles = [module.register_forward_hook(partial(record, name)) for name, module in modules.items()]
    try:
        with evaluating(host):
            scores = class_scores(host(example))
    finally:
        for handle in handles:
            handle.remove()

    maps = {}
    for name, output in outputs.items():
        try:
            place = find_map(output, map_size(example))
        except ValueError:
            continue
        z = place.take(output, map_size(example))
        if z.shape[1] != scores.shape[1] and z.data_ptr() != scores.data_ptr():
            maps[name] = (z, place)
    for name, (z, place) in maps.items():
        strides = {round(side / cells) for side, cells in zip(map_size(example), map_size(z), strict=True)}
        inside = any(isinstance(outputs[parent], Tensor) for parent in _parents(name) if parent in maps)
        has_weights = any(True for _ in modules[name].parameters())
        if runs[name] == 1 and has_weights and not inside and len(strides) == 1 and strides <= {*STRIDES}:
            yield name, strides.pop(), z.shape[1], place.layout == "tokens"


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _other(example: Tensor) -> Tensor:
    return example.flip(-1, -2)


def _share(host: nn.Module, layer: str, example: Tensor, scores: Tensor, others: Tensor) -> float | None:
    """Return `Candidate.share` of a layer, given the scores of both frames; None if `augment` does not take it."""
    try:
        video_cnn = augment(host, [layer], flow_cnn=False, example=example)
    except Exception:  # a host may raise any error for disturbed values
        return None
    try:
        with evaluating(host):
            _, representations = video_cnn.run_host(example)
            output, _ = video_cnn.run_host(_other(example), lambda _index, _z: representations[layer])
    finally:
        video_cnn.remove()
    whole = (others - scores).norm()
    return max(0.0, 1 - ((class_scores(output).float() - scores).norm() / whole).item()) if whole > 0 else 0.0
