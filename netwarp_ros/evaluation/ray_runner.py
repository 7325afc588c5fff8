# SPDX-License-Identifier: Apache-2.0
"""Slices evaluated in parallel on Ray, on this machine or on a cluster."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from netwarp_ros.evaluation.slices import EvaluatedSlice, Opened, Slice, SliceSettings, evaluate_slice
from netwarp_ros.recordings.bags import BagLabels

RETRIES = 3
"""How often a slice is started again after its worker was lost."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a local Ray; settings and results of slices are small."""


@contextmanager
def ray_cluster(address: str = "local", workers: int | None = None) -> Iterator[None]:
    """Connect to a Ray cluster for the body of a ``with`` statement.

    Args:
        address: Address of a cluster, as `ray.init` takes it. ``local`` starts one for the body, which only this
            machine can reach.
        workers: Number of slices that a local cluster evaluates at a time; by default the number of CPUs.

    Raises:
        ValueError: If Ray is not installed, or ``workers`` is given for a cluster that is not local.
        OSError: If there is no cluster at the address.
    """
    if workers and address != "local":
        raise ValueError(f"workers is {workers}, but the cluster at {address} has its own workers: leave it out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"Ray is not installed: pip install ray, or netwarp_ros[ray] ({error})") from error
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        options |= {"_node_ip_address": "127.0.0.1"}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError) as error:
        raise OSError(f"there is no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def run_on_ray(settings: SliceSettings, slices: Sequence[Slice], folder: Path) -> Iterator[EvaluatedSlice]:
    """Evaluate slices on the connected `ray_cluster`, each as a task of one CPU, and of one GPU if the device is CUDA.

    Every node must find recordings and weights at the same paths. A slice that loses its worker is started again. The
    JSON of a slice's frames, a few kB each, is returned as a whole, so ``folder`` is not used.

    Yields:
        Slices and their results, in the order in which they are done.

    Raises:
        ValueError: If a slice cannot be evaluated.
        OSError: If a slice lost its worker more than `RETRIES` times, or the cluster is lost.
    """
    import ray

    gpus = int(str(settings.segmenter.get("device", "cpu")).startswith("cuda"))
    open_recording = ray.remote(num_cpus=1, max_retries=RETRIES)(_open)
    evaluate = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_evaluate_whole)
    shared_settings = ray.put(settings)
    waiting: dict[Any, Slice] = {}
    for recording, own in groupby(slices, key=lambda slice_: slice_.recording):
        opened = open_recording.remote(shared_settings, recording)
        waiting |= {evaluate.remote(shared_settings, slice_, opened): slice_ for slice_ in own}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        slice_ = waiting.pop(done)
        try:
            result, frames = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OSError(f"{slice_.name} is lost on Ray: {error}") from error
        yield slice_, result, map(json.loads, frames)


def _open(settings: SliceSettings, recording: Path) -> Opened:
    """Open a recording with the index of its label maps, so that no slice has to read all of them."""
    frames, labels = settings.open(recording)
    if isinstance(labels, BagLabels):
        labels.index()
    return frames, labels


def _evaluate_whole(settings: SliceSettings, slice_: Slice, opened: Opened) -> tuple[dict[str, Any], list[str]]:
    """Return what `evaluate_slice` does, and the JSON of all frames as text, which is smaller than values are."""
    frames: list[str] = []
    return evaluate_slice(settings, slice_, opened, lambda frame: frames.append(json.dumps(frame))), frames
