"""The worker's engine without broker and frontier: batches made from a list of URLs, reports thrown away as JSON.

    python bench/worker_alone.py URLS.txt [--hosts 50] [--pages N]

Prints {"pages": …, "memory": [[pages, MiB], …], "seconds": …, "cpu": …, "waited": …, "greenlets": {"mean": …, "most":
…}}: the process's resident memory as it goes; without start-up, wall and CPU time, and how long it had work and no
core; how many batches were under way.
"""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import argparse
import itertools
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import gevent
from gevent.event import Event
from gevent.pool import Pool
from msgspec.structs import replace

from crawler import settings, urls
from crawler.job import Job
from crawler.known_links import KnownLinks
from crawler.limits import BATCH_URLS
from crawler.messages import Batch, Report, RobotsFile, Target, convert, encode
from crawler.worker.batch import fetch_batch
from crawler.worker.fetch import Client
from crawler.worker.memory import release_memory

SAMPLE = 1000
"""Pages between two looks at the memory."""


def batches(addresses: list[str], job: Job, robots: dict[str, RobotsFile]) -> Iterator[Batch]:
    """The URLs in batches of one host each, the hosts in turn, again and again."""
    by_host: dict[str, list[Target]] = defaultdict(list)
    for url in addresses:
        by_host[urls.host_of(url)].append(Target(url=url, depth=1))
    turns = {
        host: [targets[start : start + BATCH_URLS] for start in range(0, len(targets), BATCH_URLS)]
        for host, targets in by_host.items()
    }
    for round_ in itertools.count():
        for row in itertools.zip_longest(*turns.values()):
            for host, targets in zip(turns, row, strict=True):
                if targets:
                    batch = Batch(lease=f"{round_}", job=job, host=host, targets=targets, expires_at=time.time() + 540)
                    known = {origin: file for origin, file in robots.items() if urls.host_of(origin + "/") == host}
                    yield replace(batch, robots=known)


def resident() -> float:
    """This process's memory, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def without_a_core() -> float:
    """Seconds that this process was ready to run while others ran (proc_schedstat(5): the second number, in ns)."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", type=Path)
    parser.add_argument("--hosts", type=int, default=50)
    parser.add_argument("--pages", type=int)
    options = parser.parse_args()
    addresses = options.urls.read_text().split()
    # `connections` only matters to the frontier; here several batches of one host run at once, as they may there.
    job = Job(name="alone", delay=0, archive="none", connections=4)
    known, stop, pool, robots = KnownLinks(), Event(), Pool(options.hosts), {}
    asked = pages = 0
    memory: list[tuple[int, float]] = []
    under_way: list[int] = []

    def run(message: str) -> None:
        nonlocal pages
        batch = convert(Batch, json.loads(message))
        with Client(settings.user_agent()) as client:
            report: Report = fetch_batch(batch, client, stop, worker="alone", known_links=known)
        encode(report)  # as the deployed worker sends it (processes/queues.py)
        known.add(report.job, report.links)
        robots.update(report.robots)
        before, pages = pages, pages + sum(page.state == "done" for page in report.results)
        if before // SAMPLE < pages // SAMPLE:
            memory.append((pages, round(resident(), 1)))

    def pulse() -> None:
        while True:
            gevent.sleep(15)  # as under systemd: processes/worker_tasks.py, pulse
            release_memory()

    def count() -> None:
        while True:
            under_way.append(len(pool))
            gevent.sleep(0.1)

    gevent.spawn(pulse)
    gevent.spawn(count)
    began, cpu, waited = time.monotonic(), time.process_time(), without_a_core()
    for batch in batches(addresses, job, robots):
        if asked >= (options.pages or len(addresses)):
            break
        asked += len(batch.targets)
        pool.spawn(run, json.dumps(json.loads(encode(batch))))
    pool.join()
    told = {
        "pages": pages,
        "memory": memory,
        "seconds": round(time.monotonic() - began, 2),
        "cpu": round(time.process_time() - cpu, 2),
        "waited": round(without_a_core() - waited, 2),
        "greenlets": {"mean": round(statistics.mean(under_way)), "most": max(under_way)},
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
