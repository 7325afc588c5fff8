# SPDX-License-Identifier: Apache-2.0
"""``netwarp export``: a model's graphs as ONNX or OpenVINO files, for programs without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from netwarp_ros.cli.printing import say
from netwarp_ros.recordings.atomic import is_as_written, temporary_folder, written_by, written_files

MODEL_FILE, RUN_FILE = "model.json", "run.py"


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name of a shipped model, or a .safetensors file.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="A new or empty folder, or one with an earlier export, which is replaced.",
            show_default=False,
        ),
    ],
    format: Annotated[str, typer.Option("--format", help="onnx or openvino.")] = "onnx",
    height: Annotated[
        int, typer.Option("--height", help="Height in pixels of the network's input. 0: as in training.")
    ] = 0,
    width: Annotated[int, typer.Option("--width", help="Its width. 0: 4/3 of the height.")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="float32.")] = "float32",
    host_only: Annotated[
        bool, typer.Option("--host-only", help="Export the image CNN alone, without NetWarp.")
    ] = False,
) -> None:
    """Write a model's graphs, a JSON file that says how to run them, and an example that segments a video."""
    from netwarp_ros.engines.exported import Exporter
    from netwarp_ros.models.weights import find_weights, load_model
    from netwarp_ros.resources import sha256

    _check_precision(precision)
    weights = find_weights(model)
    refuse_other_contents(output)
    exporter = Exporter(load_model(weights), format=format, height=height, width=width, host_only=host_only)
    output.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output / MODEL_FILE) as folder:
        described = exporter.write(folder)
        described["model"]["weights_sha256"] = sha256(weights)
        files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        marked = {"generator": written_by("export"), **described, "files": files}
        content = json.dumps(marked, indent=1, allow_nan=False)
        (folder / MODEL_FILE).write_text(f"{content}\n", encoding="utf-8")
        _publish(folder, output)
    size = sum((output / name).stat().st_size for name in files)
    say(f"{', '.join(files)} and {MODEL_FILE} in {output}, {size / 1e6:.1f} MB")
    say(f"python {output / RUN_FILE} VIDEO_OR_FOLDER MASKS_FOLDER")


def _check_precision(precision: str) -> None:
    if precision == "int8":
        raise ValueError(
            "precision is 'int8', but graphs are exported in float32: quantize them on frames of your camera, by "
            "onnxruntime.quantization or nncf. netwarp_ros itself runs in int8: see netwarp quantize"
        )
    if precision != "float32":
        raise ValueError(f"precision is {precision!r}: graphs are exported in float32; the runtime may compute in less")


def refuse_other_contents(output: Path, *ours: Path) -> None:
    """Check that a folder is absent, is empty, or holds an unchanged export and nothing else.

    Args:
        output: The folder.
        ours: Further contents that it may have.

    Raises:
        FileExistsError: It holds something else.
    """
    if not output.exists():
        return
    written = _exported_files(output)
    for path in sorted(output.iterdir()) if output.is_dir() else [output]:
        if path not in ours and not is_as_written(path, written):
            raise FileExistsError(
                f"{path} exists already, and is no unchanged file of an export: remove it, or give another folder"
            )


def _exported_files(output: Path) -> dict[str, str]:
    """Return the files of the export in a folder, as `written_files` does."""
    return written_files(output / MODEL_FILE, written_by("export"))


def _publish(folder: Path, output: Path) -> None:
    """Move an export from a folder inside the output to the output, in the place of an earlier one."""
    refuse_other_contents(output, folder)  # something may have been put there in the meantime
    names = {path.name for path in folder.iterdir()}
    for name in _exported_files(output).keys() - names:
        (output / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: (name == MODEL_FILE, name)):
        (folder / name).replace(output / name)
