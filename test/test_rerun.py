# SPDX-License-Identifier: Apache-2.0
"""Recordings for Rerun, `netwarp segment --rrd`, read back with Rerun's own reader."""

from __future__ import annotations

import csv
import importlib.util
import os
import resource
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import simplejpeg
from commands import run, small_model, write_images

from netwarp_ros import offline
from netwarp_ros.classes import load_classes
from netwarp_ros.offline import PRODUCT_MARK
from netwarp_ros.recordings.bag_writer import BagWriter
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.messages import header, image_message
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.recordings.rerun_file import CameraTimings, entities_of, write_rerun_file

T0 = 10**18 + 7
CAMVID = load_classes("camvid")
TOPICS = ("--topic", "/left/image_raw", "--topic", "/right")
STAGES = ("prepare", "flow", "network", "total")

needs_rerun = pytest.mark.skipif(
    importlib.util.find_spec("rerun") is None,
    reason="no rerun-sdk: `pip install --no-deps --target build/rerun -r requirements/rerun.txt`, then "
    "`PYTHONPATH=build/rerun:$PYTHONPATH`",
)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def two_cameras(tmp_path: Path, images: Path) -> Path:
    """Return a bag of two cameras, whose images take turns and differ in size; the stamp of one goes back."""
    with BagWriter(tmp_path / "drive.mcap") as bag:
        for index, frame in enumerate(open_frames(images)):
            for camera, image in enumerate((frame.image, frame.image[:40, ::-1])):
                stamp_ns = T0 + 10**8 * index * (1 - 2 * camera) + camera
                content = image_message(np.ascontiguousarray(image), "bgr8", header(stamp_ns, "optical"))
                bag.write(("/left/image_raw", "/right")[camera], content, T0 + 10**8 * index + camera)
    return tmp_path / "drive.mcap"


def frames_of(path: Path) -> dict[str, dict[str, list[Any]]]:
    """Return the columns of each entity, ordered by the frame number; each value is the list of its components."""
    from rerun.chunk import RrdReader

    entities: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for chunk in RrdReader(path).store().stream():
        batch = chunk.to_record_batch()
        entity = f"{chunk.entity_path} (static)" if chunk.is_static else chunk.entity_path
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            values = column.cast("int64") if name == "stamp" else column
            entities[entity][name] += values.to_pylist()
    for columns in entities.values():
        columns.pop("rerun.controls.RowId")
        if "frame" in columns:
            order = np.argsort(columns["frame"])
            for name, values in columns.items():
                columns[name] = [values[position] for position in order]
    return {entity: dict(columns) for entity, columns in entities.items()}


def masks_of(columns: dict[str, list[Any]]) -> list[np.ndarray]:
    """Return the masks of an entity."""
    shapes = [(form["height"], form["width"]) for (form,) in columns["SegmentationImage:format"]]
    buffers = columns["SegmentationImage:buffer"]
    return [np.array(buffer, np.uint8).reshape(shape) for (buffer,), shape in zip(buffers, shapes, strict=True)]


def timings(folder: Path) -> list[dict[str, str]]:
    with (folder / "timing.csv").open() as file:
        return list(csv.DictReader(file))


def stored_masks(folder: Path) -> list[np.ndarray]:
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted((folder / "masks").iterdir())]


