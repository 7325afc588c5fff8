# SPDX-License-Identifier: Apache-2.0
"""What the node says of itself and its cameras on ``/diagnostics``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.node.parameters import parameter
from netwarp_ros.segmenter import Segmenter
from netwarp_ros.timing import percentiles

PERIOD_S = 1.0
"""Seconds between two reports."""

RATE_REPORTS = 10
"""Number of reports over which rates are measured."""

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

Finding = tuple[bytes, str]
"""A level and what it is for."""


def _threshold(default: float, most: float, what: str) -> Any:
    return parameter(default, f"{what}; 0: never.", limits=(0.0, most), live=True)


@dataclass(frozen=True)
class Thresholds:
    """From where on a status is a warning or an error; parameters of the node."""

    stale_warn: float = _threshold(3.0, 3600.0, "Seconds without an image over which a camera is WARN")
    stale_error: float = _threshold(10.0, 3600.0, "Seconds without an image over which a camera is ERROR")
    rate_warn: float = _threshold(0.0, 1000.0, "Masks per second under which a camera is WARN")
    rate_error: float = _threshold(0.0, 1000.0, "Masks per second under which a camera is ERROR")
    latency_warn: float = _threshold(0.0, 3600.0, "Seconds from callback to mask (p95) over which a camera is WARN")
    latency_error: float = _threshold(0.0, 3600.0, "Seconds from callback to mask (p95) over which a camera is ERROR")
    age_warn: float = _threshold(0.0, 3600.0, "Seconds from stamp to mask (p95) over which a camera is WARN")
    age_error: float = _threshold(0.0, 3600.0, "Seconds from stamp to mask (p95) over which a camera is ERROR")
    gpu_memory_warn: float = _threshold(0.9, 1.0, "Share of the GPU's memory in use over which the node is WARN")
    gpu_memory_error: float = _threshold(0.98, 1.0, "Share of the GPU's memory in use over which the node is ERROR")


def camera_status(
    name: str, camera: str, topic: str, history: Sequence[FrameCounts], thresholds: Thresholds, qos_problem: str = ""
) -> DiagnosticStatus:
    """Report on one camera.

    Args:
        name: Name of the status.
        camera: Name of the camera.
        topic: Where its images are expected.
        history: Its accounts at the last reports and now, two at least. What went wrong since the last report, and the
            rates over all of them, set the level.
        thresholds: What else sets it.
        qos_problem: Why a publisher of images could not be matched; empty when all could.
    """
    previous, present = history[-2], history[-1]
    rates, latency, age = _rates(history), _percentiles(present.latencies_ms), _percentiles(present.ages_ms)
    findings = _mishaps(previous, present)
    findings += _silence(present, topic, thresholds, qos_problem) or _slowness(rates, latency, age, thresholds)
    values = {
        "topic": topic,
        "missed": present.missed,
        "received": present.received,
        "published": present.published,
        "in flight": present.in_flight,
        "dropped": present.dropped.total(),
        **{f"dropped: {reason}": present.dropped[reason] for reason in DropReason},
        "resets": present.resets.total(),
        **{f"resets: {reason}": count for reason, count in sorted(present.resets.items())},
        **{f"rate of {what} (Hz)": f"{rate:.1f}" for what, rate in rates.items()},
        **{f"latency {key} (ms)": f"{value:.1f}" for key, value in latency.items()},
        **{f"age {key} (ms)": f"{value:.1f}" for key, value in age.items()},
        "last error": present.last_error or "none",
    }
    return _status(name, camera, findings, "segmenting", values)


def node_status(
    name: str, state: str, segmenter: Segmenter | None, thresholds: Thresholds, last_error: str = ""
) -> DiagnosticStatus:
    """Report on the node and its device.

    Args:
        name: Name of the status.
        state: ``unconfigured``, ``inactive`` or ``active``.
        segmenter: What is in use; None when unconfigured.
        thresholds: What sets the level of an active node.
        last_error: Why a transition failed last; empty when none did.
    """
    way_out = {"unconfigured": "configure and activate it", "inactive": "activate it"}.get(state)
    findings = [(WARN, f"the node is {state}: {way_out}")] if way_out else []
    values: dict[str, Any] = {"state": state}
    if segmenter is not None:
        values |= {"model": segmenter.model.name, "device": segmenter.device, "precision": segmenter.precision}
        values["compiled"] = segmenter.compiled
        if segmenter.device.type == "cuda":
            finding, gpu = _gpu(segmenter.device, thresholds)
            findings.append(finding)
            values |= gpu
    device = str(values.get("device", ""))
    return _status(name, device, findings, f"segmenting on {device}", {**values, "last error": last_error or "none"})


def _status(
    name: str, hardware: str, findings: list[Finding], otherwise: str, values: Mapping[str, object]
) -> DiagnosticStatus:
    """Return a status of the worst finding's level that names all of them, or something else if all is well."""
    serious = sorted((finding for finding in findings if finding[0] != OK), key=itemgetter(0), reverse=True)
    return DiagnosticStatus(
        level=serious[0][0] if serious else OK,
        name=name,
        message="; ".join(text for _, text in serious) or otherwise,
        hardware_id=hardware,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _grade(value: float, warn: float, error: float) -> bytes:
    """Return the level of a value that should not be above its thresholds."""
    if error and value > error:
        return ERROR
    return WARN if warn and value > warn else OK


def _mishaps(previous: FrameCounts, present: FrameCounts) -> list[Finding]:
    new, findings = present.dropped - previous.dropped, []
    if new[DropReason.FAILED]:
        findings.append((ERROR, f"{new[DropReason.FAILED]} frames failed: {present.last_error}"))
    if new[DropReason.MALFORMED]:
        findings.append((WARN, f"{new[DropReason.MALFORMED]} images malformed: {present.last_error}"))
    return findings


def _silence(present: FrameCounts, topic: str, thresholds: Thresholds, qos_problem: str) -> list[Finding]:
    last = present.opened if present.last_received is None else present.last_received
    silence, cause = present.time - last, f" ({qos_problem})" if qos_problem else ""
    level = _grade(silence, thresholds.stale_warn, thresholds.stale_error)
    if present.last_received is None:
        return [(max(level, WARN), f"no image yet on {topic}{cause}")]
    return [(level, f"no image on {topic} for {silence:.0f} s{cause}")] if level != OK else []


def _slowness(
    rates: Mapping[str, float], latency: Mapping[str, float], age: Mapping[str, float], thresholds: Thresholds
) -> list[Finding]:
    findings = []
    if rates:  # too little of them, not too much
        level = _grade(-rates["masks"], -thresholds.rate_warn, -thresholds.rate_error)
        findings.append((level, f"{rates['masks']:.1f} masks per second"))
    if latency:
        level = _grade(latency["p95"] / 1e3, thresholds.latency_warn, thresholds.latency_error)
        findings.append((level, f"{latency['p95']:.0f} ms from callback to mask (p95)"))
        level = _grade(age["p95"] / 1e3, thresholds.age_warn, thresholds.age_error)
        findings.append((level, f"{age['p95']:.0f} ms from stamp to mask (p95)"))
    return findings


def _rates(history: Sequence[FrameCounts]) -> dict[str, float]:
    """Return images and masks per second since the first report, or the first image; nothing for less than a period."""
    first, last = history[0], history[-1]
    seconds = last.time - max(first.time, last.time if last.first_received is None else last.first_received)
    if seconds < PERIOD_S:
        return {}
    counts = {"images": last.received - first.received, "masks": last.published - first.published}
    return {what: count / seconds for what, count in counts.items()}


def _percentiles(values_ms: Collection[float]) -> dict[str, float]:
    return percentiles(values_ms) if values_ms else {}


def _gpu(device: torch.device, thresholds: Thresholds) -> tuple[Finding, dict[str, str]]:
    """Return what is to say of a GPU's memory, and figures."""
    try:
        free, total = torch.cuda.mem_get_info(device)
        ours = torch.cuda.memory_reserved(device)
    except RuntimeError as error:  # after some errors CUDA answers to nothing any more
        return (ERROR, f"CUDA does not answer: {error}"), {}
    used = 1 - free / total
    level = _grade(used, thresholds.gpu_memory_warn, thresholds.gpu_memory_error)
    figures = {
        "GPU": torch.cuda.get_device_name(device),
        "GPU memory (MB)": f"{total / 1e6:.0f}",
        "GPU memory in use (MB)": f"{(total - free) / 1e6:.0f}",
        "GPU memory of the node (MB)": f"{ours / 1e6:.0f}",
    }
    return (level, f"{100 * used:.0f} % of the GPU's memory is in use"), figures
