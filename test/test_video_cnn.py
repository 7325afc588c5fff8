# SPDX-License-Identifier: Apache-2.0
"""`augment` and the video CNNs it makes, on four different kinds of host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from netwarp_ros import ops
from netwarp_ros.models import Memory, VideoCNN, augment
from netwarp_ros.models.hosts import DDRNet23Slim
from netwarp_ros.models.netwarp import EPSILON
from netwarp_ros.models.video_cnn import map_sizes

SIZE = (64, 96)


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 11, 1),
    )


def segformer() -> nn.Module:
    transformers = pytest.importorskip(
        "transformers", reason="no transformers, which has SegFormer: pip install transformers"
    )
    config = transformers.SegformerConfig(
        num_labels=11, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32], decoder_hidden_size=16,
        num_attention_heads=[1, 2, 3, 4],
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def ddrnet() -> nn.Module:
    return DDRNet23Slim(num_classes=11)


class Skipping(nn.Module):
    """A host with two branches that modifies a layer's output in place and uses it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=4, padding=1)
        self.branch = nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, frame: Tensor) -> dict[str, Tensor]:
        z = self.stem(frame)
        z.relu_()
        return {"out": self.head(self.branch(z) + z)}


Case = tuple[Callable[[], nn.Module], list[str]]
HOSTS: dict[str, Case] = {
    "sequential": (sequential, ["0", "3"]),
    "ddrnet": (ddrnet, ["high4", "fusion"]),
    "segformer": (segformer, ["segformer.stages.0.patch_embeddings.proj", "decode_head.batch_norm"]),
    "skipping": (Skipping, ["stem"]),
}


def logits_of(output: Any) -> Tensor:
    """Return the logits in the output of any of these hosts."""
    if isinstance(output, Tensor):
        return output
    return output["out"] if isinstance(output, dict) and "out" in output else output.logits


def frames(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, *SIZE, generator=generator) for _ in range(count)]


def flows(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [3 * torch.randn(1, 2, *SIZE, generator=generator) for _ in range(count)]


def with_blend(video_cnn: VideoCNN) -> VideoCNN:
    """Set the combination weights so that the previous frame has an effect."""
    for netwarp in video_cnn.netwarps:
        nn.init.constant_(netwarp.w1, 0.6)
        nn.init.constant_(netwarp.w2, 0.4)
    return video_cnn


def run(video_cnn: Callable[..., tuple[Any, Memory]], sequence: list[Tensor], motion: list[Tensor]) -> list[Tensor]:
    memory, outputs = None, []
    for frame, flow in zip(sequence, motion, strict=True):
        output, memory = video_cnn(frame, flow, memory)
        outputs.append(logits_of(output))
    return outputs


@pytest.fixture(params=HOSTS)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    return HOSTS[request.param]


def test_untrained_video_cnn_equals_its_host_bit_for_bit(case: Case) -> None:
    make, layers = case
    host = make().eval()
    sequence = frames(3)
    with torch.no_grad():
        alone = [logits_of(copy.deepcopy(host)(frame)) for frame in sequence]
        together = run(augment(host, layers), sequence, flows(3))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)


def test_previous_frame_has_an_effect_if_w2_is_not_zero(case: Case) -> None:
    make, layers = case
    video_cnn = with_blend(augment(make().eval(), layers))
    first, second = frames(2)
    with torch.no_grad():
        _, usual = run(video_cnn, [first, second], flows(2))
        _, other = run(video_cnn, [frames(1, seed=9)[0], second], flows(2))
    assert not torch.allclose(usual, other)


def first_reaches_last(video_cnn: VideoCNN, length: int) -> bool:
    """Return whether the first of ``length`` frames has an effect on the output of the last."""
    sequence, motion = frames(length), flows(length)
    with torch.no_grad():
        last = run(video_cnn, sequence, motion)[-1]
        changed = run(video_cnn, [frames(1, seed=9)[0], *sequence[1:]], motion)[-1]
    return not torch.equal(last, changed)


