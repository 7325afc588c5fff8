# SPDX-License-Identifier: Apache-2.0
"""Λ and engines compute in full float32, whatever PyTorch is allowed to use; test_training.py has training.

The tests need no GPU: they look at PyTorch's settings while a convolution is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netwarp_ros.classes import load_classes
from netwarp_ros.engines.engine import Normalisation
from netwarp_ros.engines.pytorch import CompiledTorchEngine, TorchEngine
from netwarp_ros.models import ModelSpec, augment
from netwarp_ros.models.float32 import full_float32

Setting = Callable[[], None]


def new_setting(owner: str, name: str, value: str) -> Setting:
    """Return what makes one of PyTorch's newer settings."""
    modules: dict[str, Any] = {"generic": torch.backends, "cuda": torch.backends.cuda, "cudnn": torch.backends.cudnn}
    target = getattr(modules[owner], name) if name else modules[owner]
    return lambda: setattr(target, "fp32_precision", value)


USERS = {
    "PyTorch's default": lambda: None,
    "no TensorFloat-32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "newer, convolutions": new_setting("cudnn", "conv", "ieee"),
    "newer, products": new_setting("cuda", "matmul", "tf32"),
    "newer, everything": new_setting("generic", "", "tf32"),
}
"""What a user may have set before."""


def settings() -> dict[str, Any]:
    """Return all that PyTorch tells about its precision; the older functions raise errors in some states."""
    backends: Any = torch.backends
    operations = {
        "convolution": backends.cudnn.conv, "rnn": backends.cudnn.rnn, "product": backends.cuda.matmul,
        "convolution, CPU": backends.mkldnn.conv, "product, CPU": backends.mkldnn.matmul,
    }  # fmt: skip
    state: dict[str, Any] = {name: operation.fp32_precision for name, operation in operations.items()}
    for older in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
        try:
            state[str(len(state))] = older()
        except RuntimeError:
            state[str(len(state))] = "mixed"
    return state


FULL = dict.fromkeys(("convolution", "rnn", "product", "convolution, CPU", "product, CPU"), "ieee")


def is_full(state: dict[str, Any]) -> bool:
    return {name: state[name] for name in FULL} == FULL


@pytest.fixture(autouse=True)
def default_settings() -> Iterator[None]:
    yield
    backends: Any = torch.backends
    backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("user", USERS.values(), ids=USERS.keys())
def test_full_precision_holds_inside_and_the_users_setting_after(user: Setting) -> None:
    user()
    before = settings()
    with full_float32():
        assert is_full(settings())
        with full_float32():
            pass
        assert is_full(settings())
    assert settings() == before


def test_a_general_setting_can_still_be_changed_afterwards() -> None:
    backends: Any = torch.backends
    backends.fp32_precision = "ieee"
    with full_float32():
        pass
    backends.fp32_precision = "tf32"
    assert backends.cuda.matmul.fp32_precision == backends.mkldnn.conv.fp32_precision == "tf32"


def test_the_users_setting_is_back_after_an_error() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), full_float32():
        _ = 1 / 0
    assert settings() == before


def test_it_holds_until_the_last_thread_leaves() -> None:
    before, met, seen = settings(), Barrier(2), list[bool]()

    def first() -> None:
        with full_float32():
            met.wait()  # both are inside
        met.wait()

    def second() -> None:
        with full_float32():
            met.wait()
            met.wait()  # the first one has left
            seen.append(is_full(settings()))

    threads = [Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] and settings() == before


def noting(network: nn.Module, seen: dict[str, bool]) -> None:
    """Note for each convolution whether it runs in full precision."""

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.__setitem__(name, is_full(settings()))

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note(name))


def test_the_flow_cnn_is_exact_and_a_host_in_training_is_as_its_user_wants() -> None:
    network, seen = augment(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), ["0"]), dict[str, bool]()
    noting(network, seen)
    frame = torch.zeros(1, 3, 8, 8)
    _, memory = network(frame)
    network(frame, torch.zeros(1, 2, 8, 8), memory)
    assert seen == {"host.0": False, **{f"flow_cnn.conv{number}": True for number in (1, 2, 3, 4)}}


def test_a_whole_frame_of_an_engine_is_exact() -> None:
    network, seen = augment(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), ["0"]), dict[str, bool]()
    noting(network, seen)
    spec = ModelSpec(host="ddrnet23slim", classes=load_classes("camvid"), host_arguments={"num_classes": 11})
    engine = TorchEngine(network, Normalisation.of(spec, torch.device("cpu")), torch.device("cpu"))
    engine(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert seen == {"host.0": True}


def test_compiled_graphs_are_run_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting is not part of compiled code: it must hold while that is called."""
    seen: list[bool] = []

    def compile_graph(graph: Callable[..., Any], **_options: Any) -> Callable[..., Any]:
        def run(*maps: Tensor) -> Any:
            seen.append(not {"tf32", "bf16"} & {settings()[name] for name in FULL})  # `export` sets "none" for "ieee"
            return graph(*maps)

        return run

    monkeypatch.setattr(torch, "compile", compile_graph)
    network = augment(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), ["0"]).eval()
    spec = ModelSpec(host="ddrnet23slim", classes=load_classes("camvid"), host_arguments={"num_classes": 11})
    engine = CompiledTorchEngine(network, Normalisation.of(spec, torch.device("cpu")), torch.device("cpu"))
    frame = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with torch.inference_mode():
        _, memory = engine(frame)
        engine(frame, torch.zeros(1, 2, 8, 8), memory)
    assert seen == [True] * 4
