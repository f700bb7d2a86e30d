"""Shares of three jobs of different weight, and how soon a blocked host is left alone: the whole system at full load.

Run by bench/run.py, as parts `shares` and `block`. What is measured comes from the ledger, and from the web server's
log.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import stage
from stage import CACHE, HOST, ROOT, WEB, Process

from crawler.job import PRIORITIES

WEIGHTS = PRIORITIES
"""The jobs of `shares`: one of each priority."""
SHARED, OWN = 1000, 1000
"""Hosts, of 55,556 pages each, that all the jobs want, and that one of them has for itself: far more than there are
batches under way, so that the jobs compete for these, too."""
SETTLING = 30
"""Seconds after the last of the jobs has begun that are not judged: batches leased to the first alone come back."""
WITHIN, SOON = 0.10, 2.0
"""By how much a share of a minute may differ from the weight's, relatively; seconds to a new job's first lease."""
LARGE, CANCELLED = "blocked5.tree.test", 1_000_000
"""The host that is blocked, which web.conf logs; URLs of the job that is cancelled meanwhile."""
BLOCKED_WITHIN = 3.0
ASKED = "/var/log/nginx/asked.log"

Asked = Callable[[str], list[list[str]]]


def ledger(sql: str) -> list[list[str]]:
    """What the deployed ledger answers, as text."""
    psql = ["runuser", "-u", "postgres", "--", "psql", "-AtF", "\t", "-d", "crawler", "-c", sql]
    told = stage.run("podman", "exec", "--workdir", "/", HOST, *psql)
    return [line.split("\t") for line in told.splitlines()]


# --- shares -----------------------------------------------------------------------------------------------------------


def shares(minutes: float) -> dict[str, Any]:
    """Three jobs for some minutes, and a small one in the middle of them."""
    stamp = time.strftime("%H%M%S")
    names = {priority: f"{priority}-{stamp}" for priority in WEIGHTS}
    with _cancelled_at_last(names.values()):
        for priority, name in names.items():
            hosts = [f"s{number}x5" for number in range(SHARED)] + [f"{priority}{number}x5" for number in range(OWN)]
            seed(name, [f"http://{host}.tree.test/" for host in hosts], priority=priority)
        began = time.time() + SETTLING
        time.sleep(SETTLING + minutes * 30)
        small = f"small-{stamp}"
        seed(small, [f"http://{small}x3.tree.test/"])
        first = first_lease(ledger, small)
        time.sleep(max(0.0, began + minutes * 60 - time.time()))
        under_way = int(ledger("SELECT count(*) FROM leases")[0][0])
        assert under_way < OWN, f"{under_way} batches are under way: the jobs do not compete for turns"
        counted = seconds(ledger, names, began, int(minutes * 60))
    return judged(counted, first)


def first_lease(asked: Asked, job: str, patience: float = 60.0) -> float:
    """Seconds from when the ledger has taken a job in to its first lease, to a fifth of a second."""
    began = time.time()
    leased = f"""SELECT j.created_at, extract(epoch FROM clock_timestamp()) FROM jobs j WHERE name = '{job}'
        AND EXISTS (SELECT FROM urls u WHERE u.job_id = j.job_id AND (u.lease IS NOT NULL OR u.fetched_at IS NOT NULL))
        """  # noqa: S608  the name is our own
    while not (rows := asked(leased)):
        assert time.time() - began < patience, f"{job} has no lease after {patience:g} s"
        time.sleep(0.1)
    created, seen = map(float, rows[0])
    return round(seen - created, 2)


def seconds(asked: Asked, names: dict[str, str], began: float, number: int) -> dict[str, list[int]]:
    """Pages fetched for each of the jobs in each second from `began` on."""
    of_jobs = ", ".join(f"'{name}'" for name in names.values())
    rows = asked(
        f"""SELECT name, floor(fetched_at - {began})::int, count(*) FROM urls JOIN jobs USING (job_id)
        WHERE name IN ({of_jobs}) AND urls.state = 'done'
        AND fetched_at >= {began} AND fetched_at < {began + number} GROUP BY 1, 2"""  # noqa: S608  our own
    )
    counted = {priority: [0] * number for priority in names}
    priorities = {name: priority for priority, name in names.items()}
    for name, second, pages in rows:
        counted[priorities[name]][int(second)] = int(pages)
    return counted


def judged(counted: dict[str, list[int]], first: float) -> dict[str, Any]:
    """The shares of each whole minute beside the weights', and the largest relative difference."""
    whole = min(map(len, counted.values())) // 60
    assert whole, "less than a minute of pages"
    due = {priority: WEIGHTS[priority] / sum(WEIGHTS.values()) for priority in counted}
    by_minute = []
    for minute in range(whole):
        pages = {priority: sum(of[minute * 60 : minute * 60 + 60]) for priority, of in counted.items()}
        assert all(pages.values()), f"minute {minute}: a job got nothing: {pages}"
        by_minute.append({priority: round(number / sum(pages.values()), 4) for priority, number in pages.items()})
    off = max(abs(of[priority] / due[priority] - 1) for of in by_minute for priority in due)
    return {
        "weights": {priority: round(share, 4) for priority, share in due.items()},
        "minutes": by_minute,
        "off": round(off, 4),
        "first_lease": first,
        "reached": off <= WITHIN and first <= SOON,
        "seconds": counted,
    }


