# SPDX-License-Identifier: Apache-2.0
"""What a packet of video says about itself before it is decoded: whether it is a key frame, how large its image is.

A key frame here is one that a new decoder can start from: it depends on no other image, and carries the parameter sets
(H.264: SPS; H.265: SPS; AV1: sequence header) as Foxglove's ``CompressedVideo`` demands. H.264 and H.265 are in Annex B
format. References are to ITU-T H.264 and H.265, and to the specifications of VP9 and AV1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from netwarp_ros.recordings.image_codecs import ImageError, check_size

_START_CODE = b"\0\0\1"
_MOST_UNITS = 4096
"""Most NAL units or OBUs of a packet that are looked at: H.264 and H.265 allow at most 600 slices in an image."""

_H264_SLICE, _H264_IDR, _H264_SPS = 1, 5, 7
_H265_IRAP, _H265_SLICES, _H265_SPS = range(16, 24), range(32), 33
_H264_WITH_CHROMA = (44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244)
"""Profiles whose SPS has fields about chroma and scaling."""

_AV1_SEQUENCE, _AV1_FRAME_HEADER, _AV1_FRAME = 1, 3, 6
_HEADER_BYTES, _SPS_BYTES = 64, 4096
"""Bytes that are parsed of a slice, and of an SPS."""


class MissingImageError(ImageError):
    """A packet cannot be decoded because an earlier image, which it depends on, is missing or damaged."""


class _Sps(NamedTuple):
    """What the sequence parameter set of H.264 says.

    Attributes:
        number_bits: Length of ``frame_num`` in bits.
        has_planes: Whether each colour plane is coded by itself.
        may_skip: Whether frame numbers may be left out.
        is_progressive: Whether no packet has two fields.
    """

    number_bits: int
    has_planes: bool
    may_skip: bool
    is_progressive: bool


def is_key_frame(codec: str, data: bytes) -> bool:
    """Return whether decoding can start with a packet.

    Args:
        codec: ``h264``, ``hevc``, ``vp9`` or ``av1``.
        data: The packet.

    Raises:
        ImageError: If the packet has another format than the codec's.
    """
    if codec == "h264":
        kinds = {data[begin] & 31 for begin, _ in _units(codec, data)}
        return {_H264_IDR, _H264_SPS} <= kinds
    if codec == "hevc":
        kinds = {data[begin] >> 1 & 63 for begin, _ in _units(codec, data)}
        return _H265_SPS in kinds and not kinds.isdisjoint(_H265_IRAP)
    return _is_vp9_key(data) if codec == "vp9" else _is_av1_key(data)


class PacketCheck:
    """Checks the packets of one stream in their order, from a key frame on.

    FFmpeg's decoder of H.264 replaces a missing image by another one, without a word. The frame numbers tell.

    Args:
        codec: As for `is_key_frame`.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._sps: _Sps | None = None
        self._reference_number = 0  # of the last image that later ones may depend on (PrevRefFrameNum)

    def check(self, data: bytes) -> None:
        """Check that a packet holds one image, which is not too large and follows the one before.

        Raises:
            MissingImageError: If an image before it is missing.
            ImageError: If it holds no image or several, or claims too many pixels.
        """
        if self._codec not in ("h264", "hevc"):
            return
        images = 0
        for begin, end in _units(self._codec, data):
            if self._codec == "h264":
                is_first = self._check_h264(data[begin], data[begin + 1 : end], images)
            else:
                is_first = _check_h265(data[begin] >> 1 & 63, data[begin + 2 : end])
            images += is_first
        is_pair = images == 2 and self._sps is not None and not self._sps.is_progressive
        if images != 1 and not is_pair:
            raise ImageError(f"it holds {images or 'no'} images: expected one in each message")

    def _check_h264(self, head: int, content: bytes, images: int) -> bool:
        """Check a NAL unit; return whether an image begins with it."""
        kind, is_reference = head & 31, bool(head & 96)
        if kind == _H264_SPS:
            self._sps = _h264_sps(content)
        if kind not in (_H264_SLICE, _H264_IDR) or not content or not content[0] & 128:  # first_mb_in_slice is not 0
            return False
        if self._sps and not images:
            bits = _Bits(content[:_HEADER_BYTES])
            for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
                bits.ue()
            bits.u(2 * self._sps.has_planes)
            number, step = bits.u(self._sps.number_bits), 1
            if kind != _H264_IDR and not self._sps.may_skip:
                step = (number - self._reference_number) % (1 << self._sps.number_bits)
            if step > 1:
                raise MissingImageError(f"{step - 1} images before it are missing")
            if is_reference:
                self._reference_number = number
        return True


def _check_h265(kind: int, content: bytes) -> bool:
    """Check a NAL unit of H.265; return whether an image begins with it."""
    if kind == _H265_SPS:
        bits = _Bits(content[:_SPS_BYTES])
        bits.u(4)
        layers = bits.u(3)
        bits.u(1 + 96)
        flags = [bits.u(2) for _ in range(8 if layers else 0)]
        for has in flags[:layers]:
            bits.u(88 * (has >> 1) + 8 * (has & 1))
        bits.ue()
        if bits.ue() == 3:  # chroma_format_idc
            bits.u(1)
        check_size(bits.ue(), bits.ue())
    return kind in _H265_SLICES and content[:1] >= b"\x80"  # first_slice_segment_in_pic_flag


