"""The recorder, with everything real but RabbitMQ, which kombu's transport in memory replaces, and PostgreSQL, which
SQLite does (tests/integration has both)."""

from __future__ import annotations

import json
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from celery import Celery
from gevent.event import Event
from kombu import Connection
from kombu.transport import memory
from msgspec.structs import replace
from sqlalchemy.exc import DataError, OperationalError

from crawler import limits
from crawler.frontier import status
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import urls
from crawler.job import Job, Scope
from crawler.messages import Admission, Link, Report, UrlResult, encode
from crawler.processes import queues, systemd
from crawler.processes import recorder as module
from crawler.processes.broker import Broker
from crawler.processes.inbox import BrokerLostError, Inbox
from crawler.processes.recorder import Recorder

JOB = Job(name="j", delay=0, scope=Scope(kind="any"))
QUEUES = "admit", "record"
SECONDS = 20.0
"""Patience on a busy machine."""


class Impatient(Event):
    """Waits no second for the broker."""

    def wait(self, timeout: float | None = None) -> bool:
        return bool(super().wait(min(timeout or 0.01, 0.01)))


class Bench:
    """A recorder, the broker before it and the ledger behind it."""

    def __init__(self, app: Celery, ledger: Ledger, dead: list[Any]) -> None:
        self.app, self.ledger, self.dead = app, ledger, dead
        self.stop = Impatient()
        self.inbox = Inbox("memory://ledger@localhost/", "recorder-1@here")
        self.recorder = Recorder(ledger, self.inbox, self.stop)
        self.commits = 0
        self._thread: threading.Thread | None = None
        sa.event.listen(ledger.engine, "commit", self._count)

    def _count(self, _: Any) -> None:
        self.commits += 1

    def reports(self, hosts: int) -> list[Report]:
        """Reports on that many leased hosts with a page each."""
        admission = Admission(job=JOB, seeding="s", chunk=0, urls=[f"http://h{n}.test/" for n in range(hosts)])
        Broker().admit(admission)
        self.inbox.open()
        self.recorder.step()
        self.inbox.close()
        batches = lease(self.ledger, hosts, time.time())
        assert len(batches) == hosts
        self.commits = 0
        return [
            Report(
                lease=batch.lease,
                job="j",
                host=batch.host,
                worker="worker-1@here",
                release="r",
                delay=0,
                results=[UrlResult(url=batch.targets[0].url, state="done", fetched_at=time.time(), status=200)],
                links=[Link(f"{batch.targets[0].url}next", 1, batch.targets[0].url)],
            )
            for batch in batches
        ]

    def send(self, *reports: Report) -> None:
        """As a worker does."""
        self.send_as("worker@here", "record", *reports)

    def send_as(self, user: str, task: str, *messages: Any) -> None:
        """Send tasks as a user of the broker."""
        with Connection(f"memory://{quote(user)}@localhost/") as connection:
            for message in messages:
                queues.publish(connection.Producer(), self.app, task, message)

    def step(self) -> None:
        """Take in what is there, over a connection of its own."""
        self.inbox.open()
        self.recorder.step()
        self.inbox.close()

    def start(self) -> None:
        self._thread = threading.Thread(target=self.recorder.run)
        self._thread.start()

    def end(self) -> float:
        """Tell the recorder to stop; the seconds it took."""
        began = time.monotonic()
        self.stop.set()
        if self._thread is not None:
            self._thread.join(SECONDS)
            assert not self._thread.is_alive()
        return time.monotonic() - began

    def done(self) -> int:
        with self.ledger.snapshot() as tx:
            rows = tx.execute(sa.select(sa.func.count()).select_from(urls).where(urls.c.state == "done"))
            return int(rows.scalar_one())

    def waiting(self) -> int:
        return sum(memory.Channel.queues[name].qsize() for name in QUEUES)


