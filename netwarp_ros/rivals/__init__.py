# SPDX-License-Identifier: Apache-2.0
"""The paper's rivals (Sec. 4): other ways to better the scores of an image CNN on a video.

A rival is an `Engine` on top of the host's engine (`Rival`): frame, flow and memory go in, scores and memory come out.
So `Segmenter` takes its name (``rival``), and it appears in tables beside NetWarp. docs/rivals.md compares them.
"""

from __future__ import annotations

from netwarp_ros.engines import Engine
from netwarp_ros.rivals.rival import Rival

__all__ = ["RIVALS", "Rival", "check_rival", "open_rival"]

RIVALS = ("densecrf", "fso-crf", "vpn")
"""``densecrf``: mean field over each frame. ``fso-crf``: the same over the frame and earlier ones moved along the flow.
``vpn``: learnt bilateral propagation of earlier frames' probabilities."""


def check_rival(name: str) -> None:
    """Raise a ValueError if there is no such rival."""
    if name not in RIVALS:
        raise ValueError(f"there is no rival {name!r}: give {', '.join(RIVALS)}")


def open_rival(name: str, host: Engine, num_classes: int) -> Rival:
    """Return a rival.

    Args:
        name: One of `RIVALS`.
        host: Runs the image CNN.
        num_classes: Number of its classes.

    Raises:
        ValueError: If there is no such rival, or it was trained for other classes.
    """
    from netwarp_ros.rivals.dense_crf import DENSE_CRF, FSO_CRF, DenseCrf
    from netwarp_ros.rivals.vpn import Vpn, load_propagation

    check_rival(name)
    if name == "vpn":
        return Vpn(host, name, load_propagation(num_classes))
    return DenseCrf(host, name, DENSE_CRF if name == "densecrf" else FSO_CRF)
