# SPDX-License-Identifier: Apache-2.0
"""Graphs that engines keep: taken when they are the same, made again when they are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engines import NORMALISATION, SIZE, assert_like_torch, flows, frames, run, video_cnn
from torch import Tensor

from netwarp_ros.engines import Engine, EngineError, cache
from netwarp_ros.engines.graphs import StepGraph
from netwarp_ros.engines.openvino import OpenVINOEngine
from netwarp_ros.models import Memory, VideoCNN


def cached(folder: Path, network: VideoCNN) -> Engine:
    return OpenVINOEngine(network, NORMALISATION, "float32", 1, cache=folder)


Exported = tuple[Path, list[tuple[Tensor, Memory]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The cache of ``video_cnn()`` for two frames, and their results. Making it takes longer than the tests."""
    folder = tmp_path_factory.mktemp("cache") / "new" / "cache"
    return folder, run(cached(folder, video_cnn()), frames(2), flows(2))


@pytest.fixture
def filled(exported: Exported, tmp_path: Path) -> Path:
    """A copy of the cache, to be changed."""
    return Path(shutil.copytree(exported[0], tmp_path / "cache"))


def test_cached_graphs_are_used_and_need_no_export(
    exported: Exported, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(filled.iterdir())
    assert len(files) == 3 and all(file.suffix == ".safetensors" for file in files)
    monkeypatch.setattr(torch.export, "export", lambda *_arguments, **_options: pytest.fail("it was exported again"))
    again = run(cached(filled, video_cnn()), frames(2), flows(2))
    assert all(torch.equal(mine[0], yours[0]) for mine, yours in zip(again, exported[1], strict=True))


@pytest.mark.parametrize("change", ["weights", "options", "size"])
def test_graph_of_another_network_is_not_taken_from_the_cache(filled: Path, change: str) -> None:
    network, size = video_cnn(), SIZE
    before = set(filled.iterdir())
    if change == "weights":
        with torch.no_grad():
            network.host[5].bias[0] += 0.5  # type: ignore[index, operator]
    elif change == "options":
        network.remember = "after"
    else:
        size = (40, 44)
    assert_like_torch(cached(filled, network), network, frames(2, size), flows(2, size))
    assert set(filled.iterdir()) > before


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:-1] + b"x", lambda _: b""])
def test_damaged_graph_is_made_again(filled: Path, damage: Callable[[bytes], bytes]) -> None:
    contents = {path: path.read_bytes() for path in filled.iterdir()}
    for path, content in contents.items():
        path.write_bytes(damage(content))
    assert_like_torch(cached(filled, video_cnn()), video_cnn(), frames(2), flows(2))
    assert set(filled.iterdir()) == contents.keys() and all(map(cache._read, contents))


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="engine_cache: .*file/cache cannot be made"):
        cached(tmp_path / "file" / "cache", video_cnn())


def test_cache_that_cannot_be_written_costs_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(cache, "write_safetensors", refuse)
    network = video_cnn()
    with pytest.warns(RuntimeWarning, match="cannot be written: no space left"):
        assert_like_torch(cached(tmp_path, network), network, frames(2), flows(2))


def test_key_of_the_cache_knows_numbers_of_a_module() -> None:
    keys = set()
    for rate in (1, 2, 2.5, None):
        network = video_cnn()
        network.host.rate = rate  # type: ignore[assignment]
        keys.add(cache._key("x", StepGraph(network, NORMALISATION), []))
    assert len(keys) == 4
