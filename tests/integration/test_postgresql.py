"""The ledger's promises once more, on PostgreSQL, and what only several processes at once can show."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import pytest
from budget_promises import *  # noqa: F403
from conservation_promises import *  # noqa: F403
from depth_promises import *  # noqa: F403
from failure_promises import *  # noqa: F403
from ledger_promises import *  # noqa: F403
from ledger_promises import SITE, admission, counts, report
from machine_promises import *  # noqa: F403
from msgspec.structs import replace
from order_promises import *  # noqa: F403
from partition_promises import *  # noqa: F403
from proof_promises import *  # noqa: F403
from reading_promises import *  # noqa: F403
from sharing_promises import *  # noqa: F403
from sqlalchemy.exc import DBAPIError

from crawler.frontier import status, tidy, traps
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.job import Job, Scope
from crawler.messages import Admission, Batch, Link, Report

Find = Callable[[Batch], list[Link]]


def all_at_once(
    ledger: Ledger, schedulers: int, find: Find, digest: Callable[[str], str | None] = lambda _: None
) -> list[tuple[str, str]]:
    """Four recorders and some schedulers, on pages whose links `find` makes up, until nothing is to be done; (job, URL)
    of all that was leased. Reports arrive doubled, reordered and several at a time; each page has its `digest`."""
    reports: list[Report] = []
    leased: list[tuple[str, str]] = []
    lock, stop, errors = threading.Lock(), threading.Event(), []

    def schedule() -> None:
        while not stop.is_set():
            for batch in again(lambda: lease(ledger, 20, time.time())):
                made = replace(report(batch), links=find(batch))
                made.results = [replace(page, digest=digest(page.url)) for page in made.results]
                with lock:
                    leased.extend((batch.job.name, target.url) for target in batch.targets)
                    reports.extend([made] * random.choice((1, 2)))  # noqa: S311
            again(lambda: tidy.tidy(ledger, time.time()))
            time.sleep(0.01)

    def take_in() -> None:
        while not (stop.is_set() and not reports):
            with lock:
                random.shuffle(reports)
                number = random.randint(1, 20)  # noqa: S311
                gathered, reports[:number] = reports[:number], []
            if gathered:
                again(lambda gathered=gathered: record(ledger, gathered, time.time()))
            else:
                time.sleep(0.01)

    def again(work):  # type: ignore[no-untyped-def]  # as recorder.py does after a deadlock
        while True:
            try:
                return work()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != "40P01":
                    errors.append(error)
                    stop.set()
                    raise

    threads = [threading.Thread(target=work) for work in (*[schedule] * schedulers, *[take_in] * 4)]
    for thread in threads:
        thread.start()

    def open_urls() -> int:
        every = [job["counts"] for job in status.snapshots(ledger, 0)]
        return sum(counted["queued"] + counted["leased"] for counted in every)

    deadline = time.monotonic() + 90
    while open_urls() and not errors and time.monotonic() < deadline:
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert not open_urls()
    return leased


@pytest.mark.timeout(150)
def test_recorders_and_schedulers_at_once(ledger: Ledger) -> None:
    """On one host: nothing lost, nothing twice."""
    admit(ledger, admission(*(f"/{n}" for n in range(40)), delay=0, connections=4), now=0)

    def find(batch: Batch) -> list[Link]:
        page = batch.targets[0].url
        return [Link(f"{SITE}/{random.randrange(600)}", 1, page) for _ in range(100)]  # noqa: S311

    leased = all_at_once(ledger, 2, find)
    assert len(leased) == len(set(leased)) > 40
    assert counts(ledger) == {"done": len(leased)}


@pytest.mark.timeout(150)
def test_jobs_on_the_same_hosts_whose_pages_link_to_each_other(ledger: Ledger) -> None:
    """Recorders lock each other's URLs and hosts all the time, and lease what others have just made due: no host is
    left out of the search, each link is known, and deadlocks are too few to be seen."""
    hosts, depths = [f"h{number}.test" for number in range(20)], {"j": None, "k": 4, "l": 6}
    seeds = [f"http://{host}/0" for host in hosts]
    for connections, (name, depth) in enumerate(depths.items(), start=1):
        job = Job(name=name, depth=depth, connections=connections, delay=0, scope=Scope(kind="any"))
        admit(ledger, Admission(job=job, seeding=name, chunk=0, chunks=1, urls=seeds), now=0)
    linked = {name: set(seeds) for name in depths}

    def find(batch: Batch) -> list[Link]:
        found = [
            Link(f"http://{random.choice(hosts)}/{random.randrange(20)}", target.depth + 1, target.url)  # noqa: S311
            for target in batch.targets
            if batch.job.depth is None or target.depth < batch.job.depth
            for _ in range(8)
        ]
        linked[batch.job.name].update(link.url for link in found)
        return found

    all_at_once(ledger, 1, find)
    for job in status.snapshots(ledger, 0, recount=True):
        assert job["counts"] == job["recounted"] == job["by_host"]
        assert job["counts"]["done"] == len(linked[job["job"]]) > 300


@pytest.mark.timeout(150)
def test_budgets_are_exact_and_a_trap_is_closed_whoever_records(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three hosts of one domain that link to each other, and to a folder of copies, with reports in any order."""
    monkeypatch.setattr(traps, "RUN", 20)
    hosts = [f"h{number}.x.test" for number in range(3)]
    budget = {f"http://{hosts[0]}/a/": 37, f"http://{hosts[1]}/": 250}
    job = Job(
        name="j",
        delay=0,
        connections=3,
        scope=Scope(kind="any"),
        max_pages_per_prefix=budget,
        max_pages_per_domain=900,
    )
    seeds = [f"http://{host}/{number}" for host in hosts for number in range(50)]
    admit(ledger, Admission(job=job, seeding="s", chunk=0, chunks=1, urls=seeds), now=0)

    def find(batch: Batch) -> list[Link]:
        page = batch.targets[0].url
        folders = random.choices(("", "a/", "copies/"), k=60)  # noqa: S311
        return [
            Link(f"http://{random.choice(hosts)}/{folder}{random.randrange(3000)}", 1, page)  # noqa: S311
            for folder in folders
        ]

    def digest(url: str) -> str:
        return "copy" if "/copies/" in url else url

    all_at_once(ledger, 1, find, digest)
    (snapshot,) = status.snapshots(ledger, 0, recount=True)
    assert snapshot["counts"] == snapshot["recounted"] == snapshot["by_host"]
    done = [row["url"] for row in status.pages(ledger, "j") if row["state"] == "done"]
    assert len(done) == 900
    used = {used["prefix"]: used["pages"] for used in snapshot["budgets"]}
    assert used == {prefix: sum(url.startswith(prefix) for url in done) for prefix in budget}
    assert all(used[prefix] <= most for prefix, most in budget.items())
    assert used[f"http://{hosts[0]}/a/"] == 37
    assert {closed["section"] for closed in snapshot["closed"]} == {"/copies/"}
