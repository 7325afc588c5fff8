# SPDX-License-Identifier: Apache-2.0
"""Messages built without ROS have the definitions that ROS has."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
from rosbags.typesys import get_types_from_msg

from netwarp_ros.classes import load_classes
from netwarp_ros.recordings.messages import (
    FRAME_TIMING,
    LABEL_INFO,
    header,
    label_info,
    stamp_of,
    timing_message,
    typestore,
)

DEFINITION = Path(__file__).parent.parent / "msg" / "FrameTiming.msg"


def test_frame_timing_has_the_fields_of_its_msg_file() -> None:
    definition = get_types_from_msg(DEFINITION.read_text(encoding="utf-8"), FRAME_TIMING)[FRAME_TIMING]
    assert typestore.fielddefs[FRAME_TIMING] == definition


@pytest.mark.ros
@pytest.mark.parametrize("kind", [FRAME_TIMING, LABEL_INFO])
def test_ros_has_the_same_types(kind: str) -> None:
    package, _, name = kind.split("/")
    try:
        message = getattr(importlib.import_module(f"{package}.msg"), name)
    except ImportError:
        pytest.skip(f"no {package}: source a ROS 2 installation that has it")
    fields = message.get_fields_and_field_types()
    assert list(fields) == [name for name, _ in typestore.fielddefs[kind][1]]
    if hasattr(message, "_TYPE_HASH"):
        assert str(message._TYPE_HASH) == typestore.hash_rihs01(kind)


def test_a_header_without_stamp_gives_the_time_of_recording() -> None:
    classes = load_classes("camvid")
    assert stamp_of(label_info(header(1_500_000_000, "camera"), classes), 7) == 1_500_000_000
    assert stamp_of(label_info(header(0, "camera"), classes), 7) == 7


def test_durations_that_were_not_measured_are_nan() -> None:
    stages = {"prepare": 1.0, "flow": 2.0, "network": 4.0}
    timing = timing_message(header(5, "front"), 3, stages, 1, "", is_key=False)
    read = typestore.deserialize_cdr(typestore.serialize_cdr(timing, FRAME_TIMING), FRAME_TIMING)
    assert (read.sequence, read.prepare_ms, read.flow_ms, read.network_ms, read.total_ms) == (3, 1, 2, 4, 7)
    assert (read.memory, read.reason, read.dropped) == (read.MEMORY_KEPT, "", 0)
    for name in ("receive_ms", "wait_ms", "decode_ms", "publish_ms", "age_ms"):
        assert math.isnan(getattr(read, name))


def test_label_info_names_the_class_ids() -> None:
    info = label_info(header(5, "front"), load_classes("camvid"))
    read = typestore.deserialize_cdr(typestore.serialize_cdr(info, LABEL_INFO), LABEL_INFO)
    assert [(entry.class_id, entry.class_name) for entry in read.class_map][:2] == [(0, "sky"), (1, "building")]
    assert len(read.class_map) == 11 and read.threshold == 0
