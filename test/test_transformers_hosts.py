# SPDX-License-Identifier: Apache-2.0
"""Hosts of transformers: what a configuration may say, and networks that are built from what a model file keeps."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from transformers.models.auto import modeling_auto
from transformers_networks import NETWORKS, NUM_CLASSES, logits_of, make

from netwarp_ros.models.limits import at_most
from netwarp_ros.models.others.input_sizes import find_input_size
from netwarp_ros.models.others.transformers_hosts import (
    MAX_ENTRIES,
    architectures,
    build_transformers_host,
    check_config,
    header_config,
    uses_timm,
)
from netwarp_ros.models.spec import InputSize

SEGFORMER = "SegformerForSemanticSegmentation"


def config_of(network: Any) -> dict[str, Any]:
    """Return the content of a network's ``config.json``."""
    content: dict[str, Any] = json.loads(network.config.to_json_string())
    return content


def nested(depth: int) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for _ in range(depth):
        content = {"inner": content}
    return content


def test_the_architectures_are_those_for_semantic_segmentation() -> None:
    expected = {
        *modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values(),
        *modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES.values(),
    }
    assert architectures() == sorted(expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_host_built_from_a_header_scores_as_the_network(name: str) -> None:
    network = make(name)
    kind = type(network).__name__
    header = header_config(kind, config_of(network))
    assert json.loads(json.dumps(header)) == header
    assert header["model_type"] == network.config.model_type
    torch.manual_seed(1)
    host = build_transformers_host(kind, NUM_CLASSES, header).eval()
    host.load_state_dict(network.state_dict())
    frame = torch.rand(1, 3, *(32, 32) if name == "dpt" else (64, 64))
    assert torch.equal(logits_of(host, frame), logits_of(network, frame))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_host_is_built_on_the_meta_device(name: str) -> None:
    network = make(name)
    kind = type(network).__name__
    with torch.device("meta"):
        host = build_transformers_host(kind, NUM_CLASSES, header_config(kind, config_of(network)))
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in host.state_dict().items()} == shapes
    # Mask2Former makes one small parameter by `torch.Tensor(...)`, which ignores the default device.
    assert sum(value.numel() for value in host.state_dict().values() if not value.is_meta) < 1000


def test_the_number_of_classes_is_the_callers() -> None:
    network = make("segformer")
    header = header_config(SEGFORMER, config_of(network))
    assert build_transformers_host(SEGFORMER, 19, header).decode_head.classifier.weight.shape[0] == 19


def test_a_header_keeps_what_builds_the_network_and_no_more() -> None:
    network = make("mask2former")
    content = config_of(network) | {
        "_name_or_path": "/home/me/secret",
        "transformers_version": "4.0",
        "dtype": "float16",
    }
    content["backbone_config"] |= {"id2label": {"0": "a, b/c"}, "torch_dtype": "float32"}
    header = header_config(type(network).__name__, content)
    assert not {"_name_or_path", "transformers_version", "dtype", "architectures"} & header.keys()
    assert not any("id2label" in part for part in (header, header["backbone_config"]))
    assert (
        header["backbone_config"]["embed_dim"] == network.config.backbone_config.embed_dim
        and header["num_queries"] == 6
    )


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"id2label": {str(number): "a/b: c" for number in range(3)}, "_name_or_path": "nvidia/segformer"},
    {"pool_scales": [1, 2, 3, 6, 64], "depths": [100_000]},
    {"use_pretrained_backbone": False, "backbone": None, "auto_map": None},
    {"_attn_implementation": "sdpa", "attn_implementation": {"backbone_config": "eager"}},
    {"backbone_config": {"model_type": "timm_backbone", "backbone": "tf_efficientnet_b0.ns_jft_in1k"}},
    {"text_config": {"vocab_size": 250_000, "pad_token_id": 1, "eos_token_id": 10**9}},
    nested(7),
]


