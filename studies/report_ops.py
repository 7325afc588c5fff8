# SPDX-License-Identifier: Apache-2.0
"""Print the figures of ``netwarp benchmark ops`` as the tables of docs/operator.md, and plot them.

``python studies/report_ops.py AVX2.json AVX512.json PLOT.svg``: one file for each instruction set.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

NAMES = {"AVX2": "AVX2", "AVX512": "AVX-512"}
BARS = {("warp", "AVX2"): "#56b4e9", ("warp", "AVX512"): "#0072b2", ("grid_sample", "AVX2"): "#e69f00"}


def case_of(result: dict[str, Any]) -> str:
    """Name the case of a result."""
    shape = "×".join(map(str, result["shape"][1:]))
    return f"{result['case']} {shape}, {result['dtype']}, {result['layout'].replace('_', '-')}"


def print_tables(results: list[dict[str, Any]]) -> None:
    """Print a Markdown table for each direction and state of the memory, with both instruction sets."""
    columns = [(name, isa) for name in ("copy", "warp", "warp_combine") for isa in NAMES]
    for direction, memory in dict.fromkeys((r["direction"], r["memory"]) for r in results):
        cells: dict[str, dict[tuple[str, str], str]] = {}
        for r in results:
            if (r["direction"], r["memory"]) == (direction, memory):
                compared = f" ({r['vs_copy']:.2f}, {r['vs_grid_sample']:.1f})" if r["vs_grid_sample"] else ""
                cells.setdefault(case_of(r), {})[r["implementation"], r["isa"]] = f"{r['time_ms']:.3g}{compared}"
        print(f"\n**{direction.capitalize()}, {memory} memory**\n")
        print("| Case |", " | ".join(f"{name}, {NAMES[isa]}" for name, isa in columns), "|")
        print("|---|" + "---:|" * len(columns))
        for case, row in cells.items():
            print(f"| {case} |", " | ".join(row[column] for column in columns), "|")


def draw(results: list[dict[str, Any]], title: str, plot: Path) -> None:
    """Plot the forward times in fresh memory relative to the copy, as a group of bars for each case."""
    groups: dict[str, dict[tuple[str, str], float]] = {}
    for r in results:
        if (r["direction"], r["memory"]) == ("forward", "fresh"):
            groups.setdefault(case_of(r), {})[r["implementation"], r["isa"]] = r["vs_copy"]

    mpl.rcParams.update({"svg.hashsalt": "netwarp", "font.size": 8})
    axes = plt.figure(figsize=(11, 4.2), layout="constrained").add_subplot()
    width = 0.8 / len(BARS)
    for index, ((implementation, isa), color) in enumerate(BARS.items()):
        positions = [group + (index - 1) * width for group in range(len(groups))]
        heights = [group[implementation, isa] for group in groups.values()]
        bars = axes.bar(positions, heights, width, label=f"{implementation}, {NAMES[isa]}", color=color)
        axes.bar_label(bars, fmt="%.3g", fontsize=6)
    axes.axhline(1, color="black", linewidth=0.8, label="copy of the features")
    axes.set_yscale("log")
    axes.set_ylabel("time, in copies")
    labels = [case.replace(", ", "\n").replace("scattered ", "scattered\n").replace(" ", "\n", 1) for case in groups]
    axes.set_xticks(range(len(groups)), labels, fontsize=5.5)
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(plot, metadata={"Date": None})


def main(files: list[str], plot: str) -> None:
    """Print the tables of all files, and plot them."""
    results = []
    for file in files:
        benchmark = json.loads(Path(file).read_text(encoding="utf-8"))
        environment = benchmark["environment"]
        results += [{**result, "isa": environment["cpu_capability"]} for result in benchmark["results"]]
    print_tables(results)
    title = f"{environment['device']}, {environment['threads']} thread(s), PyTorch {environment['torch']}"
    draw(results, title, Path(plot))


if __name__ == "__main__":
    main(sys.argv[1:-1], sys.argv[-1])
