# SPDX-License-Identifier: Apache-2.0
"""Hosts of the library transformers: image CNNs and vision transformers, built from a configuration.

The configuration may come from anybody, in the header of a weights file or in the ``config.json`` of a directory.
Before transformers sees it, `check_config` has bounded it and refused every value by which it could load code or files.
Only architectures that are part of transformers are built; nothing is downloaded. Importing this module does not import
transformers.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from netwarp_ros.resources import cut, quote

MAX_CONFIG_INT = 100_000
"""Greatest absolute value of a whole number in a configuration: sizes and numbers of layers are far smaller."""

MAX_VOCABULARY = 10**7
"""The same for sizes of vocabularies and ids of tokens, which networks that also read text have."""

MAX_POOL_SCALE = 64
"""The same for ``pool_scales``: the sides of maps that no weight bounds. Usual are 1, 2, 3 and 6."""

MAX_LAYERS = 2**17
"""Greatest sum of ``depths``: transformers makes a list of as many numbers before the first layer."""

MAX_UNSTORED = 2**26
"""Most bytes, beside as many as the parameters have, of buffers that a network computes and that no file holds."""

MAX_ENTRIES, MAX_DEPTH = 10_000, 8
"""Most values in a configuration, and its deepest nesting."""

IGNORED = frozenset({
    "architectures", "bos_token_id", "dtype", "eos_token_id", "feature_extractor_type", "finetuning_task",
    "fusion_config", "id2label", "image_processor_type", "is_decoder", "is_encoder_decoder", "label2id", "license",
    "model_name", "name_or_path", "num_labels", "output_attentions", "output_hidden_states", "pad_token_id",
    "per_layer_config", "problem_type", "processor_class", "pruned_heads", "return_dict", "sep_token_id",
    "task_specific_params", "tokenizer_class", "torch_dtype", "torchscript", "transformers_version",
    "transformers_weights", "use_bfloat16",
})  # fmt: skip
"""Keys of a ``config.json`` that do not say how to build the network. Nor do those that begin with an underscore."""

_DECODER = "decoder_config"
_NOT_OF_A_DECODER = frozenset(
    {"backbone", "backbone_config", "backbone_kwargs", "dilation", "use_pretrained_backbone", "use_timm_backbone"}
)
"""Keys of a decoder's configuration that transformers does not use."""

_ATTENTION = ("eager", "sdpa")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,99}")
_TEXT = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.+ -]{0,100}", re.ASCII)
_LARGE = ("vocab_size", "_token_id")


def architectures() -> list[str]:
    """Return the names of transformers' networks for semantic segmentation, including those with queries.

    Raises:
        ValueError: transformers is not installed.
    """
    modeling_auto = _modeling_auto()
    names = set()
    for mapping in ("SEMANTIC", "UNIVERSAL"):
        for value in dict(getattr(modeling_auto, f"MODEL_FOR_{mapping}_SEGMENTATION_MAPPING_NAMES")).values():
            names |= {value} if isinstance(value, str) else set(value)
    return sorted(names)


def check_architecture(name: Any) -> str:
    """Return the name of an architecture if it is one of `architectures`.

    Raises:
        ValueError: It is not; the message lists them.
    """
    known = architectures()
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"architecture {quote(name)} is not one for semantic segmentation: give {', '.join(known)}")
    return name


def check_config(config: Any, source: str = "the configuration") -> None:
    """Check a configuration before transformers reads it. Values of keys that are `IGNORED` are not looked at.

    Args:
        config: What JSON can hold.
        source: Where it comes from, for the error.

    Raises:
        ValueError: It has too many values, is nested too deeply, or a value is out of its range, may be a path or the
            name of something on the Hugging Face hub, or asks for code or weights from elsewhere.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{source} is a {type(config).__name__}: it must be a mapping")
    left = MAX_ENTRIES

    def check(value: Any, key: str, name: str, parent: Mapping[str, Any], depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"{source} has more than {MAX_ENTRIES} values")
        if depth > MAX_DEPTH:
            raise ValueError(f"{source} is nested more than {MAX_DEPTH} deep, at {cut(key, 80)}")
        if isinstance(value, Mapping):
            for inner, item in value.items():
                if not isinstance(inner, str) or not _KEY.fullmatch(inner.lstrip("_")):
                    raise ValueError(f"{source} has the key {quote(inner, 80)}: give letters, digits and underscores")
                if _is_ignored(inner, name) and inner in _NOT_OF_A_DECODER:
                    continue
                if reason := _refused(inner, item, value):
                    raise ValueError(
                        f"{source}: {cut(f'{key}.{inner}'.lstrip('.'), 120)} is {quote(item, 80)}: {reason}"
                    )
                if not _is_ignored(inner, name):
                    check(item, f"{key}.{inner}".lstrip("."), inner, value, depth + 1)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                check(item, f"{key}[{index}]", name, parent, depth + 1)
            if name == "depths" and sum(abs(count) for count in value if isinstance(count, int)) > MAX_LAYERS:
                raise ValueError(f"{source}: {cut(key, 120)} has more than {MAX_LAYERS} layers")
        elif not isinstance(value, bool | None) and (reason := _wrong_scalar(value, name)):
            raise ValueError(f"{source}: {cut(key, 120)} is {quote(value, 80)}: {reason}")

    check(config, "", "", {}, 0)


def header_config(architecture: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model file keeps of a ``config.json``: all that builds the network, defaults included, no more.

    Args:
        architecture: One of `architectures`.
        config: The content of the file.

    Raises:
        ValueError: See `check_config`; or transformers refuses it.
    """
    check_config(config, "config.json")
    with quiet():
        settings = _settings(_network_class(architecture), _without_ignored(config), "config.json")
        kept: dict[str, Any] = json.loads(json.dumps(_kept(settings)))
    check_config(kept, "config.json")
    return kept


