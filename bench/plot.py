"""Draws performance.png, hosts.png and shares.png from docs/performance.json, in the bench's own environment.

python bench/plot.py docs/performance.json docs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    results = json.loads(source.read_text())
    _speeds(results, folder / "performance.png")
    if points := results.get("sites", {}).get("hosts", {}).get("over_time"):
        _over_time(results["sites"]["hosts"]["title"], points, folder / "hosts.png")
    if shares := results.get("shares"):
        _shares(shares, folder / "shares.png")


def _speeds(results: dict[str, Any], target: Path) -> None:
    figure, (speed, cost, memory) = pyplot.subplots(1, 3, figsize=(17, 4.5), width_ratios=(2, 1, 1))
    rows = sorted(results.get("contestants", {}).values(), key=lambda row: row["median"])
    medians = [row["median"] for row in rows]
    spread = [[row["median"] - row["min"] for row in rows], [row["max"] - row["median"] for row in rows]]
    bars = speed.barh([row["title"].replace(": ", ":\n", 1) for row in rows], medians, xerr=spread, capsize=3)
    speed.bar_label(bars, fmt="%.0f", padding=6)
    speed.margins(x=0.12)
    speed.set_title("Pages per CPU second, all processes counted")
    if sizes := results.get("frontier", {}).get("postgresql", {}).get("sizes"):
        known = [int(row["what"].partition(" ")[0].replace(",", "")) for row in sizes]
        cost.plot([known[0], *known[1::2]], [1, *(row["x"] for row in sizes[1::2])], marker="o")
        cost.set(xscale="log", ylim=(0, 1.5), xlabel="URLs known", title="Ledger: CPU a page, relative")
    if points := results.get("endurance", {}).get("memory_mib"):
        memory.plot(*zip(*points, strict=True))
        memory.set(ylim=(0, 260), xlabel="pages fetched", title="Worker, 64 hosts: memory, MiB")
    figure.tight_layout()
    figure.savefig(target, dpi=90)


def _over_time(title: str, points: list[tuple[int, int]], target: Path) -> None:
    """`points`: (seconds since the first page, pages fetched from there to the next point)."""
    seconds, pages = zip(*points, strict=True)
    width = seconds[1] - seconds[0] if len(seconds) > 1 else 1
    figure, axes = pyplot.subplots(figsize=(9, 4))
    axes.step(seconds, [count / width for count in pages], where="post")
    axes.set(xlabel="seconds", ylabel="pages a second", title=title, ylim=(0, None), xlim=(0, None))
    figure.tight_layout()
    figure.savefig(target, dpi=90)


def _shares(measured: dict[str, Any], target: Path) -> None:
    """Each job's share of the pages of ten seconds, beside its weight's."""
    figure, axes = pyplot.subplots(figsize=(9, 4))
    counted: dict[str, list[int]] = measured["seconds"]
    starts = range(0, min(map(len, counted.values())) - 9, 10)
    pages = {job: [sum(of[start : start + 10]) for start in starts] for job, of in counted.items()}
    everyone = [max(sum(of), 1) for of in zip(*pages.values(), strict=True)]
    for job, of in pages.items():
        line = axes.step(starts, [n / total for n, total in zip(of, everyone, strict=True)], where="post", label=job)
        axes.axhline(measured["weights"][job], linestyle=":", color=line[0].get_color())
    axes.set(xlabel="seconds", ylabel="share of the pages", title="Three jobs, by priority", ylim=(0, 1))
    axes.legend()
    figure.tight_layout()
    figure.savefig(target, dpi=90)


if __name__ == "__main__":
    main()
