"""Draws docs/performance.png from docs/performance.json; in the bench's own environment, which has matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    results = json.loads(source.read_text())
    figure, (speed, cost, memory) = pyplot.subplots(1, 3, figsize=(17, 4.5), width_ratios=(2, 1, 1))
    rows = sorted(results.get("contestants", {}).values(), key=lambda row: row["median"])
    medians = [row["median"] for row in rows]
    spread = [[row["median"] - row["min"] for row in rows], [row["max"] - row["median"] for row in rows]]
    bars = speed.barh([row["title"].replace(": ", ":\n", 1) for row in rows], medians, xerr=spread, capsize=3)
    speed.bar_label(bars, fmt="%.0f", padding=6)
    speed.margins(x=0.12)
    speed.set_title("Pages per CPU second, all processes counted")
    if sizes := results.get("frontier", {}).get("sizes"):
        pairs = list(zip(sizes[::2], sizes[1::2], strict=True))
        ratios = [large["cpu_ms"] / small["cpu_ms"] for small, large in pairs]
        cost.plot([sizes[0]["urls"], *(large["urls"] for _, large in pairs)], [1, *ratios], marker="o")
        cost.set(xscale="log", ylim=(0, 1.5), xlabel="URLs known", title="Ledger: CPU a page, relative")
    if points := results.get("endurance", {}).get("memory_mib"):
        memory.plot(*zip(*points, strict=True))
        memory.set(ylim=(0, 260), xlabel="pages fetched", title="Worker, 64 hosts: memory, MiB")
    figure.tight_layout()
    figure.savefig(target, dpi=90)


if __name__ == "__main__":
    main()
