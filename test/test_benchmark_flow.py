# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark flow`` compares estimators of flow on the same frames. No time is asserted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from commands import run, write_images

from netwarp_ros.benchmarks import flow as benchmark
from netwarp_ros.benchmarks.flow import (
    NAMES,
    SKY,
    VOID,
    Clip,
    Estimator,
    Picture,
    carried_labels,
    compare,
    draw_sheet,
    open_estimators,
    photometric_errors,
    street_clip,
    video_clip,
)
from netwarp_ros.classes import load_classes
from netwarp_ros.ops import compiled
from netwarp_ros.recordings.atomic import holds
from netwarp_ros.recordings.image_files import LabelFolder
from netwarp_ros.recordings.open import open_frames
from netwarp_ros.street import Street

HEIGHT, WIDTH, CAPTION = 40, 64, 22
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)

Flow = Callable[..., np.ndarray]


def constant(u: float, v: float) -> np.ndarray:
    return np.broadcast_to(np.array([u, v], np.float32), (HEIGHT, WIDTH, 2)).copy()


def always(u: float, v: float) -> Estimator:
    """Return an estimator of a flow that is the same everywhere."""
    return Estimator(lambda present, previous: constant(u, v))


def moving_clip(count: int = 4) -> Clip:
    """Return a texture that moves by 3 pixels to the right and 2 down with each frame."""
    images = [np.roll(NOISE, (2 * index, 3 * index), axis=(0, 1)) for index in range(count)]
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[2:, 3:] = True
    return Clip(images, [constant(-3, -2)] * count, [inside] * count)


@dataclass(frozen=True)
class DrawnFrame:
    image: np.ndarray
    label: np.ndarray
    flow: np.ndarray
    valid: np.ndarray


def test_the_exact_flow_has_no_error() -> None:
    street = Street(64, 48, seed=1)
    frames = [street.frame(index) for index in range(3)]
    exact = {frame.image.tobytes(): frame.flow for frame in frames}
    perfect = Estimator(lambda present, previous: exact[present.tobytes()])
    half = Estimator(lambda present, previous: exact[present.tobytes()] / 2)
    (result, worse), _ = compare([street_clip(frames)], {"perfect": perfect, "half": half})
    assert (result.pairs, result.mean_error, result.median_error, result.large_percent) == (2, 0, 0, 0)
    scored = [frame.valid & (frame.label > 0) for frame in frames[1:]]
    lengths = [np.linalg.norm(frame.flow, axis=2)[mask] for frame, mask in zip(frames[1:], scored, strict=True)]
    errors = np.concatenate(lengths) / 2
    assert worse.mean_error == pytest.approx(errors.mean(), rel=1e-5)
    assert worse.median_error == pytest.approx(np.median(errors), abs=0.002)
    assert worse.large_percent == pytest.approx(100 * (errors > 3).mean())
    assert worse.photometric_error is not None and result.photometric_error is not None
    assert worse.photometric_error > result.photometric_error > 0  # the street has noise


def test_the_sky_and_what_was_hidden_are_not_scored() -> None:
    label, valid = np.full((HEIGHT, WIDTH), 3, np.uint8), np.ones((HEIGHT, WIDTH), bool)
    label[0], valid[1] = SKY, False
    frame = DrawnFrame(NOISE, label, constant(0, 0), valid)
    frame.flow[:2] = 50
    clip = street_clip([frame, frame])
    assert clip.scored is not None and clip.scored[1].sum() == (HEIGHT - 2) * WIDTH
    (result,), _ = compare([clip], {"still": always(0, 0)})
    assert result.mean_error == 0


def test_a_shift_is_measured_in_pixels_and_grey_levels() -> None:
    estimators = {"exact": always(-3, -2), "still": always(0, 0), "beside": always(0, 2)}
    (exact, still, beside), _ = compare([moving_clip(), moving_clip(3)], estimators)
    assert [each.pairs for each in (exact, still, beside)] == [5, 5, 5]
    assert (exact.mean_error, exact.photometric_error, exact.large_percent) == (0, 0, 0)
    assert still.mean_error == pytest.approx(13**0.5) and still.median_error == pytest.approx(13**0.5, abs=0.001)
    assert beside.mean_error == pytest.approx(5) and beside.large_percent == 100
    assert still.photometric_error is not None and still.photometric_error > 20
    assert exact.carried_percent is None and exact.error_ratio is None


