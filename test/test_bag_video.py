# SPDX-License-Identifier: Apache-2.0
"""Bags whose image topics are videos: what is read equals what FFmpeg decodes from the first packet on."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import mcap_records as mcap
import numpy as np
import pytest
from filmed import COUNT, ENCODERS, HEIGHT, WIDTH, decoded, encode, packets, pictures
from google.protobuf.timestamp_pb2 import Timestamp
from labelled import CAMVID
from recorded import T0, header, image_message
from rosbags.rosbag2 import StoragePlugin, Writer

from netwarp_ros.datasets.bag import BagDataset
from netwarp_ros.recordings.bag_writer import BagWriter
from netwarp_ros.recordings.bags import BagLabels
from netwarp_ros.recordings.frames import stamp
from netwarp_ros.recordings.messages import typestore
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.recordings.topic_images import TopicImages
from netwarp_ros.recordings.video_bitstream import is_key_frame
from netwarp_ros.recordings.video_decoder import VideoDecoder
from netwarp_ros.recordings.video_messages import COMPRESSED_VIDEO, FFMPEG_PACKET


def foxglove(data: bytes, form: str, stamp_ns: int) -> Any:
    return typestore.types[COMPRESSED_VIDEO](
        timestamp=header(stamp_ns).stamp, frame_id="camera", data=np.frombuffer(data, np.uint8), format=form
    )


def ffmpeg(data: bytes, form: str, stamp_ns: int) -> Any:
    fields = {"width": WIDTH, "height": HEIGHT, "pts": 77, "flags": 0, "is_bigendian": False}
    payload = np.frombuffer(data, np.uint8)
    return typestore.types[FFMPEG_PACKET](header=header(stamp_ns), encoding=form, data=payload, **fields)


Message = Callable[[bytes, str, int], Any]


def stamp_of(index: int) -> int:
    """Return a stamp that no codec could know: 7 ms before the recording, at an uneven rate."""
    return T0 + 33_000_000 * index + 1_000 * index * index - 7_000_000


def messages(
    data: Sequence[bytes], form: str = "h264", topic: str = "/c", message: Message = foxglove
) -> list[tuple[str, Any]]:
    return [(topic, message(packet, form, stamp_of(index))) for index, packet in enumerate(data)]


def write(path: Path, content: Iterable[tuple[str, Any]]) -> Path:
    with BagWriter(path) as bag:
        for index, (topic, message) in enumerate(content):
            bag.write(topic, message, T0 + 33_000_000 * index)
    return path


def check_equal(frames: Iterable[Any], expected: dict[int, np.ndarray]) -> None:
    found = {frame.index: frame.image for frame in frames}
    assert [*found] == [*expected]
    for index, image in expected.items():
        np.testing.assert_array_equal(found[index], image, f"image {index}")


# Reading


@pytest.mark.parametrize("form", ENCODERS)
def test_a_video_is_read_as_the_codec_decodes_it(tmp_path: Path, form: str) -> None:
    recording = open_frames(write(tmp_path / "bag.mcap", messages(packets(form), form)))
    frames = list(recording)
    assert recording.damage == [] and len(recording) == COUNT and recording.rate == pytest.approx(1 / 0.033)
    check_equal(frames, dict(enumerate(decoded(form))))
    for frame, picture in zip(frames, pictures(), strict=True):  # in the order of the camera
        assert np.abs(frame.image.astype(int) - picture).mean() < 12
    assert [frame.stamp_ns for frame in frames] == [stamp_of(index) for index in range(COUNT)]
    assert {(frame.frame_id, frame.encoding, frame.camera) for frame in frames} == {("camera", form, "/c")}
    assert frames[0].image.flags.writeable and frames[0].image.flags.c_contiguous


@pytest.mark.parametrize(
    ("form", "encoding"),
    [("h264", "h264;yuv420p;bgr8;bgr8"), ("h264", "libx264"), ("h264", "h264_nvenc"), ("h265", "hevc;nv12;bgr8;rgb8")],
)
def test_packets_of_image_transport(tmp_path: Path, form: str, encoding: str) -> None:
    recording = open_frames(write(tmp_path / "bag", messages(packets(form), encoding, message=ffmpeg)))
    frames = list(recording)
    check_equal(frames, dict(enumerate(decoded(form))))
    assert [frame.stamp_ns for frame in frames] == [stamp_of(index) for index in range(COUNT)]


def test_foxgloves_video_in_protobuf(tmp_path: Path) -> None:
    from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo

    records = []
    for index, packet in enumerate(packets("h264")):
        time = Timestamp(seconds=stamp_of(index) // 10**9, nanos=stamp_of(index) % 10**9)
        message = CompressedVideo(timestamp=time, frame_id="front", data=packet, format="h264")
        records.append(mcap.Message(1, T0 + stamp(index, 30), message.SerializeToString()))
    head = mcap.schema(1, "foxglove.CompressedVideo", "protobuf") + mcap.channel(1, 1, "/c", "protobuf")
    content = b"".join(map(mcap.message, records))
    span = records[0].recorded_ns, records[-1].recorded_ns
    (tmp_path / "bag.mcap").write_bytes(mcap.file(head, [(mcap.chunk(content, span), records)]))
    frames = list(open_frames(tmp_path / "bag.mcap"))
    check_equal(frames, dict(enumerate(decoded("h264"))))
    assert frames[3].stamp_ns == stamp_of(3) and frames[3].frame_id == "front"


def test_a_video_in_sqlite(tmp_path: Path) -> None:
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/c", COMPRESSED_VIDEO, typestore=typestore)
        for index, (_, message) in enumerate(messages(packets("h265"), "h265")):
            data = typestore.serialize_cdr(message, COMPRESSED_VIDEO)
            writer.write(connection, T0 + stamp(index, 30), data)
    recording = open_frames(tmp_path / "bag")
    check_equal(recording.read(20, 30), {index: decoded("h265")[index] for index in range(20, 30)})


@pytest.mark.parametrize("form", ENCODERS)
def test_slices_equal_the_whole(tmp_path: Path, form: str) -> None:
    recording = open_frames(write(tmp_path / "bag.mcap", messages(packets(form), form)))
    for begin, end in [(0, 5), (5, 14), (11, 13), (12, 13), (23, 45), (44, None), (31, 31)]:
        expected = {index: decoded(form)[index] for index in range(begin, COUNT if end is None else end)}
        check_equal(recording.read(begin, end), expected)
        assert recording.damage == []


def test_a_slice_is_decoded_from_the_key_frame_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve packets from one key frame to the next: 36 is one, so 40 needs 36 to 40."""
    fed = []
    decode = VideoDecoder.decode
    monkeypatch.setattr(
        VideoDecoder, "decode", lambda self, data: fed.append(packets("h264").index(data)) or decode(self, data)
    )
    recording = open_frames(write(tmp_path / "bag.mcap", messages(packets("h264"))))
    list(recording.read(40, 41))
    assert fed == [36, 37, 38, 39, 40]


