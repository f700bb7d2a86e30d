"""What the ledger costs: a page, a lease, a second's housekeeping, an order; by how large the ledger is and how shaped.

    python - DATABASE [--parts sizes,alone] [--known 5000000] < bench/frontier.py

DATABASE: a file with a PostgreSQL URL whose server runs on this host and in whose place databases bench_small and
bench_large stand, or `sqlite:FOLDER`. The real schema is filled with made-up URLs; made-up reports take the real path:
lease, record. Prints a JSON object, one key a part. Run as root, which may read what other users' processes spend.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from crawler import limits, settings
from crawler.frontier import orders, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.caps import Cap, Caps
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import metadata, requests
from crawler.job import Job
from crawler.messages import Admission, Batch, Link, Report, Request, RobotsFile, UrlResult

SIZES = (100_000, 1_000_000, 10_000_000)
"""Of URLs; the others are compared with the first, which stays in a database of its own."""
URLS_PER_HOST, QUEUED = 500, 100
"""Of a host, and how many of them are still to be crawled."""
PAGES, ROUNDS = 3_000, 3
"""Driven through in each round, and rounds on each side."""
LINKS, NEW = 40, 1
"""On each page, and how many of them the ledger does not know: a frontier with no end in sight."""
NEAR = 1_000
"""Pages to which a page may link."""
AT_ONCE = limits.GATHER_MESSAGES
"""Hosts leased in one call and reports recorded in one, as a recorder takes them in when there is enough; the scheduler
leases twice as many."""
ALONE_HOSTS, ALONE_PAGES = 20_000, 3_000
"""Hosts with one page each, and how many of them a round crawls."""
HOST_URLS = NEAR
"""Of a small host, which the one with `--known` URLs is compared with."""
CAPS = Caps(Cap(*settings.CAPS["domain"]), Cap(*settings.CAPS["address"]))
"""A fleet's by default. Each host has a domain and an address of its own."""
SERVER = "192.0.2.1"
REPEATS = 20
"""Calls of what is timed call by call."""
CHORES: dict[str, Callable[[Ledger, float], Any]] = {
    "tidy": tidy.tidy,
    "recalled": lambda ledger, _: tidy.recalled(ledger),
    "status": lambda ledger, now: status.snapshots(ledger, now, finished_since=now - 60),
    "sample": status.sample,
}
"""What the scheduler does besides leasing: each second, the samples every five."""
WATCHED = 60.0
"""Seconds for which the others are watched while an order is carried out, if that takes longer."""

# `{n}`: a table of the numbers :first to :last; `{each}`: of 0 to :each - 1; `{host}`: the name of host number h.
HOST_NAME = {
    "postgresql": "'site' || to_char(h.n, 'FM0000000') || '.example'",
    "sqlite": "'site' || printf('%07d', h.n) || '.example'",
}
NUMBERS = {
    "postgresql": "(SELECT n FROM generate_series(CAST({} AS int), CAST({} AS int)) AS s(n))",
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT {0} UNION ALL SELECT n + 1 FROM s WHERE n < {1}) SELECT n FROM s)",
}
DIGEST = {"postgresql": "md5(u.n::text) || md5(h.host)", "sqlite": "lower(hex(randomblob(32)))"}
URLS = """
INSERT INTO urls (job_id, host, url, state, depth, discovered_at, attempts, found_on, status, fetched_at, title,
                  content_type, bytes, digest, worker, release)
SELECT :job, h.host, 'http://' || h.host || '/articles/' || u.n || '/a-title-of-some-length.html',
       CASE WHEN u.n < :queued THEN 'queued' ELSE 'done' END, 3, 1.0 * u.n, CASE WHEN u.n < :queued THEN 0 ELSE 1 END,
       'http://' || h.host || '/',
       CASE WHEN u.n >= :queued THEN 200 END, CASE WHEN u.n >= :queued THEN 2.0 END,
       CASE WHEN u.n >= :queued THEN 'A title of some length' END, CASE WHEN u.n >= :queued THEN 'text/html' END,
       CASE WHEN u.n >= :queued THEN 30000 END, CASE WHEN u.n >= :queued THEN {digest} END,
       CASE WHEN u.n >= :queued THEN 'worker-1@host' END, CASE WHEN u.n >= :queued THEN 'bench' END
FROM (SELECT {host} AS host FROM {hosts} h) h CROSS JOIN {urls} u
"""
QUEUES = """
INSERT INTO host_queues (job_id, host, discovered, queued, done, next_due)
SELECT :job, {host}, :each, :queued, :each - :queued, 0 FROM {hosts} h
"""
HOSTS = """
INSERT INTO hosts (host, next_due, address, looked_up_at)
SELECT {host}, 0, '10.' || (h.n / 65536 % 256) || '.' || (h.n / 256 % 256) || '.' || (h.n % 256), :now FROM {hosts} h
"""
WAIT = (
    "INSERT INTO machines (machine, next_due) VALUES (:address, 0)",
    "INSERT INTO waiting_hosts (host, machine, since) SELECT host, :address, next_due FROM hosts"
    " WHERE address = :address",
    "UPDATE host_queues SET next_due = 1e10 WHERE job_id = :job",
)
COUNTS = """
INSERT INTO job_counts (job_id, slot, discovered, queued, done)
SELECT :job, :slot, :each * hosts, :queued * hosts, (:each - :queued) * hosts
FROM (SELECT :last - :first + 1 AS hosts) h
"""


