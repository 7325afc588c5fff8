# SPDX-License-Identifier: Apache-2.0
"""Reports: pages that load nothing, and show the scores and the right frames."""

from __future__ import annotations

import base64
import dataclasses
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from netwarp_ros.classes import load_classes
from netwarp_ros.evaluation.plots import MAX_POINTS, timeline_figure
from netwarp_ros.evaluation.report import FrameGallery, check_requirements, write_page
from netwarp_ros.evaluation.results import EvaluationResults, FrameCounts, FrameRecord, Scores
from netwarp_ros.evaluation.scoring import ScoredFrame
from netwarp_ros.recordings.frames import Frame

CAMVID = load_classes("camvid")
NAN = math.nan
VOID_ELEMENTS = {"meta", "img", "br"}
CONTEXT = {
    "damage": ["drive.mcap: image 3 of /c cannot be read: <script>alert(1)</script>"],
    "settings": {"model": "small", "cameras": ["/front/image_raw"], "scales": [1.0], "flip": False},
    "inputs": {"images": {"path": "drive.mcap", "bytes": 123, "sha256": "abc123"}},
    "environment": {"device": "a processor", "torch": "2.13", "versions": {"python": "3.11", "torch": "2.13"}},
}


def record(index: int, gain: float = 0.0, **changes: Any) -> FrameRecord:
    """A frame of which the host scores 80 per cent, NetWarp ``gain`` more."""
    score = 80.0 + gain
    values = {"miou": score, "tc": score, "host_miou": 80.0, "host_tc": 80.0, "disagreement": 5.0}
    times = {"prepare": 1.0, "flow": 2.0, "network": 4.0}
    return FrameRecord(f"f{index}", "", index * 10**9 // 5, times, **{**values, **changes})


def results(
    records: list[FrameRecord], *, labelled: bool = True, host: bool = True, **changes: Any
) -> EvaluationResults:
    iou = dict.fromkeys(CAMVID.names, NAN) | ({"road": 91.26, "car": 60.0} if labelled else {})
    scores = {
        "miou": 70.12 if labelled else NAN,
        "iou": iou,
        "miiou": NAN,
        "iiou": {},
        "tiou": {2: 41.5, 8: 55.0} if labelled else {2: NAN},
        "tc": 82.5,
        "tc_unmasked": 80.0,
        "flicker": dict.fromkeys(CAMVID.names, NAN) | {"road": 1.5},
        "vc": {8: NAN},
    }
    lower = {name: value - 1.5 if isinstance(value, float) else value for name, value in scores.items()}
    lower["iou"] = {name: value - 2 for name, value in iou.items()}
    values = {
        "frames": len(records),
        "labelled": len(records) if labelled else 0,
        "host": Scores(**lower) if host else None,
        "disagreement": 5.25 if host else NAN,
        "stages_ms": {"total": {"p50": 7.04, "p95": 8.0, "p99": 9.0}},
        "fps": 9.0,
        "resets": {"first frame": 1},
        "dropped": {},
        "latency_ms": {},
        "age_ms": {},
        "wall_s": {"reading": 0.5, "segmenting": 9.5},
        "records": records,
    }
    return EvaluationResults(**scores, **{**values, **changes})


def scored_frame(record: FrameRecord, *, host: bool = True) -> ScoredFrame:
    image = np.full((20, 30, 3), 100, np.uint8)
    mask, host_mask = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    mask[:, 15:] = 8
    frame = Frame(0, record.stamp_ns, record.name, image)
    return ScoredFrame(record, FrameCounts(), frame, mask, host_mask if host else None, None)


def gallery_of(records: list[FrameRecord], *, labelled: bool = True, host: bool = True) -> FrameGallery:
    gallery = FrameGallery(CAMVID, labelled=labelled, host=host)
    for entry in records:
        gallery.add(scored_frame(entry, host=host))
    return gallery


def page(tmp_path: Path, scores: EvaluationResults, gallery: FrameGallery) -> str:
    write_page(tmp_path / "deep" / "report.html", scores, CAMVID, gallery, CONTEXT)
    return (tmp_path / "deep" / "report.html").read_text(encoding="utf-8")


class Checker(HTMLParser):
    """Collects what a page would load, its text, and the elements that are still open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [
            value or "" for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    records = [record(index, gain=index) for index in range(15)]
    text = page(tmp_path, results(records), gallery_of(records))
    checker = Checker(text)
    assert checker.open == []
    assert {load.split(",")[0] for load in checker.loads if not load.startswith("#")} == {"data:image/jpeg;base64"}
    assert "default-src 'none'" in text and "@import" not in text and "<script" not in text
    assert text.count("<svg") == 2
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "report.html"]


def test_a_page_shows_the_results(tmp_path: Path) -> None:
    records = [record(index, gain=index) for index in range(15)]
    text = " ".join(Checker(page(tmp_path, results(records), gallery_of(records))).text.split())
    for part in (
        "15 frames, 15 with labels",
        "mean IoU70.12 % +1.50 against the host",
        "trimap IoU, 2 pixels41.50 %",
        "disagreement with the host5.25 %",
        "time for a frame, median7.0 ms",
        "1 note on what was read",
        "image 3 of /c cannot be read: <script>alert(1)</script>",
        "road 91.3 89.3 +2.0 1.5 1.5 +0.0",
        "temporal consistency 82.50 81.00 +1.50",
        "first frame1",
        "abc123",
        "a processor",
        "cameras/front/image_raw",
        "flipFalse",
    ):
        assert part.replace(" ", "") in text.replace(" ", ""), part
    assert "dropped for newer frames" not in text


def test_a_page_without_labels_and_host(tmp_path: Path) -> None:
    records = [record(index, miou=NAN, host_tc=NAN, host_miou=NAN, disagreement=NAN) for index in range(3)]
    scores = results(records, labelled=False, host=False)
    text = page(tmp_path, scores, gallery_of(records, labelled=False, host=False))
    assert text.count("<svg") == 1
    text = Checker(text).text
    assert "by temporal consistency" in text and "IoU %" not in text and "against the host" not in text


def test_a_page_of_simulated_real_time(tmp_path: Path) -> None:
    records = [record(index, age_ms=40.0 + index) for index in range(3)]
    times = {"p50": 41.0, "p95": 42.0, "p99": 43.0}
    scores = results(records, latency_ms=times, age_ms=times, dropped={"": 2})
    text = "".join(Checker(page(tmp_path, scores, gallery_of(records))).text.split())
    assert "ageofthemask,median41.0msp9943.0ms" in text and "droppedfornewerframes2of5" in text


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check_requirements()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match="reports need jinja2 and matplotlib: pip install"):
        check_requirements()


# The gallery


def test_each_stretch_gives_one_best_and_one_worst_frame() -> None:
    # Five frames per second, so a stretch is ten frames.
    gains = {3: 9.0, 4: 10.0, 12: 4.0, 25: 8.0, 31: -7.0, 38: -9.0, 44: -3.0, 45: 6.0}
    gallery = gallery_of([record(index, gain=gains.get(index, 0.0)) for index in range(50)])
    assert [picture.record.name for picture in gallery.best()] == ["f4", "f25", "f45"]
    assert [picture.value for picture in gallery.best()] == [10, 8, 6]
    assert [picture.record.name for picture in gallery.worst()][:2] == ["f38", "f44"]
    assert gallery.measure == "mean IoU gained over the host"


def test_without_the_host_frames_are_ranked_by_their_own_score() -> None:
    records = [record(index, gain=index) for index in range(4)]
    gallery = gallery_of(records, host=False)
    assert [picture.value for picture in gallery.best()] == [83] and gallery.measure == "mean IoU"
    assert [picture.value for picture in gallery.worst()] == [80]
    by_consistency = [record(0, miou=NAN, tc=NAN), record(1, miou=NAN)]
    gallery = gallery_of(by_consistency, labelled=False, host=False)
    assert [picture.record.name for picture in gallery.best()] == ["f1"] and list(gallery.worst()) == []
    assert list(gallery_of([]).best()) == []


def test_pictures_show_where_host_and_netwarp_differ() -> None:
    (picture,) = gallery_of([record(0)]).best()
    assert list(picture.images) == ["image", "host", "NetWarp"]
    decoded = {}
    for name, uri in picture.images.items():
        data = np.frombuffer(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")), np.uint8)
        decoded[name] = cv2.imdecode(data, cv2.IMREAD_COLOR).astype(int)
        assert decoded[name].shape == (20, 30, 3)
    sky, car = (np.array(CAMVID.palette[index][::-1], int) for index in (0, 8))
    for name, side, color, alpha in (
        ("host", slice(0, 8), sky, 0.35),
        ("host", slice(22, 30), sky, 0.9),
        ("NetWarp", slice(0, 8), sky, 0.35),
        ("NetWarp", slice(22, 30), car, 0.9),
    ):
        expected = (1 - alpha) * 100 + alpha * color
        np.testing.assert_allclose(decoded[name][:, side].mean(axis=(0, 1)), expected, atol=5)
    assert set(gallery_of([record(0)], host=False).best()[0].images) == {"image", "mask"}


@pytest.mark.parametrize(("size", "shown"), [((1000, 1500), (320, 480)), ((1, 2048), (1, 480))])
def test_large_pictures_are_scaled_down(size: tuple[int, int], shown: tuple[int, int]) -> None:
    large = dataclasses.replace(scored_frame(record(0)), frame=Frame(0, 0, "f0", np.zeros((*size, 3), np.uint8)))
    large = dataclasses.replace(large, mask=np.zeros(size, np.uint8), host_mask=np.zeros(size, np.uint8))
    gallery = FrameGallery(CAMVID, labelled=True, host=True)
    gallery.add(large)
    data = base64.b64decode(gallery.best()[0].images["host"].partition(",")[2])
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (*shown, 3)


@pytest.mark.parametrize("key", [2, 1])
def test_a_page_counts_key_frames_if_not_all_are(tmp_path: Path, key: int) -> None:
    records = [dataclasses.replace(record(index), is_key=index % key == 0) for index in range(4)]
    text = Checker(page(tmp_path, results(records), gallery_of(records))).text
    assert ("key frames2of 4: the network ran on these alone" in text) == (key == 2)


# The timeline


def test_the_timeline_has_a_panel_for_each_measure_with_values() -> None:
    records = [record(index, reason="first frame" if index == 0 else "") for index in range(4)]
    panels = timeline_figure(records).axes
    assert [axes.get_ylabel() for axes in panels] == ["ms", "mean IoU in %", "consistency in %", "disagreement in %"]
    lines = {line.get_label(): line.get_xydata().tolist() for line in panels[1].lines}
    np.testing.assert_allclose(lines["host"], [[0, 80], [0.2, 80], [0.4, 80], [0.6, 80]])
    assert "NetWarp" in lines
    for axes in panels:
        assert [path.vertices.tolist() for path in axes.collections[0].get_paths()] == [[[0, 0], [0, 1]]]
    assert panels[1].get_ylim()[0] > 70  # the lines of resets do not stretch the axis
    alone = [dataclasses.replace(entry, miou=NAN, disagreement=NAN, host_tc=NAN, host_miou=NAN) for entry in records]
    panels = timeline_figure(alone).axes
    assert [axes.get_ylabel() for axes in panels] == ["ms", "consistency in %"]


def test_a_long_recording_is_drawn_by_few_points() -> None:
    """All that can be seen, such as a spike, is drawn."""
    records = [record(index, reason="gap") for index in range(20_000)]
    records[777] = dataclasses.replace(records[777], miou=3.0)
    axes = timeline_figure(records).axes[1]
    (seconds, values), *_ = (line.get_data() for line in axes.lines)
    assert 1000 <= len(values) <= MAX_POINTS and min(values) == 3 and seconds[list(values).index(3)] == 777 / 5
    assert seconds[0] < 10 and seconds[-1] > 3990
    resets = [path.vertices[0, 0] for path in axes.collections[0].get_paths()]
    assert 1000 <= len(resets) <= MAX_POINTS + 1 and max(resets) == 19_999 / 5


def test_cameras_are_lines_of_their_own() -> None:
    records = [dataclasses.replace(record(index), camera=("left", "right")[index % 2]) for index in range(6)]
    lines = [line for line in timeline_figure(records).axes[0].lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2 and lines[0].get_color() == lines[1].get_color()


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium: apt-get install chromium")
def test_chromium_shows_a_page(tmp_path: Path) -> None:
    records = [record(index, gain=index) for index in range(15)]
    page(tmp_path, results(records), gallery_of(records))
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    subprocess.run(
        ["chromium", *options, "--window-size=1000,2400", f"--screenshot={picture}", tmp_path / "deep" / "report.html"],
        check=True,
        capture_output=True,
        timeout=100,
    )
    shown = cv2.imread(str(picture))
    assert shown.shape[:2] == (2400, 1000)
    assert (shown[40, 500] == (46, 34, 16)).all()  # the header, in its color
    curve = np.abs(shown.astype(int) - (153, 110, 11)).sum(axis=2) < 30  # the color of bars and of NetWarp's lines
    assert curve[600:].any(axis=1).sum() > 200
