# SPDX-License-Identifier: Apache-2.0
"""Adaptation without labels: how drives are read, what their targets are, and what the training may do to a model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import SPEC, run, small_model
from pydantic import ValidationError
from torch import Tensor

from netwarp_ros.classes import VOID
from netwarp_ros.models import InputSize, Model, VideoCNN, build, load_model, save_model
from netwarp_ros.recordings.frames import Frame, FrameSource
from netwarp_ros.training import adaptation, soft_targets
from netwarp_ros.training.adaptation import AdaptConfig, Student, adapt, batches, measure, split, target_loss
from netwarp_ros.training.agreement import PATIENCE, Agreement, Guard
from netwarp_ros.training.soft_targets import (
    Drive,
    Motion,
    Recording,
    Run,
    Teacher,
    average_along_motion,
    estimate_motion,
    read_runs,
    sharpened,
)

HEIGHT, WIDTH, SHIFT = 48, 64, 2
RATE_NS = 100_000_000


class Frames(FrameSource):
    """Frames that are in memory."""

    def __init__(self, frames: Sequence[Frame], cameras: Sequence[str] = ("",)) -> None:
        super().__init__()
        self.rate, self.cameras, self.frames = 10.0, cameras, frames

    def read(self, begin: int = 0, end: int | None = None) -> Iterator[Frame]:
        yield from self.frames[begin:end]

    def __len__(self) -> int:
        return len(self.frames)


def texture(index: int, noise: float = 0.0) -> np.ndarray:
    """Return a frame of a texture that moves to the right by `SHIFT` pixels per frame."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.float32), (0, 0), 2)
    image = 128 + 4 * (image - image.mean())
    image = np.roll(image, SHIFT * index, axis=1) + noise * np.random.default_rng(index).normal(size=image.shape)
    return image.clip(0, 255).astype(np.uint8)


def moving(count: int, noise: float = 20.0) -> Frames:
    return Frames([Frame(t, t * RATE_NS, f"{t:06d}", texture(t, noise)) for t in range(count)])


