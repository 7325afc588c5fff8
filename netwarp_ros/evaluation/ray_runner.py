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


def run_on_ray(settings: SliceSettings, slices: Sequence[Slice]) -> Iterator[tuple[Slice, dict[str, Any]]]:
    """Evaluate slices on the connected `ray_cluster`, each as a task of one CPU, and of one GPU if the device is CUDA.

    Every node must find recordings and weights at the same paths. A slice that loses its worker is started again.

    Yields:
        Slices and their results, in the order in which they are done.

    Raises:
        ValueError: If a slice cannot be evaluated.
        OSError: If a slice lost its worker more than `RETRIES` times, or the cluster is lost.
    """
    import ray

    gpus = int(str(settings.segmenter.get("device", "cpu")).startswith("cuda"))
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(evaluate_slice)
    shared_settings = ray.put(settings)
    waiting = {task.remote(shared_settings, slice_): slice_ for slice_ in slices}
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
