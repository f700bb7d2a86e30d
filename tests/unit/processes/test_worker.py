"""A worker's process: Celery, the gevent pool, systemd's notify socket and the archive are real; only RabbitMQ is
replaced, by kombu's transport in memory (tests/integration has the real one)."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from website import Answer, Site

from crawler.job import Job
from crawler.messages import Batch, Report, Target, decode, encode

NAME = "worker-7@here"
SECONDS = 20.0
"""Patience on a busy machine."""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Worker:
    """The worker as systemd and the scheduler see it."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(folder / "notify"))
        self._socket.settimeout(0.2)
        self.log = folder / "log"
        environment = {
            "NOTIFY_SOCKET": str(folder / "notify"),
            "CRAWLER_BROKER_URL": "memory://worker%40here@localhost/",
        }
        environment |= {
            "CRAWLER_WITHOUT_ROBOTS": "own.test",
            "CRAWLER_STATE_DIR": str(folder),
            "CRAWLER_HOST": "here",
            "CRAWLER_RELEASE": "abc",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "worker_in_memory.py"), NAME],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )
        self._reports: queue.Queue[Report] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):  # Celery's banner goes there as well
                self._reports.put(decode(Report, line))

    def told(self, *words: str, seconds: float = SECONDS) -> str:
        """The next message to systemd that contains all of `words`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                continue
            if all(word in message for word in words):
                return message
        raise AssertionError(f"systemd was not told {words}: {self.log.read_text()}")

    def order(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def send(self, batch: Batch) -> None:
        self.order(f"send fetch {encode(batch).decode()}")

    def report(self, seconds: float = SECONDS) -> Report:
        try:
            return self._reports.get(timeout=seconds)
        except queue.Empty:
            raise AssertionError(f"no report: {self.log.read_text()}") from None

    def no_report(self, seconds: float) -> bool:
        try:
            self._reports.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    started = Worker(tmp_path)
    started.told("READY=1")
    yield started
    started.close()


def batch_of(site: Site, *paths: str, lease: str = "l1", **fields: Any) -> Batch:
    job = Job(name="j", **{"delay": 0, **fields})
    targets = [Target(url=f"{site.url}{path}", depth=0) for path in paths]
    return Batch(lease=lease, job=job, host=site.host, targets=targets, expires_at=time.time() + 600)


def test_a_batch_becomes_one_report_in_this_worker_s_name(worker: Worker, site: Site) -> None:
    site.pages["/"] = Answer('<a href="/next">next</a>')
    site.pages["/robots.txt"] = Answer("", 404)
    worker.send(batch_of(site, "/", "/gone"))
    report = worker.report()
    assert {result.url: result.status for result in report.results} == {f"{site.url}/": 200, f"{site.url}/gone": 404}
    assert [link.url for link in report.links] == [f"{site.url}/next"]
    assert (report.lease, report.worker, report.release, report.redelivered) == ("l1", NAME, "abc", False)
    user_agent = site.requests[0].headers["User-Agent"]
    assert user_agent.startswith("CrawlerFleet/")
    assert report.results[0].warc_file
    assert "worker_7" in report.results[0].warc_file

    worker.send(batch_of(site, "/", lease="l2"))
    assert worker.report().links == []  # the frontier has them: not sent again


def test_a_batch_that_goes_beyond_the_ceilings_is_fetched_under_them(worker: Worker, site: Site) -> None:
    """The frontier's batches do not: this one is forged."""
    site.pages["/robots.txt"] = Answer("User-agent: *\nDisallow: /private/")
    worker.send(batch_of(site, "/private/x", robots=False))
    assert [result.state for result in worker.report().results] == ["excluded"]
    assert site.paths == ["/robots.txt"]


def test_the_watchdog_is_fed_by_executed_pulses(worker: Worker) -> None:
    for _ in range(3):
        assert worker.told("WATCHDOG=1") == "READY=1\nWATCHDOG=1"  # without READY: by a thread that knows nothing


