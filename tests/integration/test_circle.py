"""Seed, lease, fetch, record: real processes, real broker, real database, and a site that counts what it is asked."""

from __future__ import annotations

import bz2
import contextlib
import functools
import itertools
import signal
import time
from collections.abc import Callable, Iterator

import conftest
import hostile
import pytest
from amqp.exceptions import PreconditionFailed
from conftest import BROKER, USERS, Processes, Services, eventually
from kombu import Connection, Producer, Queue
from website import Answer, Site

from crawler import limits
from crawler import urls as url_rules
from crawler.frontier import orders, status
from crawler.frontier.ledger import Ledger

Outcome = Callable[[str], dict[str, int]]


def begun(ledger: Ledger, pages: int) -> Callable[[], bool]:
    """Whether some job has that many pages."""

    def check() -> bool:
        jobs = status.snapshots(ledger, 0)
        return bool(jobs) and jobs[0]["counts"]["done"] >= pages

    return check


def test_a_site_is_crawled_exactly(processes: Processes, site: Site, outcome: Outcome) -> None:
    site.tree(300)
    seeded = processes.seed(site.url, "--name", "tree", "--delay", "0", "--watch", "--timeout", "100")
    assert seeded.returncode == 0, seeded.stdout + seeded.stderr
    assert "300" in seeded.stdout
    assert outcome("tree") == {"discovered": 300, "queued": 0, "leased": 0, "done": 300, "failed": 0, "excluded": 0}
    assert sorted(site.paths) == sorted(["/robots.txt", *site.pages])  # robots.txt by one worker, for both


def test_max_pages_is_exact(processes: Processes, site: Site, outcome: Outcome) -> None:
    site.tree(300)
    processes.seed(site.url, "--name", "few", "--delay", "0", "--max-pages", "123")
    assert outcome("few")["done"] == 123
    assert len(site.paths) == 124


def test_a_worker_told_to_stop_returns_its_batch(
    processes: Processes, site: Site, ledger: Ledger, outcome: Outcome
) -> None:
    site.tree(60)
    processes.seed(site.url, "--name", "stop", "--delay", "0.1")
    eventually(begun(ledger, 5))
    assert processes.stop("worker-1") < 15
    assert processes.stop("worker-2") < 15
    processes.worker(3)
    assert outcome("stop")["done"] == 60
    assert len(site.paths) == len(set(site.paths))  # nothing was fetched twice


def test_recorders_told_to_stop_lose_nothing(
    processes: Processes, services: Services, site: Site, ledger: Ledger, outcome: Outcome
) -> None:
    site.tree(60)
    processes.seed(site.url, "--name", "stop", "--delay", "0.02")
    for number, pages in enumerate((5, 15, 30), start=3):
        eventually(begun(ledger, pages))
        assert processes.stop(f"recorder-{number - 2}") < 15
        processes.recorder(number)
    assert outcome("stop")["done"] == 60
    assert services.queues()["dead"] == 0


def test_killed_processes_lose_nothing(processes: Processes, site: Site, ledger: Ledger, outcome: Outcome) -> None:
    site.tree(120)
    processes.seed(site.url, "--name", "kill", "--delay", "0.05")
    for number, pages in enumerate((5, 20, 40), start=3):
        eventually(begun(ledger, pages))
        for worker in (1, 2):  # as systemd would, by the same names: one of both has the host
            processes.stop(f"worker-{worker}", signal.SIGKILL)
            processes.worker(worker)
        processes.stop(f"recorder-{number - 2}", signal.SIGKILL)
        processes.recorder(number)
    processes.stop("scheduler", signal.SIGKILL)
    processes.scheduler()
    assert outcome("kill")["done"] == 120
    times = [request.at for request in site.requests]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert min(gaps) >= 0.05, "a redelivered batch did not keep the delay"


def test_services_that_restart_lose_nothing(
    processes: Processes, services: Services, site: Site, ledger: Ledger, outcome: Outcome
) -> None:
    site.tree(200)
    processes.seed(site.url, "--name", "restart", "--delay", "0.05")
    eventually(begun(ledger, 10))
    services.run("systemctl restart rabbitmq-server")
    eventually(begun(ledger, 60), timeout=90)  # a batch lost on its way to the broker is leased again after 60 (limits)
    services.run("systemctl restart postgresql")
    assert outcome("restart")["done"] == 200
    assert services.queues()["dead"] == 0


def test_a_blocked_host_is_left_alone_at_once(
    processes: Processes, site: Site, ledger: Ledger, outcome: Outcome
) -> None:
    site.tree(300)
    processes.seed(site.url, "--name", "block", "--delay", "1")  # a batch lasts 45 s
    eventually(lambda: len(site.paths) > 5)
    orders.block(ledger, url_rules.host_of(site.url), time.time())
    blocked_at = time.time()
    counts = outcome("block", timeout=10)
    assert max(request.at for request in site.requests) < blocked_at + 3
    assert counts["done"] == len(site.paths) - 1  # robots.txt
    assert counts["excluded"] == counts["discovered"] - counts["done"] > 0


def test_seeds_of_every_kind(processes: Processes, site: Site, outcome: Outcome) -> None:
    site.tree(3)
    text = f"{site.url}/\n\n# a comment\nnonsense\n{site.url}/1\nftp://example.org/\n{site.url}/\n"
    seeded = processes.seed("-", "--name", "lines", "--delay", "0", "--depth", "0", text=text)
    assert seeded.returncode == 0
    assert "standard input line 4: 'nonsense' is left out: not a URL" in seeded.stderr
    assert "standard input line 6: 'ftp://example.org/'" in seeded.stderr
    assert "3 URLs handed over to job lines, 2 left out" in seeded.stderr
    counts = outcome("lines")
    assert (counts["done"], counts["excluded"]) == (2, 1)