def build_transformers_host(architecture: str, num_classes: int, config: Mapping[str, Any]) -> nn.Module:
    """Build a network of transformers with random weights, on the current default device.

    The network is transformers' own; `netwarp_ros.models.outputs.class_scores` reads what it returns.

    Args:
        architecture: One of `architectures`, such as ``SegformerForSemanticSegmentation``.
        num_classes: Number of classes without void.
        config: What `header_config` returned.

    Raises:
        ValueError: transformers is not installed; the architecture is none for segmentation; the configuration is
            refused (see `check_config`), belongs to another architecture, has keys that it does not know, or describes
            large buffers that the network computes.
    """
    check_config(config, f"the configuration of {cut(str(architecture), 80)}")
    kind = _network_class(architecture)
    source = f"the configuration of {architecture}"
    if ignored := [key for key in config if _is_ignored(key)]:
        raise ValueError(f"{source} has the key {quote(ignored[0], 80)}: make the file with netwarp convert")
    with quiet():
        settings = _settings(kind, {**config, "num_labels": num_classes}, source)
        _check_keys(config, settings, source)
        with torch.device("meta"):  # where nothing takes memory
            blueprint = _construct(kind, copy.deepcopy(settings))
        _check_unstored(blueprint, source)
        return blueprint if torch.get_default_device().type == "meta" else _construct(kind, settings)


def uses_timm(config: Any) -> bool:
    """Return whether a configuration names a backbone of timm."""
    if isinstance(config, Mapping):
        return str(config.get("model_type", "")).startswith("timm") or any(map(uses_timm, config.values()))
    return False


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, which logs what our own errors and reports say, and shows progress bars."""
    from transformers.utils import logging as progress

    logger, bars = logging.getLogger("transformers"), progress.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    progress.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            progress.enable_progress_bar()


def network_from_tensors(
    architecture: str, num_classes: int, config: Mapping[str, Any], tensors: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network and load weights into it, under the names that any version of transformers gave them.

    Args:
        architecture: One of `architectures`.
        num_classes: Number of classes without void.
        config: What `header_config` returned. That its tensors are not larger than those given must be known.
        tensors: The weights.

    Returns:
        The network, in float32 and evaluation mode, and a mapping with ``missing_keys``, ``unexpected_keys`` and
        ``mismatched_keys``.

    Raises:
        ValueError: transformers refuses the configuration or the weights.
    """
    kind = _network_class(architecture)
    with quiet():
        settings = _settings(kind, {**config, "num_labels": num_classes}, "config.json")
        try:
            network, report = kind.from_pretrained(
                None,
                config=settings,
                state_dict=dict(tensors),
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
            )
        except Exception as error:  # transformers raises errors of many types
            raise ValueError(f"transformers cannot load {architecture}: {cut(str(error), 400)}") from error
    return network, report


def _modeling_auto() -> Any:
    try:
        import scipy  # noqa: F401 - transformers builds the losses of networks with queries, which need it
        from transformers.models.auto import modeling_auto
    except ImportError as error:
        raise ValueError(
            f"hosts of transformers need its library ({cut(str(error))}): pip install netwarp_ros[transformers]"
        ) from error
    return modeling_auto


def _network_class(architecture: str) -> Any:
    """Return the class of an architecture after a look at the list: the name may come from anybody."""
    check_architecture(architecture)
    import transformers

    return getattr(transformers, architecture)


def _settings(kind: Any, config: Mapping[str, Any], source: str) -> Any:
    """Return transformers' configuration object."""
    wanted = kind.config_class.model_type
    given = config.get("model_type", wanted)
    if given != wanted:
        raise ValueError(f"{source} is of model_type {quote(given, 80)}, but {kind.__name__} has {wanted!r}")
    backbone, known = config.get("backbone_config"), _backbone_types()
    name = backbone.get("model_type") if isinstance(backbone, Mapping) else None
    if name is not None and name not in known:
        raise ValueError(
            f"{source}: backbone_config has the model_type {quote(name, 80)}: give one of {', '.join(known)}"
        )
    if uses_timm(config):
        _require_timm()
    try:
        return kind.config_class.from_dict(dict(config))
    except Exception as error:  # its checks raise errors of many types
        raise ValueError(f"{source} does not fit {kind.__name__}: {cut(str(error), 400)}") from error