def frames_at(*stamps_ms: int, camera: str = "") -> list[Frame]:
    return [
        Frame(t, ms * 1_000_000, str(t), np.full((HEIGHT, WIDTH, 3), t, np.uint8), camera)
        for t, ms in enumerate(stamps_ms)
    ]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose NetWarp is untrained, and whose host is sure of most pixels."""
    path = small_model(tmp_path / "models" / "small.safetensors", monkeypatch)
    network = load_model(path).network
    with torch.no_grad():
        network.netwarps[0].w2.zero_()
        network.host.classifier.weight.mul_(20)
    return load_model(save_model(path, network, SPEC))


def config(**settings: object) -> AdaptConfig:
    return AdaptConfig(**{"steps": 10, "precision": "float32", **settings})  # type: ignore[arg-type]


def sizes(runs: Sequence[Run]) -> list[int]:
    return [len(run.images) for run in runs]


def one_hot(mask: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(mask, len(SPEC.classes)).permute(0, 3, 1, 2).half()


# Reading


def test_a_run_ends_at_a_gap_and_at_a_change_of_size_and_belongs_to_one_camera() -> None:
    assert sizes(read_runs([Recording(Frames(frames_at(0, 100, 600, 1101, 1200, 1150)))], SPEC, 100)) == [3, 2, 1]

    front, rear = frames_at(0, 100, 200, camera="front"), frames_at(50, 150, camera="rear")
    mixed = sorted([*front, *rear], key=lambda frame: frame.stamp_ns)
    assert sizes(read_runs([Recording(Frames(mixed, ("front", "rear")))], SPEC, 100)) == [3, 2]

    small = [replace(frame, image=frame.image[:24]) for frame in frames_at(200, 300)]
    assert sizes(read_runs([Recording(Frames([*frames_at(0, 100), *small]))], SPEC, 100)) == [2, 2]


def test_a_run_does_not_continue_in_the_next_recording() -> None:
    first, second = frames_at(0, 100), frames_at(200, 300, 400)
    assert sizes(read_runs([Recording(Frames(first)), Recording(Frames(second))], SPEC, 100)) == [2, 3]


def test_of_a_long_recording_sections_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_targets, "SECTION", 4)
    runs = read_runs([Recording(Frames(frames_at(*range(0, 2000, 100))))], SPEC, 12)
    assert [[int(image[0, 0, 0]) for image in run.images] for run in runs] == [
        [0, 1, 2, 3],
        [8, 9, 10, 11],
        [16, 17, 18, 19],
    ]


def test_large_images_lower_the_number_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_targets, "SECTION", 2)
    monkeypatch.setattr(soft_targets, "MAX_BYTES", 4 * soft_targets._frame_bytes(texture(0), 11))
    assert sum(sizes(read_runs([Recording(moving(20))], SPEC, 500))) == 4


def test_labels_are_padded_with_void_as_images_are_padded() -> None:
    spec = replace(SPEC, input_size=InputSize(multiple=20))
    recording = Recording(moving(1), lambda frame: np.full((HEIGHT, WIDTH), 3, np.uint8))
    (read,) = read_runs([recording], spec, 100)
    assert read.inside == (48, 64) and read.images[0].shape == (60, 80, 3)
    label = read.labels[0]
    assert label is not None and label.shape == (60, 80)
    assert (label[:48, :64] == 3).all() and (label[48:] == VOID).all() and (label[:, 64:] == VOID).all()


def test_recordings_without_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="no frame to adapt to"):
        read_runs([Recording(Frames([]))], SPEC, 100)


# Targets


def test_the_motion_is_that_of_the_texture() -> None:
    before, after = estimate_motion([texture(t) for t in range(3)], (24, 32))
    inner = (slice(4, -4), slice(8, -8))
    for flow, expected in ((before.flow[1:], -1.0), (after.flow[:2], 1.0)):  # half of SHIFT: in pixels of the grid
        assert float(flow[:, 0][..., *inner].median()) == pytest.approx(expected, abs=0.1)
        assert float(flow[:, 1][..., *inner].abs().median()) < 0.1
    assert before.trust[1:, 0][..., *inner].mean() > 0.9
    assert not before.trust[0].any() and not after.trust[2].any()


def test_targets_are_averaged_with_their_neighbours_along_trusted_motion() -> None:
    first, second, third = torch.zeros(3, 2, 1, 6)
    first[0, 0, 1], second[0, 0, 2], third[0, 0, 3] = 0.3, 0.6, 0.9  # something that moves by one pixel per frame
    targets = torch.stack((first, second, third))
    flow, trust = torch.zeros(3, 2, 1, 6), torch.ones(3, 1, 1, 6)
    left, right = flow.clone(), flow.clone()
    left[:, 0], right[:, 0] = -1, 1
    averaged = average_along_motion(targets, Motion(left, trust), Motion(right, trust))
    torch.testing.assert_close(averaged[:, 0, 0, 1:4].amax(1), torch.tensor([0.45, 0.6, 0.75]))
    assert average_along_motion(targets, Motion(left, 0 * trust), Motion(right, 0 * trust)).equal(targets)


def test_targets_are_sharpened_and_void_where_the_host_is_unsure() -> None:
    targets = torch.tensor([[0.8, 0.49], [0.2, 0.26], [0.0, 0.25]]).view(1, 3, 1, 2)
    result = sharpened(targets)[0, :, 0]
    powers = torch.tensor([0.8, 0.2, 0.0]) ** soft_targets.SHARPNESS
    torch.testing.assert_close(result[:, 0], powers / powers.sum())
    assert not result[:, 1].any()


def test_labels_are_the_targets_of_their_pixels_and_padding_is_void(model: Model) -> None:
    spec = replace(SPEC, input_size=InputSize(multiple=20))
    label = np.full((HEIGHT, WIDTH), VOID, np.uint8)
    label[:, :32] = 7
    recording = Recording(moving(3, noise=0), lambda frame: label if frame.index == 1 else None)
    host = VideoCNN(model.network.host, {}).eval()
    teacher = Teacher(host, spec, torch.device("cpu"), torch.float32)
    drive = teacher.prepare(read_runs([recording], spec, 100)[0])
    assert drive.targets.shape == (3, 11, 30, 40) and drive.images.shape == (3, 60, 80, 3)
    assert (drive.targets[1, 7, :24, :16] == 1).all() and (drive.targets[1].sum(0)[:24, :16] == 1).all()
    assert not drive.targets[:, :, 24:].any() and not drive.targets[..., 32:].any()
    assert (drive.labels[1, :24, :16] == 7).all() and (drive.labels[[0, 2]] == VOID).all()
    assert drive.targets[0, 7, 4:20, 4:12].mean() > 0.1  # a label is averaged with the frame before
    plain = teacher.prepare(read_runs([Recording(moving(3, noise=0))], spec, 100)[0])
    assert plain.targets[0, 7, 4:20, 4:12].mean() < drive.targets[0, 7, 4:20, 4:12].mean()


def test_void_pixels_have_no_loss_and_no_gradient() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 3, 2, 4, requires_grad=True)
    targets = torch.rand(1, 3, 2, 4).softmax(1)
    targets[..., 2:] = 0
    loss = target_loss(scores, targets)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad[..., :2].abs().sum() > 0 and not scores.grad[..., 2:].any()
    half = target_loss(scores.detach()[..., :2], targets[..., :2])
    torch.testing.assert_close(loss.detach(), half)
    assert target_loss(scores.detach(), torch.zeros_like(targets)) == 0


# Clips


def plain_drive(count: int) -> Drive:
    """Return a drive whose images have their number as grey value."""
    numbers = torch.arange(count, dtype=torch.uint8)
    return Drive(
        images=numbers.view(-1, 1, 1, 1).expand(-1, HEIGHT, WIDTH, 3),
        flows=torch.zeros(count, 2, HEIGHT // 2, WIDTH // 2),
        targets=torch.zeros(count, 11, HEIGHT // 2, WIDTH // 2, dtype=torch.float16),
        labels=torch.full((count, HEIGHT // 2, WIDTH // 2), VOID, dtype=torch.uint8),
        motion=torch.zeros(count, 2, HEIGHT // 2, WIDTH // 2),
        trust=torch.zeros(count, 1, HEIGHT // 2, WIDTH // 2),
    )


def test_each_clip_is_successive_frames_of_one_drive_and_comes_once_per_epoch() -> None:
    drives = [plain_drive(7), plain_drive(100).part(50, 54)]
    clips = [clip[:, 0, 0, 0].tolist() for batch in batches(drives, config(clip=4, steps=3)) for clip in batch.images]
    assert sorted(clips) == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6], [50, 51, 52, 53]]


def numbered(count: int) -> Run:
    return Run((HEIGHT, WIDTH), [np.full((HEIGHT, WIDTH, 3), t, np.uint8) for t in range(count)], [None] * count)


def test_the_first_fifth_of_each_run_is_kept_out_of_the_training() -> None:
    trained, checked = split([numbered(20), numbered(6), numbered(3)], clip=4)
    assert sizes(trained) == [16, 6]
    assert [[int(image[0, 0, 0]) for image in run.images] for run in checked] == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="longest run of frames without a gap has 6: give one with 7 or more"):
        split([numbered(6), numbered(2)], clip=4)


# Agreement and guard


def test_disagreement_is_counted_on_static_and_on_moving_pixels(model: Model) -> None:
    student = Student(model, config())
    drive = plain_drive(3)
    grid = (HEIGHT // 2, WIDTH // 2)
    mask = student.scores(drive.images[:1], drive.flows[:1], None, grid)[0].argmax(1)[0]
    targets = one_hot(torch.stack([student.scores(drive.images[t : t + 1], drive.flows[:1], None, grid)[0].argmax(1)[0]
                                   for t in range(3)]))  # fmt: skip
    motion = torch.zeros_like(drive.motion)
    motion[:, 0, :, 24:] = 3.0  # the right quarter moves
    wrong = targets.clone()
    wrong[:, :, :6, :16] = wrong[:, :, :6, :16].roll(1, 1)  # 96 of 576 static pixels
    wrong[:, :, 12:, 24:] = wrong[:, :, 12:, 24:].roll(1, 1)  # half of the moving ones
    wrong[:, :, 6:12, :16] = 0  # void: 480 static pixels are left
    drive = drive._replace(targets=wrong, motion=motion, trust=torch.ones_like(drive.trust))
    measured = measure(student, [drive], host_only=True)
    assert measured.static == pytest.approx(100 * 96 / 480)
    assert measured.moving == pytest.approx(50)
    assert measured.disagreement == pytest.approx(35)
    assert np.isnan(measured.miou)
    labelled = drive._replace(labels=mask.byte().expand(3, -1, -1).clone())
    assert measure(student, [labelled], host_only=True).miou > 50


def state(value: float) -> dict[str, Tensor]:
    return {"w2": torch.full((2,), value)}


def agreement(static: float, moving: float) -> Agreement:
    return Agreement(80.0, static, moving, math.nan)


def test_the_guard_keeps_the_best_state_and_stops_when_the_targets_are_left() -> None:
    guard = Guard(agreement(2.0, 2.0))
    assert guard.check(0, agreement(2.0, 2.0), state(0))
    assert guard.check(10, agreement(1.5, 0.5), state(1))
    for step in range(11, 10 + PATIENCE):
        assert guard.check(step, agreement(1.5, 0.7), state(2))
    assert not guard.check(20, agreement(0.2, 2.1), state(2))
    assert guard.kept == 10 and guard.checks[20].moving == 2.1
    final = state(3)
    guard.restore(final)
    assert final["w2"].tolist() == [1, 1]


def test_of_equal_states_the_latest_is_kept_but_the_guard_does_not_drift() -> None:
    guard = Guard(agreement(2.0, 2.0))
    for step, value in enumerate((2.0, 1.0, 1.09, 1.11)):
        guard.check(step, agreement(value, value), state(step))
    assert guard.kept == 2


def test_the_guard_refuses_a_smear_that_only_static_pixels_gain_from() -> None:
    guard = Guard(agreement(static=4.0, moving=1.0))
    guard.check(0, agreement(4.0, 1.0), state(0))
    guard.check(1, agreement(1.0, 1.2), state(1))
    assert guard.kept == 0
    guard.check(2, agreement(1.0, 1.05), state(2))
    assert guard.kept == 2


# The whole


def weights(network: VideoCNN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_adaptation_trains_netwarp_alone_and_makes_a_noisy_drive_steadier(model: Model, tmp_path: Path) -> None:
    before, output = weights(model.network), tmp_path / "new" / "adapted.safetensors"
    report = adapt(model, [Recording(moving(30))], output, config(steps=40))
    assert (report.trained, report.checked, report.labelled) == (24, 6, 0)
    assert report.kept > 0 and max(report.checks) <= 40
    untrained, host = report.checks[0], report.host  # w2 = 0: the video CNN equals its host
    assert (untrained.consistency, untrained.disagreement) == (host.consistency, host.disagreement)
    assert report.adapted.consistency > report.host.consistency + 3
    assert report.adapted.disagreement < report.host.disagreement

    assert all(value.equal(before[name]) for name, value in model.network.state_dict().items())
    adapted = load_model(output)
    after = weights(adapted.network)
    assert all(after[name].equal(value) for name, value in before.items() if name.startswith("host."))
    assert after["netwarps.0.w2"].abs().max() > 0.01
    assert not after["flow_cnn.conv4.weight"].equal(before["flow_cnn.conv4.weight"])
    assert adapted.spec.notes["netwarp"] == "adapted without labels to 24 frames"
    assert adapted.spec.notes["miou"] == SPEC.notes["miou"]


def test_the_same_seed_gives_the_same_weights_and_an_earlier_model_is_replaced(model: Model, tmp_path: Path) -> None:
    output, states = tmp_path / "adapted.safetensors", []
    for seed in (1, 1, 2):
        adapt(model, [Recording(moving(12))], output, config(steps=4, seed=seed))
        states.append(weights(load_model(output).network))
    assert all(states[0][name].equal(states[1][name]) for name in states[0])
    assert not all(states[0][name].equal(states[2][name]) for name in states[0])


def test_if_no_state_is_better_the_model_stays_as_it_was(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adaptation, "clip_loss", lambda student, clips: student.network.netwarps[0].w2.sum())
    report = adapt(model, [Recording(moving(12))], tmp_path / "adapted.safetensors", config(steps=100))
    assert report.kept == 0 and max(report.checks) == 10 * PATIENCE  # one of ten comparisons every ten steps
    after = weights(load_model(tmp_path / "adapted.safetensors").network)
    assert all(after[name].equal(value) for name, value in weights(model.network).items())


def test_labels_are_used_and_scored(model: Model, tmp_path: Path) -> None:
    label = np.full((HEIGHT, WIDTH), 2, np.uint8)
    recording = Recording(moving(12), lambda frame: label if frame.index % 2 else None)
    report = adapt(model, [recording], tmp_path / "adapted.safetensors", config(steps=30))
    assert report.labelled == 5  # the sixth is on a frame that was kept out
    assert not np.isnan(report.host.miou)
    note = load_model(tmp_path / "adapted.safetensors").spec.notes["netwarp"]
    assert note == "adapted with 5 label maps to 9 frames"


def test_an_image_cnn_is_refused_with_a_hint(model: Model, tmp_path: Path) -> None:
    spec = replace(SPEC, netwarp=None)
    image_cnn = Model(build(spec).eval(), spec, "plain")
    with pytest.raises(ValueError, match="plain is an image CNN: insert NetWarp first, by `netwarp insert plain"):
        adapt(image_cnn, [Recording(moving(12))], tmp_path / "adapted.safetensors", config())


def test_files_that_are_no_models_are_not_overwritten(model: Model, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.safetensors"
    precious.write_text("chapter 1")
    with pytest.raises(FileExistsError, match="thesis.safetensors exists already"):
        adapt(model, [Recording(moving(12))], precious, config())
    assert precious.read_text() == "chapter 1"
    with pytest.raises(ValueError, match=r"adapted\.pt does not end in \.safetensors"):
        adapt(model, [Recording(moving(12))], tmp_path / "adapted.pt", config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 0}, "steps"), ({"clip": 1}, "clip"), ({"frames": 5}, "frames"), ({"precision": "int8"}, "precision")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**settings)


# The command


def test_the_command_adapts_to_a_folder_and_prints_what_changed(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels, output = tmp_path / "drive", tmp_path / "labels", tmp_path / "adapted.safetensors"
    for folder in (images, labels):
        folder.mkdir()
    for t in range(12):
        cv2.imwrite(str(images / f"{t:03d}.png"), texture(t, 20))
    cv2.imwrite(str(labels / "001.png"), np.full((HEIGHT, WIDTH), 2, np.uint8))
    assert model.file is not None
    arguments = ("adapt", model.file, images, "-o", output, "--steps", 4, "--precision", "float32")
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "3 frames that were kept out; 9 were trained on" in printed and "temporal consistency" in printed
    assert "mean IoU" not in printed and str(output) in printed

    assert run(*arguments, "--labels", labels) == 0
    assert "mean IoU" in capsys.readouterr().out

    assert run(*arguments, "--labels", labels, "--labels", labels) == 2
    assert "--labels is given 2 times for 1 recordings" in capsys.readouterr().err
    assert run("adapt", "swiftnet-lite0-camvid", images, "-o", output) == 2
    assert "netwarp insert" in capsys.readouterr().err
    assert run(*arguments, "--clip", 1) == 2
    assert "clip" in capsys.readouterr().err
