# SPDX-License-Identifier: Apache-2.0
"""Flow by NVIDIA's hardware.

The first tests run on stand-ins for VPI and for OpenCV's CUDA module, which have the documented interface and complain
where the hardware would; DIS computes their flow. They do not show that the real libraries accept our calls: the last
test does, where there is hardware.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from test_flow import texture

from netwarp_ros.flow import DisFlow
from netwarp_ros.flow.nvidia import MAX_SESSIONS, NvidiaFlow

VPI, OPENCV = "VPI on the OFA", "OpenCV's NvidiaOpticalFlow_2_0"

Hardware = Callable[[np.ndarray, np.ndarray], np.ndarray]


def dis_on_blocks(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the flow from the image to the target, averaged over blocks of 4 pixels, in S10.5."""
    height, width = image.shape
    flow = cv2.resize(DisFlow("medium")(image, target), (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    return np.floor(flow * 32).astype(np.int16)


class FakeVpi(ModuleType):
    """VPI's Python package. Results of algorithms are there once the stream they were put into is synchronised."""

    Backend = Enum("Backend", "CPU CUDA VIC OFA")
    Format = Enum("Format", "Y8_ER Y8_ER_BL")
    OptFlowQuality = Enum("OptFlowQuality", "LOW MEDIUM HIGH")

    def __init__(self, hardware: Hardware) -> None:
        super().__init__("vpi")
        self.hardware = hardware
        self.streams: list[FakeStream] = []
        self.pyramids: list[FakePyramid] = []
        self.error: Exception | None = None

    def Stream(self) -> FakeStream:  # noqa: N802
        return FakeStream(self)

    def asimage(self, buffer: np.ndarray, format: Enum) -> FakeImage:
        assert buffer.flags.c_contiguous and buffer.dtype == np.uint8 and buffer.ndim == 2
        return FakeImage(buffer, format)

    def optflow_dense(
        self, ref: FakePyramid, frame: FakePyramid, *, quality: Enum = OptFlowQuality.HIGH, backend: Enum
    ) -> FakeMotion:
        """Measure the motion from `ref` to `frame`."""
        if self.error:
            raise self.error
        assert backend is self.Backend.OFA and quality is self.OptFlowQuality.MEDIUM
        for pyramid in (ref, frame):
            assert pyramid.format is self.Format.Y8_ER_BL
            assert min(pyramid.base.shape) >> (pyramid.levels - 1) >= 32 and 1 <= pyramid.levels <= 5
        self.pyramids += ref, frame
        motion = FakeMotion()
        self.streams[-1].queue.append(lambda: setattr(motion, "vectors", self.hardware(ref.base, frame.base)))
        return motion


class FakeStream:
    def __init__(self, vpi: FakeVpi) -> None:
        self.vpi, self.queue = vpi, list[Callable[[], None]]()

    def __enter__(self) -> None:
        self.vpi.streams.append(self)

    def __exit__(self, *_: object) -> None:
        self.vpi.streams.pop()

    def sync(self) -> None:
        while self.queue:
            self.queue.pop(0)()


class FakeImage:
    def __init__(self, pixels: np.ndarray, format: Enum) -> None:
        self.pixels, self.format = pixels, format

    def gaussian_pyramid(self, levels: int, *, backend: Enum) -> FakePyramid:
        assert backend is FakeVpi.Backend.CUDA
        return FakePyramid(self.pixels, levels, self.format)


class FakePyramid:
    def __init__(self, base: np.ndarray, levels: int, format: Enum) -> None:
        self.base, self.levels, self.format = base, levels, format

    def convert(self, format: Enum, *, backend: Enum) -> FakePyramid:
        assert backend is FakeVpi.Backend.VIC, "only the VIC writes block-linear images"
        return FakePyramid(self.base, self.levels, format)


class FakeMotion:
    vectors: np.ndarray | None = None

    @contextmanager
    def rlock_cpu(self) -> Iterator[np.ndarray]:
        assert self.vectors is not None, "the stream was not synchronised"
        yield self.vectors
        self.vectors.fill(-1)  # the buffer is used for something else


class FakeSession:
    """OpenCV's NvidiaOpticalFlow_2_0."""

    created: list[FakeSession]
    hardware: Hardware

    def __init__(self, **arguments: Any) -> None:
        self.arguments, self.freed = arguments, False
        self.hint: np.ndarray | int = 0

    @classmethod
    def create(
        cls,
        imageSize: tuple[int, int],  # noqa: N803
        perfPreset: int = 5,  # noqa: N803
        outputGridSize: int = 1,  # noqa: N803
        hintGridSize: int = 1,  # noqa: N803
        enableTemporalHints: bool = False,  # noqa: N803
        enableExternalHints: bool = False,  # noqa: N803
        enableCostBuffer: bool = False,  # noqa: N803
        gpuId: int = 0,  # noqa: N803
    ) -> FakeSession:
        if not all(32 <= side <= 8192 for side in imageSize):
            raise cv2.error("OpenCV(4.11.0)\n nvOFInit returned error 5:NV_OF_ERR_INVALID_PARAM\n")
        assert perfPreset in (5, 10, 20) and outputGridSize == 4
        assert not enableExternalHints and not enableCostBuffer
        cls.created.append(cls(size=imageSize, hints=enableTemporalHints, gpu=gpuId))
        return cls.created[-1]

    def calc(
        self,
        inputImage: np.ndarray,  # noqa: N803
        referenceImage: np.ndarray,  # noqa: N803
        flow: None,
    ) -> tuple[np.ndarray, None]:
        """Measure the motion from the input image to the reference image; the second result is the costs."""
        assert not self.freed and inputImage.shape[::-1] == referenceImage.shape[::-1] == self.arguments["size"]
        vectors = type(self).hardware(inputImage, referenceImage)
        found, self.hint = vectors + self.hint, vectors * self.arguments["hints"]
        return found.astype(np.int16), None

    def collectGarbage(self) -> None:  # noqa: N802
        self.freed = True


def without_vpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vpi", None)


def install_vpi(monkeypatch: pytest.MonkeyPatch, hardware: Hardware = dis_on_blocks) -> FakeVpi:
    vpi = FakeVpi(hardware)
    monkeypatch.setitem(sys.modules, "vpi", vpi)
    return vpi


def install_opencv(
    monkeypatch: pytest.MonkeyPatch, hardware: Hardware = dis_on_blocks, devices: int = 1, old_name: bool = False
) -> type[FakeSession]:
    kind = type("Session", (FakeSession,), {"created": [], "hardware": staticmethod(hardware)})
    if old_name:
        monkeypatch.setattr(cv2, "cuda_NvidiaOpticalFlow_2_0", kind, raising=False)
    else:
        monkeypatch.setattr(cv2.cuda, "NvidiaOpticalFlow_2_0", kind, raising=False)
    monkeypatch.setattr(cv2.cuda, "getCudaEnabledDeviceCount", lambda: devices)
    monkeypatch.setattr(cv2.cuda, "getDevice", lambda: 3)
    return kind


def install(monkeypatch: pytest.MonkeyPatch, backend: str, hardware: Hardware = dis_on_blocks) -> NvidiaFlow:
    """Return the estimator where only this backend is installed."""
    if backend == VPI:
        install_vpi(monkeypatch, hardware)
    else:
        without_vpi(monkeypatch)
        install_opencv(monkeypatch, hardware)
    nvidia = NvidiaFlow()
    assert nvidia.backend == backend
    return nvidia


both = pytest.mark.parametrize("backend", [VPI, OPENCV])


@both
def test_flow_points_from_present_to_previous(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """After a shift by 3 to the right and 2 down, the flow is 3 to the left and 2 up."""
    previous = texture()
    flow = install(monkeypatch, backend)(np.roll(previous, (2, 3), axis=(0, 1)), previous)
    assert flow.shape == (96, 128, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (-3, -2), atol=0.2)


@both
def test_the_hardware_is_given_the_present_frame_first(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    given: list[np.ndarray] = []

    def hardware(image: np.ndarray, target: np.ndarray) -> np.ndarray:
        given[:] = image, target
        return np.zeros((image.shape[0] // 4, image.shape[1] // 4, 2), np.int16)

    present, previous = texture(seed=1), texture(seed=2)
    install(monkeypatch, backend, hardware)(present, previous)
    np.testing.assert_array_equal(given, [present, previous])


@both
@pytest.mark.parametrize("grid", [1, 2, 4, 8])
def test_vectors_are_a_32nd_of_a_pixel_on_every_grid(monkeypatch: pytest.MonkeyPatch, backend: str, grid: int) -> None:
    def hardware(image: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.full((image.shape[0] // grid, image.shape[1] // grid, 2), (-48, 8), np.int16)

    flow = install(monkeypatch, backend, hardware)(texture(), texture())
    assert flow.shape == (96, 128, 2)
    assert (flow == (-1.5, 0.25)).all()


@both
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (31, 200), (64, 64), (65, 127), (360, 637)])
def test_vectors_lie_at_the_centres_of_their_blocks(
    monkeypatch: pytest.MonkeyPatch, backend: str, size: tuple[int, int]
) -> None:
    """If each block's vector is its own centre, each pixel's vector is its position, also where the size is odd."""

    def hardware(image: np.ndarray, target: np.ndarray) -> np.ndarray:
        height, width = image.shape
        assert height % 8 == width % 8 == 0 and min(height, width) >= 64
        x, y = np.meshgrid(np.arange(1.5, width, 4), np.arange(1.5, height, 4))
        return (32 * np.dstack([x, y])).astype(np.int16)

    flow = install(monkeypatch, backend, hardware)(texture(*size), texture(*size))
    height, width = size
    assert flow.shape == (height, width, 2)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    # Before the first block's centre and after the last one's, there is nothing to interpolate with.
    inner = (slice(2, height - 2), slice(2, width - 2))
    np.testing.assert_allclose(flow[inner], np.dstack([x, y])[inner], atol=1e-4)


@both
def test_small_images_are_padded_with_their_edges(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    seen: list[np.ndarray] = []

    def hardware(image: np.ndarray, target: np.ndarray) -> np.ndarray:
        seen[:] = [image]
        return np.zeros((image.shape[0] // 4, image.shape[1] // 4, 2), np.int16)

    nvidia, image = install(monkeypatch, backend, hardware), texture(30, 70)
    nvidia(image, image)
    np.testing.assert_array_equal(seen[0], np.pad(image, ((0, 34), (0, 2)), mode="edge"))


@both
def test_a_color_image_gives_the_flow_of_its_grey_one(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    frames = [cv2.merge([np.roll(texture(seed=s), shift, axis=1) for s in range(3)]) for shift in (2, 0)]
    nvidia = install(monkeypatch, backend)
    grey = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    np.testing.assert_array_equal(nvidia(*frames), nvidia(*grey))


@both
def test_a_result_depends_on_its_arguments_alone(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    first, second = texture(), np.roll(texture(), 3, axis=1)
    nvidia = install(monkeypatch, backend)
    alone = nvidia(second, first)
    for _ in range(2):
        nvidia(texture(seed=7), texture(seed=8))
        nvidia(texture(70, 90, seed=7), texture(70, 90, seed=8))
        np.testing.assert_array_equal(nvidia(second, first), alone)


def test_vpi_searches_a_pyramid_as_deep_as_the_image_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    vpi = install_vpi(monkeypatch)
    nvidia, levels = NvidiaFlow(), []
    for height, width in [(64, 640), (127, 127), (360, 640), (720, 1280), (2000, 2000)]:
        nvidia(texture(height, width), texture(height, width))
        levels.append(vpi.pyramids[-1].levels)
    assert levels == [2, 3, 4, 5, 5]


def test_opencv_makes_one_object_for_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its temporal hints are off, and it runs on the device that is in use, not on the first."""
    without_vpi(monkeypatch)
    kind, nvidia = install_opencv(monkeypatch), NvidiaFlow()
    for size in [(96, 128), (96, 128), (90, 121), (64, 72)]:  # the third is padded to the first
        nvidia(texture(*size), texture(*size))
    blank = {"size": (64, 64), "hints": False, "gpu": 3}
    assert [session.arguments for session in kind.created] == [
        blank,
        {**blank, "size": (128, 96)},
        {**blank, "size": (72, 64)},
    ]


def test_opencv_keeps_objects_for_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vpi(monkeypatch)
    kind, nvidia = install_opencv(monkeypatch), NvidiaFlow()
    for side in (80, 96, 112, 128, 144, 160, 80):
        nvidia(texture(side, side), texture(side, side))
    assert [session.freed for session in kind.created] == [True] * 4 + [False] * MAX_SESSIONS


def test_vpi_is_chosen_before_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    install_vpi(monkeypatch)
    kind = install_opencv(monkeypatch)
    assert NvidiaFlow().backend == VPI and not kind.created


def test_opencv_is_chosen_where_vpi_has_no_ofa(monkeypatch: pytest.MonkeyPatch) -> None:
    install_vpi(monkeypatch).error = RuntimeError("VPI_ERROR_INVALID_OPERATION: OFA is not available")
    install_opencv(monkeypatch)
    assert NvidiaFlow().backend == OPENCV


def test_opencv_has_two_names_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vpi(monkeypatch)
    install_opencv(monkeypatch, old_name=True)
    assert NvidiaFlow().backend == OPENCV


def test_without_hardware_the_error_says_what_was_tried_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vpi(monkeypatch)
    monkeypatch.delattr(cv2.cuda, "NvidiaOpticalFlow_2_0", raising=False)
    monkeypatch.delattr(cv2, "cuda_NvidiaOpticalFlow_2_0", raising=False)
    with pytest.raises(ValueError, match="no NVIDIA optical flow hardware in reach") as caught:
        NvidiaFlow()
    message = str(caught.value)
    assert re.search(rf"tried {VPI} \(.*vpi.*\) and {OPENCV} \(OpenCV {cv2.__version__} is built without it\)", message)
    assert "Install VPI and its Python package from JetPack" in message
    assert "an OpenCV built with WITH_CUDA and opencv_contrib; or choose the flow fast" in message


def test_an_opencv_without_the_cuda_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vpi(monkeypatch)
    monkeypatch.delattr(cv2, "cuda")
    with pytest.raises(ValueError, match="is built without it"):
        NvidiaFlow()


@pytest.mark.parametrize("devices", [0, -1])
def test_opencv_without_a_cuda_device_is_not_used(monkeypatch: pytest.MonkeyPatch, devices: int) -> None:
    """OpenCV counts -1 devices if the driver does not fit."""
    without_vpi(monkeypatch)
    kind = install_opencv(monkeypatch, devices=devices)
    with pytest.raises(ValueError, match=f"has it, but finds no CUDA device: its count is {devices}"):
        NvidiaFlow()
    assert not kind.created


def test_both_libraries_without_hardware_are_named_with_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def hardware(image: np.ndarray, target: np.ndarray) -> np.ndarray:
        raise cv2.error("OpenCV(4.11.0)\n NV_OF_ERR_UNSUPPORTED_DEVICE\n")

    install_vpi(monkeypatch).error = NotImplementedError()
    install_opencv(monkeypatch, hardware)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        NvidiaFlow()
    assert f"{VPI} (NotImplementedError)" in str(caught.value)
    assert f"{OPENCV} (OpenCV(4.11.0) NV_OF_ERR_UNSUPPORTED_DEVICE)" in str(caught.value)


def test_a_failure_names_vpi_and_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    vpi = install_vpi(monkeypatch)
    nvidia = NvidiaFlow()
    vpi.error = RuntimeError("VPI_ERROR_OUT_OF_MEMORY: no buffers")
    complaint = f"failed in {VPI}, on frames of 127x96: VPI_ERROR_OUT_OF_MEMORY: no buffers. .* choose the flow fast"
    with pytest.raises(RuntimeError, match=complaint):
        nvidia(texture(96, 127), texture(96, 127))
    vpi.error = None
    assert nvidia(texture(), texture()).shape == (96, 128, 2)


def test_a_failure_names_opencv_and_its_message(monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia, wide = install(monkeypatch, OPENCV), np.zeros((32, 8200), np.uint8)
    complaint = rf"failed in {OPENCV}, on frames of 8200x32: OpenCV\(4\.11\.0\) nvOFInit .* NV_OF_ERR_INVALID_PARAM"
    with pytest.raises(RuntimeError, match=complaint.replace(" NV", "5:NV")):
        nvidia(wide, wide)
    assert nvidia(texture(), texture()).shape == (96, 128, 2)


@both
def test_frames_of_another_shape_or_type_are_refused(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    nvidia = install(monkeypatch, backend)
    with pytest.raises(ValueError, match=r"previous is \(96, 127\)"):
        nvidia(texture(), texture(96, 127))
    with pytest.raises(ValueError, match="previous is .* float32"):
        nvidia(texture(), texture().astype(np.float32))


def test_the_real_hardware() -> None:
    try:
        nvidia = NvidiaFlow()
    except ValueError as error:
        pytest.skip(str(error))
    previous = texture(361, 637)
    present = np.roll(previous, (2, 3), axis=(0, 1))
    flow = nvidia(present, previous)
    assert flow.shape == (361, 637, 2) and flow.dtype == np.float32
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), (-3, -2), atol=0.3)
    nvidia(texture(361, 637, seed=7), texture(361, 637, seed=8))
    np.testing.assert_array_equal(nvidia(present, previous), flow)
    assert nvidia(texture(7, 9), texture(7, 9)).shape == (7, 9, 2)
