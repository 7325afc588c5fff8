# SPDX-License-Identifier: Apache-2.0
"""Hosts of other installed packages: found by their entry points, used by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from netwarp_ros import cli
from netwarp_ros.models import ModelSpec, WeightsError, build, load_model
from netwarp_ros.models.others.entry_points import entry_point_names, find_entry_point
from netwarp_ros.models.spec import InputSize
from netwarp_ros.resources import parse

MODULE = """
from torch import nn

class Tiny(nn.Module):
    def __init__(self, num_classes, *, width=4):
        super().__init__()
        self.model = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, frame):
        if frame.shape[-1] % 16 or frame.shape[-2] % 16:
            raise ValueError("multiples of 16, please")
        return {"out": self.head(self.model(frame).relu())}

class Careless:
    def __new__(cls, num_classes, *, kind=0):
        raise (KeyError, AttributeError, AssertionError, TypeError)[kind]("careless")

def text(num_classes):
    return "no network"

number = 3
"""

CAMVID = 11


def install(folder: Path, package: str, hosts: dict[str, str]) -> None:
    """Write a distribution as pip leaves it."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in hosts.items()]
    (info / "entry_points.txt").write_text("[netwarp_ros.hosts]\n" + "\n".join(lines) + "\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    install(folder, "tiny-hosts", {
        "tiny": "tiny_hosts_of_a_test:Tiny", "pspnet50": "tiny_hosts_of_a_test:Tiny", "broken": "tiny_hosts_broken:Net",
        "absent": "tiny_hosts_of_a_test:Absent", "number": "tiny_hosts_of_a_test:number",
        "careless": "tiny_hosts_of_a_test:Careless", "text": "tiny_hosts_of_a_test:text",
    })  # fmt: skip
    (folder / "tiny_hosts_of_a_test.py").write_text(MODULE)
    (folder / "tiny_hosts_broken.py").write_text("raise OSError('no licence')")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_hosts_of_installed_packages_are_listed_and_found(packages: Path) -> None:
    assert {"tiny", "broken"} <= set(entry_point_names()) and "pspnet50" not in entry_point_names()
    make = find_entry_point("tiny")
    assert make is not None and make(5, width=2).head.weight.shape == (5, 2, 1, 1)


def test_a_name_of_this_package_wins(packages: Path) -> None:
    assert find_entry_point("pspnet50") is None and find_entry_point("nobody") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "broken",
            r"host 'broken' of the package tiny-hosts \(tiny_hosts_broken:Net\) cannot be imported: OSError: no lic",
        ),
        ("absent", "host 'absent' of the package tiny-hosts .* cannot be imported: AttributeError"),
        ("number", "host 'number' of the package tiny-hosts .* is a int: give a class or function"),
    ],
)
def test_a_host_that_cannot_be_used_names_its_package(packages: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_entry_point(name)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("careless", {}, "cannot be made: KeyError: 'careless'"),
        ("careless", {"kind": 1}, "cannot be made: AttributeError: careless"),
        ("careless", {"kind": 2}, "cannot be made: AssertionError: careless"),
        ("careless", {"kind": 3}, "cannot be made: TypeError: careless"),
        ("tiny", {"depth": 3}, "cannot be made: TypeError: .* unexpected keyword argument 'depth'"),
        ("text", {}, "makes a str: let it return a torch.nn.Module"),
    ],
)
def test_a_host_that_cannot_be_made_names_its_package(
    packages: Path, name: str, arguments: dict[str, int], message: str
) -> None:
    content = {"host": name, "classes": "camvid", "host_arguments": {"num_classes": CAMVID, **arguments}}
    with pytest.raises(
        WeightsError, match=rf"cannot build {name}: host '{name}' of the package tiny-hosts .* {message}"
    ):
        build(parse(ModelSpec, content, "spec"))


def test_two_packages_with_one_name_are_refused(packages: Path) -> None:
    install(packages, "other-hosts", {"tiny": "elsewhere:Tiny"})
    with pytest.raises(
        ValueError, match="declared by the package other-hosts and the package tiny-hosts: uninstall one"
    ):
        find_entry_point("tiny")


def test_a_spec_can_name_such_a_host(packages: Path) -> None:
    content = {"host": "tiny", "classes": "camvid", "host_arguments": {"num_classes": CAMVID, "width": 8}}
    assert build(parse(ModelSpec, content, "spec")).host.model.weight.shape[0] == 8
    with pytest.raises(WeightsError, match=r"unknown host 'tinny'.*tiny"):
        build(parse(ModelSpec, {**content, "host": "tinny"}, "spec"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_its_own_weights_are_converted(
    packages: Path, tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make = find_entry_point("tiny")
    assert make is not None
    host, out = make(CAMVID), tmp_path / "tiny.safetensors"
    torch.save(
        {"state_dict": {f"{prefix}{key}": value for key, value in host.state_dict().items()}}, tmp_path / "a.pth"
    )
    assert run("convert", tmp_path / "a.pth", "--host", "tiny", "--classes", "camvid", "-o", out) == 0
    text = capsys.readouterr().out
    assert (
        "4 of the network's 4 tensors loaded" in text
        and "the network takes images whose sides are multiples of 16" in text
    )
    model = load_model(out)
    assert model.spec.input_size == InputSize(16)
    frame = torch.rand(1, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(model.network.host(frame)["out"], host.eval()(frame)["out"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--classes", "cityscapes"],
            "2 of another shape in the file: head.weight (19, 4, 1, 1), in the file (11, 4, 1, 1)",
        ),
        ([], "a.pth does not say which classes its network has: give --classes"),
        (["--classes", "camvid", "--caffe-mean", "1", "2", "3"], "--caffe-mean is for this package's own hosts"),
    ],
)
def test_what_does_not_fit_is_named(
    packages: Path, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make = find_entry_point("tiny")
    assert make is not None
    torch.save(make(CAMVID).state_dict(), tmp_path / "a.pth")
    assert run("convert", tmp_path / "a.pth", "--host", "tiny", "-o", tmp_path / "b.safetensors", *arguments) == 2
    assert message in capsys.readouterr().err


def test_missing_tensors_are_named(packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "a.pth")
    command = ("convert", tmp_path / "a.pth", "--host", "tiny", "--classes", "camvid", "-o", tmp_path / "b.safetensors")
    assert run(*command) == 2
    error = capsys.readouterr().err
    assert "the file does not fit Tiny, whose own names it must have: 0 of the network's 4 tensors loaded" in error
    assert "4 missing in the file: model.weight, model.bias, head.weight, head.bias" in error
