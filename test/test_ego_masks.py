# SPDX-License-Identifier: Apache-2.0
"""Ego masks as files, which camera gets which, and what they leave out of masks and scores."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import masks_of, run, scores_of, small_model, without_times, write_images
from PIL import Image

from netwarp_ros import offline
from netwarp_ros.flow import FlowFolder
from netwarp_ros.recordings.bag_writer import BagWriter
from netwarp_ros.recordings.ego_masks import EgoMasks, read_ego_mask, read_ego_masks
from netwarp_ros.recordings.frames import Frame
from netwarp_ros.recordings.messages import header, image_message
from netwarp_ros.segmenter import Result, Segmenter, Stream

LEFT_OUT = np.array([[0, 1, 0], [1, 0, 0]], bool)


def stored(kind: str) -> np.ndarray:
    """Return the samples of a PNG that leaves out `LEFT_OUT`."""
    grey = LEFT_OUT.astype(np.uint8)
    if kind == "grey":
        return grey
    if kind == "16 bits":
        return grey.astype(np.uint16)
    color = np.stack([np.zeros_like(grey), np.zeros_like(grey), 7 * grey], axis=-1)
    if kind == "color":
        return color
    # The black pixels are opaque, transparent or half transparent. The white one that stays in is fully transparent.
    alpha = np.array([[255, 255, 0], [1, 128, 0]], np.uint8)
    color[1, 2] = 255
    return np.dstack([color, alpha])


@pytest.mark.parametrize("kind", ["grey", "16 bits", "color", "alpha"])
def test_a_pixel_is_left_out_if_any_of_its_colors_is_not_black(tmp_path: Path, kind: str) -> None:
    cv2.imwrite(str(tmp_path / "ego.png"), stored(kind))
    left_out = read_ego_mask(tmp_path / "ego.png")
    assert left_out.dtype == np.bool_
    np.testing.assert_array_equal(left_out, LEFT_OUT)


@pytest.mark.parametrize("mode", ["1", "P"])
def test_one_bit_and_indexed_pngs_are_read(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(LEFT_OUT.astype(np.uint8) * (255 if mode == "1" else 1))
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 9])
    (image.convert("1") if mode == "1" else image).save(tmp_path / "ego.png")
    np.testing.assert_array_equal(read_ego_mask(tmp_path / "ego.png"), LEFT_OUT)


def test_a_file_that_is_no_ego_mask_is_named(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "ego.jpg"), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"the ego mask .*ego\.jpg cannot be read \(it is not a PNG\): give a PNG"):
        read_ego_mask(tmp_path / "ego.jpg")
    cv2.imwrite(str(tmp_path / "ego.png"), stored("color"))
    (tmp_path / "cut.png").write_bytes((tmp_path / "ego.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"the ego mask .*cut\.png cannot be read"):
        read_ego_mask(tmp_path / "cut.png")
    cv2.imwrite(str(tmp_path / "all.png"), np.ones((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"the ego mask .*all\.png leaves out every pixel: give one that"):
        read_ego_mask(tmp_path / "all.png")


def test_a_camera_gets_its_own_mask_or_that_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, mask in (("a.png", LEFT_OUT), ("b=c.png", ~LEFT_OUT)):
        cv2.imwrite(name, mask.astype(np.uint8))
    masks = read_ego_masks(["a.png", "/rear=b=c.png"])
    for camera, expected in (("/rear", ~LEFT_OUT), ("/front", LEFT_OUT)):
        found = masks.of(camera)
        assert found is not None
        np.testing.assert_array_equal(found, expected)
    assert read_ego_masks(["b=c.png"]).of("x") is not None, "the name of a file may have a ="
    assert read_ego_masks(["/rear=a.png"]).of("/front") is None
    assert EgoMasks().of("") is None


def test_a_mask_of_an_unknown_camera_names_the_cameras() -> None:
    masks = EgoMasks(LEFT_OUT, {"/left": LEFT_OUT})
    masks.check_cameras(["/left", "/right"])
    with pytest.raises(ValueError, match="^there is an ego mask of '/left', .*: give one of /front, /rear$"):
        masks.check_cameras(["/front", "/rear"])


def test_hashes_tell_masks_apart() -> None:
    wide, tall = EgoMasks(np.zeros((2, 3), bool)), EgoMasks(np.zeros((3, 2), bool))
    assert wide.hashes() != tall.hashes() and wide.hashes() == EgoMasks(np.zeros((2, 3), bool)).hashes()


# Commands


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


def write_ego_mask(path: Path, left_out: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), left_out.astype(np.uint8) * 255)
    return path


def test_pixels_of_an_ego_mask_count_in_no_score(tmp_path: Path, model: Path, images: Path) -> None:
    """Whatever label they have: the scores are those of labels that are void there, also near the edge of the mask."""
    left_out = np.zeros((24, 32), bool)  # half the size of the images
    left_out[16:, 8:] = True
    ego = write_ego_mask(tmp_path / "ego.png", left_out)
    full = left_out.repeat(2, 0).repeat(2, 1)
    stream = Segmenter(model).stream(ego_mask=full)
    frames = [cv2.imread(str(images / f"f{index}.png")) for index in range(3)]
    masks = [stream.segment(image, 1 + index * 66_666_667).mask for index, image in enumerate(frames)]
    assert all((mask == 255).tolist() == full.tolist() for mask in masks)
    for folder in ("anything", "void"):
        (tmp_path / folder).mkdir()
        for index, (mask, whole) in enumerate(zip(masks, masks_of(model, images), strict=True)):
            label = np.where(full, whole if folder == "anything" else np.uint8(255), mask)
            label[:12] = index
            cv2.imwrite(str(tmp_path / folder / f"f{index}.png"), label)
    common = ["--images", images, "--host", "--ego-mask", ego]
    anything, void = (scores_of(model, *common, "--labels", tmp_path / name) for name in ("anything", "void"))
    assert without_times(anything) == without_times(void)
    assert 0 < void["miou"] < 100 and void["tc"] > 0
    assert all(sum(frame["confusion"][1::2]) == (~full).sum() for frame in void["per_frame"])
    assert all(sum(frame["tc_unmasked"][1::2]) <= (~full).sum() for frame in void["per_frame"][1:])
    assert list(void["settings"]["ego_masks"]) == [""]


def test_each_camera_has_its_own_ego_mask(tmp_path: Path, model: Path, images: Path) -> None:
    bag, topics = tmp_path / "two.mcap", ("/front/image_raw", "/rear/image_raw")
    with BagWriter(bag) as writer:
        for index in range(2):
            for topic in topics:
                stamp_ns = 10**18 + index * 66_666_667
                image = cv2.imread(str(images / f"f{index}.png"))
                writer.write(topic, image_message(image, "bgr8", header(stamp_ns, "c")), stamp_ns)
    left, top = np.zeros((48, 64), bool), np.zeros((48, 64), bool)
    left[:, :32], top[:24] = True, True
    masks = [
        "--ego-mask", write_ego_mask(tmp_path / "top.png", top),
        "--ego-mask", f"/rear/image_raw={write_ego_mask(tmp_path / 'left.png', left)}",
    ]  # fmt: skip
    options = [*masks, "--model", model, *(word for topic in topics for word in ("--topic", topic))]
    assert run("segment", bag, "-o", tmp_path / "out", *options, "--no-video") == 0
    written = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in sorted((tmp_path / "out" / "masks").iterdir())]
    assert [np.array_equal(mask == 255, top) for mask in written] == [True, False, True, False]
    assert [np.array_equal(mask == 255, left) for mask in written] == [False, True, False, True]
    assert run("evaluate", bag, *options, "-o", tmp_path / "results") == 0
    results = json.loads((tmp_path / "results" / "two.json").read_text())
    assert set(results["settings"]["ego_masks"]) == {"", "/rear/image_raw"}
    assert without_times(results) == without_times(scores_of(model, "--images", bag, *options))


def test_a_run_that_was_stopped_goes_on_with_its_ego_mask(
    tmp_path: Path, model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out = np.zeros((48, 64), bool)
    left_out[30:] = True
    command = ["segment", images, "--model", model, "--no-video"]
    command += ["--ego-mask", write_ego_mask(tmp_path / "ego.png", left_out)]
    assert run(*command, "-o", tmp_path / "whole") == 0
    monkeypatch.setattr(offline, "CHECKPOINT_INTERVAL", 1)
    segment_frame = offline.segment_frame

    def stop_at_last(stream: Stream, frame: Frame, flows: FlowFolder | None) -> Result:
        if frame.name == "f2":
            raise OSError("the disk is full")
        return segment_frame(stream, frame, flows)

    with monkeypatch.context() as patch:
        patch.setattr(offline, "segment_frame", stop_at_last)
        assert run(*command, "-o", tmp_path / "stopped") == 2
    assert run(*command, "-o", tmp_path / "stopped") == 0
    last, expected = (
        cv2.imread(str(tmp_path / name / "masks" / "f2.png"), cv2.IMREAD_UNCHANGED) for name in ("stopped", "whole")
    )
    assert ((expected == 255) == left_out).all()
    np.testing.assert_array_equal(last, expected)


def test_an_ego_mask_that_cannot_be_used_is_named(
    tmp_path: Path, model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: object) -> str:
        assert run("segment", images, "-o", tmp_path / "out", "--model", model, *arguments) == 2
        return " ".join(capsys.readouterr().err.split())

    ego = write_ego_mask(tmp_path / "ego.png", np.eye(8, dtype=bool))
    every = write_ego_mask(tmp_path / "every.png", np.ones((8, 8), bool))
    assert f"the ego mask {every} leaves out every pixel" in error("--ego-mask", every)
    assert "absent.png cannot be read" in error("--ego-mask", tmp_path / "absent.png")
    unknown = "there is an ego mask of 'front', which is no camera of the recording: the recording names no camera"
    assert unknown in error("--ego-mask", f"front={ego}")
    assert run("evaluate", "--images", images, "--model", model, "--ego-mask", f"front={ego}") == 2
    assert unknown in " ".join(capsys.readouterr().err.split())
    assert "there are two ego masks of every camera" in error("--ego-mask", ego, "--ego-mask", ego)
    assert "there are two ego masks of 'a': give one" in error("--ego-mask", f"a={ego}", "--ego-mask", f"a={ego}")
    assert not (tmp_path / "out").exists()
