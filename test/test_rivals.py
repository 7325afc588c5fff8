# SPDX-License-Identifier: Apache-2.0
"""The paper's rivals: mean field against sums over all pairs of pixels, what is remembered, and the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from netwarp_ros import cli
from netwarp_ros.benchmarks import tables
from netwarp_ros.classes import load_classes
from netwarp_ros.engines import Engine
from netwarp_ros.models import Inference, Memory, Model, ModelSpec, NetWarpSpec, build, save_model
from netwarp_ros.models.hosts import HOSTS
from netwarp_ros.ops.lattice import Lattice
from netwarp_ros.rivals import RIVALS, open_rival
from netwarp_ros.rivals.dense_crf import CrfParameters, DenseCrf, Kernel, mean_field
from netwarp_ros.rivals.rival import PAST, Pixels, places, softmax
from netwarp_ros.rivals.vpn import Propagation, Vpn, load_propagation
from netwarp_ros.segmenter import Reset, Segmenter

CAMVID = load_classes("camvid")
SIZE = (12, 16)


class Host(Engine):
    """Returns given scores for each frame."""

    name, precision, device, normalisation = "given", "float32", torch.device("cpu"), None  # type: ignore[assignment]

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def __call__(self, frame: Tensor, flow: Any = None, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        return self.scores, Memory(tuple(frame.shape), {}, {})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def two_halves() -> Tensor:
    """A frame ``(1, 3, 24, 32)`` uint8, dark on the left and bright on the right."""
    frame = torch.full((1, 3, 24, 32), 40, dtype=torch.uint8)
    frame[..., 16:] = 200
    return frame


def noisy_scores(classes: int = 3) -> Tensor:
    """Scores ``(1, K, 12, 16)`` of class 0 on the left and 1 on the right, with so much noise that some are wrong."""
    scores = 2 * random(1, classes, *SIZE)
    scores[:, 0, :, :8] += 1.2
    scores[:, 1, :, 8:] += 1.2
    return scores


def right(scores: Tensor) -> float:
    """Return the part of the pixels that have the class of their half."""
    expected = torch.zeros(SIZE, dtype=torch.long)
    expected[:, 8:] = 1
    return float((scores[0].argmax(0) == expected).float().mean())


def test_mean_field_is_that_of_all_pairs_of_pixels() -> None:
    """The lattice is replaced by the exact kernel, so that only mean field itself is compared."""

    class AllPairs:
        """The vertices are the points, the blur is the kernel between all of them."""

        def __init__(self, kernel: Tensor, begin: int = 0, end: int | None = None) -> None:
            self.kernel, self.own = kernel, slice(begin, end)
            self.vertices = kernel[self.own]

        def splat(self, values: Tensor) -> Tensor:
            out = torch.zeros(len(self.kernel), values.shape[1])
            out[self.own] = values
            return out

        def blur(self, values: Tensor) -> Tensor:
            return self.kernel @ values

        def slice(self, values: Tensor) -> Tensor:
            return values[self.own]

    positions, scores = random(30, 3), random(20, 4, seed=1)
    earlier = softmax(random(10, 4, seed=2))
    kernel = torch.exp(-0.5 * torch.cdist(positions, positions) ** 2)
    sought: Any = AllPairs(kernel, 0, 20)
    others: Any = AllPairs(kernel, 20, 30)
    values = 0.5 * torch.cat((earlier, torch.ones(10, 1)), 1)
    found = mean_field(scores, [Kernel.of(2.0, sought, others, values)], 3)

    q = scores.double().softmax(1)
    factors = torch.cat((torch.ones(20), torch.full((10,), 0.5))).double()
    for _ in range(3):
        refined = torch.empty(20, 4).double()
        for i in range(20):
            weights = [float(kernel[i, j]) * float(factors[j]) for j in range(30)]
            everyone = torch.cat((q, earlier.double()))
            message = sum(weight * everyone[j] for j, weight in enumerate(weights)) / sum(weights)
            refined[i] = scores[i].double() + 2.0 * message
        q = refined.softmax(1)
    torch.testing.assert_close(found.double(), refined, rtol=1e-4, atol=1e-4)


def test_mean_field_on_the_lattice_is_nearly_exact() -> None:
    positions = torch.cat((places(SIZE) / 3, (places(SIZE)[:, :1] > 7.5).float() * 8), 1)
    scores = noisy_scores()[0].flatten(1).t().contiguous()
    lattice = Lattice.of(positions)
    found = softmax(mean_field(scores, [Kernel.of(2.0, lattice, lattice, None)], 5))
    kernel = torch.exp(-0.5 * torch.cdist(positions, positions) ** 2)
    refined = scores
    for _ in range(5):
        refined = scores + 2 * kernel @ refined.softmax(1) / kernel.sum(1, keepdim=True)
    assert (found - refined.softmax(1)).abs().max() < 0.02


def test_a_crf_corrects_noise_but_not_across_an_edge() -> None:
    host = Host(noisy_scores())
    rival = DenseCrf(host, "crf", CrfParameters(8.0, 0.5, 10.0, 0.0, 0.05))
    refined, memory = rival(two_halves())
    assert right(host.scores) < 0.95 and right(refined) == 1.0
    assert memory.representations == {} and rival.name == "given, crf"


def test_without_weights_a_crf_returns_the_hosts_scores() -> None:
    rival = DenseCrf(Host(noisy_scores()), "crf", CrfParameters(0.0, 0.5, 10.0, 0.0, 0.05, past=(1.0,)))
    refined, memory = rival(two_halves())
    torch.testing.assert_close(refined, rival.host(two_halves())[0])
    refined, _ = rival(two_halves(), torch.zeros(1, 2, *SIZE), memory)
    torch.testing.assert_close(refined, rival.host(two_halves())[0])


@pytest.mark.parametrize("kind", ["crf", "vpn"])
def test_earlier_frames_count_where_the_flow_leads(kind: str) -> None:
    """A frame without evidence gets the classes of the earlier one, moved by the flow: 4 pixels of the grid."""
    sure, unsure = 8 * torch.nn.functional.one_hot(torch.arange(16) // 8, 3).float(), torch.zeros(1, 3, *SIZE)
    host = Host(sure.t().view(1, 3, 1, 16).repeat(1, 1, 12, 1))
    parameters = CrfParameters(8.0, 0.1, 10.0, 0.0, 0.05, past=(8.0,))
    rival = DenseCrf(host, "crf", parameters) if kind == "crf" else Vpn(host, "vpn", Propagation(3))
    gray = torch.full((1, 3, 24, 32), 90, dtype=torch.uint8)
    _, memory = rival(gray)
    host.scores = unsure
    flow = torch.zeros(1, 2, *SIZE)
    flow[:, 0] = 4.0
    refined, _ = rival(gray, lambda: flow, memory)
    # The edge was between pixels 7 and 8; next to it, the kernel reaches over it.
    assert refined[0].argmax(0)[:, :3].eq(0).all() and refined[0].argmax(0)[:, 5:].eq(1).all()


def test_memory_holds_the_latest_frames_and_no_more() -> None:
    host = Host(noisy_scores())
    rival = DenseCrf(host, "crf", CrfParameters(1.0, 0.1, 10.0, 1.0, 0.05, past=(1.0, 1.0)))
    memory, flow = None, torch.zeros(1, 2, *SIZE)
    lengths, latest = [], []
    for shade in (10, 20, 30, 40):
        _, memory = rival(torch.full((1, 3, 24, 32), shade, dtype=torch.uint8), flow, memory)
        lengths.append(memory.representations[PAST].shape[1] // 7)
        latest.append([float(one.colors.mean()) for one in map(Pixels.of, memory.representations[PAST][0].split(7))])
    assert lengths == [1, 2, 2, 2] and latest[-1] == [40.0, 30.0]


def test_forgotten_pixels_do_not_count() -> None:
    """An ego mask sets what is remembered of a pixel to 0."""
    host = Host(noisy_scores())
    rival = DenseCrf(host, "crf", CrfParameters(4.0, 0.1, 10.0, 1.0, 0.05, past=(4.0,)))
    first, memory = rival(two_halves())
    forgotten = memory._replace(representations={PAST: torch.zeros_like(memory.representations[PAST])})
    again, _ = rival(two_halves(), torch.zeros(1, 2, *SIZE), forgotten)
    torch.testing.assert_close(again, first)


def test_what_does_not_fit_is_refused() -> None:
    rival = DenseCrf(Host(noisy_scores()), "crf", CrfParameters(1.0, 0.1, 10.0, 1.0, 0.05, past=(1.0,)))
    _, memory = rival(two_halves())
    with pytest.raises(ValueError, match=r"give a rival \(1, 3, H, W\) uint8"):
        rival(two_halves().float())
    with pytest.raises(ValueError, match="there is a memory, but no flow"):
        rival(two_halves(), None, memory)
    with pytest.raises(ValueError, match="reset it with None"):
        rival(two_halves()[..., :30], torch.zeros(1, 2, *SIZE), memory)
    with pytest.raises(ValueError, match="there is no rival 'crf': give densecrf, fso-crf, vpn"):
        open_rival("crf", rival.host, 11)
    with pytest.raises(ValueError, match="vpn was trained for 11 classes, the model has 19: choose another"):
        load_propagation(19)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setitem(HOSTS, "tiny", tiny.TinyHost)
    torch.manual_seed(0)
    spec = ModelSpec("tiny", CAMVID, {"num_classes": 11}, NetWarpSpec(("features",)), input_height=32)
    return Model(build(spec), spec, "tiny")


@pytest.mark.parametrize("rival", RIVALS)
def test_a_stream_keeps_restores_and_resets_a_rivals_memory(model: Model, rival: str) -> None:
    segmenter = Segmenter(model, engine="torch", precision="float32", rival=rival)
    images = np.random.default_rng(0).integers(0, 255, (4, 32, 48, 3), np.uint8)
    stream = segmenter.stream()
    results = [stream.segment(image, stamp + 1) for stamp, image in enumerate(images[:3])]
    copy = segmenter.stream(stream.state())
    last, continued = stream.segment(images[3], 4), copy.segment(images[3], 4)
    assert np.array_equal(last.mask, continued.mask)
    temporal = rival != "densecrf"
    assert segmenter.uses_netwarp == temporal and rival in segmenter.engine.name
    reasons = [Reset.FIRST, "", ""] if temporal else [Reset.HOST_ONLY] * 3
    assert [result.reason for result in results] == reasons
    stream.reset()
    alone = segmenter.stream().segment(images[3], 1)
    assert np.array_equal(stream.segment(images[3], 5).mask, alone.mask)
    ego = np.zeros((32, 48), bool)
    ego[24:] = True
    masked = segmenter.stream(ego_mask=ego)
    for stamp, image in enumerate(images):
        mask = masked.segment(image, stamp + 1).mask
    assert (mask[24:] == 255).all() and (mask[:24] < 11).all()


def test_a_rival_takes_no_windows(model: Model) -> None:
    with pytest.raises(ValueError, match="rival vpn sees the whole frame: leave out windows, scales, flip"):
        Segmenter(model, engine="torch", rival="vpn", inference=Inference(window=32))


def test_rivals_are_rows_of_the_tables(
    model: Model, tmp_path: Path, camvid: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row has the scores that `netwarp evaluate` prints."""
    weights = save_model(tmp_path / "video.safetensors", model.network, model.spec)
    data = ["--images", str(camvid / "images"), "--labels", str(camvid / "labels"), "--model", str(weights)]
    options = [*data, "--engine", "torch", "--precision", "float32"]
    with pytest.raises(SystemExit) as end:
        cli.main(["table", "models", *options, "--rival", "densecrf", "--rival", "fso-crf"])
    assert end.value.code == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    head = lines[0]
    rows = {line[0].removeprefix(str(weights)): dict(zip(head, line, strict=True)) for line in lines[2:]}
    assert list(rows) == [": host alone", "", ": host with densecrf", ": host with fso-crf"]
    for rival in ("densecrf", "fso-crf"):
        file = tmp_path / f"{rival}.json"
        with pytest.raises(SystemExit):
            cli.main(["evaluate", *options, "--rival", rival, "--json", str(file)])
        result = tables.json.loads(file.read_text())
        assert f"{result['miou']:.2f}" == rows[f": host with {rival}"]["mIoU"]
        assert result["settings"]["rival"] == rival
    with pytest.raises(SystemExit):
        cli.main(["table", "flows", *options, "--rival", "vpn"])
    assert "in the table flows: leave out --rival" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["table", "models", *options, "--rival", "crf"])
    refused = capsys.readouterr().err
    assert "there is no rival 'crf': give densecrf, fso-crf, vpn" in refused and "(1 of" not in refused