def test_pulses_are_executed_while_all_hosts_are_slow(worker: Worker, site: Site) -> None:
    """Two batches take both places of the pool; what Pulse adds to it is left."""
    site.tree(40)
    paths = [f"/{number}" for number in range(1, 40)]
    for lease in ("slow-1", "slow-2"):
        worker.send(batch_of(site, *paths, lease=lease, delay=1))
    eventually(lambda: len(site.paths) >= 2)
    for _ in range(3):
        worker.told("READY=1", "WATCHDOG=1", seconds=5)


def test_a_recalled_batch_comes_back_with_its_rest(worker: Worker, site: Site) -> None:
    site.tree(40)
    worker.send(batch_of(site, *(f"/{number}" for number in range(1, 40)), delay=1))
    eventually(lambda: len(site.paths) >= 2)
    worker.order('send recall ["another"]')
    assert worker.no_report(1.0)
    worker.order('send recall ["l1"]')
    report = worker.report(seconds=10)
    assert report.unfetched
    assert len(report.results) + len(report.unfetched) == 39


def test_a_worker_told_to_stop_returns_the_rest_and_takes_no_more(worker: Worker, site: Site) -> None:
    site.tree(40)
    worker.send(batch_of(site, *(f"/{number}" for number in range(1, 40)), delay=1))
    eventually(lambda: len(site.paths) >= 2)
    worker.process.send_signal(signal.SIGTERM)
    report = worker.report(seconds=10)
    assert report.unfetched
    assert worker.process.wait(timeout=SECONDS) == 0
    assert "Started consuming from fetch" not in worker.log.read_text()


def test_while_the_disk_is_full_no_batch_is_taken(worker: Worker, site: Site) -> None:
    site.pages["/"] = Answer("")
    worker.order("disk full")
    assert "GiB free" in worker.told("STATUS=taking no work")
    eventually(lambda: "Canceling queue fetch" in worker.log.read_text())
    worker.send(batch_of(site, "/"))
    assert worker.no_report(1.5)
    worker.told("READY=1", "WATCHDOG=1")  # it is no failure: systemd must not restart the worker for it
    worker.order("disk free")
    assert worker.report().results[0].state == "done"


def test_a_message_that_cannot_be_read_stops_nothing(worker: Worker, site: Site) -> None:
    site.pages["/"] = Answer("")
    worker.order("junk")
    worker.send(batch_of(site, "/"))
    assert worker.report().results[0].state == "done"
    assert "a message that cannot be read goes to the dead letters" in worker.log.read_text()


def test_nothing_in_a_message_steers_celery(worker: Worker, site: Site) -> None:
    site.pages["/"] = Answer("")
    ours = {"lang": "py", "task": "fetch", "id": "1"}
    forged = batch_of(site, "/forged")
    callbacks = {"callbacks": [{"task": "recall", "args": [["l1"]], "options": {}}]}
    steering: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({**ours, "eta": "2000-01-01T00:00:00"}, {}, "ledger"),
        ({**ours, "expires": "2000-01-01T00:00:00"}, {}, "ledger"),
        ({**ours, "timelimit": "junk"}, {}, "ledger"),
        ({**ours, "id": [1, 2]}, {}, "ledger"),
        (ours, callbacks, "ledger"),
        (ours, {}, "worker@here"),
    ]
    for headers, embedded, user in steering:
        body = [[json.loads(encode(forged))], {}, embedded]
        options = {"body": body, "headers": headers, "serializer": "json", "user_id": user}
        worker.order(f"publish {json.dumps(options)}")
    worker.send(batch_of(site, "/"))
    assert worker.report().results[0].state == "done"
    log = worker.log.read_text()
    assert log.count("a message that cannot be read goes to the dead letters") == len(steering)
    assert "/forged" not in site.paths


def test_a_batch_that_another_release_wrote_badly_stops_nothing(worker: Worker, site: Site) -> None:
    site.pages["/"] = Answer("")
    worker.order(f"send fetch {json.dumps({'no': 'batch'})}")
    worker.send(batch_of(site, "/"))
    assert worker.report().results[0].state == "done"
