# SPDX-License-Identifier: Apache-2.0
"""Put the figures of `tools/gpu_check.sh` into one JSON file and Markdown tables: ``gpu_report.py PARTS FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; the first column holds text, the others numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n"


def steps_table(steps: list[dict[str, Any]]) -> str:
    """Return which steps passed, and how long they took."""
    meaning = {0: "passed", 124: "ran out of time"}
    return table(
        ["Step", "Result", "Seconds"],
        [[s["name"], meaning.get(s["status"], f"failed: {s['status']}"), f"{s['seconds']:.0f}"] for s in steps],
    )


def ops_tables(results: list[dict[str, Any]]) -> str:
    """Return a table for each direction and state of the memory: times, and bandwidth as a part of the copy's."""
    text = ""
    for direction, memory in dict.fromkeys((r["direction"], r["memory"]) for r in results):
        chosen = [r for r in results if (r["direction"], r["memory"]) == (direction, memory)]
        names = list(dict.fromkeys(r["implementation"] for r in chosen))
        cases: dict[str, dict[str, dict[str, Any]]] = {}
        for r in chosen:
            key = f"{r['case']} {'×'.join(map(str, r['shape']))}, {r['dtype']}, {r['layout']}"
            cases.setdefault(key, {})[r["implementation"]] = r
        rows = []
        for key, by_name in cases.items():
            copy = by_name["copy"]["gb_s"]
            cells = [f"{1e3 * r['time_ms']:.1f} ({r['gb_s'] / copy:.2f})" for r in map(by_name.get, names) if r]
            rows.append([key, *cells])
        text += f"{direction}, {memory}: µs (bandwidth as a part of the copy's)\n\n" + table(["Case", *names], rows)
    return text


def flow_table(results: list[dict[str, Any]]) -> str:
    """Return the times of DIS flow, beside OpenCV's."""
    rows = []
    for r in results:
        times = [f"{r['ms']:.3f}", f"{r['opencv_ms']:.2f}", f"{r['opencv_ms'] / r['ms']:.1f}"]
        rows.append([f"{r['preset']}, {'×'.join(map(str, r['size']))}", *times, f"{r['error_px']:.2f}"])
    return table(["DIS", "GPU, ms", "OpenCV, ms", "faster by", "mean error, px"], rows)


def models_table(results: list[dict[str, Any]]) -> str:
    """Return the times of each video CNN and of its host."""
    rows = []
    for r in results:
        how = r["engine"] if r["compile"] == "none" else f"{r['engine']}, {r['compile']}"
        settings = [r["model"], "×".join(map(str, r["size"])), how, "yes" if r["flow_cnn"] else "no"]
        if "error" in r:
            rows.append([*settings, r["error"], *[""] * 4])
            continue
        host, video = r["stages_ms"]["host"], r["stages_ms"]["netwarp"]
        times = [host["total"], video["total"], video["flow"], video["network"] - host["network"]]
        rows.append([*settings, *(f"{value:.2f}" for value in times), f"{r['overhead']:.1f} %"])
    return table(
        ["Model", "Size", "engine", "Λ", "host, ms", "NetWarp, ms", "of it flow", "network, more than the host's",
         "overhead"], rows,
    )  # fmt: skip


def main(parts: Path, folder: Path) -> None:
    """Read what the steps left in ``parts``; write gpu.json and gpu.md into ``folder``."""
    lines = (parts / "steps.tsv").read_text(encoding="utf-8").splitlines()
    steps = [
        {"name": name, "status": int(status), "seconds": int(ms) / 1e3}
        for name, status, ms in (line.split("\t") for line in lines)
    ]
    content: dict[str, Any] = {"steps": steps}
    for name in ("ops", "flow", "models"):
        file = parts / f"{name}.json"
        content[name] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    text = steps_table(steps)
    if content["ops"]:
        text += ops_tables(content["ops"]["results"])
    if content["flow"]:
        text += flow_table(content["flow"]["results"])
    if content["models"]:
        text += models_table(content["models"]["results"])
    (folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "gpu.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