def _require_timm() -> None:
    try:
        import timm  # noqa: F401 - transformers imports it
    except ImportError as error:
        raise ValueError("this network has a backbone of timm: pip install netwarp_ros[timm]") from error


def _construct(kind: Any, settings: Any) -> nn.Module:
    try:
        network: nn.Module = kind(settings)
    except ValueError:
        raise
    except Exception as error:  # constructors of networks raise errors of many types
        raise ValueError(
            f"transformers cannot build {kind.__name__}: {type(error).__name__}: {cut(str(error), 400)}"
        ) from error
    return network


def _check_unstored(network: nn.Module, source: str) -> None:
    """Check the size of buffers that are not in the state dict, such as Swin's with ``window_size ** 4`` integers.

    Those that are in it are as large as what a file holds, which whoever loads one checks.
    """
    stored = network.state_dict().keys()
    unstored = {name: buffer for name, buffer in network.named_buffers() if name not in stored}
    most = MAX_UNSTORED + sum(parameter.nbytes for parameter in network.parameters())
    if sum(buffer.nbytes for buffer in unstored.values()) > most:
        name, largest = max(unstored.items(), key=lambda item: item[1].nbytes)
        raise ValueError(
            f"{source} describes buffers that are not among the weights and have more than {most} bytes, such as "
            f"{cut(name, 120)} {tuple(largest.shape)}"
        )


def _backbone_types() -> list[str]:
    return sorted(dict(_modeling_auto().MODEL_FOR_BACKBONE_MAPPING_NAMES))


def _is_ignored(key: str, parent: str = "") -> bool:
    """Return whether a key says nothing of how to build a network; ``parent`` is that of the mapping it is in."""
    return key in IGNORED or key.startswith("_") or (parent == _DECODER and key in _NOT_OF_A_DECODER)


def _without_ignored(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _without_ignored(item, key) for key, item in value.items() if not _is_ignored(key, name)}
    return value


def _kept(settings: Any, name: str = "") -> dict[str, Any]:
    """Return the fields of a configuration object that build the network, as plain values."""
    kept: dict[str, Any] = {"model_type": settings.model_type}
    names = _fields(settings)
    for key, value in settings.to_dict().items():
        if key in names and not _is_ignored(key, name):
            inner = getattr(settings, key, None)
            kept[key] = _kept(inner, key) if dataclasses.is_dataclass(inner) and not isinstance(inner, type) else value
    return kept


def _fields(settings: Any) -> set[str]:
    """Return the keys that a configuration of this kind has."""
    return {field.name for field in dataclasses.fields(settings)} | {"out_features", "out_indices"}


def _check_keys(config: Mapping[str, Any], settings: Any, source: str) -> None:
    """Check that transformers knows every key: it would take unknown ones without a word."""
    known = _fields(settings) | {"model_type"}
    for key, value in config.items():
        if key not in known:
            raise ValueError(
                f"{source} has the key {quote(key, 80)}, which {type(settings).__name__} does not have in this version "
                "of transformers"
            )
        inner = getattr(settings, key, None)
        if isinstance(value, Mapping) and dataclasses.is_dataclass(inner):
            _check_keys(value, inner, f"{key} of {source}")


def _refused(key: str, value: Any, parent: Mapping[str, Any]) -> str:
    """Return why a key of a configuration is refused with this value; empty if it is not."""
    if key in ("auto_map", "trust_remote_code") and value:
        return (
            "it asks for code that is not part of transformers, which is never run. Install that code as a package "
            "with an entry point netwarp_ros.hosts"
        )
    if key == "use_pretrained_backbone" and value:
        return "the backbone's weights would be downloaded. Set it to false: the directory has all weights"
    if key == "quantization_config" and value:
        return "quantised weights are not read. Convert the checkpoint that they were made from"
    if key == "backbone" and value is not None and not str(parent.get("model_type", "")).startswith("timm"):
        return "transformers would look for it on the hub. Give a backbone_config instead"
    if key.startswith(("attn_implementation", "_attn_implementation")) and not isinstance(value, bool):
        names = list(value.values()) if isinstance(value, Mapping) else [value]
        if any(name is not None and name not in _ATTENTION for name in names):
            return f"other names can be code on the hub. Remove the key, or give {' or '.join(_ATTENTION)}"
    if key.lstrip("_").startswith("experts_implementation") and value not in (None, "eager"):
        return "other names can be code on the hub. Remove the key, or give eager"
    return ""


def _wrong_scalar(value: Any, key: str) -> str:
    """Return why a scalar must not be in a configuration; empty if it may."""
    if isinstance(value, int):
        limit = MAX_VOCABULARY if key.endswith(_LARGE) else MAX_POOL_SCALE if key == "pool_scales" else MAX_CONFIG_INT
        return "" if abs(value) <= limit else f"at most {limit} is possible"
    if isinstance(value, float):
        return "" if math.isfinite(value) else "it must be finite"
    if isinstance(value, str):
        return "" if _TEXT.fullmatch(value) else "it may be a path or an address. Give letters, digits and _ . + -"
    return f"a {type(value).__name__} is not plain JSON"