class Shape(NamedTuple):
    """Hosts numbered `first` to `last`, each with `each` URLs, the first `queued` of which are still to be crawled."""

    first: int
    last: int
    each: int = URLS_PER_HOST
    queued: int = QUEUED


class Bench:
    """A ledger of the benchmark, and what its database spends."""

    def __init__(self, url: str) -> None:
        self.ledger = Ledger.open(url, CAPS)
        self.dialect = self.ledger.engine.dialect.name
        metadata.drop_all(self.ledger.engine)
        self.ledger.create()
        self._slot = 1000  # of job_counts: the benchmark's fills, one after the other
        self._now = time.time()
        self.dice = random.Random(1)  # noqa: S311
        self._postmaster = 0
        if self.dialect == "postgresql":
            with self.ledger.engine.connect() as connection:
                backend = connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()
            self._postmaster = int(_stat(backend)[1])

    def later(self) -> float:
        """The time, a second later with each call, so that nothing waits for a host's or a server's delay."""
        self._now += 1.0
        return self._now

    def job(self, name: str, **options: Any) -> int:
        """A new job without URLs; its id."""
        seeding = Admission(job=Job(name=name, delay=0, **options), seeding=name, chunk=0, chunks=1)
        admit(self.ledger, seeding, time.time())
        with self.ledger.transaction() as tx:
            return status.job_id_of(tx, name)

    def fill(self, job_id: int, shape: Shape) -> None:
        """Make hosts and URLs known to a job; then let the database come to rest."""
        self._slot += 1
        values: dict[str, Any] = {"job": job_id, "slot": self._slot, "now": time.time(), **shape._asdict()}
        parts = {
            "hosts": NUMBERS[self.dialect].format(":first", ":last"),
            "urls": NUMBERS[self.dialect].format("0", ":each - 1"),
            "host": HOST_NAME[self.dialect],
            "digest": DIGEST[self.dialect],
        }
        with self.ledger.transaction() as tx:
            for statement in (URLS, QUEUES, HOSTS, COUNTS):
                text = statement.format(**parts)
                named = set(re.findall(r"(?<!:):([a-z]+)", text))
                tx.execute(sa.text(text), {name: value for name, value in values.items() if name in named})
        self.rest()

    def rest(self) -> None:
        """Let the database come to rest."""
        with self.ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # So that writing back what was filled in is over, and the planner knows of it.
            for statement in (
                ("VACUUM (ANALYZE, PARALLEL 0)", "CHECKPOINT")
                if self.dialect == "postgresql"
                else ("ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)")
            ):
                connection.execute(sa.text(statement)).close()

    def database_cpu(self) -> float:
        """CPU seconds of the database's processes, background and ended ones included; SQLite has none."""
        if not self._postmaster:
            return 0.0
        ticks = 0
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = _stat(int(process.name))
                if int(fields[1]) == self._postmaster:
                    ticks += int(fields[11]) + int(fields[12])
                elif int(process.name) == self._postmaster:
                    ticks += sum(map(int, fields[11:15]))  # with what its ended children used
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        self.ledger.engine.dispose()


