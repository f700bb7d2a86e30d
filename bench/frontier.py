"""What a page costs in the ledger, by how many URLs the ledger knows. Runs on the database's host, as root:

    python - DATABASE_URL_FILE < bench/frontier.py

The real schema is filled with made-up URLs, and made-up reports go the real way: lease, record. Prints a JSON list.
"""

from __future__ import annotations

import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.job import Job
from crawler.messages import Admission, Batch, Link, Report, Request, UrlResult

SIZES = (100_000, 1_000_000, 10_000_000)
"""Of URLs; the others are compared with the first, which stays in a database of its own."""
URLS_PER_HOST = 500
QUEUED = 100
"""Of each host's URLs, how many are still to be crawled."""
PAGES, ROUNDS = 3_000, 5
"""Driven through in each round, and rounds at each size."""
LINKS, NEW = 40, 1
"""On each page, and how many of them the ledger does not know: a frontier with no end in sight."""
FILL = """
INSERT INTO urls (job_id, host, url, state, depth, discovered_at, attempts, found_on, status, fetched_at, title,
                  content_type, bytes, digest, worker, release)
SELECT :job, host, 'http://' || host || '/articles/' || n || '/a-title-of-some-length.html',
       CASE WHEN n < :queued THEN 'queued' ELSE 'done' END, 3, 1.0 * n, (n >= :queued)::int, 'http://' || host || '/',
       CASE WHEN n >= :queued THEN 200 END, CASE WHEN n >= :queued THEN 2.0 END,
       CASE WHEN n >= :queued THEN 'A title of some length' END, CASE WHEN n >= :queued THEN 'text/html' END,
       CASE WHEN n >= :queued THEN 30000 END, CASE WHEN n >= :queued THEN md5(n::text) || md5(host) END,
       CASE WHEN n >= :queued THEN 'worker-1@host' END, CASE WHEN n >= :queued THEN 'bench' END
FROM (SELECT 'site' || lpad(h::text, 6, '0') || '.example' AS host
      FROM generate_series(CAST(:first AS int), CAST(:last AS int)) h) hosts,
     generate_series(0, CAST(:each AS int) - 1) n
"""
COUNT = """
INSERT INTO host_queues (job_id, host, discovered, queued, leased, done, failed, excluded, next_due)
SELECT :job, 'site' || lpad(h::text, 6, '0') || '.example', :each, :queued, 0, :each - :queued, 0, 0, 0
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) h
"""
HOSTS = """
INSERT INTO hosts (host, next_due)
SELECT 'site' || lpad(h::text, 6, '0') || '.example', 0
FROM generate_series(CAST(:first AS int), CAST(:last AS int)) h
"""


def postgres_cpu() -> float:
    """CPU seconds of the database, its background and its ended processes included."""
    ticks = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (process / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name.startswith("postgres"):
            fields = rest.split()
            ticks += int(fields[11]) + int(fields[12])
            if fields[1] == "1" or not _is_postgres(fields[1]):
                ticks += int(fields[13]) + int(fields[14])  # what the postmaster's ended children used
    return ticks / os.sysconf("SC_CLK_TCK")


def _is_postgres(pid: str) -> bool:
    return Path(f"/proc/{pid}/comm").read_text().startswith("postgres")


def fill(ledger: Ledger, job_id: int, first: int, last: int) -> None:
    """Make the hosts `first` to `last` and their URLs known."""
    numbers = {"job": job_id, "first": first, "last": last, "each": URLS_PER_HOST, "queued": QUEUED}
    with ledger.transaction() as tx:
        for statement in (FILL, COUNT, HOSTS):
            named = set(re.findall(r"(?<!:):([a-z]+)", statement))
            tx.execute(sa.text(statement), {name: number for name, number in numbers.items() if name in named})
    with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE, PARALLEL 0)"))
    # So that writing back what was filled in is over. The crawler's role may not order it.
    subprocess.run(["runuser", "-u", "postgres", "--", "psql", "-qc", "CHECKPOINT"], check=True, cwd="/")


