"""What reaches the terminal, whatever stands in the ledger."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from crawler import progress
from crawler.printable import log_printably, printable

STATES = ("discovered", "done", "failed", "excluded", "queued", "leased")
CLEAR = "\x1b[2J\x1b]0;owned\x07"


def snapshot(state: str = "running", host: str = "a.test", worker: str = "worker-1@h", **counts: int) -> dict[str, Any]:
    full = {**dict.fromkeys(STATES, 0), **counts}
    full["discovered"] = sum(full.values())
    return {
        "job": "j",
        "state": state,
        "rate": 12.5,
        "counts": full,
        "sites": [{"host": host, **full}],
        "workers": [{"worker": worker, "pages": full["done"], "rate": 3.25}],
        "seedings": {},
    }


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None, legacy_windows=False)


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ünïcode 漢字 👍", "Ünïcode 漢字 👍"),
        (CLEAR, r"\x1b[2J\x1b]0;owned\x07"),
        ("\x9b2J", r"\x9b2J"),  # CSI in one character
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),  # no line that looks like ours
        ("abc\u202egpj.exe", r"abc\u202egpj.exe"),
        ("\x7f\u2028\udc9b", r"\x7f\u2028\udc9b"),
        (404, "404"),
    ],
)
def test_printable(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_no_text_in_a_log_steers_a_terminal_or_passes_for_a_record() -> None:
    out = io.StringIO()
    log = logging.Logger("crawler.test")
    log.addHandler(logging.StreamHandler(out))
    log.handlers[0].setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    log_printably(log)
    log_printably(log)
    log.warning("%s: left out", f"worker-1{CLEAR}\nINFO all is well")
    try:
        raise ValueError(f"{CLEAR}\nCRITICAL run this")
    except ValueError:
        log.exception("failed")
    lines = out.getvalue().split("\n")
    assert lines[:3] == [r"WARNING worker-1\x1b[2J\x1b]0;owned\x07", "  INFO all is well: left out", "ERROR failed"]
    assert [line for line in lines[3:] if line and not line.startswith("  ")] == []
    assert "  CRITICAL run this" in lines


@given(st.text())
def test_no_text_steers_the_terminal_and_every_text_can_be_said(text: str) -> None:
    out = console()
    progress.say(out, text)
    shown = written(out)
    assert shown.endswith("\n")
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown[:-1])


@pytest.mark.parametrize(
    "name",
    ["[::1]:8080", "[fd00::1]:8080", "[/a](", "[red]", "[bold", "\\[x]", ":100:", "http://a.test/:smile:/[b]"],
)
def test_every_name_is_shown_as_it_is(name: str) -> None:
    out = console()
    for table in progress.summary(snapshot(host=name, worker=name, done=7)):
        out.print(table)
    assert written(out).count(name) == 2
    out = console()
    progress.say(out, name)
    assert written(out) == name + "\n"


def test_a_name_in_the_summary_cannot_steer_the_terminal() -> None:
    out = console(terminal=True)
    for table in progress.summary(snapshot(host=CLEAR, worker=CLEAR) | {"job": CLEAR}):
        out.print(table)
    assert written(out).count(r"\x1b]0;owned\x07") == 3
    assert "\x1b]" not in written(out)


def test_the_summary_adds_up() -> None:
    out = console()
    for table in progress.summary(snapshot("done", done=1234, failed=2, excluded=30)):
        out.print(table)
    text = written(out)
    assert "j: done" in text
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in text.splitlines() if "│" in line]
    assert ["a.test", "1,266", "1,234", "2", "30", "0", "0"] in cells
    assert ["all", "1,266", "1,234", "2", "30", "0", "0"] in cells
    assert ["worker-1@h", "1,234", "3.25"] in cells


def test_nothing_in_the_summary_of_a_large_crawl_is_cut() -> None:
    """Eighty columns are what a terminal has at least."""
    host = "documentation.some-university.example.org:8443"
    out = Console(file=io.StringIO(), width=80)
    for table in progress.summary(snapshot(host=host, worker=host, done=9_234_567, queued=8_000_000, failed=1_000_001)):
        out.print(table)
    text = written(out)
    assert text.count("18,234,568") == text.count("9,234,567") - 1 == text.count("1,000,001") == 2
    assert "…" not in text
    assert "".join(line.split("│")[1].strip() for line in text.splitlines() if line.count("│") == 8).startswith(host)


def test_without_a_terminal_tables_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys, "stdout", io.StringIO())
    assert progress.standard_output().width == progress.WIDTH


def test_a_log_gets_a_line_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = console()
    with progress.Watch(out) as watch:
        for second, state in ((0, "running"), (1, "running"), (4.9, "running"), (5, "running"), (6, "done")):
            now[0] = 100.0 + second
            watch.show(snapshot(state, done=3, failed=1, excluded=2, queued=4, leased=1))
    lines = written(out).splitlines()
    assert lines[0] == "j (running): 3 pages, 12.5/s, 1 failed, 2 excluded, 5 to go"
    assert [line.split(":")[0] for line in lines] == ["j (running)", "j (running)", "j (done)"]


def test_a_terminal_gets_a_bar() -> None:
    out = console(terminal=True)
    with progress.Watch(out) as watch:
        watch.show(snapshot(done=3, failed=2, excluded=1, queued=1, leased=1) | {"job": "[/a](" + CLEAR, "waiting": 1})
    text = written(out)
    assert r"[/a](\x1b[2J\x1b]0;owned\x07 (running)" in text
    assert "3 pages, 12.5/s, 2 failed, 1 excluded, 2 to go (1 wait for another attempt)" in text
    assert "75%" in text


@pytest.mark.parametrize(
    ("at", "said"), [(1041.4, "the next in 41 s"), (2080, "the next in 18 min"), (900, "the next in 0 s")]
)
def test_it_says_when_the_next_attempt_is(at: float, said: str) -> None:
    out = console(terminal=True)
    with progress.Watch(out) as watch:
        watch.show(snapshot(queued=1) | {"waiting": 1, "at": 1000, "next_attempt_at": at})
    assert f"(1 wait for another attempt, {said})" in written(out)


@pytest.mark.parametrize(("change", "holds"), [({}, True), ({"done": 41}, False), ({"discovered": 7}, False)])
def test_counts_are_conserved_or_not(change: dict[str, int], holds: bool) -> None:
    counts = {"discovered": 6, "queued": 1, "leased": 0, "done": 3, "failed": 1, "excluded": 1}
    assert progress.conserved({**counts, **change}) is holds
