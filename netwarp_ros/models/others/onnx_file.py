# SPDX-License-Identifier: Apache-2.0
"""What an ONNX file may hold. It is checked before a runtime reads it, because it may come from anybody.

Only the skeleton of the file is read: a protobuf message (ModelProto of onnx.proto) is a sequence of fields, each with
a number and a length. A runtime would open files that a tensor names, or read at an address that it names. So tensors
must be in the file itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from netwarp_ros.resources import quote

MAX_BYTES = 2**30
"""Most bytes of an ONNX file. protobuf's own limit is twice that."""

MAX_FIELDS = 1_000_000
"""Most fields that are read: a second's work. A network of 3,000 operations has 60,000."""

STANDARD = ("", "ai.onnx")
"""The names of ONNX's own set of operations."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf; 3 and 4 are groups, which ONNX has not


class _Part(NamedTuple):
    """A part of an ONNX file, as onnx.proto describes it.

    Attributes:
        parts: Names of the parts in it, by their field numbers.
        refused: What it may not hold, by field numbers.
    """

    parts: Mapping[int, str] = {}
    refused: Mapping[int, str] = {}


_FUNCTIONS = "functions of its own: inline them (onnx.inliner.inline_local_functions)"
_TRAINING = "a training graph: export the network for inference"
_SPARSE = "sparse tensors: export dense ones"
_CONTROL_FLOW = "control flow (If, Loop, Scan): export the network for one path, or simplify the file"
_EXTERNAL = "tensors in other files: save it as one file (onnx.save of what onnx.load returns)"

_PARTS = {
    "model": _Part({7: "graph"}, {20: _TRAINING, 25: _FUNCTIONS}),
    "graph": _Part({1: "node", 5: "tensor"}, {15: _SPARSE}),
    "node": _Part({5: "attribute"}),
    "attribute": _Part({5: "tensor", 10: "tensor"}, {6: _CONTROL_FLOW, 11: _CONTROL_FLOW, 22: _SPARSE, 23: _SPARSE}),
    "tensor": _Part({}, {13: _EXTERNAL}),
}
_NAME_OF_OPERATION, _DOMAIN = 4, 7  # fields of a node
_DATA_LOCATION = 14  # field of a tensor; 0 means in the file


class OnnxError(ValueError):
    """A file is not an ONNX file, or holds what is not run.

    Args:
        reason: What follows "the ONNX file".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the ONNX file {reason}")


def check_onnx(content: bytes) -> None:
    """Check that a file is ONNX, and that a runtime needs nothing beside it.

    Args:
        content: The whole file.

    Raises:
        OnnxError: It is not, or it holds tensors in other files, operations that are not ONNX's own, control flow,
            functions, sparse tensors or a training graph.
    """
    if len(content) > MAX_BYTES:
        raise OnnxError(f"has {len(content)} bytes, at most {MAX_BYTES} are read")
    _Check(memoryview(content)).run()


class _Check:
    def __init__(self, content: memoryview) -> None:
        self._content, self._fields, self._nodes = content, 0, 0

    def run(self) -> None:
        self._check(self._content, "model")
        if not self._nodes:
            raise OnnxError("is not one: it has no graph with operations")

    def _check(self, content: memoryview, part: str) -> None:
        """Check a part, and what is in it: at most five levels."""
        described = _PARTS[part]
        operation, domain = "", ""
        for number, value in self._read(content):
            if number in described.refused:
                raise OnnxError(f"has {described.refused[number]}")
            if part == "tensor" and number == _DATA_LOCATION and value != 0:
                raise OnnxError(f"has {_EXTERNAL}")
            if number in described.parts:
                if isinstance(value, int):
                    raise OnnxError("is not one, or it is damaged")
                self._check(value, described.parts[number])
            elif part == "node" and number in (_NAME_OF_OPERATION, _DOMAIN):
                text = str(bytes(value), "utf-8", "replace") if isinstance(value, memoryview) else str(value)
                operation, domain = (text, domain) if number == _NAME_OF_OPERATION else (operation, text)
        if part == "node":
            self._nodes += 1
            if domain not in STANDARD:
                raise OnnxError(
                    f"has the operation {quote(operation)} of {quote(domain)}, which is not one of ONNX's own: export "
                    "the network with ONNX's operations only"
                )

    def _read(self, content: memoryview) -> Iterator[tuple[int, int | memoryview]]:
        """Yield number and value of each field: a number, or the bytes of text, a part or an array."""
        position = 0
        while position < len(content):
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise OnnxError(f"has more than {MAX_FIELDS} fields")
            key, position = _varint(content, position)
            if key >= 2**32:  # protobuf would drop the upper bits: another field than we see
                raise OnnxError("is not one, or it is damaged")
            kind = key & 7
            if kind == _VARINT:
                value, position = _varint(content, position)
                yield key >> 3, value
                continue
            if kind == _LENGTH:
                length, position = _varint(content, position)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise OnnxError("is not one, or it is damaged")
            if length > len(content) - position:
                raise OnnxError("is not one, or it is cut off")
            yield key >> 3, content[position : position + length]
            position += length


def _varint(content: memoryview, position: int) -> tuple[int, int]:
    """Return the number at a position, seven bits to a byte, and the position after it."""
    number = 0
    for shift in range(0, 70, 7):
        if position == len(content):
            raise OnnxError("is not one, or it is cut off")
        byte = content[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise OnnxError("is not one, or it is damaged")