def outcome(batch: Batch, dice: random.Random, now: float) -> Report:
    """As a worker would report `batch`, every page with links to pages of its host, some of them new."""
    pages, links, requests = [], {}, []
    for number, target in enumerate(batch.targets):
        at = now + number / 1000
        pages.append(
            UrlResult(url=target.url, state="done", fetched_at=at, status=200, title="Some title", bytes=30000,
                 content_type="text/html", digest=f"{dice.getrandbits(256):064x}")
        )  # fmt: skip
        requests.append(Request(url=target.url, at=at, status=200, seconds=0.1))
        for link in range(LINKS):
            number = dice.randrange(URLS_PER_HOST, 10**9) if link < NEW else dice.randrange(URLS_PER_HOST)
            url = f"http://{batch.host}/articles/{number}/a-title-of-some-length.html"
            links[url] = Link(url=url, depth=target.depth + 1, found_on=target.url)
    return Report(
        lease=batch.lease, job=batch.job.name, host=batch.host, worker="worker-1@host", release="bench", delay=0,
        results=pages, links=list(links.values()), requests=requests,
    )  # fmt: skip


def drive(ledger: Ledger, dice: random.Random) -> dict[str, float]:
    """Lease and record PAGES pages; seconds of CPU and of wall clock for each."""
    pages, spent = 0, dict.fromkeys(("lease", "record", "client"), 0.0)
    database = postgres_cpu()
    while pages < PAGES:
        began, cpu = time.perf_counter(), time.process_time()
        batches = lease(ledger, 10, time.time())
        spent["lease"] += time.perf_counter() - began
        spent["client"] += time.process_time() - cpu
        assert batches, "nothing is due"
        for batch in batches:
            report = outcome(batch, dice, time.time())
            began, cpu = time.perf_counter(), time.process_time()
            pages += record(ledger, report, time.time())
            spent["record"] += time.perf_counter() - began
            spent["client"] += time.process_time() - cpu
    spent["database"] = postgres_cpu() - database
    return {
        "cpu_ms": (spent["client"] + spent["database"]) / pages * 1000,
        **{f"{part}_ms": seconds / pages * 1000 for part, seconds in spent.items()},
    }


def opened(url: str) -> tuple[Ledger, int]:
    """An empty ledger with one job."""
    ledger = Ledger.open(url)
    ledger.create()
    seeding = Admission(job=Job(name="bench", delay=0), seeding="bench", chunk=0, chunks=1)
    admit(ledger, seeding, time.time())
    with ledger.transaction() as tx:
        return ledger, tx.execute(sa.text("SELECT job_id FROM jobs")).scalar_one()


def main() -> None:
    base = Path(sys.argv[1]).read_text().strip().rpartition("/")[0]
    dice = random.Random(1)  # noqa: S311
    (small, job_id), (large, _) = opened(f"{base}/bench_small"), opened(f"{base}/bench_large")
    fill(small, job_id, 0, SIZES[0] // URLS_PER_HOST - 1)
    results: list[dict[str, Any]] = []
    hosts = 0
    for size in SIZES[1:]:
        fill(large, job_id, hosts, size // URLS_PER_HOST - 1)
        hosts = size // URLS_PER_HOST
        for ledger in (small, large):
            drive(ledger, dice)  # warms the caches of both sides
        # In turns: what else the machine does meets both alike.
        rounds = [(drive(small, dice), drive(large, dice)) for _ in range(ROUNDS)]
        for urls, of_size in ((SIZES[0], [pair[0] for pair in rounds]), (size, [pair[1] for pair in rounds])):
            row = {part: round(statistics.median(one[part] for one in of_size), 3) for part in of_size[0]}
            spread = [round(one["cpu_ms"], 3) for one in of_size]
            results.append({"urls": urls, **row, "cpu_ms_rounds": spread})
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