def _stat(pid: int) -> list[str]:
    """A process's fields in /proc, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


# --- driving ----------------------------------------------------------------------------------------------------------


def outcome(batch: Batch, dice: random.Random, now: float, known: int) -> Report:
    """As a worker would report `batch`: every page with links to those of its host's `known` pages that stand near it,
    some of them new; and the robots.txt, if the batch brought none. `known` = 0: no links."""
    pages, links, requests = [], {}, []
    robots = {}
    if batch.job.robots and not batch.robots:
        requests.append(Request(url=f"http://{batch.host}/robots.txt", at=now - 0.001, status=404, seconds=0.1))
        robots[f"http://{batch.host}"] = RobotsFile(fetched_at=now, status=404)
    for number, target in enumerate(batch.targets):
        at = now + number / 1000
        pages.append(
            UrlResult(url=target.url, state="done", fetched_at=at, status=200, title="Some title", bytes=30000,
                 content_type="text/html", digest=f"{dice.getrandbits(256):064x}")
        )  # fmt: skip
        requests.append(Request(url=target.url, at=at, status=200, seconds=0.1))
        near = int(target.url.split("/")[4]) // NEAR * NEAR
        for link in range(LINKS if known else 0):
            # As many distinct ones on a large host as on a small one.
            article = dice.randrange(known, 10**9) if link < NEW else (near + dice.randrange(NEAR)) % known
            url = f"http://{batch.host}/articles/{article}/a-title-of-some-length.html"
            links[url] = Link(url=url, depth=target.depth + 1, found_on=target.url)
    return Report(
        lease=batch.lease, job=batch.job.name, host=batch.host, worker="worker-1@host", release="bench", delay=0,
        results=pages, links=list(links.values()), requests=requests, robots=robots,
    )  # fmt: skip


def drive(bench: Bench, pages: int, known: int, at_once: int = AT_ONCE) -> dict[str, float]:
    """Lease and record some pages, `at_once` batches in a call; milliseconds of CPU and of wall clock for each page."""
    done, spent = 0, dict.fromkeys(("lease", "record", "client"), 0.0)
    database = bench.database_cpu()
    while done < pages:
        began, cpu = time.perf_counter(), time.process_time()
        batches = lease(bench.ledger, at_once, bench.later())
        spent["lease"] += time.perf_counter() - began
        spent["client"] += time.process_time() - cpu
        assert batches, "nothing is due"
        reports = [outcome(batch, bench.dice, bench.later(), known) for batch in batches]
        began, cpu = time.perf_counter(), time.process_time()
        done += record(bench.ledger, reports, bench.later())
        spent["record"] += time.perf_counter() - began
        spent["client"] += time.process_time() - cpu
    spent["database"] = bench.database_cpu() - database
    return {
        "cpu_ms": (spent["client"] + spent["database"]) / done * 1000,
        **{f"{part}_ms": seconds / done * 1000 for part, seconds in spent.items()},
    }


def in_turns(sides: dict[str, Callable[[], dict[str, float]]], rounds: int) -> list[dict[str, Any]]:
    """Drive both sides in turns, so that what else the machine does meets both alike; a row for each, of medians. The
    last column: how many times the first side's CPU. Each side runs once before, which warms its caches."""
    for side in sides.values():
        side()
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            measured[name].append(side())
    rows = []
    for name, of_side in measured.items():
        medians = {part: round(statistics.median(one[part] for one in of_side), 3) for part in of_side[0]}
        rows.append({"what": name, **medians, "cpu_ms_rounds": [round(one["cpu_ms"], 3) for one in of_side]})
    for row in rows:
        row["x"] = round(row["cpu_ms"] / rows[0]["cpu_ms"], 2)
        _say(row)
    return rows