@needs_rerun
def test_the_recording_holds_what_the_run_wrote_and_its_images(tmp_path: Path, model: Path, images: Path) -> None:
    out = tmp_path / "out"
    assert run("segment", images, "-o", out, "--model", model, "--rate", 10, "--no-video", "--rrd") == 0
    assert sorted(path.name for path in out.iterdir()) == ["masks", "recording.rrd", "timing.csv"]
    found, rows = frames_of(out / "recording.rrd"), timings(out)
    moving = {"/camera/image", "/camera/mask", "/camera/memory", *(f"/camera/timing/{stage}" for stage in STAGES)}
    assert found.keys() - moving == {"/ (static)", "/camera/mask (static)", "/__properties (static)"}
    for entity in moving:
        assert found[entity]["frame"] == [0, 1, 2] and found[entity]["stamp"] == [0, 10**8, 2 * 10**8]
        assert not found[entity].keys() & {"log_time", "log_tick"}
    for mask, expected in zip(masks_of(found["/camera/mask"]), stored_masks(out), strict=True):
        np.testing.assert_array_equal(mask, expected)
    for (jpeg,), (kind,), frame in zip(
        *(found["/camera/image"][f"EncodedImage:{name}"] for name in ("blob", "media_type")),
        open_frames(images),
        strict=True,
    ):
        image = cv2.imdecode(np.array(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert kind == "image/jpeg" and image.shape == frame.image.shape
        assert cv2.PSNR(image, frame.image) > 30 > cv2.PSNR(image[..., ::-1].copy(), frame.image)
    for stage in STAGES:
        durations = [duration for (duration,) in found[f"/camera/timing/{stage}"]["Scalars:scalars"]]
        assert durations == [float(row[f"{stage}_ms"]) for row in rows]
    lines = [text for (text,) in found["/camera/memory"]["TextLog:text"]]
    assert lines == ["reset: first frame", "kept", "kept"]
    assert found["/camera/memory"]["TextLog:level"] == [["INFO"], ["DEBUG"], ["DEBUG"]]
    assert found["/__properties (static)"] == {"RecordingInfo:name": [["images"]]}  # and not when it was written


@needs_rerun
def test_the_classes_have_their_names_and_colors(tmp_path: Path, model: Path, images: Path) -> None:
    out = tmp_path / "out"
    assert run("segment", images, "-o", out, "--model", model, "--no-video", "--rrd", "--alpha", 0.25) == 0
    found = frames_of(out / "recording.rrd")
    ((annotations,),) = found["/ (static)"]["AnnotationContext:context"]
    described = [(entry["class_id"], entry["class_description"]["info"]) for entry in annotations]
    assert [(number, info["id"], info["label"], info["color"]) for number, info in described] == [
        *(
            (number, number, entry.name, int.from_bytes(bytes((*entry.color, 255)), "big"))
            for number, entry in enumerate(CAMVID.classes)
        ),
        (11, 11, "void", 255),
        (255, 255, "void", 255),
    ]
    assert found["/camera/mask (static)"] == {"SegmentationImage:opacity": [[0.25]]}


@needs_rerun
def test_each_camera_has_entities_of_its_own(tmp_path: Path, model: Path, two_cameras: Path) -> None:
    out = tmp_path / "out"
    assert run("segment", two_cameras, *TOPICS, "-o", out, "--model", model, "--no-video", "--rrd") == 0
    found, masks, rows = frames_of(out / "recording.rrd"), stored_masks(out), timings(out)
    assert {row["camera"] for row in rows} == {"/left/image_raw", "/right"}
    for camera, size in (("/left/image_raw", (48, 64)), ("/right", (40, 64))):
        own = [row for row in rows if row["camera"] == camera]
        indices = [int(row["index"]) for row in own]
        for entity in ("image", "mask", "memory", *(f"timing/{stage}" for stage in STAGES)):
            assert found[f"{camera}/{entity}"]["frame"] == indices
            assert found[f"{camera}/{entity}"]["stamp"] == [int(row["stamp_ns"]) for row in own]
        for mask, index in zip(masks_of(found[f"{camera}/mask"]), indices, strict=True):
            assert mask.shape == size
            np.testing.assert_array_equal(mask, masks[index])
        total = [duration for (duration,) in found[f"{camera}/timing/total"]["Scalars:scalars"]]
        assert total == [float(row["total_ms"]) for row in own]
    resets = [text for (text,) in found["/right/memory"]["TextLog:text"]]
    assert resets == ["reset: first frame", *["reset: stamp not later than the last"] * 2]


@needs_rerun
def test_it_is_beside_a_bag_of_masks(tmp_path: Path, model: Path, two_cameras: Path) -> None:
    out = tmp_path / "masks.mcap"
    assert run("segment", two_cameras, *TOPICS, "-o", out, "--model", model, "--rrd") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"drive.mcap", "images", "model", "masks.mcap", "masks.rrd"}
    found = frames_of(tmp_path / "masks.rrd")
    assert len(masks_of(found["/left/image_raw/mask"])) == len(masks_of(found["/right/mask"])) == 3


def without_times(found: dict[str, dict[str, list[Any]]]) -> dict[str, dict[str, list[Any]]]:
    return {entity: columns for entity, columns in found.items() if "/timing/" not in entity}


@needs_rerun
def test_a_resumed_run_writes_the_same_recording(
    tmp_path: Path, model: Path, two_cameras: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends early twice: between two frames, and while it writes the recording."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    arguments = ["segment", two_cameras, *TOPICS, "--model", model, "--no-video", "--rrd", "-o"]
    assert run(*arguments, whole) == 0

    calls: list[str] = []
    real_segment_frame, real_encode = offline.segment_frame, simplejpeg.encode_jpeg
    images: list[int] = []

    def segment_frame(stream: Any, frame: Frame, flows: Any) -> Any:
        calls.append(frame.name)
        if len(calls) == 4:
            raise OSError("the machine goes down")
        return real_segment_frame(stream, frame, flows)

    def encode(*values: Any) -> bytes:
        images.append(0)
        if len(images) == 4:
            raise OSError("and down again")
        return real_encode(*values)

    with monkeypatch.context() as patch:
        patch.setattr(offline, "CHECKPOINT_INTERVAL", 1)
        patch.setattr(offline, "segment_frame", segment_frame)
        assert run(*arguments, resumed) == 2
        patch.setattr(simplejpeg, "encode_jpeg", encode)
        assert run(*arguments, resumed) == 2
        assert "and down again" in capsys.readouterr().err
    assert calls == ["000000", "000001", "000002", "000003", "000003", "000004", "000005"]
    assert sorted(path.name for path in resumed.iterdir()) == ["masks", "resume.pt", "timing.part.csv"]

    (resumed / "recording.rrd").write_text(PRODUCT_MARK)  # what a run may leave that is killed right after the renaming
    assert run(*arguments, resumed) == 0
    found = frames_of(resumed / "recording.rrd")
    assert without_times(found) == without_times(frames_of(whole / "recording.rrd"))
    for camera in ("/left/image_raw", "/right"):
        total = [duration for (duration,) in found[f"{camera}/timing/total"]["Scalars:scalars"]]
        assert total == [float(row["total_ms"]) for row in timings(resumed) if row["camera"] == camera]


@needs_rerun
def test_no_file_of_others_is_written_over(
    tmp_path: Path, model: Path, two_cameras: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, other = tmp_path / "masks.mcap", tmp_path / "masks.rrd"
    other.write_text("years of work")
    arguments = ["segment", two_cameras, *TOPICS, "--model", model, "--rrd", "-o", out]
    assert run(*arguments) == 2
    assert f"{other} exists already" in capsys.readouterr().err.replace("\n", "")
    assert not out.exists() and not out.with_name("masks.mcap.unfinished").exists()

    other.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(simplejpeg, "encode_jpeg", lambda *values: b"%d" % other.write_text("years of work"))
        assert run(*arguments) == 2  # it came up while the run wrote
    for _ in range(2):
        assert f"{other} exists already, and this command did not write it" in capsys.readouterr().err.replace("\n", "")
        assert other.read_text() == "years of work" and not out.exists()
        assert run(*arguments) == 2  # the unfinished run does not take it for its own either
    other.unlink()
    assert run(*arguments) == 0
    assert PRODUCT_MARK.encode() in other.read_bytes()


def test_without_the_sdk_nothing_is_begun(
    tmp_path: Path,
    model: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert run("segment", images, "-o", tmp_path / "out", "--model", model, "--rrd") == 2
    assert "pip install 'netwarp_ros[rerun]'" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
    assert run("segment", images, "-o", tmp_path / "out", "--model", model, "--no-video") == 0


def segmented(count: int) -> Iterator[tuple[Frame, np.ndarray]]:
    generator = np.random.default_rng(0)
    for index in range(count):
        image, mask = (generator.integers(0, 11, shape, np.uint8) for shape in ((48, 64, 3), (48, 64)))
        yield Frame(index, T0 + index, "", image), mask


def write(path: Path, frames: Iterable[tuple[Frame, np.ndarray]]) -> None:
    write_rerun_file(path, "id", "name", CAMVID, 0.5, {"": CameraTimings([], [], {}, [])}, frames)


@needs_rerun
def test_each_frame_is_written_before_the_next_is_read(tmp_path: Path) -> None:
    path, sizes = tmp_path / "out.rrd", []

    def watched() -> Iterator[tuple[Frame, np.ndarray]]:
        for pair in segmented(6):
            sizes.append(path.stat().st_size)
            yield pair

    write(path, watched())
    mask_bytes = 48 * 64 // 2  # at least: its noise of eleven values is compressed a little
    assert (np.diff(sizes) > mask_bytes).all() and len(sizes) == 6


@needs_rerun
@pytest.mark.parametrize("room", [2**15, -100], ids=["frames", "end"])
def test_a_full_disk_is_an_error(tmp_path: Path, room: int) -> None:
    path = tmp_path / "out.rrd"
    write(path, segmented(20))
    room += path.stat().st_size if room < 0 else 0
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(OSError, match=rf"{path} cannot be written: .*File too large"):
            write(path, segmented(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@needs_rerun
def test_an_interruption_stays_one(tmp_path: Path) -> None:
    def interrupted() -> Iterator[tuple[Frame, np.ndarray]]:
        yield from segmented(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out.rrd", interrupted())


@needs_rerun
def test_neither_the_network_nor_the_home_is_touched(tmp_path: Path) -> None:
    """The SDK has analytics, for its viewer and its servers."""
    home = tmp_path / "home"
    home.mkdir()
    program = """
import psutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_rerun import segmented, write
def watched():
    yield from segmented(3)
    process = psutil.Process()
    print(len(process.net_connections("inet")), *(file.path for file in process.open_files() if file.mode != "r"))
write(Path(sys.argv[2]), watched())
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    ended = subprocess.run(
        [sys.executable, "-c", program, Path(__file__).parent, tmp_path / "out.rrd"],
        env={**variables, "HOME": str(home)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ended.stdout.split() == ["0", str(tmp_path / "out.rrd")], ended.stderr
    assert list(home.iterdir()) == []


def test_rerun_is_loaded_only_if_it_is_asked_for() -> None:
    program = "import sys, netwarp_ros.cli.segment, netwarp_ros.offline; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(ended.stdout.split())
    assert "netwarp_ros.recordings.rerun_file" in loaded and not loaded & {"rerun", "pyarrow"}


@needs_rerun
def test_no_two_cameras_share_an_entity() -> None:
    cameras = ["", "/left/image raw", "/a/b", "a/b/", "/a//b", "/a/b-2", "/camera"]
    entities = entities_of(cameras)
    assert entities == {
        "": "/camera",
        "/left/image raw": r"/left/image\ raw",
        "/a/b": "/a/b",
        "a/b/": "/a/b-2",
        "/a//b": "/a/b-2-2",
        "/a/b-2": "/a/b-2-2-2",
        "/camera": "/camera-2",
    }
