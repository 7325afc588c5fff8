# SPDX-License-Identifier: Apache-2.0
"""Several recordings evaluated in slices, with a file of results for each recording."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from netwarp_ros.evaluation.provenance import describe_input
from netwarp_ros.evaluation.result_files import MARK, FramesFile, write_json
from netwarp_ros.evaluation.results import EvaluationResults, PartialResults
from netwarp_ros.evaluation.scoring import summarise
from netwarp_ros.evaluation.slices import (
    Slice,
    SliceResults,
    SliceRunner,
    SliceSettings,
    evaluate_slices,
    prefix_cameras,
    prefixed,
    recording_name,
    run_serially,
)
from netwarp_ros.recordings.atomic import holds, refuse_foreign


class RecordingsResults(NamedTuple):
    """Results over all recordings. If there are several, the name of a camera starts with that of its recording.

    Attributes:
        results: Scores and times.
        damage: What could not be read or matched, a sentence for each.
        frames: The JSON of each frame, with its ``recording`` if there are several; read from files, once.
    """

    results: EvaluationResults
    damage: Sequence[str]
    frames: Iterator[dict[str, Any]]


def evaluate_recordings(
    settings: SliceSettings,
    slices: Sequence[Slice],
    folder: Path,
    weights: Path,
    context: Mapping[str, Any],
    run: SliceRunner = run_serially,
    on_slice: Callable[[Slice], None] = lambda slice_: None,
) -> RecordingsResults:
    """Evaluate slices, and write the results of each recording to ``folder/NAME.json``.

    The results of each slice are kept in ``folder/slices``. A later call with the same input and settings reads them
    instead of evaluating the slice again.

    Args:
        settings: How the recordings are evaluated.
        slices: All slices of the recordings, in order.
        folder: Where the results go; created if it does not exist.
        weights: The weights file of the model.
        context: ``settings`` and ``environment``, written beside the scores.
        run: What evaluates the slices: `run_serially` or `run_on_ray`.
        on_slice: Called with each slice once its results are there.

    Raises:
        FileExistsError: If the folder has results of other recordings with other settings or another model, or a file
            in the way that this program did not write.
        ValueError: If a slice cannot be evaluated.
        OSError: If a file cannot be written, or a slice is lost on Ray.
    """
    model = describe_input(weights)
    recordings = list(dict.fromkeys(slice_.recording for slice_ in slices))
    _refuse_others(folder, [recording_name(recording) for recording in recordings], model, context)
    inputs = {recording: {"images": describe_input(recording), "model": model} for recording in recordings}
    origins = {recording: _origin(settings, described, context) for recording, described in inputs.items()}
    results = evaluate_slices(settings, slices, folder / "slices", origins, run, on_slice)

    evaluated = list(zip(slices, results, strict=True))
    for recording, described in inputs.items():
        own = [result for slice_, result in evaluated if slice_.recording == recording]
        scores = _summarise(settings, [result.results for result in own]).to_json()
        content = {**scores, "damage": _damage(own), "inputs": described, **context}
        write_json(folder / f"{recording_name(recording)}.json", content, _frames(own))

    damage = _damage(results)
    if len(inputs) == 1:
        return RecordingsResults(_summarise(settings, [result.results for result in results]), damage, _frames(results))
    parts = [prefix_cameras(slice_.recording, result.results) for slice_, result in evaluated]
    return RecordingsResults(_summarise(settings, parts), damage, _frames_of_recordings(evaluated))


def _refuse_others(folder: Path, names: Sequence[str], model: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    """Check that the results in a folder are of one model and its settings, once those of these names are written."""
    for name in names:
        refuse_foreign(folder / f"{name}.json", MARK)
    for file in sorted(folder.glob("*.json")):
        if file.stem in names or not holds(file, MARK):
            continue
        try:
            head = FramesFile(file).head
            same = head["inputs"]["model"]["sha256"] == model["sha256"] and head["settings"] == context["settings"]
        except (ValueError, TypeError, KeyError, RecursionError):
            same = False
        if not same:
            raise FileExistsError(
                f"{file} holds results of another model or other settings, and {folder} would be a mix of both: give "
                "another --output, or remove the file"
            )


def _frames(results: Iterable[SliceResults]) -> Iterator[dict[str, Any]]:
    """Read the JSON of each frame."""
    return chain.from_iterable(result.file.frames() for result in results)


def _frames_of_recordings(evaluated: Iterable[tuple[Slice, SliceResults]]) -> Iterator[dict[str, Any]]:
    """Read the JSON of each frame, and name its recording."""
    for slice_, result in evaluated:
        for frame in result.file.frames():
            camera = prefixed(slice_.recording, frame["camera"])
            yield {**frame, "camera": camera, "recording": recording_name(slice_.recording)}


def _origin(settings: SliceSettings, inputs: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the results of a recording depend on."""
    return {
        "inputs": [described["sha256"] for described in inputs.values()],
        "settings": {
            **context["settings"], "host": settings.host, "widths": list(settings.widths), "rate": settings.rate,
        },
        "topics": [list(settings.topics), list(settings.label_topics)],
        "classes": json.loads(json.dumps(asdict(settings.classes))),
    }  # fmt: skip


def _summarise(settings: SliceSettings, parts: Sequence[PartialResults]) -> EvaluationResults:
    return summarise(parts, settings.classes, labelled=bool(settings.label_topics), widths=settings.widths)


def _damage(results: Iterable[SliceResults]) -> list[str]:
    """Return the notes on damage; a note that several slices have is returned once."""
    return list(dict.fromkeys(note for result in results for note in result.damage))