@pytest.mark.parametrize("content", ACCEPTED)
def test_usual_configurations_are_accepted(content: dict[str, Any]) -> None:
    check_config(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "the configuration is a list: it must be a mapping"),
        ({"auto_map": {"AutoModel": "x--modeling.Net"}}, "auto_map is .*code that is not part of transformers"),
        ({"backbone_config": {"auto_map": {"A": "b"}}}, r"backbone_config.auto_map is"),
        ({"trust_remote_code": True}, "trust_remote_code is True: it asks for code"),
        ({"use_pretrained_backbone": True}, "would be downloaded. Set it to false"),
        ({"quantization_config": {"bits": 4}}, "quantised weights are not read"),
        ({"backbone": "resnet50"}, "look for it on the hub. Give a backbone_config"),
        ({"backbone": "../../x"}, "backbone is '../../x'"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "../../x"}}, "may be a path or an address"),
        ({"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:a"}}, "may be a path or an address"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "can be code on the hub. Remove the key"),
        ({"attn_implementation": "flash_attention_2"}, "can be code on the hub"),
        ({"attn_implementation": {"backbone_config": "a/b"}}, "can be code on the hub"),
        ({"_attn_implementation_internal": "a/b"}, "can be code on the hub"),
        ({"experts_implementation": "a/b"}, "can be code on the hub"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000: at most 100000"),
        ({"hidden_sizes": [32, 10**9]}, r"hidden_sizes\[1\] is 1000000000: at most 100000"),
        ({"image_size": -(10**9)}, "image_size is -1000000000: at most"),
        ({"text_config": {"vocab_size": 10**8}}, "text_config.vocab_size is 100000000: at most 10000000"),
        ({"pool_scales": [1, 65]}, r"pool_scales\[1\] is 65: at most 64"),
        ({"backbone_config": {"depths": [100_000, 100_000]}}, "backbone_config.depths has more than 131072 layers"),
        ({"dropout": float("nan")}, "dropout is nan: it must be finite"),
        ({"dropout": float("inf")}, "dropout is inf: it must be finite"),
        ({"hidden_act": "C:x"}, "may be a path or an address"),
        ({"hidden_act": "a\\b"}, "may be a path or an address"),
        ({"hidden_act": "x" * 101}, "may be a path or an address"),
        ({"hidden_act": "a\nb"}, "may be a path or an address"),
        ({"hidden_act": b"gelu"}, "a bytes is not plain JSON"),
        ({"__class__ ": 1}, "has the key '__class__ '"),
        ({"depths": [1] * MAX_ENTRIES}, f"more than {MAX_ENTRIES} values"),
        ({"depths": [1] * 10**6}, f"more than {MAX_ENTRIES} values"),
        (nested(20), "nested more than 8 deep"),
    ],
)  # fmt: skip
def test_what_a_configuration_must_not_say(content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        check_config(content)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("BertModel", {}, "'BertModel' is not one for semantic segmentation: give BeitForSemanticSegmentation, "),
        ("pipeline", {}, "is not one for semantic segmentation"),
        ("BeitForSemanticSegmentation", {}, "is of model_type 'segformer', but BeitForSemanticSegmentation has 'beit'"),
        (SEGFORMER, {"patch_size": 4}, "has the key 'patch_size', which SegformerConfig does not have in this version"),
        (SEGFORMER, {"to_dict": 1}, "does not fit SegformerForSemanticSegmentation|has the key 'to_dict'"),
        (SEGFORMER, {"id2label": {"0": "a"}}, "has the key 'id2label': make the file with netwarp convert"),
        (SEGFORMER, {"_attn": 1}, "has the key '_attn'"),
        (SEGFORMER, {"hidden_sizes": "abc"}, "does not fit SegformerForSemanticSegmentation"),
        (SEGFORMER, {"hidden_sizes": []}, "cannot build SegformerForSemanticSegmentation: IndexError"),
        (SEGFORMER, {"hidden_sizes": [-8, 1, 1, 1]}, "cannot build|Trying to create tensor with negative"),
        ("UperNetForSemanticSegmentation", {"model_type": "upernet", "backbone_config": {"model_type": "bert"}},
         "backbone_config has the model_type 'bert': give one of beit, "),
    ],
)  # fmt: skip
def test_a_header_that_fits_no_network_is_refused(architecture: str, change: dict[str, Any], message: str) -> None:
    header = header_config(SEGFORMER, config_of(make("segformer"))) | change
    with pytest.raises(ValueError, match=message):
        build_transformers_host(architecture, NUM_CLASSES, header)


def test_a_network_of_100000_layers_is_stopped_while_it_is_built() -> None:
    header = header_config(SEGFORMER, config_of(make("segformer"))) | {"depths": [100_000, 1, 1, 1]}
    message = "the network has more than 300 parameters"
    with torch.device("meta"), at_most(parameters=300, modules=10_000), pytest.raises(ValueError, match=message):
        build_transformers_host(SEGFORMER, NUM_CLASSES, header)


@pytest.mark.parametrize(("window", "message"), [
    (64, r"buffers that are not among the weights and have more than [0-9]+ bytes, such as .*relative_position_index"),
    (1000, "buffers that are not among the weights"),
    (100_000, "buffers that are not among the weights|cannot build"),
])  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_table_that_no_weights_bound_is_refused_before_it_takes_memory(
    window: int, message: str, device: str
) -> None:
    network = make("upernet-swin")
    kind = type(network).__name__
    header = header_config(kind, config_of(network))
    header["backbone_config"]["window_size"] = window
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with torch.device(device), pytest.raises(ValueError, match=message):
        build_transformers_host(kind, NUM_CLASSES, header)
    assert time.process_time() - began < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**5  # kB


@pytest.mark.parametrize(("missing", "message"), [
    ("transformers", r"need its library .*pip install netwarp_ros\[transformers\]"),
    ("scipy", r"need its library .*pip install netwarp_ros\[transformers\]"),
])  # fmt: skip
def test_a_missing_library_is_named(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "transformers":
        monkeypatch.setitem(sys.modules, "transformers.models.auto", None)
    with pytest.raises(ValueError, match=message):
        build_transformers_host(SEGFORMER, NUM_CLASSES, {})


def test_a_missing_timm_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    config = {"model_type": "upernet", "backbone_config": {"model_type": "timm_backbone", "backbone": "resnet18"}}
    assert uses_timm(config)
    with pytest.raises(ValueError, match=r"a backbone of timm: pip install netwarp_ros\[timm\]"):
        build_transformers_host("UperNetForSemanticSegmentation", NUM_CLASSES, config)


def test_the_package_does_not_import_transformers() -> None:
    statement = "import sys; from netwarp_ros.models.others import transformers_files, transformers_hosts"
    program = f"{statement}; print('transformers' in sys.modules, 'scipy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["False", "False"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("segformer", InputSize()),
        ("upernet", InputSize()),
        ("mobilevit", InputSize()),
        ("mask2former", InputSize()),
        ("beit", InputSize(8)),
        ("dpt", InputSize(fixed=(32, 32))),
        ("eomt", InputSize(fixed=(64, 64))),
    ],
)
def test_which_sizes_a_network_takes_is_found(name: str, expected: InputSize) -> None:
    assert find_input_size(make(name), [(32, 32), (64, 64)]) == expected


def test_a_network_that_takes_no_image_is_refused() -> None:
    network = torch.nn.Bilinear(3, 3, 1)
    with pytest.raises(ValueError, match="Bilinear takes no size that was tried: at 131x97: TypeError"):
        find_input_size(network)
