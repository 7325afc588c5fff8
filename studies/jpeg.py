# SPDX-License-Identifier: Apache-2.0
"""How long does it take to decode a JPEG, and which damage is noticed, by OpenCV and by ``image_codecs.py``?

``python studies/jpeg.py`` prints the tables in docs/benchmarks.md. The decoders take turns, in one thread; the shortest
times are printed. Damage is done to frames of the synthetic street, at places drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Annotated

import cv2
import numpy as np
import simplejpeg
import typer

from netwarp_ros.recordings.image_codecs import decode
from netwarp_ros.street import Street

SIZES = ((640, 480), (1280, 720), (1920, 1080), (4096, 2160))
HEADER = 700
"""Bytes that are not damaged."""

DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": lambda jpeg, place: jpeg[:place],
    "cut, and an end marker added": lambda jpeg, place: jpeg[:place] + b"\xff\xd9",
    "400 bytes left out": lambda jpeg, place: jpeg[:place] + jpeg[place + 400 :],
    "64 bytes set to zero": lambda jpeg, place: jpeg[:place] + bytes(64) + jpeg[place + 64 :],
    "400 bytes set to zero": lambda jpeg, place: jpeg[:place] + bytes(400) + jpeg[place + 400 :],
    "a bit flipped": lambda jpeg, place: jpeg[:place] + bytes([jpeg[place] ^ 16]) + jpeg[place + 1 :],
}


def opencv(data: np.ndarray) -> None:
    """Decode as OpenCV does.

    Raises:
        ValueError: If OpenCV refuses the data.
    """
    if cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) is None:
        raise ValueError("OpenCV refuses it")


def libjpeg_turbo(data: np.ndarray) -> None:
    """Decode as libjpeg-turbo does, with its warnings as errors.

    Raises:
        ValueError: If it warns.
    """
    simplejpeg.decode_jpeg(data, "BGR")


def refuses(decoder: Callable[[np.ndarray], object], data: np.ndarray) -> bool:
    """Return whether a decoder refuses the data."""
    try:
        decoder(data)
    except ValueError:
        return True
    return False


def main(rounds: Annotated[int, typer.Option(help="Rounds of timing, and damages of each kind.", min=1)] = 200) -> None:
    """Print the times, and then the percentage of damaged images that are refused."""
    cv2.setNumThreads(1)
    decoders = {"OpenCV": opencv, "libjpeg-turbo": libjpeg_turbo, "ours": decode}
    print(f"| ms | {' | '.join(decoders)} |\n|---|---|---|---|")
    for width, height in SIZES:
        data = cv2.imencode(".jpg", Street(seed=0, width=width, height=height).frame(0).image)[1]
        times: dict[str, list[float]] = {name: [] for name in decoders}
        for _ in range(rounds):
            for name, decoder in decoders.items():
                start = perf_counter()
                decoder(data)
                times[name].append(1e3 * (perf_counter() - start))
        print(f"| {width}×{height} | {' | '.join(f'{min(taken):.2f}' for taken in times.values())} |")

    rng, street = np.random.default_rng(0), Street(seed=0)
    jpegs = [cv2.imencode(".jpg", street.frame(index).image)[1].tobytes() for index in range(10)]
    print(f"\n| refused, % | {' | '.join(decoders)} |\n|---|---|---|---|")
    for name, damage in DAMAGES.items():
        counts = dict.fromkeys(decoders, 0)
        for number in range(rounds):
            jpeg = jpegs[number % len(jpegs)]
            data = np.frombuffer(damage(jpeg, int(rng.integers(HEADER, len(jpeg) - 402))), np.uint8)
            for decoder_name, decoder in decoders.items():
                counts[decoder_name] += refuses(decoder, data)
        print(f"| {name} | {' | '.join(f'{100 * count / rounds:.0f}' for count in counts.values())} |")


if __name__ == "__main__":
    typer.run(main)
