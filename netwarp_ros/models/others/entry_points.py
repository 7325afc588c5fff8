# SPDX-License-Identifier: Apache-2.0
"""Hosts that other installed packages declare, as entry points of the group ``netwarp_ros.hosts``.

In the ``pyproject.toml`` of such a package::

    [project.entry-points."netwarp_ros.hosts"]
    my_network = "my_package.networks:MyNetwork"

The object is called as ``MyNetwork(num_classes, **arguments)`` and returns a ``torch.nn.Module``. What is imported is
code that was installed on this machine; a file can only choose among the names.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch import nn

from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.resources import cut, quote

GROUP = "netwarp_ros.hosts"


def entry_point_names() -> list[str]:
    """Return the names of the hosts that installed packages declare, but for those that this package has itself."""
    return sorted({point.name for point in entry_points(group=GROUP)} - HOSTS.keys())


def find_entry_point(name: str) -> Callable[..., nn.Module] | None:
    """Return what makes a host, ``(num_classes: int, **arguments) -> nn.Module``; None if no package declares it.

    Names of this package's own hosts are never looked up. What is returned raises ValueError if the host cannot be
    made, whatever the package's code raises, or if it is no ``nn.Module``.

    Raises:
        ValueError: Two packages declare the name; or what it stands for cannot be imported, or called.
    """
    points = {point.value: point for point in entry_points(group=GROUP, name=name)} if name not in HOSTS else {}
    if not points:
        return None
    if len(points) > 1:
        packages = " and ".join(sorted(_distribution(point) for point in points.values()))
        raise ValueError(f"host {quote(name)} is declared by {packages}: uninstall one of them")
    point = next(iter(points.values()))
    where = f"host {quote(name)} of {_distribution(point)} ({cut(point.value, 100)})"
    try:
        host = point.load()
    except Exception as error:  # importing runs the package's own code
        raise ValueError(f"{where} cannot be imported: {type(error).__name__}: {cut(str(error))}") from error
    if not callable(host):
        raise ValueError(f"{where} is a {type(host).__name__}: give a class or function that returns a torch.nn.Module")

    def make(*values: Any, **arguments: Any) -> nn.Module:
        try:
            made = host(*values, **arguments)
        except Exception as error:  # the package's own code
            raise ValueError(f"{where} cannot be made: {type(error).__name__}: {cut(str(error))}") from error
        if not isinstance(made, nn.Module):
            raise ValueError(f"{where} makes a {type(made).__name__}: let it return a torch.nn.Module")
        return made

    return make


def _distribution(point: EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist is not None else "an unknown package"