def test_frame_before_the_previous_one_has_no_effect(case: Case) -> None:
    make, layers = case
    for layer in layers:
        video_cnn = with_blend(augment(make().eval(), [layer]))
        assert first_reaches_last(video_cnn, 2), layer
        assert not first_reaches_last(video_cnn, 3), layer


def test_each_further_layer_in_series_adds_one_frame() -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["0", "3"]))
    assert first_reaches_last(video_cnn, 3)
    assert not first_reaches_last(video_cnn, 4)


def test_remembering_after_the_blend_is_recursive(case: Case) -> None:
    make, layers = case
    assert first_reaches_last(with_blend(augment(make().eval(), layers[:1], remember="after")), 5)


@pytest.mark.parametrize("remember", ["before", "after"])
def test_host_that_works_in_place_does_not_change_the_memory(remember: str) -> None:
    """An in-place ReLU follows the layer, yet the memory has negative values."""
    video_cnn = with_blend(augment(Skipping().eval(), ["stem"], remember=remember))
    memory = None
    with torch.no_grad():
        for frame, flow in zip(frames(2), flows(2), strict=True):
            _, memory = video_cnn(frame, flow, memory)
            assert memory.representations["stem"].min() < 0


def test_dropout_in_place_in_training_does_not_change_the_memory() -> None:
    host = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(0.5, inplace=True), nn.Conv2d(4, 2, 1))
    video_cnn = augment(host.train(), ["0"])
    _, memory = video_cnn(frames(1)[0])
    assert (memory.representations["0"] == 0).float().mean() < 0.01


@pytest.mark.parametrize(("inplace", "copied"), [(True, True), (False, False)])
@pytest.mark.parametrize("remember", ["before", "after"])
def test_memory_is_a_copy_only_if_the_host_works_in_place(remember: Any, inplace: bool, copied: bool) -> None:
    host = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=inplace), nn.Conv2d(4, 2, 1)).eval()
    seen: list[int] = []
    host[1].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].data_ptr()))
    with torch.inference_mode():
        video_cnn = augment(host, ["0"], remember=remember).eval()
        seen.clear()
        _, memory = video_cnn(frames(1)[0])
        assert seen == [seen[0]] and (memory.representations["0"].data_ptr() != seen[0]) == copied


def test_gradient_reaches_the_previous_frames_layers(case: Case) -> None:
    make, layers = case
    video_cnn = with_blend(augment(make().eval(), layers))
    first, second = frames(2)
    first.requires_grad_()
    _, memory = video_cnn(first)
    for z in memory.representations.values():
        z.retain_grad()
    output, _ = video_cnn(second, flows(1)[0], memory)
    logits_of(output).square().sum().backward()
    assert first.grad is not None and first.grad.abs().sum() > 0
    for name, z in memory.representations.items():
        assert z.grad is not None and z.grad.abs().sum() > 0, name
    assert all(netwarp.w2.grad is not None and netwarp.w2.grad.abs().sum() > 0 for netwarp in video_cnn.netwarps)
    assert video_cnn.flow_cnn is not None and video_cnn.flow_cnn.conv4.weight.grad is not None


def test_detached_memory_stops_the_gradient() -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["3"]))
    first, second = frames(2)
    first.requires_grad_()
    _, memory = video_cnn(first)
    output, _ = video_cnn(second, flows(1)[0], memory.detach())
    output.sum().backward()
    assert first.grad is None


def test_streams_are_independent() -> None:
    """Two cameras with a memory each give, in turns, the same outputs as each camera alone."""
    video_cnn = with_blend(augment(sequential().eval(), ["3"]))
    left, right, motion = frames(4, seed=2), frames(4, seed=3), flows(4)
    with torch.no_grad():
        alone = run(video_cnn, left, motion), run(video_cnn, right, motion)
        memories: list[Memory | None] = [None, None]
        for t in range(4):
            for camera, sequence in enumerate((left, right)):
                output, memories[camera] = video_cnn(sequence[t], motion[t], memories[camera])
                assert torch.equal(output, alone[camera][t])


