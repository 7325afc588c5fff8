# SPDX-License-Identifier: Apache-2.0
"""Compare ways to change a layer's output from outside: what each keeps, and who sees the change.

    python studies/insertion.py

docs/own_network.md shows the table.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Insert = Callable[[nn.Module, str], None]


class Around(nn.Module):
    """A module that stands in the place of another and doubles its output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.inner(x)


def hook(network: nn.Module, layer: str) -> None:
    """Register a forward hook."""
    network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: 2 * output)


def first_hook(network: nn.Module, layer: str) -> None:
    """Register a forward hook before those that are registered."""
    network.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: 2 * output, prepend=True)


def around(network: nn.Module, layer: str) -> None:
    """Put a module around the layer."""
    setattr(network, layer, Around(network.get_submodule(layer)))


def other_class(network: nn.Module, layer: str) -> None:
    """Give the layer another class."""
    module = network.get_submodule(layer)
    kind = type(module)
    module.__class__ = type(f"Doubled{kind.__name__}", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})


def own_forward(network: nn.Module, layer: str) -> None:
    """Give the layer a forward of its own: what `VideoCNN` does."""
    module = network.get_submodule(layer)
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)


WAYS: dict[str, Insert] = {
    "forward hook": hook,
    "forward hook, prepend=True": first_hook,
    "a module around the layer": around,
    "another class for the layer": other_class,
    "forward of the layer": own_forward,
}


class Direct(nn.Module):
    """Calls the forward of its layer directly."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.body.forward(x)
        return output


def network() -> nn.Module:
    """Return a network whose layer ``body`` is the identity."""
    body = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.dirac_(body.weight)
    return nn.Sequential(OrderedDict(body=body))


def recorded(insert: Insert, *, later: bool, prepend: bool = False) -> bool:
    """Tell whether a hook of others on the layer sees the change."""
    made, seen = network(), list[Tensor]()
    layer = made.get_submodule("body")

    def record(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output)

    if later:
        insert(made, "body")
    layer.register_forward_hook(record, prepend=prepend)
    if not later:
        insert(made, "body")
    made(torch.ones(1, 3, 2, 2))
    return seen[0].mean().item() == 2


def directly(insert: Insert) -> bool:
    """Tell whether whoever calls the layer's forward directly sees the change."""
    made = Direct(network().get_submodule("body"))
    insert(made, "body")
    return made(torch.ones(1, 3, 2, 2)).mean().item() == 2


def works(insert: Insert, run: Callable[[nn.Module, Tensor], Tensor]) -> bool:
    """Tell whether the change is seen by a network that is run in some way."""
    made = network()
    insert(made, "body")
    try:
        return run(made, torch.ones(1, 3, 2, 2)).mean().item() == 2
    except Exception:
        return False


def main() -> None:
    """Print the table."""
    questions = (
        "names of parameters", "type of the layer", "an earlier hook", "a later hook", "a later hook, prepend=True",
        "layer.forward(x)", "torch.compile", "torch.export", "deepcopy",
    )  # fmt: skip
    print("|", *WAYS, "", sep=" | ")
    print("|---" * (len(WAYS) + 1), "|", sep="")
    frame = torch.ones(1, 3, 2, 2)
    answers = []
    for insert in WAYS.values():
        before, after = network(), network()
        insert(after, "body")
        answers.append(
            (
                [*before.state_dict()] == [*after.state_dict()],
                type(before.get_submodule("body")) is type(after.get_submodule("body")),
                recorded(insert, later=False),
                recorded(insert, later=True),
                recorded(insert, later=True, prepend=True),
                directly(insert),
                works(insert, lambda made, x: torch.compile(made, fullgraph=True)(x)),
                works(insert, lambda made, x: torch.export.export(made, (frame,), strict=False).module()(x)),
                works(insert, lambda made, x: copy.deepcopy(made)(x)),
            )
        )
    for question, row in zip(questions, zip(*answers, strict=True), strict=True):
        print(f"| {question} |", " | ".join("yes" if answer else "no" for answer in row), "|")


if __name__ == "__main__":
    main()
