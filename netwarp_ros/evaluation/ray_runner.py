# SPDX-License-Identifier: Apache-2.0
"""Slices evaluated in parallel on Ray, on this machine or on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from netwarp_ros.evaluation.slices import Slice, SliceSettings, evaluate_slice

RETRIES = 3
"""How often a slice is started again after its worker was lost."""

OBJECT_STORE_BYTES = 128 * 2**20
"""Shared memory of a local Ray. Settings and results of slices are small."""


def run_on_ray(job: SliceSettings, slices: Sequence[Slice]) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """Judge slices on the `ray_cluster` at hand, each as a task of one CPU, and of one GPU where the device is one.

    Every node must find recordings and weights at the same paths. A slice that loses its worker is begun anew.

    Raises:
        ValueError: If a slice cannot be judged.
        OSError: If a slice lost its worker time and again, or the cluster is lost.
    """
    import ray

    gpus = int(str(job.segmenter.get("device", "cpu")).startswith("cuda"))
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(evaluate_slice)
    there = ray.put(job)
    waiting = {task.remote(there, slice_): slice_ for slice_ in slices}
    while waiting:
        (done,), _ = ray.wait(list(waiting), num_returns=1)
        slice_ = waiting.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise OSError(f"{slice_.name} is lost on Ray: {error}") from error
        yield slice_, result


@contextmanager
def ray_cluster(address: str = "local", workers: int | None = None) -> Iterator[None]:
    """Connect to Ray.

    Args:
        address: Of a cluster, as `ray.init` takes it; ``local`` starts one that this machine alone can reach, and ends
            it.
        workers: How many slices that one judges at a time; by default as many as there are CPUs.

    Raises:
        ValueError: If Ray is not installed, or workers are named for a cluster that has its own.
        OSError: If there is no cluster at the address.
    """
    if workers and address != "local":
        raise ValueError(f"{workers} workers are wanted, but the cluster at {address} has its own: leave them out")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError(f"there is no Ray here: pip install ray, or the extra netwarp_ros[ray] ({error})") from error
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
