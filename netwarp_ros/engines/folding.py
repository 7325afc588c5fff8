# SPDX-License-Identifier: Apache-2.0
"""Fold batch norms into the convolutions before them, in evaluation mode: one operation less for each.

PyTorch runs a batch norm as an operation of its own: on a GPU one more launch, on a CPU one more pass over the map.
Runtimes such as OpenVINO fold them themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary


@torch.inference_mode(False)  # weights made in inference mode could not be used outside of it
@torch.no_grad()
def fold_batch_norms(network: nn.Module, run: Callable[[], object]) -> int:
    """Fold each batch norm that alone takes the output of a convolution; it is replaced by the identity.

    Which ones these are is seen in one pass, so it does not matter how the network is written. Modules that run twice
    or have hooks stay as they are: whoever hooked them wants their output. So does a kind of convolution whose result
    would differ.

    Args:
        network: The network, in evaluation mode and in float32. It is changed.
        run: Runs it once.

    Returns:
        How many were folded.
    """
    names = {module: name for name, module in network.named_modules()}
    pairs = _pairs(network, run)
    for convolution, norm, (weight, bias) in pairs:
        convolution.weight, convolution.bias = weight, bias
        parent, _, name = names[norm].rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Identity())
    return len(pairs)


_Folded = tuple[nn.Parameter, nn.Parameter]
"""Weight and bias of a convolution with a batch norm folded into it."""


@dataclass
class _Convolved:
    """The output of a convolution: where it comes from, how many operations take it, and the norm that does."""

    convolution: nn.Conv2d
    features: Tensor
    uses: int = 0
    norm: nn.BatchNorm2d | None = None
    folded: _Folded | None = None


def _pairs(network: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d, _Folded]]:
    """Run the network, and return the convolutions whose output only one operation takes, a batch norm."""
    runs: Counter[nn.Module] = Counter()
    found: list[_Convolved] = []
    uses = _CountUses()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        runs[module] += 1
        if isinstance(module, nn.Conv2d):
            uses.outputs[output] = _Convolved(module, inputs[0])
        elif isinstance(module, nn.BatchNorm2d) and (convolved := uses.outputs.get(inputs[0])) is not None:
            with uses.paused():
                convolved.folded = _fold(convolved, module, output)
            convolved.norm = module
            found.append(convolved)

    handles = [
        module.register_forward_hook(note)
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and not (module._forward_hooks or module._forward_pre_hooks)
    ]
    try:
        with uses:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [
        (one.convolution, one.norm, one.folded)
        for one in found
        if one.norm and one.folded and runs[one.convolution] == runs[one.norm] == one.uses == 1
    ]


def _fold(convolved: _Convolved, norm: nn.BatchNorm2d, result: Tensor) -> _Folded | None:
    """Return the weights that give ``result`` at once; None if there are none."""
    convolution, mean, variance = convolved.convolution, norm.running_mean, norm.running_var
    if mean is None or variance is None:
        return None
    before = convolution.weight, convolution.bias
    folded = fuse_conv_bn_weights(*before, mean, variance, norm.eps, norm.weight, norm.bias)
    convolution.weight, convolution.bias = folded
    tolerance = 1e-3 * result.abs().amax().item()
    equal = torch.allclose(convolution.forward(convolved.features), result, rtol=1e-3, atol=tolerance)
    convolution.weight, convolution.bias = before
    return folded if equal else None


class _CountUses(TorchFunctionMode):
    """Counts how many functions of PyTorch take the output of a convolution and give tensors.

    (A mode on the level of operations would load PyTorch's compiler, which takes seconds.)

    Attributes:
        outputs: The outputs that are alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs = WeakTensorKeyDictionary()
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what the body of a ``with`` statement does."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __torch_function__(
        self, function: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self._paused and _tensors(result):  # else it is a question for the shape or the like
            for tensor in _tensors((args, kwargs)):
                if (convolved := self.outputs.get(tensor)) is not None:
                    convolved.uses += 1
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
