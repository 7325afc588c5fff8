# SPDX-License-Identifier: Apache-2.0
"""Fold batch norms into the convolutions before them, in evaluation mode: one operation less for each.

PyTorch runs a batch norm as an operation of its own: on a GPU one more launch, on a CPU one more pass over the map.
Runtimes such as OpenVINO fold them themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from netwarp_ros.models.float32 import full_float32
from netwarp_ros.models.insertion import tensors_in

TOLERANCE = 1e-3
"""How much the output may change by rounding, as a fraction of its greatest value."""


@torch.inference_mode(False)  # weights made in inference mode could not be used outside of it
@torch.no_grad()
@full_float32()
def fold_batch_norms(network: nn.Module, run: Callable[[], Any]) -> int:
    """Fold each batch norm that alone takes the output of a convolution; it is replaced by the identity.

    Which ones these are is seen in one pass, so it does not matter how the network is written. Modules that run twice
    or have hooks stay as they are, and so does what a module with hooks takes or gives: whoever hooked it wants that.
    If the output changes by more than rounding, nothing is folded.

    Args:
        network: The network, in evaluation mode and in float32. It is changed.
        run: Runs it once, on values that differ from each other, and returns its output. Always the same.

    Returns:
        How many were folded.
    """
    expected, pairs = _run(network, run)
    if not expected:  # nothing to compare
        return 0
    weights = [(convolution, convolution.weight, convolution.bias) for convolution, _ in pairs]
    norms = [
        (parent, name, norm)
        for _, norm in pairs
        for parent in network.modules()
        for name, child in parent._modules.items()
        if child is norm
    ]
    for convolution, norm in pairs:
        assert norm.running_mean is not None and norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    for parent, name, _ in norms:
        setattr(parent, name, nn.Identity())
    equal = False
    try:
        equal = all(map(_is_close, tensors_in(run()), expected))
    finally:
        if not equal:
            for convolution, weight, bias in weights:
                convolution.weight, convolution.bias = weight, bias
            for parent, name, norm in norms:
                setattr(parent, name, norm)
    return len(pairs) if equal else 0


def _is_close(result: Tensor, expected: Tensor) -> bool:
    return torch.allclose(result, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().amax().item())


@dataclass
class _Convolved:
    """The output of a convolution: how many functions and hooks take it, and the batch norm that does."""

    convolution: nn.Conv2d
    uses: int = 0
    norm: nn.BatchNorm2d | None = None


def _run(network: nn.Module, run: Callable[[], Any]) -> tuple[list[Tensor], list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """Run the network; return its output, and the convolutions whose output only a batch norm takes, each with it."""
    runs: Counter[nn.Module] = Counter()
    found: list[_Convolved] = []
    uses = _CountUses()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[module] += 1
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
            uses.outputs[output] = _Convolved(module)
        elif isinstance(module, nn.BatchNorm2d) and inputs and (convolved := uses.outputs.get(inputs[0])) is not None:
            convolved.norm = module
            found.append(convolved)

    def note_hooked(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        uses.add((inputs, output))

    handles = []
    for module in network.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            handles.append(module.register_forward_hook(note_hooked))
        elif isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not is_parametrized(module):
            handles.append(module.register_forward_hook(note))
    try:
        with uses:
            output = tensors_in(run())
    finally:
        for handle in handles:
            handle.remove()
    uses.add(output)
    pairs = [
        (one.convolution, one.norm)
        for one in found
        if one.norm and _has_statistics(one.norm) and runs[one.convolution] == runs[one.norm] == one.uses == 1
    ]
    return output, pairs


def _has_statistics(norm: nn.BatchNorm2d) -> bool:
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


class _CountUses(TorchFunctionMode):
    """Counts how many functions of PyTorch take the output of a convolution and give tensors.

    (A mode on the level of operations would load PyTorch's compiler, which takes seconds.)

    Attributes:
        outputs: The outputs of convolutions that are alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs = WeakTensorKeyDictionary()

    def add(self, values: Any) -> None:
        """Count a use of each output among some values."""
        for tensor in tensors_in(values):
            if (convolved := self.outputs.get(tensor)) is not None:
                convolved.uses += 1

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if tensors_in(result):  # else it is a question for the shape or the like
            self.add((args, kwargs))
        return result
