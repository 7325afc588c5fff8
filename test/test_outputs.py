# SPDX-License-Identifier: Apache-2.0
"""What programs write: completely or not at all, and never over what they did not write."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from commands import run, small_model, write_images, write_labels

from netwarp_ros.classes import ClassEntry
from netwarp_ros.models import load_model, save_model
from netwarp_ros.models.hosts import HOSTS, Dilation8
from netwarp_ros.recordings.atomic import refuse_foreign, replacing, write_marked_json, written_by

MARK = written_by("test")
THESIS = "years of work on netwarp_ros, netwarp evaluate and netwarp plot"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    with replacing(file) as temporary:
        temporary.write_text("one")
        assert not file.exists() and temporary.name == "a.txt"

    def interrupted() -> None:
        with replacing(file) as temporary:
            temporary.write_text("half of two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"new/a.txt": b"one"}


def test_a_file_beside_it_is_not_used_as_temporary(tmp_path: Path) -> None:
    for name in ("a.part.txt", "a.txt.part", "a.partial"):
        (tmp_path / name).write_text(THESIS)
    before = contents(tmp_path)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("one")
    assert contents(tmp_path) == {**before, "a.txt": b"one"}


def test_only_a_file_with_the_mark_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_marked_json(file, {"value": 1}, "test")
    write_marked_json(file, {"value": 2}, "test")
    assert json.loads(file.read_text()) == {"generator": MARK, "value": 2}
    with pytest.raises(FileExistsError, match=r"a\.json exists already, and this command did not write it: remove it"):
        write_marked_json(file, {"value": 3}, "other")
    assert json.loads(file.read_text())["value"] == 2


def test_a_file_that_appears_while_another_is_made_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"

    def write() -> None:
        with replacing(file, MARK) as temporary:
            temporary.write_text(MARK)
            file.write_text(THESIS)

    with pytest.raises(FileExistsError, match="exists already"):
        write()
    assert contents(tmp_path) == {"a.txt": THESIS.encode()}


def test_nothing_and_an_empty_file_may_be_replaced_but_no_folder(tmp_path: Path) -> None:
    refuse_foreign(tmp_path / "absent", MARK)
    (tmp_path / "empty").touch()
    refuse_foreign(tmp_path / "empty", MARK)
    with pytest.raises(FileExistsError, match="exists already"):
        refuse_foreign(tmp_path, MARK)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return small_model(tmp_path / "model" / "small.safetensors", monkeypatch)


@pytest.fixture
def evaluation(tmp_path: Path, model: Path) -> list[object]:
    """Return a command that evaluates."""
    images = write_images(tmp_path / "images")
    labels = write_labels(tmp_path / "labels", model, images)
    return ["evaluate", "--images", images, "--labels", labels, "--model", model]


COMMANDS: Mapping[str, Callable[[Path, Path, list[object]], list[object]]] = {
    "a.json": lambda out, _, evaluation: [*evaluation, "--json", out],
    "a.csv": lambda out, _, evaluation: [*evaluation, "--csv", out],
    "a.html": lambda out, _, evaluation: [*evaluation, "--html", out],
    "compared.json": lambda out, scores, _: ["compare", scores, scores, "--json", out],
    "a.png": lambda out, scores, _: ["plot", "trimap", scores, "-o", out],
    "a.svg": lambda out, scores, _: ["plot", "trimap", scores, "-o", out],
    "a.pdf": lambda out, scores, _: ["plot", "trimap", scores, "-o", out],
    "benchmark.json": lambda out, _, evaluation: [
        *("benchmark", "model", "--frames", 3, "--passes", 1, "--model", evaluation[-1], "--json", out)
    ],
    "table.json": lambda out, _, evaluation: ["table", "classes", *evaluation[1:], "-o", out],
    "converted.safetensors": lambda out, scores, _: [
        *("convert", scores.with_name("public.pth"), "--host", "small-backbone", "--classes", "camvid", "-o", out)
    ],
}
"""Commands by the name of the file that they write; given its path, that of results, and the command that made them."""


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_replaces_its_own_file_and_no_other(
    tmp_path: Path,
    evaluation: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.setitem(HOSTS, "small-backbone", partial(Dilation8, width=2))
    torch.save(HOSTS["small-backbone"](11).state_dict(), tmp_path / "public.pth")
    scores, out = tmp_path / "scores.json", tmp_path / "results" / name
    assert run(*evaluation, "--json", scores) == 0
    command = COMMANDS[name](out, scores, evaluation)
    for _ in range(2):
        assert run(*command) == 0
        assert list(contents(out.parent)) == [name]

    out.write_text(THESIS)
    capsys.readouterr()
    assert run(*command) == 2
    assert f"{out} exists already, and this command did not write it" in capsys.readouterr().err or name == "table.json"
    assert contents(out.parent) == {name: THESIS.encode()}


def test_a_command_does_not_replace_the_results_that_it_reads(tmp_path: Path, evaluation: list[object]) -> None:
    scores = tmp_path / "scores.json"
    assert run(*evaluation, "--json", scores) == 0
    before = scores.read_bytes()
    assert run("compare", scores, scores, "--json", scores) == 2
    assert scores.read_bytes() == before


def test_names_and_paths_are_printed_as_they_are(
    tmp_path: Path, model: Path, evaluation: list[object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Rich takes ``[/x]`` for the end of a style that never began, and ``:car:`` for a picture."""
    loaded = load_model(model)
    names = ("[/x]", ":car:", *loaded.spec.classes.names[2:])
    entries = tuple(map(ClassEntry, names, (entry.color for entry in loaded.spec.classes.classes)))
    classes = dataclasses.replace(loaded.spec.classes, classes=entries)
    odd = save_model(tmp_path / "odd.safetensors", loaded.network, dataclasses.replace(loaded.spec, classes=classes))
    scores = tmp_path / "[/scores].json"
    assert run(*evaluation[:-1], odd, "--json", scores) == 0
    shown = capsys.readouterr().out
    assert "[/x]" in shown and ":car:" in shown
    figure = tmp_path / ("long" * 20) / "[/a].png"
    assert run("plot", "trimap", scores, "-o", figure) == 0
    assert f"figure in {figure}\n" in capsys.readouterr().out
    assert run("compare", scores, scores) in (0, 1)


def test_make_clean_removes_only_what_make_made(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent.parent / "Makefile", tmp_path)
    ours = [".venv/requirements.sha256", ".venv/bin/python", ".venv-kilted/requirements.sha256", "build/jazzy/a.o",
            "build/oldest/a.so", "install/colcon-test/a.so", "log/humble-sourced/a.log", "log/COLCON_IGNORE",
            ".ruff_cache/a"]  # fmt: skip
    theirs = ["out/demo/summary.json", "out/training/checkpoint.pt", ".venv-mine/bin/python", "build/mine/a.o",
              "dist/thesis.pdf", "log/thesis.log", "thesis.egg-info/a", "install/other/a"]  # fmt: skip
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(contents(tmp_path)) == sorted([*theirs, "Makefile"])
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    shutil.rmtree(tmp_path / "build")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