@pytest.fixture
def bench(app: Celery, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Of RabbitMQ it also has that unacknowledged messages return when a consumer goes, marked, and dead letters."""
    dead: list[Any] = []
    reject, restore = memory.Channel.basic_reject, memory.Channel._restore

    def _restore(channel: Any, message: Any) -> None:
        message.properties["delivery_info"]["redelivered"] = True
        restore(channel, message)

    def basic_reject(channel: Any, tag: Any, requeue: bool = False) -> None:
        if not requeue:
            dead.append(channel.qos.get(tag))
        reject(channel, tag, requeue)

    monkeypatch.setattr(memory.Channel, "basic_reject", basic_reject)
    monkeypatch.setattr(memory.Channel, "_restore", _restore)
    monkeypatch.setattr(memory.Channel, "do_restore", True)
    monkeypatch.setattr(Inbox, "IDLE_SECONDS", 0.05)
    for name in QUEUES:
        memory.Channel.queues[name].queue.clear()
    made = Bench(app, ledger, dead)
    yield made
    made.end()
    for name in QUEUES:
        memory.Channel.queues[name].queue.clear()


def eventually(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What systemd is told."""
    told: list[str] = []
    monkeypatch.setattr(systemd, "notify", told.append)
    return told


@pytest.fixture
def record_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[Report]], object]], None]:
    """Do something each time before reports are recorded, such as failing."""
    original = module.record

    def before(first: Callable[[list[Report]], object]) -> None:
        def record(ledger: Ledger, reports: list[Report], now: float, refused: set[tuple[str, str]]) -> int:
            first(reports)
            return original(ledger, reports, now, refused)

        monkeypatch.setattr(module, "record", record)

    return before


Before = Callable[[Callable[[list[Report]], object]], None]


def away(text: str = "server closed the connection") -> OperationalError:
    return OperationalError("SELECT", {}, Exception(text))


