"""How a crawl looks on a terminal, and in a log where there is none."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

LOG_SECONDS = 5.0
"""Between two lines, where there is no terminal to draw a bar on."""


class Watch:
    """A bar with pages, pages/s and errors, fed with snapshots of one job. Use it in `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("waiting for the fleet", numbers="", total=None)

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, snapshot: dict[str, Any]) -> None:
        counts = snapshot["counts"]
        finished = counts["done"] + counts["failed"] + counts["excluded"]
        numbers = (
            f"{counts['done']:,} pages, {snapshot['rate']:g}/s, {counts['failed']:,} failed, "
            f"{counts['excluded']:,} excluded, {counts['queued'] + counts['leased']:,} to go"
        )
        self._bar.update(
            self._task,
            description=f"{snapshot['job']} ({snapshot['state']})",
            completed=finished,
            total=max(counts["discovered"], 1),
            numbers=numbers,
        )
        if not self._console.is_terminal and (
            time.monotonic() - self._logged >= LOG_SECONDS or snapshot["state"] != "running"
        ):
            self._logged = time.monotonic()
            self._console.print(f"{snapshot['job']} ({snapshot['state']}): {numbers}", highlight=False, soft_wrap=True)


def summary(snapshot: dict[str, Any]) -> list[Table]:
    """A job's outcome as tables: per site and per worker."""
    states = ("discovered", "done", "failed", "excluded", "queued", "leased")
    sites = Table("site", *states, title=f"{snapshot['job']}: {snapshot['state']}", title_justify="left")
    for column in sites.columns[1:]:
        column.justify = "right"
    for site in snapshot["sites"]:
        sites.add_row(site["host"], *(f"{site[state]:,}" for state in states))
    sites.add_section()
    sites.add_row("all", *(f"{snapshot['counts'][state]:,}" for state in states))
    crew = Table("worker", "pages", "pages/s")
    for column in crew.columns[1:]:
        column.justify = "right"
    for worker in snapshot["workers"]:
        crew.add_row(worker["worker"], f"{worker['pages']:,}", f"{worker['rate']:g}")
    return [sites, crew]


def conserved(counts: dict[str, int]) -> bool:
    """Whether every discovered URL is in exactly one state."""
    return counts["discovered"] == sum(count for state, count in counts.items() if state != "discovered")