def test_flow_that_leads_outside_has_no_photometric_error() -> None:
    """The previous frame's columns are 0, 10, 20, …, so half a pixel is 5 grey levels."""
    previous = np.broadcast_to(np.arange(0, 60, 10, dtype=np.uint8), (4, 6))
    flow = np.zeros((4, 6, 2), np.float32)
    flow[..., 0] = 0.5
    flow[0, 0] = -0.01, 0
    flow[1, 1] = 0, -1.01
    errors = photometric_errors(flow, previous, previous)
    assert errors.shape == (4 * 5 - 2,)  # the last column leads outside, too
    assert errors == pytest.approx(5)
    flow[:] = 0, 100
    assert photometric_errors(flow, previous, previous).size == 0


def test_labels_are_carried_along_the_flow() -> None:
    previous = np.array([[1, 2, 3, VOID]] * 2, np.uint8)
    present = np.array([[VOID, 1, 2, 7]] * 2, np.uint8)
    flow = np.zeros((2, 4, 2), np.float32)
    flow[..., 0] = -1
    assert carried_labels(flow, present, previous).tolist() == [True, True, False] * 2
    flow[..., 0] = 1  # leads to 2, 3, void and outside
    assert carried_labels(flow, present, previous).tolist() == [False] * 2
    flow[..., 0] = -0.4  # the nearest pixel is the same one
    assert carried_labels(flow, present, previous).tolist() == [False] * 4


