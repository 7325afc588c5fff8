# SPDX-License-Identifier: Apache-2.0
"""Print the figures of ``netwarp benchmark ops`` as the tables of docs/operator.md, and plot them.

``python studies/report_ops.py OPS.json PLOT.svg``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

IMPLEMENTATIONS = {
    "warp_combine": "#0072b2",
    "grid_sample + mul + add, compiled": "#e69f00",
    "grid_sample + mul + add": "#999999",
}


def print_tables(results: list[dict[str, Any]]) -> None:
    """Print a Markdown table of times in ms, and ratios to the copy, for each direction and state of the memory."""
    for direction, memory in dict.fromkeys((r["direction"], r["memory"]) for r in results):
        chosen = [r for r in results if (r["direction"], r["memory"]) == (direction, memory)]
        names = list(dict.fromkeys(r["implementation"] for r in chosen))
        print(f"\n**{direction.capitalize()}, {memory} memory**\n")
        print("| Case |", " | ".join(names), "|")
        print("|---|" + "---:|" * len(names))
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for result in chosen:
            shape = "×".join(map(str, result["shape"][1:]))
            case = f"{result['case']} {shape}, {result['dtype']}, {result['layout'].replace('_', '-')}"
            rows.setdefault(case, {})[result["implementation"]] = result
        for case, row in rows.items():
            cells = [f"{row[n]['time_ms']:.3g}" + ("" if n == "copy" else f" ({row[n]['vs_copy']:.2f})") for n in names]
            print(f"| {case} |", " | ".join(cells), "|")


def draw(benchmark: dict[str, Any], plot: Path) -> None:
    """Plot the forward times relative to the copy, as a group of bars for each case."""
    states = [state for state in ("fresh", "cold") if any(r["memory"] == state for r in benchmark["results"])]
    chosen = [r for r in benchmark["results"] if r["direction"] == "forward" and r["memory"] == states[0]]
    groups: dict[str, dict[str, float]] = {}
    for result in chosen:
        shape = "×".join(map(str, result["shape"][1:]))
        label = f"{result['case']}\n{shape}\n{result['dtype']}\n{result['layout'].replace('_', '-')}"
        groups.setdefault(label, {})[result["implementation"]] = result["vs_copy"]

    mpl.rcParams.update({"svg.hashsalt": "netwarp", "font.size": 8})
    axes = plt.figure(figsize=(11, 4.2), layout="constrained").add_subplot()
    width = 0.8 / len(IMPLEMENTATIONS)
    for index, (implementation, color) in enumerate(IMPLEMENTATIONS.items()):
        positions = [group + (index - 1) * width for group in range(len(groups))]
        heights = [group.get(implementation, float("nan")) for group in groups.values()]
        bars = axes.bar(positions, heights, width, label=implementation, color=color)
        axes.bar_label(bars, fmt="%.3g", fontsize=6)
    axes.axhline(1, color="black", linewidth=0.8, label="copy of the previous features")
    axes.set_yscale("log")
    axes.set_ylabel("time, in copies")
    axes.set_xticks(range(len(groups)), list(groups), fontsize=6.5)
    environment = benchmark["environment"]
    axes.set_title(f"{environment['device']}, {environment['threads']} threads, PyTorch {environment['torch']}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(plot, metadata={"Date": None})


if __name__ == "__main__":
    benchmark_json = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print_tables(benchmark_json["results"])
    draw(benchmark_json, Path(sys.argv[2]))
