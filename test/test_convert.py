# SPDX-License-Identifier: Apache-2.0
"""``netwarp convert``: files that hold more than weights, and what is wrong with a command, in one line each."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from netwarp_ros import cli


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def write_bad_files(folder: Path) -> None:
    harmful = {"a.weight": torch.ones(1), "b": Harmful(folder / "ran")}
    torch.save(harmful, folder / "object.pth")
    torch.save(harmful, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Conv2d(3, 2, 3), folder / "module.pth")
    with (folder / "pickle.bin").open("wb") as file:
        pickle.dump(harmful, file, protocol=2)
    with (folder / "pickle.safetensors").open("wb") as file:
        pickle.dump(harmful, file, protocol=2)
    torch.jit.script(nn.Conv2d(3, 2, 3)).save(str(folder / "script.pt"))
    with zipfile.ZipFile(folder / "zip.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with zipfile.ZipFile(folder / "compressed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(10**7))
    torch.save({"a.weight": torch.ones(100)}, folder / "cut.pth")
    (folder / "cut.pth").write_bytes((folder / "cut.pth").read_bytes()[:500])
    (folder / "text.pth").write_text("hello, this is text")
    (folder / "empty.pth").touch()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("object.pth", r"\(it holds posix.system, which could run code\)"),
        ("legacy.pth", r"\(it holds posix.system, which could run code\)"),
        (
            "module.pth",
            r"\(it holds torch.nn.modules.conv.Conv2d, which could run code\): save the network's state_dict",
        ),
        ("pickle.bin", r"\(it holds torch.storage._load_from_bytes, which could run code\)"),
        ("pickle.safetensors", "is not a readable safetensors file"),
        ("script.pt", r"\(it is a TorchScript archive\)"),
        ("zip.pth", r"\(file in archive is not in a subdirectory: hello.txt\)"),
        ("compressed.pth", "is a zip archive with compressed records, which torch.save does not write"),
        ("cut.pth", "holds more than weights, or is damaged"),
        ("text.pth", "holds more than weights, or is damaged"),
        ("empty.pth", "holds more than weights, or is damaged"),
    ],
)
def test_files_with_objects_are_refused_without_pytorchs_advice(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    write_bad_files(tmp_path)
    recwarn.clear()
    arguments = ["--host", "pspnet50", "--classes", "camvid", "-o", tmp_path / "out.safetensors"]
    assert run("convert", tmp_path / name, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1 and "\x1b" not in error
    assert "weights_only" not in error and "trust" not in error
    assert not (tmp_path / "ran").exists() and not recwarn.list


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.pth", "--host", "pspnet50", "--classes", "camvid"], "no weights file absent.pth"),
        (["a.pth", "--host", "pspnet9", "--classes", "camvid"], "unknown host 'pspnet9'"),
        (["a.pth", "--host", "dilation8", "--classes", "ade"], "no class set named 'ade'"),
        (["a.pth", "--host", "ddrnet23slim", "--classes", "camvid"], "no tensor of the file fits DDRNet23Slim"),
        (["a.pth", "--classes", "camvid"], "which network has these weights? Give --host with one of ddrnet23slim"),
        (["a.pth", "--host", "pspnet50"], "does not say which classes its network has: give --classes"),
        (["a.pth", "--host", "transformers:X"], "is described by its config.json: give a directory with it and a.pth"),
        (["a.pth", "--host", "pspnet50", "--mean", "0", "0", "0", "--caffe-mean", "1", "1", "1"], "in place of --mean"),
        (["absent", "--classes", "camvid"], "which network has these weights?"),
        ([".", "--classes", "camvid"], "has no config.json: give a directory of the Hugging Face hub"),
    ],
)
def test_convert_names_what_is_wrong_in_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": torch.ones(1)}, "a.pth")
    assert run("convert", *arguments, "-o", "out.safetensors") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("netwarp: ") and message in last
    assert not Path("out.safetensors").exists()