def test_only_pairs_with_both_labels_count(tmp_path: Path) -> None:
    """The texture moves by 2 pixels with each frame: the labels do, too, and the last frame has none."""
    labels = tmp_path / "labels"
    labels.mkdir()
    stripes = np.tile(np.arange(64, dtype=np.uint8) // 2 % 11, (48, 1))
    for index in range(2):
        cv2.imwrite(str(labels / f"f{index}.png"), np.roll(stripes, 2 * index, axis=1))
    frames, classes = open_frames(write_images(tmp_path / "images")), load_classes("camvid")
    clip = video_clip(frames, 40, read_label=LabelFolder(labels, classes), void=classes.void)

    def backwards(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.array([-2, 0], np.float32), (48, 64, 2))

    still = Estimator(lambda present, previous: 0 * backwards(present, previous))
    (moved, stood), _ = compare([clip], {"moved": Estimator(backwards), "still": still})
    assert (moved.pairs, moved.carried_percent, stood.carried_percent) == (2, 100, 0)
    assert moved.photometric_error == 0 and moved.mean_error is None and moved.median_error is None
    assert clip.labels is not None and clip.labels[2] is None
    led = Clip([clip.images[0], *clip.images], labels=[None, *clip.labels])  # the first frame has none, either
    assert compare([led], {"moved": Estimator(backwards)})[0][0].carried_percent == 100
    assert len(video_clip(frames, 2).images) == len(video_clip(frames, 2, step=2).images) == 2
    assert [image.tobytes() for image in video_clip(frames, 40, step=2).images] == [
        clip.images[0].tobytes(), clip.images[2].tobytes(),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no two successive frames have label maps"):
        video_clip(frames, 40, step=2, read_label=LabelFolder(labels, classes))
    with pytest.raises(ValueError, match="1 images: give at least 2"):
        video_clip(frames, 1)


def test_warm_estimators_start_from_the_pair_before_and_each_clip_starts_cold() -> None:
    calls: list[float | None] = []

    def record(present: np.ndarray, previous: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
        calls.append(None if start is None else float(start[0, 0, 0]))
        return constant(len(calls), 0)

    (result,), _ = compare([moving_clip(3), moving_clip(3)], {"warm": Estimator(record, warm=True)})
    # For each clip: twice the first pair before it is timed, cold and warm, then two pairs.
    assert calls == [None, 1, None, 3, None, 5, None, 7]
    assert result.pairs == 4
    calls.clear()
    compare([moving_clip(3)], {"cold": Estimator(record)})
    assert calls == [None] * 3


def test_estimators_take_turns_on_every_pair() -> None:
    calls: list[str] = []

    def named(name: str) -> Estimator:
        def estimate(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
            calls.append(name)
            return constant(0, 0)

        return Estimator(estimate)

    compare([moving_clip(3)], {"a": named("a"), "b": named("b")})
    assert "".join(calls) == "ab" * 3


def test_ours_is_compared_with_opencv_with_the_same_preset_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(benchmark, "perf_counter", lambda: now)

    def taking(seconds: float, error: float) -> Estimator:
        def estimate(present: np.ndarray, previous: np.ndarray) -> np.ndarray:
            nonlocal now
            now += seconds
            return constant(-3 + error, -2)

        return Estimator(estimate)

    estimators = {
        "fast": taking(0.002, 1), "fast:warm": taking(0.004, 0.5),
        "fast@torch": taking(0.001, 2), "fast@cuda:warm": taking(0.001, 2), "medium@torch": taking(1, 1),
    }  # fmt: skip
    results, _ = compare([moving_clip()], estimators)
    assert [result.time_ms for result in results] == pytest.approx([2, 4, 1, 1, 1000])
    fast, fast_warm, cold, warm, medium = results
    assert (cold.error_ratio, cold.time_ratio) == (pytest.approx(2), pytest.approx(0.5))
    assert (warm.error_ratio, warm.time_ratio) == (pytest.approx(4), pytest.approx(0.25))
    assert {each.error_ratio for each in (fast, fast_warm, medium)} == {None}
    assert {each.time_ratio for each in (fast, fast_warm, medium)} == {None}
    recorded = Clip(moving_clip().images)
    *_, ours = compare([recorded], {"fast": taking(1, 1), "fast@torch": taking(1, 2)})[0]
    errors = [photometric_errors(constant(u, -2), *recorded.images[1::-1]).mean() for u in (-2, -1)]
    assert ours.error_ratio == pytest.approx(errors[1] / errors[0], rel=0.1)  # the pairs differ at the seam only


def test_a_flow_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="odd: the flow of frame 1 is not finite"):
        compare([moving_clip()], {"fine": always(0, 0), "odd": always(float("nan"), 0)})


@pytest.mark.parametrize("name", ["", "slow", "fast:hot", "fast@tpu", "deepflow:warm", "warm"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown estimator '{name}': choose from ultrafast, ultrafast:warm, fast, "):
        open_estimators(["fast", name])


def test_what_cannot_run_here_is_skipped_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    estimators, skipped = open_estimators(["fast@cuda:warm", "ultrafast", "ultrafast:warm"])
    assert list(estimators) == ["ultrafast", "ultrafast:warm"]
    assert skipped == {"fast@cuda:warm": "PyTorch finds no GPU with CUDA"}
    with pytest.raises(ValueError, match=r"none of the estimators can run here \(fast@cuda: PyTorch finds no GPU"):
        open_estimators(["fast@cuda"])
    assert {"fast@torch", "medium@cuda:warm", "deepflow", "nvidia"} < {*NAMES} and len({*NAMES}) == 20


def test_names_choose_preset_device_and_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of `TensorDis` and `NvidiaFlow`, whose own tests say what they estimate."""
    starts: list[object] = []

    def tensor_dis(preset: str, device: str) -> Flow:
        if preset == "medium":
            raise ValueError("no medium here")

        def estimate(present: np.ndarray, previous: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
            starts.append((preset, device, start is not None))
            return constant(0, 0)

        return estimate

    def nvidia() -> Flow:
        raise ValueError("no such hardware")

    for module, name, stand_in in (("tensor_dis", "TensorDis", tensor_dis), ("nvidia", "NvidiaFlow", nvidia)):
        monkeypatch.setitem(sys.modules, f"netwarp_ros.flow.{module}", SimpleNamespace(**{name: stand_in}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    _, skipped = open_estimators(["fast@torch", "ultrafast@cuda"])
    assert list(skipped) == ["ultrafast@cuda"] and "no CUDA kernels" in skipped["ultrafast@cuda"]
    monkeypatch.setattr(compiled, "DIS_DEVICES", frozenset({"cuda"}))
    estimators, skipped = open_estimators(["fast@torch", "medium@torch:warm", "ultrafast@cuda:warm", "nvidia"])
    assert list(estimators) == ["fast@torch", "ultrafast@cuda:warm"]
    assert skipped == {"medium@torch:warm": "no medium here", "nvidia": "no such hardware"}
    for estimator in estimators.values():
        estimator(NOISE, NOISE), estimator(NOISE, NOISE)
    assert starts == [("fast", "cpu", False)] * 2 + [("ultrafast", "cuda", False), ("ultrafast", "cuda", True)]


def test_the_sheet_shows_directions_as_colors() -> None:
    clip = moving_clip()
    exact = [constant(3, 0)] * 4
    flows = {"right": constant(3, 0), "left": constant(-3, 0), "still": constant(0, 0)}
    sheet = draw_sheet(Picture(Clip(clip.images, exact, clip.scored), 2, flows))
    assert sheet.shape == (2 * (HEIGHT + CAPTION), 3 * WIDTH, 3) and sheet.dtype == np.uint8

    def tile(row: int, column: int) -> np.ndarray:
        top, left = row * (HEIGHT + CAPTION), column * WIDTH
        return sheet[top : top + HEIGHT + CAPTION, left : left + WIDTH]

    assert (tile(0, 0)[CAPTION:] == clip.images[2]).all()
    for place, color in {(0, 1): (0, 0, 255), (0, 2): (0, 0, 255), (1, 0): (255, 255, 0), (1, 1): (255,) * 3}.items():
        assert (np.abs(tile(*place)[CAPTION:].astype(int) - color) <= 2).all(), place  # OpenCV rounds hues
        assert (tile(*place)[:CAPTION] < 128).any(), "no caption"
    assert (tile(1, 2) == 255).all()


def test_without_an_exact_flow_opencv_sets_the_longest() -> None:
    flows = {"fast@torch": constant(-6, 0), "fast": constant(6, 0), "deepflow": constant(3, 0)}
    sheet = draw_sheet(Picture(Clip(moving_clip().images), 1, flows))
    assert sheet.shape == (2 * (HEIGHT + CAPTION), 2 * WIDTH, 3)
    assert sheet[-1, 0].tolist() == [0, 0, 255] and sheet[-1, -1].tolist() == pytest.approx([127, 127, 255], abs=1)


def test_the_command_prints_draws_and_writes_json(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("COLUMNS", "80")
    file, sheet = tmp_path / "flow.json", tmp_path / "pictures" / "flow.png"
    names = "ultrafast,fast@cuda,ultrafast:warm,fast@cuda:warm"
    arguments = ("--size", "96x64", "--seeds", "0,1", "--frames", 4, "--json", file, "--pictures", sheet.parent)
    assert run("benchmark", "flow", "--estimators", names, *arguments) == 0
    printed = capfd.readouterr()
    assert "skipped fast@cuda, fast@cuda:warm: PyTorch finds no GPU with CUDA" in printed.err
    assert "6 pairs of frames" in printed.out and "median" in printed.out and "labels" not in printed.out
    written = json.loads(file.read_text())
    assert written["skipped"] == dict.fromkeys(("fast@cuda", "fast@cuda:warm"), "PyTorch finds no GPU with CUDA")
    assert written["settings"] == {"frames": 4, "seeds": [0, 1], "size": "96x64", "rate": 10, "threads": 0}
    assert [result["estimator"] for result in written["results"]] == ["ultrafast", "ultrafast:warm"]
    for result in written["results"]:
        assert result["pairs"] == 6 and result["time_ms"] > 0 and result["carried_percent"] is None
        assert 0 < result["median_error"] < result["mean_error"] < 20 and result["photometric_error"] > 0
        assert f" {result['mean_error']:.2f} " in printed.out
    picture = cv2.imread(str(sheet))
    assert picture.shape == (2 * (64 + CAPTION), 2 * 96, 3) and holds(sheet, "written by netwarp benchmark")
    assert f"flow of frame 2 in {sheet}" in printed.out
    assert (picture[CAPTION : CAPTION + 64, :96] == Street(96, 64, seed=0).frame(2).image).all()


def test_the_command_measures_recordings_with_labels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    labels, file = tmp_path / "labels", tmp_path / "flow.json"
    labels.mkdir()
    for index in range(3):
        cv2.imwrite(str(labels / f"f{index}.png"), np.full((48, 64), 4, np.uint8))
    video = ("--video", write_images(tmp_path / "images"), "--labels", labels)
    assert run("benchmark", "flow", *video, "--estimators", "ultrafast", "--json", file) == 0
    printed = capfd.readouterr().out
    assert "2 pairs of frames" in printed and " 100.00 " in printed and "median" not in printed
    written = json.loads(file.read_text())
    (result,) = written["results"]
    assert result["carried_percent"] == 100 and result["mean_error"] is None and result["photometric_error"] > 0
    assert written["settings"]["video"]["sha256"] and written["settings"]["classes"] == "camvid"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--estimators", "fast,slow"), "unknown estimator 'slow'"),
        (("--seeds", "1,x"), "seeds is '1,x': give whole numbers, such as 1,2,3"),
        (("--size", "96x64,64x48"), "size is '96x64,64x48': give one size, such as 480x360"),
        (("--labels", "labels"), "labels are in labels, but there is no recording: give --video"),
        (("--threads", -1), "threads is -1"),
        (("--size", "64x48", "--frames", 2, "--picture-frame", 2), "picture frame is 2: give 1 to 1"),
    ],
)
def test_wrong_options_are_refused(
    arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("benchmark", "flow", "--estimators", "ultrafast", *arguments) == 2
    assert message in capsys.readouterr().err


def test_files_of_others_are_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2.imwrite(str(tmp_path / "flow.png"), NOISE)
    assert run("benchmark", "flow", "--estimators", "ultrafast", "--pictures", tmp_path) != 0
    assert f"{tmp_path / 'flow.png'} exists already" in capsys.readouterr().err
    assert (cv2.imread(str(tmp_path / "flow.png")) == NOISE).all()
