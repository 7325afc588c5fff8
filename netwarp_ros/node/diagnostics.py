# SPDX-License-Identifier: Apache-2.0
"""The statuses of the node and of its cameras on ``/diagnostics``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from netwarp_ros.node.frame_counts import DropReason, FrameCounts
from netwarp_ros.node.parameters import parameter
from netwarp_ros.ops import compiled
from netwarp_ros.segmenter import Reset, Segmenter
from netwarp_ros.timing import percentiles

PERIOD_S = 1.0
"""Seconds between two messages on ``/diagnostics``."""

MAX_PROBLEM = 1000
"""Most characters of an error in the log and on ``/diagnostics``: a message or a file may hold a text of any length."""

RATE_PERIODS = 10
"""Number of periods over which rates are measured."""

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR

Finding = tuple[bytes, str]
"""A level, and the text that explains it."""


def _threshold(default: float, most: float, text: str) -> Any:
    return parameter(default, f"{text}; 0: never.", limits=(0.0, most), live=True)


@dataclass(frozen=True)
class Thresholds:
    """Parameters of the node: the values at which a status becomes WARN or ERROR."""

    stuck_error: float = _threshold(5.0, 3600.0, "Seconds of work on an image after which camera and node are ERROR")
    stale_warn: float = _threshold(3.0, 3600.0, "Seconds without an image after which a camera is WARN")
    stale_error: float = _threshold(10.0, 3600.0, "Seconds without an image after which a camera is ERROR")
    rate_warn: float = _threshold(0.0, 1000.0, "Masks per second below which a camera is WARN")
    rate_error: float = _threshold(0.0, 1000.0, "Masks per second below which a camera is ERROR")
    latency_warn: float = _threshold(0.0, 3600.0, "Seconds from callback to mask (p95) above which a camera is WARN")
    latency_error: float = _threshold(0.0, 3600.0, "Seconds from callback to mask (p95) above which a camera is ERROR")
    age_warn: float = _threshold(0.0, 3600.0, "Seconds from stamp to mask (p95) above which a camera is WARN")
    age_error: float = _threshold(0.0, 3600.0, "Seconds from stamp to mask (p95) above which a camera is ERROR")
    gpu_memory_warn: float = _threshold(0.9, 1.0, "Fraction of the GPU's memory in use above which the node is WARN")
    gpu_memory_error: float = _threshold(0.98, 1.0, "Fraction of the GPU's memory in use above which the node is ERROR")


def camera_status(
    name: str,
    camera: str,
    topic: str,
    history: Sequence[FrameCounts],
    thresholds: Thresholds,
    qos_problem: str = "",
    *,
    stuck: str = "",
    drawing_s: float = 0.0,
) -> DiagnosticStatus:
    """Return the status of one camera.

    Args:
        name: Name of the status.
        camera: Name of the camera.
        topic: Its image topic.
        history: Its counts at the previous messages and now: at least two. Frames that failed or were malformed since
            the previous message raise the level. Rates are measured over the whole history.
        thresholds: Values at which the level rises.
        qos_problem: Why the QoS of an image publisher does not match; empty if all match.
        stuck: What `stuck_problem` returned.
        drawing_s: For how many seconds a picture has been drawn.
    """
    previous, current = history[-2], history[-1]
    rates, latency, age = _rates(history), _percentiles(current.latencies_ms), _percentiles(current.ages_ms)
    findings = [(ERROR, stuck)] if stuck else []
    if thresholds.stuck_error and drawing_s > thresholds.stuck_error:
        findings.append((WARN, f"a picture has been drawn for {drawing_s:.0f} s: there are no more color and overlay"))
    findings += _failure_findings(previous, current) + _stream_findings(previous, current, topic)
    findings += _reset_findings(history[0], current)
    findings += _stale_findings(current, topic, thresholds, qos_problem) or _slow_findings(
        rates, latency, age, thresholds
    )
    values = {
        "topic": topic,
        "missed": current.missed,
        "received": current.received,
        "published": current.published,
        "published without stamp": current.unstamped,
        "key frames": current.key_frames,
        "in flight": current.in_flight,
        "dropped": current.dropped.total(),
        **{f"dropped: {reason}": current.dropped[reason] for reason in DropReason},
        "resets": current.resets.total(),
        **{f"resets: {reason}": count for reason, count in sorted(current.resets.items())},
        "pictures dropped": current.late_pictures,
        **{f"rate of {messages} (Hz)": f"{rate:.1f}" for messages, rate in rates.items()},
        **{f"latency {key} (ms)": f"{value:.1f}" for key, value in latency.items()},
        **{f"age {key} (ms)": f"{value:.1f}" for key, value in age.items()},
        "last error": current.last_error or "none",
    }
    return _status(name, camera, findings, "segmenting", values)


def node_status(
    name: str,
    state: str,
    segmenter: Segmenter | None,
    thresholds: Thresholds,
    last_error: str = "",
    doing: str = "",
    *,
    stuck: str = "",
    failure: str = "",
) -> DiagnosticStatus:
    """Return the status of the node and of its device.

    Args:
        name: Name of the status.
        state: Label of its state in the life cycle, such as ``unconfigured``, ``configuring`` or ``active``.
        segmenter: The segmenter in use; None until the node is configured.
        thresholds: Values at which the level rises.
        last_error: Why the latest failed transition failed; empty if none has failed.
        doing: What takes the node long at present, such as loading a model; empty if nothing does.
        stuck: What `stuck_problem` returned.
        failure: The error that left the node unconfigured; empty if there was none.
    """
    ways_out = {"unconfigured": "configure and activate it", "inactive": "activate it"}
    findings: list[Finding] = [(ERROR, text) for text in (stuck, failure) if text]
    if text := ways_out.get(state, doing):
        findings.append((WARN, text if state == "active" else f"the node is {state}: {text}"))
    values: dict[str, Any] = {"state": state}
    if segmenter is not None:
        values |= {"model": segmenter.model.name, "device": segmenter.device}
        values |= {"engine": segmenter.engine.name, "precision": segmenter.precision}
        if segmenter.engine_problem:
            values["engine problem"] = segmenter.engine_problem
        if segmenter.device.type == "cuda":
            finding, gpu_values = _gpu(segmenter.device, thresholds)
            findings.append(finding)
            values |= gpu_values
            if segmenter.uses_netwarp and (problem := compiled.missing_cuda_kernels()):
                findings.append((ERROR, problem))
    device = str(values.get("device", ""))
    return _status(name, device, findings, f"segmenting on {device}", {**values, "last error": last_error or "none"})


def stuck_problem(topic: str, seconds: float, limit_s: float) -> str:
    """Return that an image is in work for too long; empty if it is not.

    Args:
        topic: The topic that it came from.
        seconds: How long it has been in work.
        limit_s: How long it may be; 0: for ever.
    """
    if not limit_s or seconds <= limit_s:
        return ""
    return (
        f"an image on {topic} has been in work for {seconds:.0f} s: the node is stuck, and segments no camera. "
        "Deactivate it, which leaves it unconfigured, or restart it"
    )


def _status(
    name: str, hardware_id: str, findings: list[Finding], ok_message: str, values: Mapping[str, object]
) -> DiagnosticStatus:
    """Return a status whose level is the highest of the findings, and whose message names all of them, worst first."""
    raised = sorted((finding for finding in findings if finding[0] != OK), key=itemgetter(0), reverse=True)
    return DiagnosticStatus(
        level=raised[0][0] if raised else OK,
        name=name,
        message="; ".join(text for _, text in raised) or ok_message,
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def _level(value: float, warn: float, error: float) -> bytes:
    """Return the level of a value that should not exceed its thresholds; a threshold of 0 is never exceeded."""
    if error and value > error:
        return ERROR
    return WARN if warn and value > warn else OK


def _failure_findings(previous: FrameCounts, current: FrameCounts) -> list[Finding]:
    new, findings = current.dropped - previous.dropped, []
    if new[DropReason.FAILED]:
        findings.append((ERROR, f"{new[DropReason.FAILED]} frames failed: {current.last_error}"))
    if new[DropReason.MALFORMED]:
        findings.append((WARN, f"{new[DropReason.MALFORMED]} images malformed: {current.last_error}"))
    return findings


def _stream_findings(previous: FrameCounts, current: FrameCounts, topic: str) -> list[Finding]:
    findings = []
    if unstamped := current.unstamped - previous.unstamped:
        findings.append((WARN, f"{unstamped} images without stamp: the time of receipt stands in for it"))
    if mixed := current.resets[Reset.PUBLISHERS] - previous.resets[Reset.PUBLISHERS]:
        findings.append((WARN, f"{mixed} images segmented without memory: {topic} has several publishers"))
    return findings


_ADVICE = {
    Reset.STAMP: "do several cameras send on it, or does a camera's clock jump back?",
    Reset.GAP: "images come too seldom, or the node is overloaded. Send more, give it less to do (input_height, fewer "
    "cameras), or raise max_gap",
    Reset.SIZE: "its images have several sizes. Give each camera a topic of its own",
    Reset.ENCODING: "its images have several encodings. Give each camera a topic of its own",
    Reset.FRAME_ID: "its images have several frame_ids. Give each camera a topic of its own",
}
"""What to do if most frames reset the memory, by reason. Other reasons have findings of their own, or are wanted."""

_LEAST_FRAMES = 5
"""Fewer frames say nothing about what most frames do."""


def _reset_findings(first: FrameCounts, current: FrameCounts) -> list[Finding]:
    """Return the finding that most frames since the first counts were segmented without memory."""
    frames, resets = current.published - first.published, current.resets - first.resets
    if frames < _LEAST_FRAMES:
        return []
    reason = max(_ADVICE, key=lambda one: resets[one])
    if resets[reason] <= frames / 2:
        return []
    text = f"{resets[reason]} of {frames} images segmented without memory ({reason})"
    return [(WARN, f"{text}: {_ADVICE[reason]}")]


def _stale_findings(current: FrameCounts, topic: str, thresholds: Thresholds, qos_problem: str) -> list[Finding]:
    last = current.started if current.last_received is None else current.last_received
    seconds, cause = current.time - last, f" ({qos_problem})" if qos_problem else ""
    level = _level(seconds, thresholds.stale_warn, thresholds.stale_error)
    if current.last_received is None:
        return [(max(level, WARN), f"no image yet on {topic}{cause}")]
    return [(level, f"no image on {topic} for {seconds:.0f} s{cause}")] if level != OK else []


def _slow_findings(
    rates: Mapping[str, float], latency: Mapping[str, float], age: Mapping[str, float], thresholds: Thresholds
) -> list[Finding]:
    findings = []
    if rates:  # negated: a rate should not be below its thresholds
        level = _level(-rates["masks"], -thresholds.rate_warn, -thresholds.rate_error)
        findings.append((level, f"{rates['masks']:.1f} masks per second"))
    if latency:
        level = _level(latency["p95"] / 1e3, thresholds.latency_warn, thresholds.latency_error)
        findings.append((level, f"{latency['p95']:.0f} ms from callback to mask (p95)"))
        level = _level(age["p95"] / 1e3, thresholds.age_warn, thresholds.age_error)
        findings.append((level, f"{age['p95']:.0f} ms from stamp to mask (p95)"))
    return findings


def _rates(history: Sequence[FrameCounts]) -> dict[str, float]:
    """Return images and masks per second, over the history or since the first image; empty for less than a period."""
    first, last = history[0], history[-1]
    seconds = last.time - max(first.time, last.time if last.first_received is None else last.first_received)
    if seconds < PERIOD_S:
        return {}
    counts = {"images": last.received - first.received, "masks": last.published - first.published}
    return {messages: count / seconds for messages, count in counts.items()}


def _percentiles(values_ms: Collection[float]) -> dict[str, float]:
    return percentiles(values_ms) if values_ms else {}


def _gpu(device: torch.device, thresholds: Thresholds) -> tuple[Finding, dict[str, str]]:
    """Return the finding on a GPU's memory, and the values of its status."""
    try:
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
    except RuntimeError as error:  # after some errors, every CUDA call fails
        return (ERROR, f"CUDA does not answer: {error}"), {}
    used = 1 - free / total
    level = _level(used, thresholds.gpu_memory_warn, thresholds.gpu_memory_error)
    values = {
        "GPU": torch.cuda.get_device_name(device),
        "GPU memory (MB)": f"{total / 1e6:.0f}",
        "GPU memory in use (MB)": f"{(total - free) / 1e6:.0f}",
        "GPU memory of the node (MB)": f"{reserved / 1e6:.0f}",
    }
    return (level, f"{100 * used:.0f} % of the GPU's memory is in use"), values