def test_a_batch_of_streams_equals_each_alone() -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["3"]))
    left, right, motion = frames(3, seed=2), frames(3, seed=3), flows(3)
    with torch.no_grad():
        both = [torch.cat(pair) for pair in zip(left, right, strict=True)]
        together = run(video_cnn, both, [flow.expand(2, -1, -1, -1) for flow in motion])
        torch.testing.assert_close(together[-1][:1], run(video_cnn, left, motion)[-1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together[-1][1:], run(video_cnn, right, motion)[-1], rtol=1e-4, atol=1e-5)


class Meeting(nn.Module):
    """The identity; once it has a barrier, it waits until as many threads are in it."""

    barrier: Barrier | None = None

    def forward(self, z: Tensor) -> Tensor:
        if self.barrier:
            self.barrier.wait(60)
        return z


def test_threads_share_a_network() -> None:
    """Four threads are between the insertion layers at the same time, each with a stream of its own."""
    meeting = Meeting()
    host = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), meeting, nn.Conv2d(8, 8, 3, padding=1), meeting)
    video_cnn = with_blend(augment(host.eval(), ["0", "2"], flow_grid="features"))
    streams = [(frames(4, seed=seed), flows(4, seed=seed)) for seed in range(4)]
    with torch.no_grad():
        alone = [run(video_cnn, *stream) for stream in streams]
    meeting.barrier = barrier = Barrier(len(streams))

    @torch.no_grad()
    def stream_in_thread(stream: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
        try:
            return run(video_cnn, *stream)
        except RuntimeError:
            barrier.abort()  # do not let the others wait
            raise

    with ThreadPoolExecutor(len(streams)) as threads:
        together = list(threads.map(stream_in_thread, streams))
    for outputs, expected in zip(together, alone, strict=True):
        assert all(torch.equal(*pair) for pair in zip(outputs, expected, strict=True))


class FirstFrames(nn.Module):
    """An image CNN that runs a video CNN on each frame as a first one."""

    def __init__(self, video_cnn: VideoCNN) -> None:
        super().__init__()
        self.video_cnn = video_cnn

    def forward(self, frame: Tensor) -> Tensor:
        logits: Tensor = self.video_cnn(frame)[0]
        return logits


def test_a_host_may_contain_a_video_cnn() -> None:
    host = sequential().eval()
    expected = run(with_blend(augment(copy.deepcopy(host), ["3"])), frames(2), flows(2))
    outer = with_blend(augment(FirstFrames(with_blend(augment(host, ["0", "3"]))), ["video_cnn.host.3"]))
    assert all(torch.equal(*pair) for pair in zip(run(outer, frames(2), flows(2)), expected, strict=True))


def test_host_by_itself_is_still_the_image_cnn() -> None:
    host = sequential().eval()
    frame = frames(1)[0]
    with torch.no_grad():
        before = host(frame)
        with_blend(augment(host, ["3"]))
        assert torch.equal(host(frame), before)
    assert set(host.state_dict()) == set(sequential().state_dict())


def test_a_copy_is_independent() -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["3"]))
    twin = copy.deepcopy(video_cnn)
    nn.init.zeros_(twin.netwarps[0].w1)
    sequence, motion = frames(2), flows(2)
    with torch.no_grad():
        assert not torch.allclose(run(twin, sequence, motion)[-1], run(video_cnn, sequence, motion)[-1])


