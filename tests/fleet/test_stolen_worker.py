"""What somebody can do who has a worker host's credential: what its workers do, and nothing else. Tried with that
credential itself, from where the fleet's broker can be reached."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from amqp.basic_message import Message
from amqp.exceptions import AMQPError
from fleet import ROOT, Fleet, eventually
from kombu import Connection

from crawler.messages import Hold, Report, UrlResult, encode

Channel = Any
Attempt = Callable[[Channel], object]


class Thief:
    """Has the credential of one worker host."""

    def __init__(self, fleet: Fleet) -> None:
        kept = ROOT / ".fleet" / fleet.name
        *_, self.host = fleet.groups["workers"]
        self.user, self.other = f"worker@{self.host}", f"worker@{fleet.groups['workers'][0]}"
        self.pulse = f"pulse.worker-999@{self.host}"  # of no worker that runs
        there = self.credential(fleet)
        self.password = (kept / "workers" / f"{self.host}_password").read_text().strip()
        assert there.startswith(f"amqp://{quote(self.user, safe='')}:{self.password}@")
        broker = (kept / "broker_url").read_text().strip().rpartition("@")[2]
        self.url = f"amqp://{quote(self.user, safe='')}:{self.password}@{broker}"

    def credential(self, fleet: Fleet) -> str:
        return fleet.host(self.host).check_output("cat /etc/crawler/credentials/worker_broker_url")

    @contextlib.contextmanager
    def channel(self) -> Iterator[Channel]:
        connection = Connection(self.url, connect_timeout=20)
        try:
            channel = connection.channel()
            channel.confirm_select()
            yield channel
        finally:
            with contextlib.suppress(Exception):
                connection.collect()

    def may(self, attempt: Attempt) -> bool:
        """Whether RabbitMQ lets the thief do that."""
        with self.channel() as channel:
            try:
                attempt(channel)
            except AMQPError as error:
                assert "ACCESS_REFUSED" in str(error) or "PRECONDITION_FAILED" in str(error), error  # noqa: PT017
                return False
            return True


@pytest.fixture(scope="module")
def thief(fleet: Fleet) -> Thief:
    return Thief(fleet)


def published(exchange: str, key: str, body: bytes = b"{}", **properties: Any) -> Attempt:
    return lambda channel: channel.basic_publish_confirm(
        Message(body, **properties), exchange=exchange, routing_key=key
    )


def test_a_host_has_its_own_credential_and_no_other(fleet: Fleet) -> None:
    passwords = {
        host: (ROOT / f".fleet/{fleet.name}/workers/{host}_password").read_text() for host in fleet.groups["workers"]
    }
    assert len(set(passwords.values())) == len(passwords) > 0
    for host in passwords:
        found = fleet.host(host).check_output("cat /etc/crawler/credentials/*")
        for other, password in passwords.items():
            assert (password in found) is (host == other)


def test_what_a_worker_does_is_allowed(thief: Thief) -> None:
    assert thief.may(published("reports", "record", user_id=thief.user))
    options = {"durable": True, "auto_delete": False, "arguments": {"x-expires": 600_000}}
    assert thief.may(lambda channel: channel.queue_declare(thief.pulse, **options))
    assert thief.may(lambda channel: channel.queue_bind(thief.pulse, f"pulses.{thief.user}", thief.pulse))
    assert thief.may(published(f"pulses.{thief.user}", thief.pulse, user_id=thief.user))


def test_nothing_is_published_elsewhere_or_as_another(fleet: Fleet, thief: Thief) -> None:
    broker = fleet.host(fleet.groups["broker"][0])
    listed = json.loads(broker.check_output("rabbitmqctl --quiet --formatter json --vhost crawler list_exchanges name"))
    exchanges = {exchange["name"] for exchange in listed}
    assert {"", "amq.direct", "seeds", "batches", "orders", "status", "dead-letters", "pulses.ledger"} <= exchanges
    allowed = {name for name in exchanges if thief.may(published(name, "fetch", user_id=thief.user))}
    assert allowed == {"reports", f"pulses.{thief.user}"}
    for another in ("ledger", "seed", f"{thief.user}x", *({thief.other} - {thief.user})):
        assert not thief.may(published("reports", "record", user_id=another)), another


def test_another_host_s_pulse_is_out_of_reach_by_any_key(fleet: Fleet, thief: Thief) -> None:
    """RabbitMQ delivers by the headers CC and BCC as well."""
    if thief.other == thief.user:
        pytest.skip("this fleet has one worker host")
    target = f"pulse.worker-1@{thief.other.partition('@')[2]}"
    with contextlib.closing(Connection(thief.url)) as connection:
        channel = connection.channel()
        assert channel.queue_declare(target, passive=True).consumer_count == 1
    forged = b'[[{"lease": "stolen"}],{},{}]'
    headers = {"lang": "py", "task": "fetch", "id": "stolen", "CC": [target], "BCC": [target]}
    options = {"content_type": "application/json", "content_encoding": "utf-8", "user_id": thief.user}
    assert thief.may(published(f"pulses.{thief.user}", target, forged, application_headers=headers, **options))
    for attempt in (
        lambda channel: channel.basic_get(target),
        lambda channel: channel.queue_purge(target),
        lambda channel: channel.queue_delete(target),
        lambda channel: channel.queue_declare(f"{target}0", durable=True, auto_delete=False),
        lambda channel: channel.queue_bind(target, "orders", ""),
        lambda channel: channel.queue_bind(thief.pulse, f"pulses.{thief.other}", target),
    ):
        assert not thief.may(attempt)
    time.sleep(2)
    log = fleet.host(thief.other.partition("@")[2]).check_output(
        "journalctl --unit 'crawler-worker@*' --since -1min --no-pager"
    )
    assert "stolen" not in log


def test_queues_are_neither_read_nor_bound_nor_declared(thief: Thief) -> None:
    for queue in ("record", "admit", "hold", "dead"):
        assert not thief.may(lambda channel, queue=queue: channel.basic_get(queue)), queue
        assert not thief.may(lambda channel, queue=queue: channel.queue_purge(queue)), queue
    for queue in ("record", "admit", "hold", "dead", "fetch"):
        assert not thief.may(lambda channel, queue=queue: channel.queue_delete(queue)), queue
        for exchange in ("orders", "reports", f"pulses.{thief.user}"):
            assert not thief.may(
                lambda channel, queue=queue, exchange=exchange: channel.queue_bind(queue, exchange, "")
            ), queue
    for exchange in ("batches", "seeds", "reports", "status", "dead-letters", "pulses.ledger"):
        assert not thief.may(lambda channel, exchange=exchange: channel.queue_bind(thief.pulse, exchange, "#")), (
            exchange
        )
    for name in ("mine", "pulse.recorder-1@here", "watch.1", f"pulse.worker-1000@{thief.host}"):
        assert not thief.may(lambda channel, name=name: channel.queue_declare(name, auto_delete=False)), name
        assert not thief.may(lambda channel, name=name: channel.exchange_declare(name, "fanout")), name
    for exchange in ("seeds", "batches", "", "orders"):
        arguments = {"x-dead-letter-exchange": exchange}
        name = f"pulse.worker-998@{thief.host}"
        assert not thief.may(
            lambda channel, name=name, arguments=arguments: channel.queue_declare(name, arguments=arguments)
        ), exchange


def test_forged_reports_and_holds_count_for_nothing(fleet: Fleet, thief: Thief) -> None:
    crawled = f"stolen-{time.time():.0f}"
    fleet.crawl(crawled)
    before, dead = fleet.status()[crawled], fleet.queues()["dead"]
    (row, *_) = fleet.export(crawled, "state=done")
    result = UrlResult(url=row["url"], state="done", fetched_at=time.time(), status=200, title="stolen")
    ours = {"lang": "py", "task": "record", "id": "1"}
    options = {"content_type": "application/json", "content_encoding": "utf-8", "application_headers": ours}
    forged = 0
    for worker, user in (
        (f"worker-1@{thief.host}x", thief.user),
        (f"worker-1@{thief.host}", None),
        ("[/zz]", thief.user),
    ):
        report = Report(lease="", job=crawled, host="h", worker=worker, release="r", delay=1e300, results=[result])
        sender = {"user_id": user} if user else {}
        assert thief.may(published("reports", "record", encode(([report], {}, {})), **options, **sender))
        forged += 1
    assert thief.may(published("reports", "hold", encode(Hold(worker="worker-1@elsewhere")), user_id=thief.user))
    callbacks = {"callbacks": [{"task": "recall", "args": [["x"]], "options": {}}]}
    for headers, embedded in (
        ({**ours, "eta": "2030-01-01T00:00:00"}, {}),
        ({**ours, "id": [1, 2]}, {}),
        (ours, callbacks),
    ):
        body = encode(([{}], {}, embedded))
        assert thief.may(
            published("reports", "record", body, **{**options, "application_headers": headers}, user_id=thief.user)
        )
        forged += 1
    eventually(lambda: fleet.queues()["dead"] >= dead + forged)
    counts = ("discovered", "queued", "leased", "done", "failed", "excluded")
    after = fleet.recount()[crawled]
    assert [after[name] for name in counts] == [before[name] for name in counts]
    assert "stolen" not in {row["title"] for row in fleet.export(crawled)}
    broker = fleet.host(fleet.groups["broker"][0])
    broker.check_output("rabbitmqctl --quiet --vhost crawler purge_queue dead")


def test_messages_and_connections_have_limits(fleet: Fleet, thief: Thief) -> None:
    assert not thief.may(published("reports", "record", b"x" * 17_000_000, user_id=thief.user))
    broker = fleet.host(fleet.groups["broker"][0])
    limits = json.loads(broker.check_output("rabbitmqctl --quiet list_user_limits --user %s", thief.user))
    assert 0 < limits["max-connections"] <= 1000
    opened: list[Connection] = []
    refused: list[str] = []
    try:
        for _ in range(limits["max-connections"] + 1):
            opened.append(Connection(thief.url, connect_timeout=20))
            try:
                opened[-1].connect()
            except AMQPError as error:
                refused.append(str(error))
                break
    finally:
        for connection in opened:
            connection.collect()
    assert [text for text in refused if f"connection limit ({limits['max-connections']}) is reached" in text]


def test_a_revoked_host_is_cut_off_at_once_until_the_next_deploy(fleet: Fleet, thief: Thief) -> None:
    running = fleet.running(thief.host)
    with thief.channel() as channel:
        revoked = fleet.playbook("playbooks/revoke.yml", "-e", "confirm=yes", "--limit", thief.host)
        assert revoked.returncode == 0, revoked.stdout
        with pytest.raises((AMQPError, OSError)):
            channel.queue_declare("fetch", passive=True)
    with pytest.raises((AMQPError, OSError)):
        Connection(thief.url, connect_timeout=20).connect()
    broker = fleet.host(fleet.groups["broker"][0])
    defined = json.loads(broker.check_output("cat /etc/rabbitmq/definitions.json"))["users"]
    assert thief.user not in {user["name"] for user in defined}
    again = fleet.playbook("playbooks/revoke.yml", "-e", "confirm=yes", "--limit", thief.host)
    assert again.returncode == 0, again.stdout
    alone = fleet.playbook("deploy.yml", "--limit", thief.host)
    if fleet.groups["broker"][0] != thief.host:
        assert alone.returncode != 0
        assert "The broker does not know" in alone.stdout
    deployed = fleet.playbook("deploy.yml")
    assert deployed.returncode == 0, deployed.stdout
    assert thief.password not in thief.credential(fleet)
    eventually(lambda: fleet.running(thief.host) == running)
    with pytest.raises((AMQPError, OSError)):
        Connection(thief.url, connect_timeout=20).connect()
