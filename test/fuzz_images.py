# SPDX-License-Identifier: Apache-2.0
"""Random damaged image messages, for tests of the decoder and of the segment node.

Run as a script, it sends such messages to a segment node, one after the other, checks that none makes the node fail and
that each is counted, and prints the counts as a table:

    . tools/env.sh
    python test/fuzz_images.py --count 10000 --seed 1

docs/node.md shows the result.
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
ENDINGS = (".jpg", ".png", ".tiff", ".webp", ".bmp")
FORMATS = (
    "jpeg",
    "png",
    "rgb8; jpeg compressed bgr8",
    "bgr8; png compressed rgb8",
    "rgb8; jpeg compressed ",
    "bayer_rggb8; png compressed ",
    "",
    "\u00fc;",
)
WORDS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


def fuzzed_image(rng: np.random.Generator, message_class: Any) -> Any:
    """Return a raw image of a message class: a valid one, with up to three fields changed."""
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
    return message_class(**fields, data=array("B", rng.bytes(length)))


def fuzzed_compressed_image(rng: np.random.Generator, message_class: Any) -> Any:
    """Return a compressed image of a message class: valid, truncated, with some bytes changed, or only random bytes."""
    height, width, channels = (int(size) for size in rng.integers(1, (MAX_SIZE + 1, MAX_SIZE + 1, 5)))
    shape = (height, width, 1 if channels == 2 else channels)
    pixels = rng.integers(0, 256, shape, np.uint8)
    ending = str(rng.choice(ENDINGS, p=(0.45, 0.4, 0.05, 0.05, 0.05)))
    if ending == ".png" and rng.random() < 0.3:
        pixels = pixels.astype(np.uint16) * 257
    data = bytearray(cv2.imencode(ending, pixels)[1])
    damage = rng.integers(0, 4)
    if damage == 1:
        del data[rng.integers(0, len(data)) :]
    elif damage == 2:
        for offset in rng.integers(0, min(len(data), 10 ** rng.integers(1, 4)), rng.integers(1, 6)):
            data[offset] = rng.integers(0, 256)
    elif damage == 3 and rng.random() < 0.3:
        data = bytearray(rng.bytes(rng.integers(0, 300)))
    return message_class(format=str(rng.choice(FORMATS)), data=array("B", bytes(data)))


FUZZERS = {"raw": fuzzed_image, "compressed": fuzzed_compressed_image}
"""By transport, the function that makes a message from a random generator and the message class."""


_REFUSAL = re.compile(r"(encoding|size|step|data) (is|has) ('.*'|\d+x\d+|\d+)|\d+ bytes of (format '.*')")


def outcome(message: Any) -> str:
    """Decode a message and return "decoded", or "refused by" with the field that the error names.

    Raises:
        AssertionError: If the error does not name the wrong value.
    """
    try:
        image = to_bgr(message)
    except ImageError as error:
        match = _REFUSAL.match(str(error))
        if not match:
            raise AssertionError(f"this error does not name the wrong value: {error}") from error
        return f"refused by {match[1] or 'content'}"
    assert image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size
    return "decoded"


def fuzz(transport: str, count: int, seed: int) -> tuple[Counter[str], dict[str, str]]:
    """Send messages to a node; after each that can be decoded, wait for its mask.

    Returns:
        The number of messages per `outcome`, and the counts of the camera in the node's diagnostics.
    """
    import rclpy
    from sensor_msgs.msg import CompressedImage, Image

    from netwarp_ros.node.lifecycle import LifecycleClient
    from netwarp_ros.node.process import NodeProcess
    from netwarp_ros.node.tools.demo import Recorder

    namespace, message_class = f"/fuzz_{os.getpid()}", Image if transport == "raw" else CompressedImage
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
        publisher = recorder.node.create_publisher(message_class, topic, count)
        recorder.spin_until(lambda: recorder.connected() and publisher.get_subscription_count() == 1, node.check)
        for index in tqdm(range(count), desc=transport):
            message = FUZZERS[transport](rng, message_class)
            message.header.stamp.sec = index
            outcomes[result := outcome(message)] += 1
            publisher.publish(message)
            if result == "decoded":
                recorder.spin_until(lambda stamp_ns=index * 10**9: stamp_ns in recorder.masks, node.check)
        recorder.spin_until(lambda: recorder.counts.get("received") == str(count), node.check)
        recorder.spin_until(lambda: recorder.counts["in flight"] == "0", node.check)
    recorder.close()
    rclpy.shutdown()
    return outcomes, recorder.counts


def main() -> None:
    """Send the messages and print the counts."""
    parser = argparse.ArgumentParser(description="Send damaged image messages to a segment node.")
    parser.add_argument("--count", type=int, default=10_000, help="number of messages, half of them compressed")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    results = {transport: fuzz(transport, arguments.count // 2, arguments.seed) for transport in FUZZERS}
    for outcomes, counts in results.values():
        assert int(counts["published"]) == outcomes["decoded"], counts
        assert int(counts["dropped"]) == outcomes.total() - outcomes["decoded"], counts
        assert counts["dropped: failed"] == "0", counts["last error"]
    print(f"| | {' | '.join(results)} |\n|---|---|---|")
    for name in sorted({name for outcomes, _ in results.values() for name in outcomes}):
        print(f"| decoder: {name} | {' | '.join(str(outcomes[name]) for outcomes, _ in results.values())} |")
    for name in ("received", "published", "dropped: malformed", "dropped: superseded", "dropped: failed"):
        print(f"| node: {name} | {' | '.join(counts[name] for _, counts in results.values())} |")


if __name__ == "__main__":
    main()
