"""Work of what died is fetched again within a minute, and never while its first holder may still fetch: measured at the
servers, which see by the contact in the User-Agent which worker asks."""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest
from conftest import BROKER, USERS, Processes, Services, eventually
from kombu import Connection, Consumer, Queue
from website import Request, Site

Outcome = Callable[[str], dict[str, int]]
MINUTE = 60.0
DELAY = 0.5


def holder(request: Request) -> str:
    """The worker that made a request."""
    found = re.search(r"mailto:([\w-]+)@", request.headers["User-Agent"])
    assert found
    return found[1]


def show(what: str, seconds: list[float]) -> None:
    print(f"{what}: fetched again after {', '.join(f'{second:.1f}' for second in sorted(seconds))} s")


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    running = [Site() for _ in range(9)]
    yield running
    for site in running:
        site.close()


def check_holders(site: Site) -> None:
    """Nobody asked while another did, or before the host's delay had passed."""
    gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(site.requests)]
    assert min(gaps) >= DELAY, [(round(request.at, 2), holder(request), request.path) for request in site.requests]


@pytest.mark.timeout(600)  # the first test of a run waits for the services
def test_workers_that_freeze_or_die(processes: Processes, sites: list[Site], outcome: Outcome) -> None:
    processes.worker(3)
    for site in sites:
        site.tree(40)
    processes.seed(*(site.url for site in sites), "--name", "freeze", "--delay", str(DELAY))
    frozen, killed = "worker-1", "worker-3"

    def of(worker: str) -> list[Site]:
        """Those that a worker is in the middle of: its batch ends in some seconds, and no sooner."""
        return [site for site in sites if 3 < len(site.requests) < 25 and holder(site.requests[-1]) == worker]

    eventually(lambda: of(frozen) and of(killed))
    held = {worker: of(worker) for worker in (frozen, killed)}
    processes.freeze(frozen)
    moment = time.time()
    processes.stop(killed, signal.SIGKILL)

    def again_at(site: Site) -> float | None:
        return next((r.at for r in site.requests if r.at > moment + 1 and holder(r) == "worker-2"), None)

    eventually(lambda: all(again_at(site) for site in held[frozen] + held[killed]), 1.5 * MINUTE)
    for worker, its_sites in held.items():
        again = [(again_at(site) or 0) - moment for site in its_sites]
        show(f"{worker} {'frozen' if worker == frozen else 'killed'}", again)
        assert max(again) <= MINUTE
    thawed = time.time()
    processes.thaw(frozen)
    assert outcome("freeze")["done"] == 40 * len(sites)
    for site in sites:
        check_holders(site)
    assert thawed - moment > 45


KILLED_BEFORE_PUBLISHING = """
import os, signal
from crawler.processes.broker import Broker
Broker.send = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.timeout(300)
def test_leases_whose_messages_are_lost(
    processes: Processes, services: Services, sites: list[Site], outcome: Outcome
) -> None:
    """A scheduler killed between commit and publish; and the fetch queue emptied."""
    for name in ("worker-1", "worker-2", "scheduler"):
        processes.stop(name)
    unsent, *purged = sites
    for site in sites:
        site.tree(3)
    with Connection(BROKER.format(USERS["worker"])) as connection:
        channel = connection.channel()
        # A consumer, for without one nothing is leased; that takes one message.
        waiting = Consumer(channel, [Queue("fetch", no_declare=True)], on_message=lambda _: None, prefetch_count=1)
        waiting.consume()
        processes.scheduler(KILLED_BEFORE_PUBLISHING)
        processes.seed(unsent.url, "--name", "unsent", "--delay", "0")
        eventually(lambda: processes.running["scheduler"].poll() is not None)
        killed = time.time()
        assert processes.running.pop("scheduler").returncode == -signal.SIGKILL
        processes.scheduler()
        processes.seed(*(site.url for site in purged), "--name", "purged", "--delay", "0")
        eventually(lambda: services.queues()["fetch"] >= len(purged))
        services.run("rabbitmqctl --silent purge_queue -p crawler fetch")
        lost = time.time()
    processes.worker(1)
    eventually(lambda: all(site.requests for site in sites), 1.5 * MINUTE)
    again = [site.requests[0].at - lost for site in purged]
    show("queue purged", again)
    show("scheduler killed", [unsent.requests[0].at - killed])
    assert max(again) <= MINUTE
    assert unsent.requests[0].at - killed <= MINUTE
    assert outcome("unsent")["done"] == 3
    assert outcome("purged")["done"] == 3 * len(purged)


@pytest.mark.timeout(300)
def test_reports_that_wait_keep_their_leases(processes: Processes, sites: list[Site], outcome: Outcome) -> None:
    for site in sites:
        site.tree(100)
    processes.seed(*(site.url for site in sites), "--name", "wait", "--delay", "0.1")
    eventually(lambda: all(len(site.requests) > 3 for site in sites))
    for name in ("recorder-1", "recorder-2"):
        processes.stop(name)
    time.sleep(90)  # the matter of this test: time passes
    asked = [len(site.requests) for site in sites]
    for number in (3, 4):
        processes.recorder(number)
    assert outcome("wait")["done"] == 100 * len(sites)
    assert all(len(site.requests) > before for site, before in zip(sites, asked, strict=True))
    for site in sites:
        assert len(site.paths) == len(set(site.paths))