SUMMED = ("median_ms", "max_ms", "cpu_ms")


def timed(
    bench: Bench, what: str, call: Callable[[], Any], after: Callable[[Any], Any] | None = None
) -> dict[str, Any]:
    """How long `call` takes, REPEATS times; `after` is given what it returned, and not timed."""
    walls, cpu = [], 0.0
    for _ in range(REPEATS):
        database = bench.database_cpu()
        client, began = time.process_time(), time.perf_counter()
        returned = call()
        walls.append((time.perf_counter() - began) * 1000)
        cpu += time.process_time() - client
        cpu += bench.database_cpu() - database
        if after:
            after(returned)
    milliseconds = (statistics.median(walls), max(walls), cpu / REPEATS * 1000)
    row = {"what": what, **{part: round(value, 2) for part, value in zip(SUMMED, milliseconds, strict=True)}}
    _say(row)
    return row


def _say(row: dict[str, Any]) -> None:
    print(json.dumps(row), file=sys.stderr, flush=True)


# --- the parts: each is given how to open an empty ledger, and how many URLs a large one knows ------------------------


class Options(NamedTuple):
    opened: Callable[[str], Bench]
    known: int
    rounds: int
    watched: float


def sizes(options: Options) -> list[dict[str, Any]]:
    """A page, by how many URLs the ledger knows: on 500-URL hosts, with 40 links a page, one of them new."""
    small, large = options.opened("small"), options.opened("large")
    small_job, large_job = small.job("bench"), large.job("bench")
    small.fill(small_job, Shape(0, SIZES[0] // URLS_PER_HOST - 1))
    rows: list[dict[str, Any]] = []
    hosts = 0
    for size in SIZES[1:]:
        large.fill(large_job, Shape(hosts, size // URLS_PER_HOST - 1))
        hosts = size // URLS_PER_HOST
        sides = {
            urls: (lambda bench=bench: drive(bench, PAGES, URLS_PER_HOST, at_once=10))
            for urls, bench in ((f"{SIZES[0]:,} URLs", small), (f"{size:,} URLs", large))
        }
        rows += in_turns(sides, options.rounds)
    small.close()
    large.close()
    return rows


def alone(options: Options) -> list[dict[str, Any]]:
    """A page of a full batch, and a page on a host of its own. Without links, which cost both the same."""
    small, large = options.opened("small"), options.opened("large")
    small.fill(small.job("bench"), Shape(0, ALONE_HOSTS // URLS_PER_HOST * 5 - 1))
    large.fill(large.job("bench"), Shape(0, ALONE_HOSTS - 1, each=1, queued=1))
    pages = min(ALONE_PAGES, ALONE_HOSTS // (options.rounds + 1))
    sides = {"a full batch": lambda: drive(small, pages, 0), "a host of its own": lambda: drive(large, pages, 0)}
    rows = in_turns(sides, options.rounds)
    small.close()
    large.close()
    return rows


def host(options: Options) -> list[dict[str, Any]]:
    """A page by how many URLs of its host are known: batch by batch, with 40 links a page, one of them new."""
    small, large = options.opened("small"), options.opened("large")
    small.fill(small.job("bench"), Shape(0, 19, each=HOST_URLS, queued=HOST_URLS))
    large.fill(large.job("bench"), Shape(0, 0, each=options.known, queued=options.known // 10))
    pages = min(PAGES, 20 * HOST_URLS // (options.rounds + 1), options.known // 10 // (options.rounds + 1))
    sides = {
        f"a host of {HOST_URLS:,} URLs": lambda: drive(small, pages, HOST_URLS, at_once=1),
        f"a host of {options.known:,} URLs": lambda: drive(large, pages, options.known, at_once=1),
    }
    rows = in_turns(sides, options.rounds)
    small.close()
    large.close()
    return rows


def paused(options: Options) -> list[dict[str, Any]]:
    """`lease()` of a small job, before and after another job with `known` due hosts is there and paused."""
    bench = options.opened("large")
    bench.fill(bench.job("small"), Shape(0, 99, each=URLS_PER_HOST, queued=URLS_PER_HOST))
    large = bench.job("large")

    def give_back(batches: list[Batch]) -> None:
        record(bench.ledger, [outcome(batch, bench.dice, bench.later(), 0) for batch in batches], bench.later())

    rows = []
    for others in (0, options.known):
        if others:
            bench.fill(large, Shape(1000, 999 + others, each=1, queued=1))
            orders.set_state(bench.ledger, "large", "paused", bench.later())
        for number in (1, 10):
            what = f"lease() of {number}, {others:,} due hosts paused"
            rows.append(timed(bench, what, lambda n=number: lease(bench.ledger, n, bench.later()), give_back))
        # All of the small job's hosts are under way now, so that nothing is due.
        held = lease(bench.ledger, 1000, bench.later())
        what = f"lease() with nothing due, {others:,} due hosts paused"
        rows.append(timed(bench, what, lambda: lease(bench.ledger, 10, bench.later())))
        give_back(held)
    bench.close()
    return rows


def capped(options: Options) -> list[dict[str, Any]]:
    """`lease()` of a small job, before and after another job, which runs, has `known` hosts at one server: when all of
    them have just become due, and when all of them wait for it."""
    bench = options.opened("large")
    bench.fill(bench.job("small"), Shape(0, 99, each=URLS_PER_HOST, queued=URLS_PER_HOST))
    large = bench.job("large")

    def give_back(batches: list[Batch]) -> None:
        assert any(batch.job.name == "small" for batch in batches)
        record(bench.ledger, [outcome(batch, bench.dice, bench.later(), 0) for batch in batches], bench.later())

    rows = []
    for state in ("without them", "all just due", "all waiting"):
        if state == "all just due":
            bench.fill(large, Shape(1000, 999 + options.known, each=1, queued=1))
        values = {"address": SERVER, "job": large}
        with bench.ledger.transaction() as tx:
            tx.execute(sa.text("UPDATE hosts SET address = :address WHERE host >= 'site0001000'"), values)
            for statement in WAIT if state == "all waiting" else ():
                tx.execute(sa.text(statement + " ON CONFLICT DO NOTHING" * statement.startswith("INSERT")), values)
        what = f"lease() of 10, {options.known:,} hosts of one server {state}"
        rows.append(timed(bench, what, lambda: lease(bench.ledger, 10, bench.later()), give_back))
    bench.close()
    return rows


def housekeeping(options: Options) -> list[dict[str, Any]]:
    """What the scheduler does each second (the samples: every five), with a running job of `known` hosts."""
    bench = options.opened("large")
    bench.fill(bench.job("large"), Shape(0, options.known - 1, each=1, queued=1))
    rows = [timed(bench, name, lambda c=chore: c(bench.ledger, time.time())) for name, chore in CHORES.items()]
    what = f"all of it, {options.known:,} hosts"
    rows.append({"what": what, **{part: round(sum(row[part] for row in rows), 2) for part in SUMMED}})
    _say(rows[-1])
    bench.close()
    return rows


def order(options: Options) -> list[dict[str, Any]]:
    """How long others wait while another process orders that a job of `known` URLs be cancelled, then resumed; and
    while all pages of another such job are called for a new visit."""
    bench, each = options.opened("large"), 1000
    bench.fill(bench.job("small"), Shape(0, 99, each=URLS_PER_HOST, queued=URLS_PER_HOST))
    bench.fill(bench.job("large"), Shape(1000, 999 + options.known // each, each=each, queued=each))
    rows = [_others_wait(bench, options.watched, "large", "cancelled", lambda counts, _: counts["queued"] == 0)]
    rows.append(_others_wait(bench, options.watched, "large", "running", lambda counts, _: counts["excluded"] == 0))
    orders.set_state(bench.ledger, "large", "paused", time.time())
    bench.fill(bench.job("pages", recrawl=86400), Shape(500_000, 499_999 + options.known // each, each=each, queued=0))
    rows.append(
        _others_wait(bench, options.watched, "pages", "revisited", lambda counts, again: counts["done"] <= again)
    )
    bench.close()
    return rows


def _others_wait(
    bench: Bench, watched: float, job: str, what: str, reached: Callable[[dict[str, int], int], bool]
) -> dict[str, Any]:
    """Order a state for a job ("revisited": nothing, time does). Lease, record, block and ask meanwhile, until the
    counts have `reached` what was ordered; it is also told how many of the job's pages were recorded meanwhile. Batches
    of the job that were leased before come back meanwhile as well."""
    leased = lease(bench.ledger, 300, time.time())
    held = [batch for batch in leased if batch.job.name == job]
    others = [outcome(batch, bench.dice, time.time(), URLS_PER_HOST) for batch in leased if batch.job.name != job]
    record(bench.ledger, others, time.time())
    url = bench.ledger.engine.url.render_as_string(hide_password=False)
    bench.ledger.engine.dispose()  # connections do not survive a fork
    ordering = multiprocessing.get_context("fork").Process(target=_order, args=(url, job, what))
    longest: dict[str, float] = {}
    refused = recorded = 0

    def wait(what: str, call: Callable[[], Any]) -> Any:
        nonlocal refused
        began = time.perf_counter()
        while True:
            try:
                returned = call()
                break
            except sa.exc.OperationalError:  # SQLite: "database is locked", after five seconds
                refused += 1
        longest[what] = max(longest.get(what, 0.0), time.perf_counter() - began)
        return returned

    began = time.perf_counter()
    ordering.start()
    while True:
        ended = not ordering.is_alive()
        batches = wait("lease", lambda: lease(bench.ledger, 1, time.time()))
        if held:
            batches.append(held.pop())
        reports = [outcome(batch, bench.dice, time.time(), URLS_PER_HOST) for batch in batches]
        recorded += sum(len(report.results) for report in reports if report.job == job)
        wait("record", lambda reports=reports: record(bench.ledger, reports, time.time()))
        for name, chore in CHORES.items():
            wait(name, lambda chore=chore: chore(bench.ledger, time.time()))
        wait("block", lambda: orders.block(bench.ledger, "blocked.example", time.time()))
        shown = status.snapshots(bench.ledger, time.time())
        counts = next(snapshot["counts"] for snapshot in shown if snapshot["job"] == job)
        over = ended and reached(counts, recorded)
        if over or time.perf_counter() - began > watched:
            break
    if not ended:
        ordering.terminate()
    row = {
        "what": f"a job of {counts['discovered']:,} URLs {what}",
        **{f"{name}_ms": round(seconds * 1000, 1) for name, seconds in longest.items()},
        "watched_ms": round((time.perf_counter() - began) * 1000, 1),
        "over": over,
        "refused": refused,
    }
    ordering.join()
    assert not ended or ordering.exitcode == 0, "the order failed"
    _say(row)
    return row


def _order(url: str, job: str, state: str) -> None:
    """The process that orders."""
    ledger = Ledger.open(url, CAPS)
    while state != "revisited":
        try:
            orders.set_state(ledger, job, state, time.time())
            break
        except sa.exc.OperationalError:  # as above
            time.sleep(0.01)


SIZE_OF = """
WITH tables AS (SELECT relid FROM pg_partition_tree(:table) UNION SELECT CAST(:table AS regclass)), parts AS (
    SELECT 'heap' AS what, pg_table_size(relid) AS bytes FROM tables
    UNION ALL
    SELECT 'index ' || regexp_replace(pg_get_indexdef(indexrelid), '.* USING btree ', ''), pg_relation_size(indexrelid)
    FROM tables JOIN pg_index ON indrelid = relid
) SELECT what, CAST(sum(bytes) AS bigint) FROM parts GROUP BY what HAVING sum(bytes) > 0 ORDER BY what
"""
"""What a table takes, its partitions and what is kept out of line included; each index by its definition."""


def size(options: Options) -> list[dict[str, Any]]:
    """Bytes of a URL and of a request, whole: after a crawl of 30,000 pages, with a new link on each, in a ledger
    that knew 100,000 URLs, and a VACUUM such as autovacuum does."""
    bench = options.opened("large")
    bench.fill(bench.job("bench"), Shape(0, SIZES[0] // URLS_PER_HOST - 1, queued=URLS_PER_HOST))
    drive(bench, 30_000, URLS_PER_HOST)
    rows = []
    with bench.ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE, PARALLEL 0)"))
        for table, each in (("urls", "URL"), ("requests", "request")):
            number = connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608  ours
            parts = connection.execute(sa.text(SIZE_OF), {"table": table}).all()
            for what, taken in (*parts, ("all", sum(taken for _, taken in parts))):
                rows.append({"what": f"a {each}: {what}", "bytes": round(taken / number, 1), "of": number})
                _say(rows[-1])
    bench.close()
    return rows


FORGOTTEN = """
INSERT INTO requests (host, at, url, job_id, status, seconds, worker, release)
SELECT {host}, :start + h.n * 0.04, 'http://' || {host} || '/articles/' || h.n || '/a-title-of-some-length.html',
       1, 200, 0.1, 'worker-1@host', 'bench'
FROM {hosts} h
"""


def _insert_requests(ledger: Ledger) -> Any:
    names = ("host", "at", "url", "job_id", "status", "seconds", "worker", "release")
    return ledger.insert_given(requests, names).on_conflict_do_nothing()


def forget(options: Options) -> list[dict[str, Any]]:
    """A day of twice `known` requests is forgotten while others record; the same recorded for as long with nothing to
    forget; and an INSERT of requests."""
    bench, dice = options.opened("large"), random.Random(1)  # noqa: S311
    bench.fill(bench.job("bench"), Shape(0, 199, queued=URLS_PER_HOST))
    now, days = time.time(), 90
    start = (now // 86400 - days - 2) * 86400
    tidy.forget(bench.ledger, start, days)  # makes the day, where days are made
    text = FORGOTTEN.format(host=HOST_NAME[bench.dialect], hosts=NUMBERS[bench.dialect].format(":first", ":last"))
    with bench.ledger.transaction() as tx:
        tx.execute(sa.text(text), {"start": start, "first": 0, "last": 2 * options.known - 1})
    number, rows = 0, []
    for each in (50, 1000):

        def insert(each: int = each) -> None:
            nonlocal number
            made = []
            for number in range(number + 1, number + 1 + each):  # noqa: B020
                url = f"http://site0000001.example/articles/{number}/a-title-of-some-length.html"
                made.append({"host": "site0000001.example", "at": now + number / 1000, "url": url, "job_id": 1})
            told = {"status": 200, "seconds": 0.1, "worker": "worker-1@host", "release": "bench"}
            with bench.ledger.transaction() as tx:
                bench.ledger.run(tx, _insert_requests, [{**row, **told} for row in made])

        rows.append(timed(bench, f"INSERT of {each:,} requests", insert))
    url = bench.ledger.engine.url.render_as_string(hide_password=False)
    took: float | None = None
    for what in ("forgotten", "nothing to forget"):
        bench.ledger.engine.dispose()  # connections do not survive a fork
        forgetting = multiprocessing.get_context("fork").Process(target=_forget, args=(url, start + 86400, days))
        waits: list[float] = []
        began = time.perf_counter()
        if took is None:
            forgetting.start()
        while forgetting.is_alive() if took is None else time.perf_counter() - began < took:
            reports = [
                outcome(batch, dice, time.time(), URLS_PER_HOST) for batch in lease(bench.ledger, 1, time.time())
            ]
            assert reports, "nothing is due"
            recorded = time.perf_counter()
            record(bench.ledger, reports, time.time())
            waits.append((time.perf_counter() - recorded) * 1000)
        if took is None:
            took = time.perf_counter() - began
            assert forgetting.exitcode == 0, "nothing was forgotten"
        row = {
            "what": f"record() meanwhile: {2 * options.known:,} requests {what}",
            "watched_ms": round(took * 1000, 1),
        }
        rows.append({**row, "median_ms": round(statistics.median(waits), 2), "max_ms": round(max(waits), 2)})
        _say(rows[-1])
    bench.close()
    return rows


def _forget(url: str, before: float, days: float) -> None:
    """The process that forgets, without a pause between the calls."""
    ledger = Ledger.open(url)
    while True:
        tidy.forget(ledger, before + days * 86400, days)
        with ledger.transaction() as tx:
            if not tx.execute(sa.select(sa.exists().where(requests.c.at < before))).scalar_one():
                return


FINISHED = (
    "INSERT INTO jobs (name, spec, state, created_at, finished_at) SELECT 'finished-' || h.n, "
    '\'{{"name":"finished","seeds":["https://www.example.org/a/folder/"]}}\', \'done\', 1, 2 FROM {hosts} h',
    "INSERT INTO job_counts (job_id, slot, discovered, done) SELECT job_id, s.n, 100, 100 "
    "FROM jobs CROSS JOIN {slots} s WHERE state = 'done'",
    "INSERT INTO host_queues (job_id, host, discovered, done, next_due) "
    "SELECT job_id, 'www.example.org', 400, 400, 0 FROM jobs WHERE state = 'done'",
)
"""Jobs that ended, each with four rows of counts and a host."""


def finished(options: Options) -> list[dict[str, Any]]:
    """What the scheduler does each second, before and after 10,000 jobs are there that have ended."""
    bench, dice = options.opened("large"), random.Random(1)  # noqa: S311
    bench.fill(bench.job("running"), Shape(0, 99, queued=URLS_PER_HOST))
    chores = {**CHORES, "forget": lambda ledger, now: tidy.forget(ledger, now, 90)}

    def give_back(batches: list[Batch]) -> None:
        record(bench.ledger, [outcome(batch, dice, time.time(), 0) for batch in batches], time.time())

    rows = []
    for ended in (0, 10_000):
        if ended:
            numbers = NUMBERS[bench.dialect]
            parts = {"hosts": numbers.format("1", ended), "slots": numbers.format("0", "3")}
            with bench.ledger.transaction() as tx:
                for statement in FINISHED:
                    tx.execute(sa.text(statement.format(**parts).replace(":[", "\\:[")))
            bench.rest()
        what = f"{ended:,} jobs ended"
        rows.append(timed(bench, f"lease() of 1, {what}", lambda: lease(bench.ledger, 1, time.time()), give_back))
        of_chores = [
            timed(bench, f"{name}, {what}", lambda c=c: c(bench.ledger, time.time())) for name, c in chores.items()
        ]
        rows += of_chores
    bench.close()
    return rows


PARTS: dict[str, Callable[[Options], list[dict[str, Any]]]] = {
    "sizes": sizes,
    "alone": alone,
    "host": host,
    "paused": paused,
    "capped": capped,
    "housekeeping": housekeeping,
    "order": order,
    "bytes": size,
    "forget": forget,
    "finished": finished,
}
WITHOUT_SQLITE = ("sizes", "bytes", "forget")
"""PostgreSQL alone: ten million URLs, and millions of requests a day, are a fleet's."""


def openers(database: str) -> Callable[[str], Bench]:
    """How to open an empty ledger by name, `small` or `large`."""
    if database.startswith("sqlite:"):
        folder = Path(database.removeprefix("sqlite:"))

        def sqlite(name: str) -> Bench:
            for file in folder.glob(f"bench_{name}.sqlite*"):
                file.unlink()
            return Bench(f"sqlite:///{folder}/bench_{name}.sqlite")

        return sqlite
    base = Path(database).read_text().strip().rpartition("/")[0]
    return lambda name: Bench(f"{base}/bench_{name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="a file with a PostgreSQL URL, or sqlite:FOLDER")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--known", type=int, default=1_000_000, help="URLs, or hosts, of a large ledger or job")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--watched", type=float, default=WATCHED, help="seconds for which others are watched at most")
    options = parser.parse_args()
    opened = openers(options.database)
    results: dict[str, Any] = {}
    for part in options.parts.split(","):
        if options.database.startswith("sqlite:") and part in WITHOUT_SQLITE:
            continue
        results[part] = PARTS[part](Options(opened, options.known, options.rounds, options.watched))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
