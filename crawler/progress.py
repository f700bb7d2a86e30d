"""How a crawl looks on a terminal, and in a log where there is none.

Titles, URLs, reasons, and names of hosts and workers come from outside. Everything shown goes through `printable` and
reaches rich as `Text`, never as a string: so no page can send escape sequences to a terminal, and `[::1]:8080` or a
pattern such as `[/a](` is not taken for rich's markup.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from crawler.printable import printable

WIDTH = 160
"""Of tables, in characters, where there is no terminal."""
LOG_SECONDS = 5.0
"""Between two lines, where there is no terminal to draw a bar on."""


def standard_output() -> Console:
    """Standard output; where it is no terminal, wide enough for tables of long host names."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def say(console: Console, *lines: object, style: str = "") -> None:
    """Print each of `lines` on a line of its own, whatever it contains."""
    for line in lines:
        console.print(Text(printable(line), style=style), soft_wrap=True)


class Watch:
    """A bar with pages, pages/s and errors, fed with snapshots of one job. Use it in `with`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._logged = 0.0
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
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
        """Draw the bar anew, or, without a terminal, print a line: every LOG_SECONDS, and when the job ends."""
        counts = snapshot["counts"]
        finished = counts["done"] + counts["failed"] + counts["excluded"]
        title = printable(f"{snapshot['job']} ({snapshot['state']})")
        numbers = (
            f"{counts['done']:,} pages, {snapshot['rate']:g}/s, {counts['failed']:,} failed, "
            f"{counts['excluded']:,} excluded, {counts['queued'] + counts['leased']:,} to go"
        )
        if waiting := snapshot.get("waiting"):
            numbers += f" ({waiting:,} wait for another attempt{_until_next_attempt(snapshot)})"
        self._bar.update(
            self._task,
            description=title,
            completed=finished,
            total=max(counts["discovered"], 1),
            numbers=numbers,
        )
        if not self._console.is_terminal and (
            time.monotonic() - self._logged >= LOG_SECONDS or snapshot["state"] != "running"
        ):
            self._logged = time.monotonic()
            say(self._console, f"{title}: {numbers}")


def table(title: str, names: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """An empty table with a column for each of `names`, and one, to the right, for each of `numbers`. Where it is too
    wide, names are folded; numbers are neither folded nor cut."""
    made = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for name in names:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def cells(*values: object) -> list[RenderableType]:
    """`values` as cells of a table's row: whole numbers with separators, anything else as it is."""
    return [Text(f"{value:,}" if isinstance(value, int) else printable(value)) for value in values]


def _until_next_attempt(snapshot: dict[str, Any]) -> str:
    """ ", the next in 18 min": a job that only waits for its URLs' own clocks looks idle otherwise."""
    if snapshot.get("next_attempt_at") is None:
        return ""
    seconds = max(0.0, snapshot["next_attempt_at"] - snapshot["at"])
    return f", the next in {seconds / 60:.0f} min" if seconds >= 90 else f", the next in {seconds:.0f} s"


def summary(snapshot: dict[str, Any]) -> list[Table]:
    """A job's outcome as tables: per site and per worker."""
    states = ("discovered", "done", "failed", "excluded", "queued", "leased")
    sites = table(f"{snapshot['job']}: {snapshot['state']}", ("site",), states)
    for site in snapshot["sites"]:
        sites.add_row(*cells(site["host"], *(site[state] for state in states)))
    sites.add_section()
    sites.add_row(*cells("all", *(snapshot["counts"][state] for state in states)))
    workers = table("", ("worker",), ("pages", "pages/s"))
    for worker in snapshot["workers"]:
        workers.add_row(*cells(worker["worker"], worker["pages"], f"{worker['rate']:g}"))
    return [sites, workers]


def conserved(counts: dict[str, int]) -> bool:
    """Whether every discovered URL is in exactly one state."""
    return counts["discovered"] == sum(count for state, count in counts.items() if state != "discovered")
