# SPDX-License-Identifier: Apache-2.0
"""``netwarp benchmark node``: figures and tables of given runs, and one run with real nodes. No time is asserted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netwarp_ros import cli
from netwarp_ros.benchmarks.node import LOWEST_RATE, Run, find_peak, markdown
from netwarp_ros.evaluation import plots

TIMES = {"p50": 1.0, "p95": 2.0, "p99": 3.25}
STAGES = dict.fromkeys(("own", "flow", "network", "total", "age"), TIMES)


def a_run(rate: float = 10.0, **changes: Any) -> Run:
    values = {
        "system": "netwarp", "cameras": 2, "width": 64, "height": 48, "rate": rate, "seconds": 10.0,
        "sent": round(20 * rate), "masks": round(20 * rate), "stages_ms": STAGES, "cpu": 0.5, "memory_mb": 400.0,
    }  # fmt: skip
    return Run(**values | changes)


def node(capacity: float, most: float = float("inf")) -> tuple[list[float], Callable[[float], Run]]:
    """A node that makes at most ``capacity`` masks per second and camera; each camera sends at most ``most`` images."""
    tried: list[float] = []

    def load(rate: float) -> Run:
        tried.append(rate)
        return a_run(rate, sent=round(20 * min(rate, most)), masks=round(20 * min(rate, most, capacity)))

    return tried, load


def test_dropped_are_images_without_a_mask() -> None:
    assert a_run(sent=200, masks=150).dropped == pytest.approx(25)
    assert a_run(sent=200, masks=201).dropped == 0  # one mask is of an image sent before
    assert a_run(sent=0, masks=0, stages_ms={}).dropped == 0


def test_a_rate_is_served_if_less_than_5_percent_is_missing() -> None:
    assert a_run(sent=200, masks=191).served
    assert not a_run(sent=200, masks=190).served
    assert not a_run(sent=180, masks=180).served  # the cameras did not keep up


@pytest.mark.parametrize("start", [3.0, 20.0, 28.0, 150.0])
def test_the_peak_is_found_from_below_and_above(start: float) -> None:
    tried, load = node(capacity=20)
    best = find_peak(load, start)
    highest = 20 / 0.95
    assert best is not None and best.served
    assert highest / 1.06 < best.rate <= highest * 1.002
    assert len(tried) <= 12


def test_the_peak_is_not_above_what_the_cameras_can_send() -> None:
    tried, load = node(capacity=1000, most=40)
    best = find_peak(load, 30.0)
    assert best is not None and 36 < best.rate < 42.5
    assert max(tried) < 60


def test_a_node_without_masks_has_no_peak() -> None:
    tried, load = node(capacity=0)
    assert find_peak(load, 1.0) is None
    assert min(tried) >= LOWEST_RATE


def test_the_table_has_a_line_for_each_run() -> None:
    lines = markdown([a_run(sent=200, masks=150), a_run(7.654, peak=True), a_run(stages_ms={})]).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["cameras", "size", "Hz", "node", "dropped"]
    assert cells[2][:8] == ["2", "64×48", "10", "netwarp", "25.0 %", "1.0", "1.0", "1.0"]
    assert cells[2][8:] == ["1.0", "2.0", "3.2", "1.0", "2.0", "3.2", "50 %", "400"]
    assert cells[3][2] == "peak 7.7"
    assert set(cells[4][5:14]) == {""}


def test_the_figure_has_a_panel_for_each_number_of_cameras_and_size() -> None:
    runs = [a_run(rate, cameras=cameras, system=system) for rate in (10.0, 30.0) for cameras in (1, 2)
            for system in ("netwarp", "plain")]  # fmt: skip
    figure = plots.node_figure([run.to_json() for run in [*runs, a_run(20.0, peak=True)]])
    assert [axes.get_title() for axes in figure.axes] == ["1 × 64×48", "2 × 64×48"]
    first, second = figure.axes
    assert [line.get_label() for line in first.lines] == ["netwarp", "plain"]
    assert list(first.lines[0].get_xdata()) == [10.0, 30.0]
    assert list(second.lines[0].get_xdata()) == [10.0, 20.0, 30.0]
    assert [line.get_marker() for line in second.lines] == ["o", "*", "o"]
    assert set(first.lines[0].get_ydata()) == {1.0}
    assert [text.get_text() for text in second.get_xticklabels()] == ["10", "30"]


def test_files_without_runs_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "node.json"
    for text in ("{}", "[]", "no JSON", json.dumps({"runs": []})):
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(str(file))):
            plots.plot_node(file, tmp_path / "node.png")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.ros
@pytest.mark.parametrize(
    "option", ["--cameras=0", "--cameras=1.5", "--rates=10,,30", "--rates=inf", "--sizes=480", "--nodes=other"]
)
def test_invalid_loads_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["benchmark", "node", option])
    assert end.value.code == 2
    name, value = option.removeprefix("--").split("=")
    subject = "unknown nodes" if name == "nodes" else f"{name} is"
    assert f"{subject} '{value}': give " in capsys.readouterr().err


# Four processes start ROS and PyTorch: 20 s on two cores, and minutes on a slow machine that has other work to do.
@pytest.mark.ros
@pytest.mark.timeout(600)
def test_nodes_under_load(tmp_path: Path, ros_domain: int, capsys: pytest.CaptureFixture[str]) -> None:
    from graph import tiny_model

    model, file = tiny_model(tmp_path / "tiny.safetensors"), tmp_path / "node.json"
    what = ["--model", str(model), "--nodes", "netwarp,plain", "--json", str(file)]
    load = ["--cameras", "1", "--sizes", "64x48", "--rates", "10", "--seconds", "3", "--no-peak"]
    with pytest.raises(SystemExit) as end:
        cli.main(["benchmark", "node", *what, *load])
    assert not end.value.code

    written = json.loads(file.read_text())
    assert written["settings"]["model"] == str(model)
    assert written["environment"]["rmw"].startswith("rmw_")
    assert [run["system"] for run in written["runs"]] == ["netwarp", "plain"]
    for run in written["runs"]:
        assert (run["cameras"], run["width"], run["height"], run["rate"], run["peak"]) == (1, 64, 48, 10, False)
        assert 1 <= run["sent"] <= 31
        assert run["dropped"] == max(0, 100 * (1 - run["masks"] / run["sent"]))
        assert run["masks"] >= 1 and run["cpu"] > 0 and run["memory_mb"] > 50
        stages = {name: values["p50"] for name, values in run["stages_ms"].items()}
        assert (stages["flow"] > 0) == (stages["wait"] > 0) == (run["system"] == "netwarp")
        assert 0 < stages["network"] < stages["total"] < stages["age"]
        assert 0 < stages["own"] < stages["total"]
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(written["runs"])
