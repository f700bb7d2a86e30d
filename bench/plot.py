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
from report import RACES


def main() -> None:
    source, folder = map(Path, sys.argv[1:])
    results = json.loads(source.read_text())
    _speeds(results, folder / "performance.png")
    if points := results.get("sites", {}).get("hosts", {}).get("over_time"):
        _over_time(results["sites"]["hosts"]["title"], points, folder / "hosts.png")
    if shares := results.get("shares"):
        _shares(shares, folder / "shares.png")


def _speeds(results: dict[str, Any], target: Path) -> None:
    figure, (speed, cost, memory) = pyplot.subplots(1, 3, figsize=(17, 6), width_ratios=(2, 1, 1))
    races = [results["sites"][name] for name in RACES if name in results.get("sites", {})]
    rows: dict[str, str] = {name: row["title"] for race in races for name, row in race["contestants"].items()}
    places = range(len(rows))
    for number, race in enumerate(races):
        of_race = [race["contestants"].get(name, {"median": 0, "min": 0, "max": 0}) for name in rows]
        medians = [row["median"] for row in of_race]
        spread = [[row["median"] - row["min"] for row in of_race], [row["max"] - row["median"] for row in of_race]]
        middles = [place + 0.27 * (number - 1) for place in places]
        bars = speed.barh(middles, medians, height=0.25, xerr=spread, capsize=2, label=race["title"])
        speed.bar_label(bars, [f"{median:,.0f}" if median else "" for median in medians], padding=6, fontsize=7)
    speed.set_yticks(places, [title.replace(": ", ":\n", 1) for title in rows.values()])
    speed.margins(x=0.12)
    speed.legend(fontsize=7, loc="lower right")
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
