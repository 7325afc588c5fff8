# SPDX-License-Identifier: Apache-2.0
"""Masks against plain NumPy: confidence, thresholds, label maps, sizes, and the ego mask."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from test_segmenter import CAMVID, SECOND, host, images, segmenter

from netwarp_ros.classes import LabelMap
from netwarp_ros.models import Inference, Model, ModelSpec, augment
from netwarp_ros.models.spec import InputSize
from netwarp_ros.segmenter import Confidence, MemoryState, Segmenter

LABELS = LabelMap(
    name="half",
    classes={"name": "half", "classes": [{"name": "unused"}, {"name": "up"}, {"name": "down"}]},  # type: ignore[arg-type]
    map={"up": CAMVID.names[:2], "down": CAMVID.names[2:4]},
    void=CAMVID.names[4:],
)
TABLE = np.array([1, 1, 2, 2] + [255] * 252, np.uint8)


def scores_of(one: Segmenter, image: np.ndarray) -> np.ndarray:
    """Return the scores of a first frame, ``(K, h, w)``."""
    frame = torch.from_numpy(cv2.cvtColor(one.frames.frame(image), cv2.COLOR_BGR2RGB)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return one.engine(frame, None, None)[0][0].float().numpy()


def greatest_softmax(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(scores.astype(np.float64) / temperature)
    return (powers / powers.sum(0)).max(0)


def bilinear(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Interpolate ``(h, w)`` to a size, with half-pixel centers and the border repeated."""
    result = values
    for axis, length in enumerate(size):
        place = np.clip((np.arange(length) + 0.5) * values.shape[axis] / length - 0.5, 0, values.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high, weight = np.minimum(low + 1, values.shape[axis] - 1), place - low
        weight = weight[:, None] if axis == 0 else weight
        result = np.take(result, low, axis) * (1 - weight) + np.take(result, high, axis) * weight
    return result


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    return values[rows][:, columns]


@pytest.mark.parametrize("temperature", [0.05, 0.2])
@pytest.mark.parametrize("size", [(48, 64), (96, 128), (31, 50)])
def test_the_confidence_is_the_greatest_softmax(temperature: float, size: tuple[int, int]) -> None:
    one, (image,) = segmenter(), images(1, *size)
    one.confidence = Confidence(temperature)
    result = one.stream().segment(image, SECOND, confidence=True)
    expected = bilinear(255 * greatest_softmax(scores_of(one, image), temperature), one.frames.scaled(size))
    assert result.confidence is not None and result.confidence.dtype == np.uint8
    assert result.confidence.shape == result.mask.shape == size
    assert np.abs(result.confidence - nearest(expected, size)).max() <= 1.1
    assert np.ptp(result.confidence) > 10  # a constant would prove nothing


def test_without_need_no_confidence_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, (image,) = segmenter(), images(1)
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda *arguments: pytest.fail("computed"))
    assert one.stream().segment(image, SECOND).confidence is None
    one.confidence = Confidence(2.0)
    assert one.stream().segment(image, SECOND).confidence is None


def test_the_confidence_of_windows_is_that_of_their_mean_probability() -> None:
    one, (image,) = segmenter(inference=Inference(32, flip=True)), images(1, 48, 64)
    probabilities = one.infer(one.upload(image))[0][0].numpy()
    for temperature in (1.0, 2.0):
        one.confidence = Confidence(temperature)
        result = one.stream().segment(image, SECOND, confidence=True)
        powers = probabilities ** (1 / temperature)
        assert result.confidence is not None
        assert np.abs(result.confidence - 255 * (powers / powers.sum(0)).max(0)).max() <= 1
        assert np.array_equal(result.mask, probabilities.argmax(0))


def test_below_the_threshold_of_its_class_a_pixel_has_no_class() -> None:
    one, (image,) = segmenter(), images(1)
    plain = one.stream().segment(image, SECOND, confidence=True)
    assert plain.confidence is not None
    present = np.unique(plain.mask)
    assert len(present) > 1
    threshold = float(np.median(plain.confidence[plain.mask == present[0]])) / 255
    one.confidence = Confidence(1.0, {CAMVID.names[present[0]]: threshold})
    result = one.stream().segment(image, SECOND, confidence=True)
    unsure = (plain.mask == present[0]) & (plain.confidence < 255 * threshold)
    assert 0 < unsure.sum() < (plain.mask == present[0]).sum()
    assert np.array_equal(result.mask, np.where(unsure, 255, plain.mask))
    assert np.array_equal(result.confidence, np.where(unsure, 0, plain.confidence))
    assert np.array_equal(one.stream().segment(image, SECOND).mask, result.mask)  # also if nobody asks for it
    assert one.confidence.least(CAMVID) == 0.0
    assert Confidence(1.0, dict.fromkeys(CAMVID.names, 0.3)).least(CAMVID) == 0.3