def test_two_cameras_are_two_streams(tmp_path: Path) -> None:
    left, right = messages(packets("h264")), messages(packets("h265", 1), "h265", "/right")
    raw = [("/raw", image_message(picture, "bgr8", stamp_of(index))) for index, picture in enumerate(pictures())]
    order = [message for triple in zip(left, right, raw, strict=True) for message in triple]
    recording = open_frames(write(tmp_path / "bag.mcap", order), topics=["/c", "/right", "/raw"])
    expected = {}
    for index in range(COUNT):
        images = decoded("h264")[index], decoded("h265", 1)[index], pictures()[index]
        expected |= {3 * index + place: image for place, image in enumerate(images)}
    check_equal(recording, expected)
    check_equal(recording.read(91, 121), {index: expected[index] for index in range(91, 121)})


def labelled_bag(path: Path) -> BagDataset:
    label = image_message(np.full((HEIGHT, WIDTH), 3, np.uint8), "mono8")
    labels = []
    for index in (40, 7, 30):
        labels.append(
            ("/mask", typestore.types[label.__msgtype__](**vars(label) | {"header": header(stamp_of(index))}))
        )
    return BagDataset(write(path, messages(packets("h264")) + labels), "/c", "/mask", CAMVID)


def test_a_data_set_reads_a_video_in_any_order(tmp_path: Path) -> None:
    data = labelled_bag(tmp_path / "bag.mcap")
    for index, before in [(2, 0), (0, 0), (1, 3), (1, 2), (0, 0), (0, 0), (2, 1)]:
        place = [7, 30, 40][index] - before
        np.testing.assert_array_equal(data.read(index, before).image, decoded("h264")[place])