def test_poisoned_messages_end_among_the_dead_letters(
    processes: Processes, services: Services, site: Site, outcome: Outcome
) -> None:
    ours, user = {"lang": "py", "task": "record", "id": "1"}, "worker@here"
    with Connection(BROKER.format(USERS["worker"])) as connection:
        send = functools.partial(Producer(connection).publish, exchange="reports", routing_key="record", user_id=user)
        send("no task at all")
        send([[{"no": "report"}], {}, {}], serializer="json", headers=ours)
        send([[], {}, {}], serializer="json", headers={**ours, "task": "no such task"})
        send([[{}], {}, {}], serializer="json", headers={**ours, "eta": "2030-01-01T00:00:00"})
        send(bz2.compress(b"[[{}],{},{}]"), headers={**ours, "compression": "bzip2"}, content_type="application/json")
    with Connection(BROKER.format(USERS["ledger"])) as connection:
        send = functools.partial(
            Producer(connection).publish, exchange="batches", routing_key="fetch", user_id="ledger"
        )
        send([[{}], {}, {"callbacks": [{"task": "pulse"}]}], serializer="json", headers={**ours, "task": "fetch"})
        send([[{}], {}, {}], serializer="json", headers={**ours, "task": "fetch", "id": [1, 2]})
    eventually(lambda: services.queues()["dead"] == 7)
    site.pages["/"] = Answer("")
    processes.seed(site.url, "--name", "after", "--delay", "0")
    assert outcome("after")["done"] == 1


@pytest.fixture
def impatient(services: Services) -> Iterator[None]:
    """The broker with a consumer_timeout of seconds, and looking every second."""

    def set_milliseconds(timeout: float, tick: float) -> None:
        setting = f"application:set_env(rabbit, consumer_timeout, {timeout:.0f})"
        looking = f"application:set_env(rabbit, channel_tick_interval, {tick:.0f})"
        services.run(f"rabbitmqctl --quiet eval '{setting}, {looking}.'")

    set_milliseconds(2_000, 1_000)
    yield
    set_milliseconds(limits.CONSUMER * 1000, 60_000)


@pytest.mark.usefixtures("impatient")
def test_a_batch_that_nobody_acknowledges_goes_to_another(services: Services) -> None:
    """RabbitMQ honours consumer_timeout for quorum queues, which an upgrade might change."""
    services.run("rabbitmqctl --silent purge_queue -p crawler fetch")
    with Connection(BROKER.format(USERS["ledger"])) as ledger:
        Producer(ledger).publish("a batch", exchange="batches", routing_key="fetch")
    with Connection(BROKER.format(USERS["worker"])) as stuck:
        taken: list[object] = []
        with pytest.raises(PreconditionFailed, match="timed out"):  # noqa: PT012, SIM117 - it ends within the block
            with stuck.Consumer([Queue("fetch", no_declare=True)], on_message=taken.append):
                for _ in range(30):
                    with contextlib.suppress(TimeoutError):
                        stuck.drain_events(timeout=1)
        assert len(taken) == 1
    assert services.queues()["fetch"] == 1
    services.run("rabbitmqctl --silent purge_queue -p crawler fetch")


def test_without_a_broker_seeding_says_so(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conftest, "BROKER", "amqp://{}@127.0.0.1:1/crawler")
    seeded = processes.seed("http://a.test/")
    assert seeded.returncode == 1
    assert "amqp://seed:***@127.0.0.1:1/crawler does not take the URLs" in seeded.stderr
    assert "0 URLs were handed over" in seeded.stderr
    assert "Traceback" not in seeded.stderr


def test_the_delay_is_kept_over_the_whole_fleet(processes: Processes, ledger: Ledger, outcome: Outcome) -> None:
    """Measured at the servers: eight workers, three hosts, and workers killed in the middle of their batches."""
    delay, sites = 0.15, [Site(), Site(), Site()]
    for number in range(3, 9):
        processes.worker(number)
    for site in sites:
        site.tree(60)
    processes.seed(*(site.url for site in sites), "--name", "polite", "--delay", str(delay))
    for victim, pages in ((1, 20), (3, 50), (5, 80), (7, 110)):
        eventually(begun(ledger, pages))
        processes.stop(f"worker-{victim}", signal.SIGKILL)
        processes.worker(victim)
    assert outcome("polite")["done"] == 180
    for site in sites:
        gaps = [later.at - earlier.at for earlier, later in itertools.pairwise(site.requests)]
        assert len(gaps) >= 60
        assert min(gaps) >= delay
        site.close()


@pytest.mark.timeout(600)  # it waits for many time limits, one after another
def test_a_hostile_site_is_crawled_to_the_end(
    processes: Processes, site: Site, ledger: Ledger, outcome: Outcome
) -> None:
    expected = hostile.furnish(site)
    job = {"name": "hostile", "seeds": [site.url], "retry_wait": 2, **hostile.JOB}
    processes.seed("--job", str(processes.file("job.yml", job)))
    counts = outcome("hostile", 400)
    became = {url_rules.path_of(row["url"]): row for row in status.pages(ledger, "hostile")}
    hostile.check(expected, became)
    assert counts["discovered"] == len(became)
    assert all(process.poll() is None for process in processes.running.values()), "a process died"