@pytest.mark.parametrize(
    ("temperature", "thresholds", "problem"),
    [
        (0.0, {}, "temperature is 0.0: give a number > 0"),
        (1.0, {"road": 1.5}, "the threshold of 'road' is 1.5: give 0 to 1"),
        (1.0, {"raod": 0.5}, "there is a threshold of 'raod', which is no class of camvid: give some of sky, building"),
    ],
)
def test_wrong_confidences_are_refused(temperature: float, thresholds: dict[str, float], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        segmenter().confidence = Confidence(temperature, thresholds)


@pytest.mark.parametrize("mask_size", ["image", "network", "32x17"])
@pytest.mark.parametrize("size", [(48, 64), (96, 130)])
def test_a_label_map_is_a_table_and_masks_have_the_size_that_is_asked_for(
    mask_size: str, size: tuple[int, int]
) -> None:
    plain, mapped = segmenter(mask_size="network"), segmenter(label_map=LABELS, mask_size=mask_size)
    assert mapped.classes == LABELS.classes
    streams = plain.stream(), mapped.stream()
    for index, image in enumerate(images(3, *size)):
        masks = [stream.segment(image, index * SECOND // 10).mask for stream in streams]
        sizes = {"image": size, "network": plain.frames.scaled(size), "32x17": (17, 32)}
        expected = TABLE[masks[0]]
        assert masks[1].shape == sizes[mask_size]
        assert np.array_equal(masks[1], nearest(expected, sizes[mask_size]))
        assert len(np.unique(expected)) > 1


def test_thresholds_are_of_the_classes_that_masks_have() -> None:
    one, (image,) = segmenter(label_map=LABELS), images(1)
    one.confidence = Confidence(1.0, {"up": 1.0})
    mask = one.stream().segment(image, SECOND).mask
    plain = TABLE[segmenter().stream().segment(image, SECOND).mask]
    assert (plain == 1).any() and np.array_equal(mask, np.where(plain == 1, 255, plain))


@pytest.mark.parametrize("text", ["", "Network", "0x5", "640", "640x480x3", "99999x10", "-1x4"])
def test_wrong_mask_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"mask_size is '{text}': give image, network, or WIDTHxHEIGHT"):
        segmenter(mask_size=text)


EGO = np.zeros((24, 32), np.uint8)
EGO[15:, 6:27] = 1
EGO[:4, 28:] = 255


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (40, 53)])
@pytest.mark.parametrize("multiple", [1, 32])
@pytest.mark.parametrize("remember", ["before", "after"])
def test_what_the_ego_mask_covers_changes_nothing_elsewhere(
    size: tuple[int, int], multiple: int, remember: Any
) -> None:
    """With memory and flow: noise and black below the mask give the same masks, and they differ without it."""
    one = network(remember, multiple)
    covered = nearest(EGO, size) > 0
    random = np.random.default_rng(3)
    sequence = images(4, *size)
    masks: dict[str, list[np.ndarray]] = {}
    for content in ("noise", "black"):
        for ego in (EGO, None):
            stream, key = one.stream(ego_mask=ego), f"{content} {ego is not None}"
            for index, image in enumerate(sequence):
                shown = image.copy()
                shown[covered] = random.integers(0, 256, (covered.sum(), 3)) if content == "noise" else 0
                result = stream.segment(shown, index * SECOND // 10, confidence=True)
                assert result.memory == (MemoryState.KEPT if index else MemoryState.NEW)
                assert result.confidence is not None
                if ego is not None:
                    assert (result.mask[covered] == 255).all() and not result.confidence[covered].any()
                    assert (result.mask[~covered] != 255).all()
                masks.setdefault(key, []).append(np.where(covered, 0, result.mask))
    for noise, black in zip(masks["noise True"], masks["black True"], strict=True):
        assert np.array_equal(noise, black)
    assert any(not np.array_equal(*pair) for pair in zip(masks["noise False"], masks["black False"], strict=True))


def network(remember: Any, multiple: int, engine: str = "torch") -> Segmenter:
    video = augment(host(), ["0"], flow_grid="features", remember=remember)
    torch.nn.init.constant_(video.netwarps[0].w2, 0.8)
    spec = ModelSpec(
        host="ddrnet23slim",
        classes=CAMVID,
        host_arguments={"num_classes": 5},
        input_height=48,
        input_size=InputSize(multiple=multiple),
    )
    return Segmenter(Model(video, spec, "test"), precision="float32", engine=engine)


def test_covered_pixels_do_not_flow_into_the_blend() -> None:
    """Their w2 is 0 (paper, Eq. 2): a pixel whose flow leads below the mask is w1 ⊙ z_t, as NumPy computes it."""
    one = network("before", 1)
    w1, w2 = (parameter.detach().numpy()[:, None, None] for parameter in one.network.netwarps[0].parameters())
    covered, outputs = np.zeros((48, 64), bool), []
    covered[:, :32] = True
    one.network.host[1].register_forward_hook(lambda module, inputs, output: outputs.append(inputs[0][0].numpy()))
    stream, (first, second) = one.stream(ego_mask=covered), images(2)
    flow = np.zeros((48, 64, 2), np.float32)
    flow[:, 40:48, 0] = -24.0  # from the right half to the left one, by six cells of the features
    stream.segment(first, SECOND)
    memory = stream._previous.memory.representations["0"][0].numpy()  # type: ignore[union-attr]
    assert not memory[..., :8].any() and memory[..., 8:].any()
    one.network.flow_cnn = None
    stream.segment(second, SECOND + SECOND // 10, flow=flow)
    painted = second.copy()
    painted[covered] = [round(255 * value) for value in reversed(one.model.spec.mean)]
    alone = segmenter_outputs(painted)
    blended = outputs[-1]
    assert np.allclose(blended[..., 10:12], w1 * alone[..., 10:12], atol=1e-5)
    assert np.allclose(blended[..., 13:], w1 * alone[..., 13:] + w2 * memory[..., 13:], atol=1e-3)
    assert not np.allclose(blended[..., 13:], w1 * alone[..., 13:], atol=1e-2)


def segmenter_outputs(image: np.ndarray) -> np.ndarray:
    """Return what the first layer gives for an image."""
    spec = ModelSpec(host="ddrnet23slim", classes=CAMVID, host_arguments={"num_classes": 5}, input_height=48)
    rgb = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        return host()[0](((rgb - mean) / std)[None])[0].numpy()


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        (np.ones((4, 4), np.uint8), "the ego mask leaves out every pixel"),
        (np.zeros((4, 4, 3), np.uint8), r"the ego mask is \(4, 4, 3\) uint8: give \(h, w\) uint8 or bool"),
        (np.zeros((4, 4), np.float32), r"the ego mask is \(4, 4\) float32"),
        (np.zeros((0, 4), np.uint8), r"the ego mask is \(0, 4\) uint8"),
    ],
)
def test_wrong_ego_masks_are_refused(mask: np.ndarray, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        segmenter().stream(ego_mask=mask)


def test_an_ego_mask_needs_the_whole_frame() -> None:
    with pytest.raises(ValueError, match="an ego mask needs a network that sees the whole frame"):
        segmenter(inference=Inference(32)).stream(ego_mask=EGO)


def test_a_stream_with_an_ego_mask_continues_from_its_state() -> None:
    one, sequence = network("before", 32), images(4)
    whole = one.stream(ego_mask=EGO)
    expected = [whole.segment(image, index * SECOND // 10).mask for index, image in enumerate(sequence)]
    half = one.stream(ego_mask=EGO)
    for index, image in enumerate(sequence[:2]):
        half.segment(image, index * SECOND // 10)
    continued = one.stream(half.state(), ego_mask=EGO)
    for index, image in enumerate(sequence[2:], start=2):
        assert np.array_equal(continued.segment(image, index * SECOND // 10).mask, expected[index])
    assert any(not np.array_equal(*pair) for pair in pairwise(expected))


def test_a_label_map_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    names = "".join(f"\n    - {name}" for name in CAMVID.names)
    file.write_text(f"name: one\nclasses:\n  - name: anything\nmap:\n  anything:{names}\n")
    one, (image,) = segmenter(label_map=file), images(1)
    assert one.classes.names == ("anything",) and not one.stream().segment(image, SECOND).mask.any()
