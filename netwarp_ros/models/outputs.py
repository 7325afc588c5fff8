# SPDX-License-Identifier: Apache-2.0
"""Class scores from what a host returns: networks by others return dataclasses, dicts, tuples, or queries and masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

QUERIES = ("class_queries_logits", "masks_queries_logits")
"""What MaskFormer and the networks after it return, by the names that transformers gives them."""

SCORES = ("logits", "out")
"""The names of class scores in the outputs of transformers and of torchvision."""


def class_scores(output: Any) -> Tensor:
    """Return the class scores in the output of a host.

    They are looked for in this order: the output itself; queries with masks (see `query_scores`); a member named
    ``logits`` or ``out``; the only member that is a map; the first member of a tuple or list.

    Args:
        output: A tensor, or a mapping, dataclass, tuple or list with tensors.

    Returns:
        ``(B, K, h, w)``, logits.

    Raises:
        ValueError: If the output has no class scores, or it cannot be told which of its members they are.
    """
    if isinstance(output, Tensor):
        return _checked(output, "output")
    members = named_members(output)
    if members is None and isinstance(output, tuple | list):
        if output and isinstance(output[0], Tensor):
            return _checked(output[0], "output[0]")
        raise ValueError(f"the host gives a {type(output).__name__} that does not begin with class scores (B, K, h, w)")
    if members is None:
        raise ValueError(f"the host gives a {type(output).__name__}, not class scores (B, K, h, w)")
    if all(isinstance(members.get(name), Tensor) for name in QUERIES):
        return query_scores(*(members[name] for name in QUERIES))
    for name in SCORES:
        if isinstance(members.get(name), Tensor):
            return _checked(members[name], name)
    maps = {name: value for name, value in members.items() if isinstance(value, Tensor) and value.ndim == 4}
    if len(maps) == 1:
        return next(iter(maps.values()))
    raise ValueError(
        f"the host gives a {type(output).__name__} with {', '.join(members) or 'nothing'}: name its class scores "
        f"(B, K, h, w) {' or '.join(SCORES)}"
    )


def query_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Return the class scores of queries, each of which is a mask with its class.

    The score of a class is the sum over the queries of its probability times the mask's (Cheng, Schwing, Kirillov,
    "Per-Pixel Classification is Not All You Need for Semantic Segmentation", NeurIPS 2021, Sec. 3.4). What is returned
    is its logarithm, so that a softmax gives each class its share.

    Args:
        classes: ``(B, Q, K + 1)``, logits of each query's class; the last one is "no object".
        masks: ``(B, Q, h, w)``, logits of each query's mask.

    Returns:
        ``(B, K, h, w)``.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    if classes.ndim != 3 or masks.ndim != 4 or classes.shape[:2] != masks.shape[:2]:
        raise ValueError(
            f"queries are {tuple(classes.shape)} and {tuple(masks.shape)}: give (B, Q, K + 1) and (B, Q, h, w)"
        )
    probabilities = classes.float().softmax(dim=-1)[..., :-1]
    batch, queries, height, width = masks.shape
    flat = masks.float().sigmoid().reshape(batch, queries, height * width)
    scores = torch.bmm(probabilities.transpose(1, 2), flat).reshape(batch, -1, height, width)
    return scores.clamp(min=torch.finfo(torch.float32).tiny).log().to(masks.dtype)


def named_members(output: Any) -> Mapping[str, Any] | None:
    """Return the members of a mapping, dataclass or named tuple by name; None for anything else."""
    if isinstance(output, Mapping):
        return output
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return output._asdict() if hasattr(output, "_asdict") else None


def _checked(scores: Tensor, name: str) -> Tensor:
    if scores.ndim != 4:
        raise ValueError(f"{name} of the host is {tuple(scores.shape)}: class scores are (B, K, h, w)")
    return scores