# --- block ------------------------------------------------------------------------------------------------------------


def block() -> dict[str, Any]:
    """`crawler block` of a host of which many pages a second are fetched, while the scheduler and two recorders are as
    busy as they get, and a job of a million URLs is cancelled."""
    stamp = time.strftime("%H%M%S")
    large, many, million = (f"{name}-{stamp}" for name in ("large", "many", "million"))
    with _cancelled_at_last([large, many]):
        # Paused at once, so that its URLs are known and not crawled.
        urls = (f"http://m{number % 500}x5.tree.test/{10000 + number}" for number in range(CANCELLED))
        seed(million, [f"http://{million}x5.tree.test/"])
        _wait(lambda: _known(million) > 0, 60, "the job to be cancelled is known")
        stage.run("podman", "exec", HOST, "crawler", "pause", million)
        seed(million, urls)
        _wait(lambda: _known(million) >= CANCELLED, 600, "all its URLs are known")
        seed(large, [f"http://{LARGE}/"], connections=4)
        seed(many, (f"http://h{number}.many.test/" for number in range(20_000)))
        _wait(lambda: len(_log()) > 500, 120, "the large host is under way")
        cancelling = subprocess.Popen(["podman", "exec", HOST, "crawler", "cancel", million], stdout=subprocess.DEVNULL)
        time.sleep(1)
        assert cancelling.poll() is None, "the cancelled job was worked off before the host was blocked"
        given = time.time()
        stage.run("podman", "exec", HOST, "crawler", "block", LARGE)
        returned = time.time()
        cancelling.wait(timeout=600)
        time.sleep(max(0.0, given + 60 - time.time()))
        asked = _log()
        stage.run("podman", "exec", HOST, "crawler", "unblock", LARGE)
    return left_alone(asked, given, returned)


def left_alone(asked: list[float], given: float, returned: float) -> dict[str, Any]:
    """What the server's log says of an order that was given at a time. `asked`: when each request was answered."""
    before = [at for at in asked if given - 5 <= at <= given]
    assert before, "the host was not under way when it was blocked"
    after = [at - given for at in asked if at > given]
    last = round(max(after, default=0.0), 2)
    return {
        "last_request": last,
        "requests_after": len(after),
        "requests_a_second_before": len(before) / 5,
        "command": round(returned - given, 2),
        "reached": last <= BLOCKED_WITHIN,
    }


def _log() -> list[float]:
    """When each request to the host that is blocked was answered, in this machine's time."""
    return [float(line) for line in stage.run("podman", "exec", WEB, "cat", ASKED).splitlines()]


def _known(job: str) -> int:
    sums = "SELECT coalesce(sum(discovered), 0) FROM job_counts JOIN jobs USING (job_id) WHERE name = "
    return int(ledger(f"{sums}'{job}'")[0][0])


# --- jobs -------------------------------------------------------------------------------------------------------------


def seed(name: str, urls: Iterable[str], **options: Any) -> None:
    """Hand a job to the deployed system, every page without delay; returns when the broker has it."""
    described, seeds = CACHE / f"{name}.yml", CACHE / f"{name}.txt"
    job = {"name": name, "scope": {"kind": "host"}, "delay": 0, "archive": "none", **options}
    described.write_text(json.dumps(job))  # JSON is YAML
    seeds.write_text("\n".join(urls))
    command: list[str | Path] = [sys.executable, ROOT / "crawler/seed.py", "--fleet", "bench"]
    Process(*command, "--job", described, "--file", seeds, log="seed").wait()
    seeds.unlink()


@contextmanager
def _cancelled_at_last(names: Iterable[str]) -> Iterator[None]:
    try:
        yield
    finally:
        for name in names:
            subprocess.run(["podman", "exec", HOST, "crawler", "cancel", name], stdout=subprocess.DEVNULL)


def _wait(condition: Callable[[], bool], patience: float, what: str) -> None:
    deadline = time.time() + patience
    while not condition():
        assert time.time() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.5)
