# SPDX-License-Identifier: Apache-2.0
"""What the node says of its cameras on ``/diagnostics``."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from netwarp_ros.evaluation import percentiles
from netwarp_ros.node.account import Balance, Drop

PERIOD_S = 1.0
"""Seconds between two reports."""

SILENCE_S = 3.0
"""Seconds without an image after which a camera is reported as silent."""


def camera_status(
    name: str, camera: str, topic: str, present: Balance, previous: Balance, now: float, qos_problem: str = ""
) -> DiagnosticStatus:
    """Report on one camera.

    Args:
        name: Name of the status.
        camera: Name of the camera.
        topic: Where its images are expected.
        present: Its account now.
        previous: Its account at the last report; what went wrong since then sets the level.
        now: Present time on the monotonic clock, in s.
        qos_problem: Why a publisher of images could not be matched; empty when all could.
    """
    level, message = _judge(topic, present, previous, now, qos_problem)
    values = {
        "topic": topic,
        "missed": present.missed,
        "received": present.received,
        "published": present.published,
        "in flight": present.in_flight,
        "dropped": present.dropped.total(),
        **{f"dropped: {reason}": present.dropped[reason] for reason in Drop},
        "resets": present.resets.total(),
        **{f"resets: {reason}": count for reason, count in sorted(present.resets.items())},
        **{f"latency {key} (ms)": value for key, value in _latencies(present).items()},
        "last error": present.last_error or "none",
    }
    return DiagnosticStatus(
        level=level,
        name=name,
        message=message,
        hardware_id=camera,
        values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
    )


def idle_status(name: str, state: str) -> DiagnosticStatus:
    """Report on a node that is not active; the state is ``unconfigured`` or ``inactive``."""
    way_out = "activate it" if state == "inactive" else "configure and activate it"
    return DiagnosticStatus(level=DiagnosticStatus.WARN, name=name, message=f"the node is {state}: {way_out}")


def _judge(topic: str, present: Balance, previous: Balance, now: float, qos_problem: str) -> tuple[bytes, str]:
    new = present.dropped - previous.dropped
    if new[Drop.FAILED]:
        return DiagnosticStatus.ERROR, f"{new[Drop.FAILED]} frames failed: {present.last_error}"
    if new[Drop.MALFORMED]:
        return DiagnosticStatus.WARN, f"{new[Drop.MALFORMED]} images malformed: {present.last_error}"
    cause = f" ({qos_problem})" if qos_problem else ""
    if present.last_received is None:
        return DiagnosticStatus.WARN, f"no image yet on {topic}{cause}"
    if (silence := now - present.last_received) > SILENCE_S:
        return DiagnosticStatus.WARN, f"no image on {topic} for {silence:.0f} s{cause}"
    return DiagnosticStatus.OK, "segmenting"


def _latencies(balance: Balance) -> dict[str, str]:
    if not balance.latencies_ms:
        return {}
    return {key: f"{value:.1f}" for key, value in percentiles(balance.latencies_ms).items()}