def _units(codec: str, data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of each NAL unit, with its header and without its start code.

    Raises:
        ImageError: If the data do not begin with a start code, or have too many units.
    """
    begin = data.find(_START_CODE)
    if begin < 0 or data[:begin].strip(b"\0"):
        raise ImageError(
            f"it does not begin with a start code (0 0 1): {codec} must be in Annex B format, to which FFmpeg's filter "
            f"{codec}_mp4toannexb converts it"
        )
    for _ in range(_MOST_UNITS):
        begin += len(_START_CODE)
        end = data.find(_START_CODE, begin)
        if begin < (len(data) if end < 0 else end):
            yield begin, len(data) if end < 0 else end
        if end < 0:
            return
        begin = end
    raise ImageError(f"it has more than {_MOST_UNITS} NAL units")


class _Bits:
    """The bits of a NAL unit, without its header and its emulation prevention bytes."""

    def __init__(self, content: bytes) -> None:
        content = content.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def u(self, count: int) -> int:
        """Read an unsigned number of so many bits.

        Raises:
            ImageError: If there are fewer.
        """
        self._left -= count
        if self._left < 0:
            raise ImageError("its headers are cut off")
        return self._value >> self._left & ((1 << count) - 1)

    def ue(self) -> int:
        """Read an Exp-Golomb number (H.264, 9.1)."""
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise ImageError("its headers hold a number of more than 32 bits")
        return (1 << zeros) - 1 + self.u(zeros)

    def se(self) -> int:
        """Read a signed Exp-Golomb number."""
        code = self.ue()
        return (code + 1) // 2 if code % 2 else -code // 2


def _h264_sps(content: bytes) -> _Sps:
    """Read a sequence parameter set (H.264, 7.3.2.1.1), and check the size of the images."""
    bits = _Bits(content[:_SPS_BYTES])
    profile = bits.u(8)
    bits.u(16)
    bits.ue()
    has_planes = False
    if profile in _H264_WITH_CHROMA:
        chroma = bits.ue()
        has_planes = chroma == 3 and bool(bits.u(1))
        bits.ue(), bits.ue(), bits.u(1)
        if bits.u(1):
            for index in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if index < 6 else 64)
    number_bits = bits.ue() + 4
    if number_bits > 16:
        raise ImageError(f"its frame numbers have {number_bits} bits: expected 4 to 16")
    order_type = bits.ue()
    if order_type == 0:
        bits.ue()
    elif order_type == 1:
        bits.u(1), bits.se(), bits.se()
        for _ in range(min(bits.ue(), 255)):
            bits.se()
    bits.ue()
    may_skip = bool(bits.u(1))
    width, height = 16 * (bits.ue() + 1), 16 * (bits.ue() + 1)
    is_progressive = bool(bits.u(1))
    check_size(width, height if is_progressive else 2 * height)
    return _Sps(number_bits, has_planes, may_skip, is_progressive)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    """Pass over a scaling list (H.264, 7.3.2.1.1.1)."""
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.se()) % 256
        last = following or last


def _is_vp9_key(data: bytes) -> bool:
    """Return whether a packet of VP9 begins with a key frame (its specification, 6.2)."""
    if not data or data[0] >> 6 != 2:
        raise ImageError("it does not begin as a frame of VP9")
    bits = data[0] << 8 | (data[1] if len(data) > 1 else 0)
    after_profile = 10 if bits >> 12 & 3 == 3 else 11  # profile 3 is followed by a reserved bit
    return bits >> (after_profile - 1) & 3 == 0  # show_existing_frame, frame_type


def _is_av1_key(data: bytes) -> bool:
    """Return whether a packet of AV1 has a sequence header and then a key frame (its specification, 5.3, 5.5, 5.9)."""
    begin, has_sequence, is_still = 0, False, False
    for _ in range(_MOST_UNITS):
        if begin >= len(data):
            break
        kind, has_extension, has_size = data[begin] >> 3 & 15, data[begin] >> 2 & 1, data[begin] >> 1 & 1
        if data[begin] & 128:
            raise ImageError("it is not a series of OBUs of AV1 (low overhead bitstream format)")
        begin += 1 + has_extension
        size, shift = 0, 0
        while has_size and begin < len(data) and shift < 56:
            size |= (data[begin] & 127) << shift
            begin, shift = begin + 1, shift + 7
            if not data[begin - 1] & 128:
                break
        content = data[begin : begin + 1]
        if kind == _AV1_SEQUENCE and content:
            has_sequence, is_still = True, bool(content[0] & 8)  # reduced_still_picture_header
        if kind in (_AV1_FRAME_HEADER, _AV1_FRAME) and content:
            return has_sequence and (is_still or content[0] >> 5 == 0)  # show_existing_frame, frame_type
        begin = begin + size if has_size else len(data)
    return False