@pytest.mark.parametrize("blend", ["netwarp", "gated", "concatenation"])
@pytest.mark.parametrize("remember", ["before", "after"])
@pytest.mark.parametrize("flow_grid", ["image", "features", "first"])
def test_parts_of_a_frame_give_the_frame(flow_grid: str, remember: str, blend: str) -> None:
    torch.manual_seed(0)
    network = augment(sequential(), ["0", "3"], flow_grid=flow_grid, remember=remember, blend=blend).eval()
    for parameter in (*network.netwarps.parameters(), *(network.gate.conv2.parameters() if network.gate else ())):
        nn.init.normal_(parameter)
    (first, second), (flow, _) = frames(2), flows(2)
    with torch.no_grad():
        _, memory = network(first)
        expected, expected_memory = network(second, flow, memory)
        _, representations = network.step(first, None)
        sizes = map_sizes(representations)
        previous, present = (network.frames_for_flow(frame, sizes) for frame in (first, second))
        on_grids = network.flow_on_grids(flow, SIZE, sizes)
        along, gates = network.transform_flow(on_grids, SIZE, present, previous, sizes)
        warped = {name: ops.warp(z, along[name] + EPSILON) for name, z in representations.items()}
        output, representations = network.step(second, warped, gates)
    torch.testing.assert_close(logits_of(output), logits_of(expected))
    for name, z in expected_memory.representations.items():
        torch.testing.assert_close(representations[name], z)
    assert all(torch.equal(present[grid], frame) for grid, frame in expected_memory.frames.items())


def test_torch_compile_takes_a_whole_video_cnn() -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["0", "3"]))
    sequence, motion = frames(3), flows(3)
    with torch.no_grad():
        expected = run(video_cnn, sequence, motion)
        compiled = run(torch.compile(video_cnn, backend="eager"), sequence, motion)
    for pair in zip(compiled, expected, strict=True):
        torch.testing.assert_close(*pair)


def test_one_flow_cnn_is_shared_by_all_layers() -> None:
    video_cnn = augment(sequential(), ["0", "3"])
    parameters = sum(p.numel() for p in video_cnn.parameters()) - sum(p.numel() for p in video_cnn.host.parameters())
    assert parameters == 6892 + 2 * 8 + 2 * 16


@pytest.mark.parametrize("flow_grid", ["image", "features", "first"])
def test_constant_motion_is_compensated(flow_grid: str) -> None:
    """Scene moves by 8 pixels, stride 4, w1 = 0 and w2 = 1: the warped past equals the present."""
    host = nn.Sequential(nn.Conv2d(3, 5, 4, stride=4), nn.Identity())
    video_cnn = augment(host, ["0"], flow_grid=flow_grid)
    nn.init.zeros_(video_cnn.netwarps[0].w1)
    nn.init.ones_(video_cnn.netwarps[0].w2)
    past = frames(1)[0]
    present = torch.roll(past, 8, dims=3)
    flow = torch.zeros(1, 2, *SIZE)
    flow[:, 0] = -8
    with torch.no_grad():
        expected = host(present)
        _, memory = video_cnn(past)
        output, _ = video_cnn(present, flow, memory)
    torch.testing.assert_close(output[..., 2:], expected[..., 2:], atol=2e-3, rtol=0)


def test_flow_is_estimated_once_after_the_first_insertion_layer() -> None:
    host = sequential().eval()
    video_cnn = with_blend(augment(host, ["3", "5"]))
    events: list[str] = []
    for name in ("0", "3", "4"):
        host[int(name)].register_forward_pre_hook(lambda _module, _inputs, name=name: events.append(name))
    (first, second), flow = frames(2), flows(1)[0]

    def estimate() -> Tensor:
        events.append("flow")
        return flow

    with torch.no_grad():
        _, memory = video_cnn(first, estimate)
        assert events == ["0", "3", "4"], "a first frame needs no flow"
        events.clear()
        output, _ = video_cnn(second, estimate, memory)
        assert events == ["0", "3", "flow", "4"]
        assert torch.equal(output, video_cnn(second, flow, memory)[0])
        with pytest.raises(ValueError, match=r"flow is \(1, 1, 64, 96\), expected \(1, 2, h, w\)"):
            video_cnn(second, lambda: flow[:, :1], memory)


