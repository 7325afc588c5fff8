# SPDX-License-Identifier: Apache-2.0
"""Several recordings evaluated in slices, with a file of results for each recording."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from netwarp_ros.evaluation.provenance import describe_input
from netwarp_ros.evaluation.results import EvaluationResults, PartialResults, write_json
from netwarp_ros.evaluation.scoring import summarise
from netwarp_ros.evaluation.slices import (
    Slice,
    SliceResults,
    SliceRunner,
    SliceSettings,
    evaluate_slices,
    prefix_cameras,
    recording_name,
    run_serially,
)


def evaluate_recordings(
    settings: SliceSettings,
    slices: Sequence[Slice],
    folder: Path,
    weights: Path,
    context: Mapping[str, Any],
    run: SliceRunner = run_serially,
    on_slice: Callable[[Slice], None] = lambda slice_: None,
) -> tuple[EvaluationResults, list[str]]:
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

    Returns:
        The results over all recordings, and the notes on damage. If there are several recordings, the name of a camera
        starts with that of its recording.

    Raises:
        ValueError: If a slice cannot be evaluated.
        OSError: If a file cannot be written, or a slice is lost on Ray.
    """
    model = describe_input(weights)
    inputs = {
        recording: {"images": describe_input(recording), "model": model}
        for recording in dict.fromkeys(slice_.recording for slice_ in slices)
    }
    origins = {recording: _origin(settings, described, context) for recording, described in inputs.items()}
    results = evaluate_slices(settings, slices, folder / "slices", origins, run, on_slice)

    for recording, described in inputs.items():
        own = [result for slice_, result in zip(slices, results, strict=True) if slice_.recording == recording]
        scores = _summarise(settings, [result.results for result in own]).to_json()
        content = {**scores, "damage": _damage(own), "inputs": described, **context}
        write_json(folder / f"{recording_name(recording)}.json", content)

    parts = [result.results for result in results]
    if len(inputs) > 1:
        parts = [prefix_cameras(slice_.recording, part) for slice_, part in zip(slices, parts, strict=True)]
    return _summarise(settings, parts), _damage(results)


def _origin(settings: SliceSettings, inputs: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that the results of a recording depend on."""
    return {
        "inputs": [described["sha256"] for described in inputs.values()],
        "settings": {
            **context["settings"], "host": settings.host, "widths": list(settings.widths), "rate": settings.rate,
        },
        "topics": [list(settings.topics), list(settings.label_topics)],
    }  # fmt: skip


def _summarise(settings: SliceSettings, parts: Sequence[PartialResults]) -> EvaluationResults:
    return summarise(parts, settings.classes, labelled=bool(settings.label_topics), widths=settings.widths)


def _damage(results: Iterable[SliceResults]) -> list[str]:
    """Return the notes on damage; a note that several slices have is returned once."""
    return list(dict.fromkeys(note for result in results for note in result.damage))
