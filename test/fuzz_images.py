# SPDX-License-Identifier: Apache-2.0
"""Damaged image messages sent to a segment node: none may crash it, and each must be counted.

``python test/fuzz_images.py`` sends 10,000, one after the other, and prints what docs/node.md has in its table.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from netwarp_ros.recordings.image_messages import ENCODINGS, ImageError, to_bgr

MAX_SIZE = 64
FORMATS = (".jpg", ".png", ".tiff", ".webp", ".bmp")
WORDS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def fuzzed_image(rng: np.random.Generator, kind: Any) -> Any:
    """Return a raw image of a message class: a right one in which up to three fields were changed."""
    encoding = str(rng.choice(list(ENCODINGS)))
    width, height = (int(size) for size in rng.integers(1, MAX_SIZE + 1, 2))
    layout = ENCODINGS[encoding]
    step = width * layout.channels * np.dtype(layout.dtype).itemsize + int(rng.choice((0, 0, 1, 16)))
    length = layout.data_length(height, step)
    fields = {"encoding": encoding, "width": width, "height": height, "step": step, "is_bigendian": 0}
    for name in rng.choice([*fields, "length"], rng.integers(0, 4)):
        if name == "encoding":
            fields[name] = str(rng.choice([*ENCODINGS, "", "32FC1", "rgb7", "\u00fc" * 300]))
        elif name == "is_bigendian":
            fields[name] = int(rng.integers(0, 256))
        elif name == "length":
            length = int(rng.choice((0, 1, length - 1, length + 1, 2 * length)))
        else:
            present = fields[name]
            fields[name] = min(max(int(rng.choice((*WORDS, present - 1, present + 1, 2 * present))), 0), 2**32 - 1)
    return kind(**fields, data=array("B", rng.bytes(length)))


def fuzzed_compressed_image(rng: np.random.Generator, kind: Any) -> Any:
    """Return a compressed image of a message class: a right one, or cut, or with a few other bytes, or none at all."""
    height, width, channels = (int(size) for size in rng.integers(1, (MAX_SIZE + 1, MAX_SIZE + 1, 5)))
    shape = (height, width, 1 if channels == 2 else channels)
    pixels = rng.integers(0, 256, shape, np.uint8)
    ending = str(rng.choice(FORMATS, p=(0.45, 0.4, 0.05, 0.05, 0.05)))
    if ending == ".png" and rng.random() < 0.3:
        pixels = pixels.astype(np.uint16) * 257
    data = bytearray(cv2.imencode(ending, pixels)[1])
    damage = rng.integers(0, 4)
    if damage == 1:
        del data[rng.integers(0, len(data)) :]
    elif damage == 2:
        for place in rng.integers(0, min(len(data), 10 ** rng.integers(1, 4)), rng.integers(1, 6)):
            data[place] = rng.integers(0, 256)
    elif damage == 3 and rng.random() < 0.3:
        data = bytearray(rng.bytes(rng.integers(0, 300)))
    name = str(rng.choice(("jpeg", "png", "rgb8; jpeg compressed bgr8", "bgr8; png compressed rgb8", "", "\u00fc;")))
    return kind(format=name, data=array("B", bytes(data)))


FUZZED = {"raw": fuzzed_image, "compressed": fuzzed_compressed_image}
"""What makes a message, by transport: of a random generator and the message's class."""


_REFUSAL = re.compile(r"(encoding|size|step|data) (is|has) ('.*'|\d+x\d+|\d+)|\d+ bytes of (format '.*')")


def outcome(message: Any) -> str:
    """Return whether a message is decoded, or by what it is refused.

    Raises:
        AssertionError: If a refusal does not name the value that is wrong.
    """
    try:
        image, refusal = to_bgr(message), ""
    except ImageError as error:
        image, refusal = None, str(error)
    if image is None:
        named = _REFUSAL.match(refusal)
        assert named, f"this does not name what is wrong: {refusal}"
        return f"refused by {named[1] or 'content'}"
    assert image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size
    return "decoded"


def fuzz(transport: str, count: int, seed: int) -> tuple[Counter[str], dict[str, str]]:
    """Send messages to a node, waiting for the mask of each that can be decoded.

    Returns:
        How many messages were decoded and refused here, and the node's account of the camera.
    """
    import rclpy
    from sensor_msgs.msg import CompressedImage, Image

    from netwarp_ros.node.lifecycle import LifecycleClient
    from netwarp_ros.node.process import NodeProcess
    from netwarp_ros.node.tools.demo import Recorder

    namespace, kind = f"/fuzz_{os.getpid()}", Image if transport == "raw" else CompressedImage
    topic = f"{namespace}/camera/image_raw" + ("" if transport == "raw" else "/compressed")
    lossless = {f"qos_overrides.{topic}.subscription.depth": count}
    outcomes: Counter[str] = Counter()
    rng = np.random.default_rng(seed)
    rclpy.init()
    recorder = Recorder(namespace)
    with (
        tempfile.TemporaryDirectory() as folder,
        NodeProcess(
            "netwarp_ros.node.segment_node", namespace, Path(folder), transport=transport, input_height=64, **lossless
        ) as node,
    ):
        lifecycle = LifecycleClient(recorder.node, recorder.executor, f"{namespace}/segmenter")
        lifecycle.configure()
        lifecycle.activate()
        publisher = recorder.node.create_publisher(kind, topic, count)
        recorder.spin_until(lambda: recorder.connected() and publisher.get_subscription_count() == 1, node.check)
        for index in tqdm(range(count), desc=transport):
            message = FUZZED[transport](rng, kind)
            message.header.stamp.sec = index
            outcomes[found := outcome(message)] += 1
            publisher.publish(message)
            if found == "decoded":
                recorder.spin_until(lambda stamp_ns=index * 10**9: stamp_ns in recorder.masks, node.check)
        recorder.spin_until(lambda: recorder.counts.get("received") == str(count), node.check)
        recorder.spin_until(lambda: recorder.counts["in flight"] == "0", node.check)
    recorder.close()
    rclpy.shutdown()
    return outcomes, recorder.counts


def main() -> None:
    """Send the messages, and print what became of them."""
    parser = argparse.ArgumentParser(description="Send damaged image messages to a segment node.")
    parser.add_argument("--count", type=int, default=10_000, help="how many, half of them compressed")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    results = {transport: fuzz(transport, arguments.count // 2, arguments.seed) for transport in FUZZED}
    for outcomes, account in results.values():
        assert int(account["published"]) == outcomes["decoded"], account
        assert int(account["dropped"]) == outcomes.total() - outcomes["decoded"], account
        assert account["dropped: failed"] == "0", account["last error"]
    names = sorted({name for outcomes, _ in results.values() for name in outcomes})
    accounted = ("received", "published", "dropped: malformed", "dropped: superseded", "dropped: failed")
    print(f"| | {' | '.join(results)} |\n|---|---|---|")
    for name in names:
        print(f"| decoder: {name} | {' | '.join(str(outcomes[name]) for outcomes, _ in results.values())} |")
    for name in accounted:
        print(f"| node: {name} | {' | '.join(account[name] for _, account in results.values())} |")


if __name__ == "__main__":
    main()