@pytest.mark.parametrize(
    ("flow_grid", "grids"), [("image", [(64, 96)]), ("features", [(32, 48), (16, 24)]), ("first", [(32, 48)])]
)
def test_flow_cnn_works_once_on_each_of_its_grids(flow_grid: Any, grids: list[tuple[int, int]]) -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["0", "2", "3"], flow_grid=flow_grid))
    seen: list[tuple[int, int]] = []
    assert video_cnn.flow_cnn is not None
    video_cnn.flow_cnn.register_forward_hook(lambda _module, _inputs, flow: seen.append(tuple(flow.shape[2:])))
    run(video_cnn, frames(2), flows(2))
    assert seen == grids


def test_concatenation_replaces_netwarp(case: Case) -> None:
    make, layers = case
    host = make().eval()
    sequence, motion = frames(2), flows(2)
    with torch.no_grad():
        alone = [logits_of(copy.deepcopy(host)(frame)) for frame in sequence]
        video_cnn = augment(host, layers, blend="concatenation")
        torch.testing.assert_close(run(video_cnn, sequence, motion)[-1], alone[-1])
        for blend in video_cnn.netwarps:
            nn.init.constant_(blend.combine.weight, 0.1)
        assert not torch.allclose(run(video_cnn, sequence, motion)[-1], alone[-1])


def test_flow_cnn_can_be_left_out() -> None:
    assert augment(sequential(), ["3"], flow_cnn=False).flow_cnn is None


def test_half_precision_host_keeps_the_flow_in_float32() -> None:
    video_cnn = with_blend(augment(sequential().eval(), ["3"], flow_grid="features"))
    sequence, motion = frames(2), flows(2)
    with torch.no_grad():
        full = run(video_cnn, sequence, motion)[-1]
        video_cnn.host.to(torch.bfloat16)
        half = run(video_cnn, [frame.bfloat16() for frame in sequence], motion)[-1]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.05, rtol=0.05)


def test_augment_does_not_change_the_hosts_weights_and_modes() -> None:
    host = sequential()
    host[1].eval()
    state = copy.deepcopy(host.state_dict())
    augment(host, ["3"])
    assert host.training and not host[1].training
    assert all(torch.equal(value, host.state_dict()[name]) for name, value in state.items())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["fuison"], "no layer 'fuison': did you mean 'fusion'"),
        ([], "name at least one layer"),
        (["fusion", "fusion"], "each once"),
        ("fusion", r"give a list of names, such as \['fusion'\]"),
        ([""], "no layer ''"),
    ],
)
def test_wrong_layers_are_named(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment(ddrnet(), layers)


def test_layer_without_a_feature_map_is_refused() -> None:
    host = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten())
    with pytest.raises(ValueError, match=r"layer '1' gives \(1, 61440\)"):
        augment(host, ["1"])


def test_layer_that_runs_twice_is_refused() -> None:
    shared = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="layer '0' ran 2 times"):
        augment(nn.Sequential(shared, nn.ReLU(), shared), ["0"])


@pytest.mark.parametrize("option", [{"flow_grid": "pixel"}, {"remember": "never"}, {"blend": "sum"}])
def test_wrong_options_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(option))} is '{next(iter(option.values()))}': choose one of"):
        augment(sequential(), ["3"], **option)


def test_wrong_inputs_are_named() -> None:
    video_cnn = augment(sequential().eval(), ["3"])
    frame, flow = frames(1)[0], flows(1)[0]
    _, memory = video_cnn(frame)
    with pytest.raises(ValueError, match=r"frame is \(3, 64, 96\)"):
        video_cnn(frame[0])
    with pytest.raises(ValueError, match="memory needs a flow"):
        video_cnn(frame, None, memory)
    with pytest.raises(ValueError, match=r"flow is \(2, 64, 96\), expected \(1, 2, h, w\)"):
        video_cnn(frame, flow[0], memory)
    with pytest.raises(ValueError, match="flow is torch.float64"):
        video_cnn(frame, flow.double(), memory)
    with pytest.raises(ValueError, match=r"memory is of \(1, 3, 64, 96\)"):
        video_cnn(frame[..., :32], flow[..., :32], memory)
    with pytest.raises(ValueError, match="memory is of layers"):
        augment(sequential(), ["0"])(frame, flow, memory)