def test_reports_that_have_arrived_are_recorded_in_one_transaction(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.send(*bench.reports(10))
    with caplog.at_level(logging.INFO):
        bench.step()
    assert (bench.commits, bench.done(), bench.waiting(), bench.dead) == (1, 10, 0, [])
    ours = [text for name, _, text in caplog.record_tuples if name.startswith("crawler")]
    assert ours == ["j: 10 reports on 10 hosts, 10 done, 10 links"]


def test_a_handful_is_bounded_by_messages(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.send(*bench.reports(10))
    monkeypatch.setattr(limits, "GATHER_MESSAGES", 4)
    bench.step()
    assert (bench.commits, bench.done(), bench.waiting()) == (1, 4, 6)


def test_a_handful_is_bounded_by_bytes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reports = bench.reports(10)
    bench.send(*reports)
    size = len(memory.Channel.queues["record"].queue[0]["body"]) * 3 / 4  # kombu's memory has it in base64
    monkeypatch.setattr(limits, "GATHER_BYTES", int(size * 2.5))
    bench.step()
    assert (bench.commits, bench.done(), bench.waiting()) == (1, 3, 7)


def test_admissions_and_reports_arrive_in_any_order(bench: Bench) -> None:
    report, *_ = bench.reports(1)
    bench.send(report)
    Broker().admit(Admission(job=JOB, seeding="t", chunk=0, urls=["http://new.test/"]))
    bench.step()
    assert (bench.commits, bench.done(), bench.waiting(), bench.dead) == (2, 1, 0, [])
    assert status.snapshots(bench.ledger, time.time())[0]["counts"]["discovered"] == 3


def test_reports_do_not_wait_behind_a_seeding(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    report, *_ = bench.reports(1)
    monkeypatch.setattr(limits, "GATHER_SEEDS", 2)
    for chunk in range(5):
        Broker().admit(Admission(job=JOB, seeding="t", chunk=chunk, urls=[f"http://new{chunk}.test/"]))
    bench.send(report)
    bench.step()
    assert (bench.commits, bench.done(), bench.waiting()) == (3, 1, 3)


def test_seeds_are_taken_from_their_own_queue_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever may send reports may not describe jobs."""
    admission = Admission(job=JOB, seeding="t", chunk=0, urls=["http://new.test/"])
    with bench.app.connection_for_write() as connection:
        message = [[json.loads(encode(admission))], {}, {}]
        headers = {"task": "admit", "id": "1", "lang": "py"}
        options = {"headers": headers, "user_id": "worker@here"}
        connection.Producer().publish(message, exchange="reports", routing_key="record", **options)
    bench.step()
    assert (status.snapshots(bench.ledger, time.time()), bench.waiting(), len(bench.dead)) == ([], 0, 1)
    assert "no task of this queue: 'admit'" in caplog.text


@pytest.mark.parametrize(
    ("user", "worker"),
    [
        ("worker@there", "worker-1@here"),
        ("worker@her", "worker-1@here"),
        ("seed", "worker-1@here"),
        ("ledger", "worker-1@here"),
        ("worker@here", "worker-1@there"),
        ("worker@here", "recorder-1@here"),
        ("worker@here", "[/zz]"),
        (None, "worker-1@here"),
    ],
)
def test_a_report_counts_only_from_the_user_of_its_worker_s_host(
    bench: Bench, caplog: pytest.LogCaptureFixture, user: str | None, worker: str
) -> None:
    good, forged = bench.reports(2)
    with bench.app.connection_for_write() as connection:
        queues.publish(connection.Producer(), bench.app, "record", replace(forged, worker=worker), user_id=user)
    bench.send(good)
    bench.step()
    assert (bench.done(), bench.waiting(), len(bench.dead)) == (1, 0, 1)
    assert "sent by " in caplog.text or "no name of a worker" in caplog.text


@pytest.mark.parametrize("user", ["worker@here", "ledger", None])
def test_seeds_count_only_from_seed_py(bench: Bench, caplog: pytest.LogCaptureFixture, user: str | None) -> None:
    admission = Admission(job=JOB, seeding="t", chunk=0, urls=["http://new.test/"])
    with bench.app.connection_for_write() as connection:
        queues.publish(connection.Producer(), bench.app, "admit", admission, user_id=user)
    bench.step()
    assert (status.snapshots(bench.ledger, time.time()), bench.waiting(), len(bench.dead)) == ([], 0, 1)
    assert f"sent by {user!r}, and not by 'seed'" in caplog.text


@pytest.mark.parametrize("headers", [{"id": [1, 2]}, {"eta": "2030-01-01T00:00:00"}, {"timelimit": "junk"}])
def test_headers_of_celery_s_are_a_dead_letter(bench: Bench, headers: dict[str, Any]) -> None:
    report, other = bench.reports(2)
    with bench.app.connection_for_write() as connection:
        options = {"exchange": "reports", "routing_key": "record", "serializer": "json", "user_id": "worker@here"}
        given = {"lang": "py", "task": "record", "id": "1"} | headers
        connection.Producer().publish(([report], {}, {}), headers=given, **options)
        callbacks = {"callbacks": [{"task": "recall"}]}
        connection.Producer().publish(([report], {}, callbacks), headers={**given, "id": "1"}, **options)
    bench.send(other)
    bench.step()
    assert (bench.done(), bench.waiting(), len(bench.dead)) == (1, 0, 2)


def test_a_report_that_cannot_be_recorded_is_a_dead_letter_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    good = bench.reports(4)
    poisoned = replace(good[0], host="never-leased.test")
    bench.send(poisoned, *good)
    bench.step()
    assert (bench.commits, bench.done(), bench.waiting()) == (4, 4, 0)
    assert [message.decode()[0][0]["host"] for message in bench.dead] == ["never-leased.test"]
    assert "a report on never-leased.test goes to the dead letters" in caplog.text


def test_what_the_database_refuses_is_a_dead_letter_alone(bench: Bench, record_all: Before) -> None:
    def refuse(reports: list[Report]) -> None:
        if any(report.host == "h1.test" for report in reports):
            raise DataError("INSERT", {}, Exception("value out of range"))

    reports = bench.reports(3)
    record_all(refuse)
    bench.send(*reports)
    bench.step()
    assert (bench.done(), bench.waiting()) == (2, 0)
    assert [message.decode()[0][0]["host"] for message in bench.dead] == ["h1.test"]


def test_a_seeding_that_cannot_be_admitted_is_a_dead_letter(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise ValueError

    bench.send(*bench.reports(1))
    monkeypatch.setattr(module, "admit", refuse)
    Broker().admit(Admission(job=JOB, seeding="t", chunk=0, urls=["http://new.test/"]))
    bench.step()
    assert (bench.done(), bench.waiting(), len(bench.dead)) == (1, 0, 1)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ("no task at all", {}),
        ([[{"no": "report"}], {}, {}], {"headers": {"task": "record"}}),
        ([[{"no": "admission"}], {}, {}], {"headers": {"task": "admit"}, "queue": "admit"}),
        ([[{"no": "report"}], {}, {}], {"headers": {"task": "record"}, "queue": "admit"}),
        ([[{}], {}, {}], {"headers": {"task": "no such task"}}),
        ([[{}], {}, {}], {"headers": {"task": "pulse"}}),
        ([[{}], {}, {}], {"headers": {"task": ["record"]}}),
        ([[{}], {}, {}], {}),
        ([[], {}, {}], {"headers": {"task": "record"}}),
        ({"args": []}, {"headers": {"task": "record"}}),
        (b"{", {"headers": {"task": "record"}, "content_type": "application/json", "content_encoding": "utf-8"}),
        (b"\x80", {"headers": {"task": "record"}, "content_type": "application/x-python-serialize"}),
        (
            b"[[], {}, {}]",
            {"headers": {"task": "record"}, "content_type": "application/json", "content_encoding": "utf-16"},
        ),
        (b"x", {"headers": {"task": "record", "compression": "application/x-gzip"}, "content_type": "text/plain"}),
    ],
)
def test_what_cannot_be_read_is_a_dead_letter_and_stops_nothing(
    bench: Bench, body: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first, second = bench.reports(2)
    bench.send(first)
    with bench.app.connection_for_write() as connection:
        serializer = {} if isinstance(body, bytes | str) else {"serializer": "json"}
        queue = options.get("queue", "record")
        given = {"user_id": {"admit": "seed", "record": "worker@here"}[queue]} | options
        given["headers"] = {"lang": "py", "id": "1"} | options.get("headers", {})
        exchange = queues.exchange(given.pop("queue", queue)).name
        connection.Producer().publish(body, exchange=exchange, routing_key=queue, **serializer, **given)
    bench.send(second)
    bench.step()
    assert (bench.commits, bench.done(), bench.waiting(), len(bench.dead)) == (1, 2, 0, 1)
    assert "a message that cannot be read goes to the dead letters" in caplog.text


def test_of_what_cannot_be_read_the_journal_says_what_is_wrong_and_where(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    report, other = bench.reports(2)
    wrong = json.loads(encode(report))
    wrong["links"][0]["depth"] = "one"
    bench.send_as("worker@here", "record", wrong)
    bench.send(other)
    bench.step()
    assert (bench.done(), bench.waiting(), len(bench.dead)) == (1, 0, 1)
    assert "no Report: Expected `int`, got `str` - at `$[0][0].links[0].depth`" in caplog.text


def test_reports_are_acknowledged_after_their_transaction(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    acknowledge = Inbox.acknowledge

    def look(inbox: Inbox, message: Any) -> None:
        done.append(bench.done())
        acknowledge(inbox, message)

    bench.send(*bench.reports(3))
    monkeypatch.setattr(Inbox, "acknowledge", look)
    bench.step()
    assert done == [3, 3, 3]


def test_reports_that_were_recorded_but_not_acknowledged_come_again_and_count_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.send(*bench.reports(3))
    with monkeypatch.context() as patch:
        patch.setattr(memory.Channel, "basic_ack", fail)
        bench.inbox.open()
        with pytest.raises(BrokerLostError):
            bench.recorder.step()
        bench.inbox.close(lost=True)
    assert (bench.done(), bench.waiting()) == (3, 3)
    counts = status.snapshots(bench.ledger, time.time(), recount=True)[0]
    bench.step()
    assert (bench.waiting(), bench.dead) == (0, [])
    again = status.snapshots(bench.ledger, time.time(), recount=True)[0]
    assert again["counts"] == again["recounted"] == counts["counts"]
    assert again["workers"] == counts["workers"]


def fail(*_: object, **__: object) -> None:
    raise ConnectionResetError("gone")


def test_what_returns_from_a_recorder_that_died_is_recorded_alone(bench: Bench, record_all: Before) -> None:
    """One of them may be what it died of: the others must not return with it until they are dead letters."""
    recorded: list[list[str]] = []
    fresh, *reports = bench.reports(9)
    record_all(lambda together: recorded.append([report.host for report in together]))
    bench.send(*reports)
    bench.inbox.open()
    gathered, seeds = bench.inbox.gather()
    assert (len(gathered), len(seeds)) == (8, 0)
    bench.inbox.close(lost=True)  # it dies
    bench.send(fresh)
    bench.step()
    assert recorded[0] == ["h0.test"]
    assert sorted(recorded[1:]) == [[report.host] for report in reports]
    assert (bench.done(), bench.waiting(), bench.dead) == (9, 0, [])


def test_told_to_stop_it_finishes_what_it_has_and_returns_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, record_all: Before
) -> None:
    begun = threading.Event()

    def stop(_: list[Report]) -> None:
        begun.set()
        bench.stop.set()

    bench.send(*bench.reports(10))
    record_all(stop)
    monkeypatch.setattr(limits, "GATHER_BYTES", 1)
    bench.start()
    assert begun.wait(SECONDS)
    assert bench.end() < 5
    assert (bench.commits, bench.done(), bench.waiting(), bench.dead) == (1, 1, 9, [])


def test_told_to_stop_it_does_not_finish_one_by_one(bench: Bench, record_all: Before) -> None:
    def refuse(reports: list[Report]) -> None:
        if len(reports) > 1:
            raise ValueError
        bench.stop.set()

    bench.send(*bench.reports(10))
    record_all(refuse)
    bench.start()
    eventually(bench.stop.is_set)
    bench.end()
    assert (bench.done(), bench.waiting(), bench.dead) == (1, 9, [])


def test_while_it_records_one_by_one_it_answers_the_broker(
    bench: Bench, record_all: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each transaction may be short and all of them long."""
    answered: list[int] = []

    def refuse(reports: list[Report]) -> None:
        if len(reports) > 1:
            del answered[:]
            raise ValueError

    bench.send(*bench.reports(10))
    record_all(refuse)
    monkeypatch.setattr(Connection, "heartbeat_check", lambda *_: answered.append(bench.commits))
    bench.step()
    assert answered == list(range(10))


def test_a_deadlock_or_a_database_that_restarts_is_waited_for(bench: Bench, record_all: Before) -> None:
    failures = [away(), away()]

    def fail_twice(_: list[Report]) -> None:
        if failures:
            raise failures.pop()

    bench.send(*bench.reports(3))
    record_all(fail_twice)
    bench.step()
    assert (failures, bench.done(), bench.waiting(), bench.dead) == ([], 3, 0, [])


@pytest.mark.parametrize(
    ("state", "passes"), [("40P01", True), ("40001", True), ("57P01", True), ("53300", True), ("22003", False)]
)
def test_which_failures_of_the_database_pass(state: str, passes: bool) -> None:
    error = type("Failure", (Exception,), {"sqlstate": state})()
    assert module._may_pass(OperationalError("SELECT", {}, error)) is passes


def test_while_the_database_is_away_the_broker_is_answered_and_the_watchdog_fed(
    bench: Bench, record_all: Before, monkeypatch: pytest.MonkeyPatch, fed: list[str]
) -> None:
    monkeypatch.setattr(limits, "PULSE", 0.05)
    answered: list[float] = []
    monkeypatch.setattr(Connection, "heartbeat_check", lambda *_: answered.append(time.monotonic()))
    answers = threading.Event()

    def until_it_answers(_: list[Report]) -> None:
        if not answers.is_set():
            raise away()

    bench.send(*bench.reports(3))
    record_all(until_it_answers)
    del fed[:], answered[:]
    bench.start()
    eventually(lambda: len(fed) >= 5)
    assert set(fed) == {"READY=1\nWATCHDOG=1"}
    assert len(answered) >= 5
    assert (bench.done(), bench.dead) == (0, [])
    answers.set()
    eventually(lambda: bench.done() == 3)
    bench.end()
    assert bench.waiting() == 0


def test_a_database_that_stays_away_gets_its_messages_later(
    bench: Bench, record_all: Before, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def refuse_at_first(_: list[Report]) -> None:
        tries.append(bench.waiting())
        if len(tries) < 4:
            raise away()

    bench.send(*bench.reports(3))
    record_all(refuse_at_first)
    monkeypatch.setattr(limits, "DATABASE", 0.2)
    bench.start()
    eventually(lambda: bench.done() == 3)
    bench.end()
    assert (len(tries), bench.waiting(), bench.dead) == (3 + 3, 0, [])  # together, then each alone
    assert "go back to the broker: database: server closed the connection" in caplog.text


def test_told_to_stop_it_waits_for_no_database(bench: Bench, record_all: Before) -> None:
    tried = threading.Event()

    def refuse(_: list[Report]) -> None:
        tried.set()
        raise away()

    bench.send(*bench.reports(3))
    record_all(refuse)
    bench.start()
    assert tried.wait(SECONDS)
    assert bench.end() < 5
    assert (bench.done(), bench.waiting(), bench.dead) == (0, 3, [])


def test_a_transaction_that_never_ends_is_for_the_watchdog_but_the_broker_is_answered(
    bench: Bench, record_all: Before, monkeypatch: pytest.MonkeyPatch, fed: list[str]
) -> None:
    monkeypatch.setattr(limits, "PULSE", 0.05)
    monkeypatch.setattr(limits, "HEARTBEAT", 0.3)
    answered: list[float] = []
    monkeypatch.setattr(Connection, "heartbeat_check", lambda *_: answered.append(time.monotonic()))
    begun, ends = threading.Event(), threading.Event()

    def hang(_: list[Report]) -> None:
        begun.set()
        assert ends.wait(SECONDS)

    bench.send(*bench.reports(1))
    record_all(hang)
    bench.start()
    assert begun.wait(SECONDS)
    del fed[:], answered[:]
    eventually(lambda: len(answered) >= 10)
    assert fed == []
    ends.set()
    eventually(lambda: "READY=1\nWATCHDOG=1" in fed)
    assert bench.done() == 1


def test_a_broker_that_is_lost_is_looked_for_and_no_failure(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, fed: list[str]
) -> None:
    reports = bench.reports(2)
    opened: list[float] = []

    def refuse_thrice(inbox: Inbox) -> None:
        opened.append(time.monotonic())
        if len(opened) < 4:
            raise BrokerLostError("Connection refused")
        original(inbox)

    original = Inbox.open
    monkeypatch.setattr(Inbox, "open", refuse_thrice)
    del fed[:]
    bench.start()
    eventually(lambda: len(fed) >= 4)
    assert fed[:4] == ["WATCHDOG=1"] * 3 + ["READY=1\nWATCHDOG=1"]  # READY: once it consumes
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "drain_events", fail)
        eventually(lambda: len(opened) >= 6)
    bench.send(*reports)
    eventually(lambda: bench.done() == 2)
    bench.end()
    assert (bench.waiting(), bench.dead) == (0, [])


def test_a_broker_lost_during_a_transaction_is_left_until_that_has_ended(
    bench: Bench, record_all: Before, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second transaction beside the first, over the same reports, would wait for its locks."""
    monkeypatch.setattr(limits, "HEARTBEAT", 0.06)
    begun, ends = threading.Event(), threading.Event()

    def hang(_: list[Report]) -> None:
        begun.set()
        assert ends.wait(SECONDS)

    bench.send(*bench.reports(2))
    record_all(hang)
    bench.inbox.open()
    errors: list[BaseException] = []

    def step() -> None:
        try:
            bench.recorder.step()
        except BrokerLostError as error:
            errors.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    assert begun.wait(SECONDS)
    lost = threading.Event()
    monkeypatch.setattr(Connection, "heartbeat_check", lambda *_: (lost.set(), fail()))
    assert lost.wait(SECONDS)
    time.sleep(0.1)
    assert thread.is_alive()
    ends.set()
    thread.join(SECONDS)
    assert [str(error) for error in errors] == ["gone"]
    assert bench.done() == 2
    bench.inbox.close(lost=True)
    assert bench.waiting() == 2
    monkeypatch.undo()


def test_links_that_were_written_are_not_written_again(bench: Bench, record_all: Before) -> None:
    seen: list[list[str]] = []
    failures = [ValueError(), ValueError()]

    def note(reports: list[Report]) -> None:
        seen.append([link.url for report in reports for link in report.links])
        if failures:
            raise failures.pop()

    (report,) = bench.reports(1)
    record_all(note)
    for _ in range(4):
        bench.send(report)
        bench.step()
    # The first two were not recorded, so what they linked to is not known.
    assert seen == [["http://h0.test/next"], ["http://h0.test/next"], ["http://h0.test/next"], []]
    assert len(bench.dead) == 2


def test_a_link_that_is_refused_is_not_taken_for_known(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A forged report would keep the link on an honest page from ever being written."""
    (report,) = bench.reports(1)
    url, page = "http://h0.test/x", report.results[0].url
    bench.send(replace(report, lease="", results=[], worker="worker-9@here", links=[Link(url, 0, "http://b.test/")]))
    bench.step()
    assert "worker-9@here, lease none: 1 links that their pages cannot have" in caplog.text
    bench.send(replace(report, links=[Link(url, 1, page)]))
    bench.step()
    assert (bench.done(), bench.waiting(), bench.dead) == (1, 0, [])
    assert status.snapshots(bench.ledger, time.time())[0]["counts"]["queued"] == 1


def test_the_pulse_comes_back_through_the_broker(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What others take of it does not feed the watchdog: tests/fleet/test_watchdog.py steals it so."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr(limits, "PULSE", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(SECONDS)
        bench.start()
        for _ in range(3):
            assert end.recv(100) == b"READY=1\nWATCHDOG=1"
        monkeypatch.setattr(memory.Channel.queues["pulse.recorder-1@here"], "get", nothing)
        end.settimeout(0.5)

        def silent() -> bool:
            try:
                end.recv(100)
            except TimeoutError:
                return True
            return False

        eventually(silent)


def nothing(**_: object) -> Any:
    raise queue.Empty