def test_a_data_set_of_a_video_goes_to_other_processes(tmp_path: Path) -> None:
    data = labelled_bag(tmp_path / "bag.mcap")
    assert data[0].image.shape == (HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(data))[1].image, decoded("h264")[30])
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(data[1].image, decoded("h264")[30]) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_only_a_video_loads_pyav(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.mcap", [("/c", image_message(pictures()[0], "bgr8"))])
    video = write(tmp_path / "video.mcap", messages(packets("h264")))
    program = """
import sys
from netwarp_ros.recordings.open import open_frames
for path in sys.argv[1:]:
    assert len(list(open_frames(path)))
    print("av" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", program, raw, video], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "True"]


def test_a_video_is_no_label_map(tmp_path: Path) -> None:
    bag = write(tmp_path / "bag.mcap", messages(packets("h264")))
    with pytest.raises(ValueError, match="/c is compressed; label maps must be"):
        BagLabels(bag, {"": "/c"})


# Key frames


def test_a_key_frame_without_parameter_sets_is_not_one_to_start_from(tmp_path: Path) -> None:
    """A camera that sends them once: what follows is decoded in order, and a slice from the first packet on."""
    data = [packets("h264")[0], *(packet[packet.rfind(b"\0\0\1") :] for packet in packets("h264")[1:])]
    assert [index for index in range(COUNT) if is_key_frame("h264", data[index])] == [0]
    recording = open_frames(write(tmp_path / "bag.mcap", messages(data)))
    check_equal(recording, dict(enumerate(decoded("h264"))))
    check_equal(recording.read(43), {index: decoded("h264")[index] for index in (43, 44)})


def test_the_search_for_key_frames_is_linear(tmp_path: Path) -> None:
    """However many packets are lost, none is read again and again."""
    reads = []
    content = [message for _, message in messages(packets("h264")[1:2] * 400)]
    recorded = [_recorded(message) for message in content]

    def read(number: int) -> Any:
        reads.append(number)
        return recorded[number]

    images = TopicImages(read)
    for number in range(1, 400, 2):
        with pytest.raises(ValueError, match="missing or damaged"):
            images.decode(number, recorded[number])
    assert len(reads) < 3 * 400


def _recorded(message: Any) -> Any:
    from netwarp_ros.recordings.bag_file import RecordedMessage

    return RecordedMessage(
        "/c", message.__msgtype__, "cdr", T0, bytes(typestore.serialize_cdr(message, message.__msgtype__))
    )


# Damage


def without(*indices: int) -> dict[int, np.ndarray]:
    return {index: image for index, image in enumerate(decoded("h264")) if index not in indices}


DEPENDENT = "images of /c are left out: they depend on images of the video that are missing or damaged"


def test_a_recording_may_begin_between_key_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "bag.mcap", messages(packets("h264")[5:]))
    recording = open_frames(path)
    check_equal(recording, {index - 5: decoded("h264")[index] for index in range(12, COUNT)})
    assert recording.damage == [f"{path}: 7 of the 40 {DEPENDENT}"]


def test_a_recording_without_a_key_frame_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bag.mcap", messages(packets("h264")[1:12]))
    with pytest.raises(ValueError, match=f"none of the 11 images in {path} can be read. {path}: 11 of the 11 images"):
        list(open_frames(path))


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="cut"),
        pytest.param(lambda data: data[:20] + bytes(byte ^ 0x55 for byte in data[20:60]) + data[60:], id="altered"),
        pytest.param(lambda data: data[:4], id="without content"),
        pytest.param(lambda data: b"", id="empty"),
    ],
)
def test_images_after_a_damaged_packet_are_left_out(tmp_path: Path, damaged: Callable[[bytes], bytes]) -> None:
    data = list(packets("h264"))
    data[14] = damaged(data[14])
    path = write(tmp_path / "bag.mcap", messages(data))
    recording = open_frames(path)
    check_equal(recording, without(*range(14, 24)))
    first, second = recording.damage
    assert first.startswith(f"{path}: image 14 of /c cannot be read: ")
    assert second == f"{path}: 9 of the 45 {DEPENDENT}"
    check_equal(recording.read(17, 26), {index: decoded("h264")[index] for index in (24, 25)})
    assert recording.damage == [f"{path}: 7 of the 9 {DEPENDENT}"]


@pytest.mark.parametrize("form", ["h264", "h265"])
def test_packets_that_were_never_recorded_are_noticed(tmp_path: Path, form: str) -> None:
    data = packets(form)[:14] + packets(form)[16:]
    path = write(tmp_path / "bag.mcap", messages(data, form))
    recording = open_frames(path)
    expected = {index if index < 14 else index - 2: decoded(form)[index] for index in [*range(14), *range(24, COUNT)]}
    check_equal(recording, expected)
    assert recording.damage == [f"{path}: 8 of the 43 {DEPENDENT}"]


def test_a_packet_of_av1_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    data = list(packets("av1"))
    data[14] = data[14][: len(data[14]) // 2]
    recording = open_frames(write(tmp_path / "bag.mcap", messages(data, "av1")))
    check_equal(recording, {index: decoded("av1")[index] for index in [*range(14), *range(24, COUNT)]})
    assert "image 14 of /c cannot be read: " in recording.damage[0]


def test_messages_that_the_bag_has_lost_cost_the_images_after_them(tmp_path: Path) -> None:
    records = [
        mcap.Message(1, T0 + stamp(index, 30), _recorded(message).data)
        for index, (_, message) in enumerate(messages(packets("h264")))
    ]
    head = mcap.schema(1, COMPRESSED_VIDEO) + mcap.channel(1, 1, "/c")
    chunks = []
    for begin in range(0, COUNT, 5):
        part = records[begin : begin + 5]
        content = mcap.chunk(b"".join(map(mcap.message, part)), (part[0].recorded_ns, part[-1].recorded_ns), "zstd")
        if begin == 15:
            content = content[:60] + bytes(10) + content[70:]
        chunks.append((content, part))
    path = tmp_path / "bag.mcap"
    path.write_bytes(mcap.file(head, chunks))
    recording = open_frames(path)
    check_equal(recording, without(*range(15, 24)))
    assert f"{path}: 5 of the 45 messages of /c are lost" in recording.damage
    assert f"{path}: 4 of the 40 {DEPENDENT}" in recording.damage


def test_a_packet_must_hold_one_image(tmp_path: Path) -> None:
    data = list(packets("h264"))
    data[30] += data[31]
    recording = open_frames(write(tmp_path / "bag.mcap", messages(data)))
    check_equal(recording, without(*range(30, 36)))
    assert "image 30 of /c cannot be read: it holds 2 images: expected one in each message" in recording.damage[0]


@pytest.mark.parametrize("encoder", ["libx264", "libx265"])
def test_b_frames_are_refused(tmp_path: Path, encoder: str) -> None:
    options = {"x265-params": "log-level=none:bframes=2:b-adapt=0:keyint=12:repeat-headers=1"}
    frames = [av.VideoFrame.from_ndarray(picture, format="bgr24") for picture in pictures()]
    data = encode(encoder, frames, options if encoder == "libx265" else {"bf": "2"})
    form = "h264" if encoder == "libx264" else "h265"
    path = write(tmp_path / "bag.mcap", messages(data, form))
    with pytest.raises(ValueError, match=f"^{path}: image 0 of /c cannot be read: .* B-frames: encode it without them"):
        list(open_frames(path))
    with pytest.raises(ValueError, match="B-frames"):
        list(open_frames(path).read(20, 22))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("theora", "its format is 'theora': expected a video in h264, h265, vp9 or av1; convert it"),
        (
            "h264;gray;bayer_rggb8;bayer_rggb8",
            "a video of a Bayer mosaic: record it with another cv_bridge_target_format",
        ),
        ("h265", "it holds no images: expected one"),
        ("av1", "decoded"),
    ],
)
def test_a_format_that_cannot_be_decoded_is_named(tmp_path: Path, form: str, reason: str) -> None:
    path = write(tmp_path / "bag.mcap", messages(packets("h264"), form, message=ffmpeg))
    with pytest.raises(ValueError, match=f"none of the 45 images in {path} can be read") as error:
        list(open_frames(path))
    assert reason in str(error.value) or form in ("h265", "av1")


def test_a_codec_that_this_pyav_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VideoDecoder.__init__.__globals__["_DECODERS"], "h264", "no_such_decoder")
    path = write(tmp_path / "bag.mcap", messages(packets("h264")))
    with pytest.raises(ValueError, match=r"this PyAV has no decoder no_such_decoder: install PyAV's own build \(pip"):
        list(open_frames(path))


def test_mp4s_form_of_h264_is_refused_with_the_way_out(tmp_path: Path) -> None:
    data = [len(packet).to_bytes(4, "big") + packet[4:] for packet in packets("h264")]
    path = write(tmp_path / "bag.mcap", messages(data))
    with pytest.raises(ValueError, match="h264 must be in Annex B format, to which FFmpeg's filter h264_mp4toannexb"):
        list(open_frames(path))


@pytest.mark.parametrize("form", ENCODERS)
def test_a_video_that_claims_too_many_pixels_is_refused(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", str(HEIGHT * WIDTH))
    path = write(tmp_path / "bag.mcap", messages(packets(form), form))
    assert len(list(open_frames(path))) == COUNT
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", str(HEIGHT * WIDTH - 1))
    reason = "it claims 128x96 pixels: at most 12287" if form in ("h264", "h265") else "cannot be decoded"
    with pytest.raises(ValueError, match=f"none of the 45 images.*{reason}"):
        list(open_frames(path))


def test_random_bytes_are_damage_and_nothing_else(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for form in ENCODERS:
        data = list(packets(form))
        for index in range(1, COUNT):
            content = np.frombuffer(data[index], np.uint8).copy()
            places = random.integers(0, len(content), 1 + len(content) // 50)
            content[places] = random.integers(0, 256, len(places))
            data[index] = content.tobytes()[: int(random.integers(1, len(content) + 1))]
        recording = open_frames(write(tmp_path / f"{form}.mcap", messages(data, form)))
        found, problem = [], ""
        try:
            found += recording.read(0, COUNT)
        except ValueError as error:
            problem = str(error)
        assert found or "B-frames" in problem
        assert {frame.image.shape for frame in found} <= {(HEIGHT, WIDTH, 3)}
