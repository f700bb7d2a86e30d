"""What RabbitMQ and PostgreSQL are given to read."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable

import pytest
from ansible.plugins.loader import filter_loader

from crawler import limits, seed, urls
from crawler.processes import queues, senders
from crawler.worker import extract, robots

Render = Callable[..., str]


def hash_of(password: str, stored: str) -> bool:
    """Check a password as RabbitMQ does."""
    raw = base64.b64decode(stored)
    return raw[4:] == hashlib.sha256(raw[:4] + password.encode()).digest()


@pytest.fixture
def definitions(render: Render) -> dict[str, list[dict[str, object]]]:
    return json.loads(render("rabbitmq", "definitions.json.j2"))


def test_definitions_hold_hashes_and_no_password(render: Render) -> None:
    text = render("rabbitmq", "definitions.json.j2")
    assert "secret" not in text
    users = {user["name"]: user for user in json.loads(text)["users"]}
    assert set(users) == {"seed", "ledger", "worker@a.b", "worker@axb"}
    assert set(users) >= {senders.SEED, senders.LEDGER, senders.of_worker("worker-1@a.b")}
    for name, user in users.items():
        assert hash_of(f"{name.removeprefix('worker@')}-secret", user["password_hash"])


def test_definitions_are_the_same_at_every_run(render: Render) -> None:
    assert render("rabbitmq", "definitions.json.j2") == render("rabbitmq", "definitions.json.j2")


def test_what_the_programs_name_is_defined(definitions: dict[str, list[dict[str, str]]]) -> None:
    bound = {(binding["source"], binding["destination"], binding["routing_key"]) for binding in definitions["bindings"]}
    ours = {(queues.exchange(name).name, name, name) for name in ("admit", "fetch", "record", "hold")}
    assert bound == {*ours, ("dead-letters", "dead", "dead")}
    types = {exchange["name"]: exchange["type"] for exchange in definitions["exchanges"]}
    assert {queue["name"] for queue in definitions["queues"]} == {queue for _, queue, _ in bound}
    users = ("ledger", "worker@a.b", "worker@axb")
    named = [*map(queues.exchange, ("admit", "fetch", "record")), queues.ORDERS, queues.STATUS]
    named += [queues.pulse("any", user).exchange for user in users]
    assert types == {exchange.name: exchange.type for exchange in named} | {"dead-letters": "direct"}


def test_no_exchange_is_called_as_a_queue(definitions: dict[str, list[dict[str, str]]]) -> None:
    """Or the right to publish would be the right to bind."""
    exchanges = {exchange["name"] for exchange in definitions["exchanges"]}
    named = {queue["name"] for queue in definitions["queues"]}
    assert not exchanges & named
    for permission in definitions["permissions"]:
        assert not [name for name in named if re.search(permission["write"], name)]


def test_work_lies_in_durable_quorum_queues_with_a_dead_letter_queue(definitions: dict[str, list[dict]]) -> None:
    for queue in definitions["queues"]:
        assert queue["durable"]
        assert queue["arguments"]["x-queue-type"] == "quorum"
        assert (queue["arguments"].keys() == {"x-queue-type"}) == (queue["name"] != "hold")
    policy, *_ = definitions["policies"]
    covered = {queue["name"] for queue in definitions["queues"] if re.search(policy["pattern"], queue["name"])}
    assert covered == {"admit", "record", "fetch"}
    assert policy["definition"]["dead-letter-exchange"] == "dead-letters"
    assert policy["definition"]["dead-letter-routing-key"] == "dead"
    # Kept until the queue `dead` has them, which RabbitMQ does only where a full queue refuses instead of dropping.
    assert policy["definition"]["dead-letter-strategy"] == "at-least-once"
    assert policy["definition"]["overflow"] == "reject-publish"
    assert policy["definition"]["delivery-limit"] == 20  # a number: RabbitMQ refuses the text "20"


@pytest.mark.parametrize("queue", ["dead", "pulse.worker-1@a.b", "watch.0123"])
def test_what_may_fill_up_is_bounded_and_holds_up_nobody(definitions: dict[str, list[dict]], queue: str) -> None:
    [policy] = [policy for policy in definitions["policies"] if re.search(policy["pattern"], queue)]
    assert policy["definition"]["overflow"] == "drop-head"
    assert 0 < policy["definition"]["max-length"] <= 100_000
    assert 0 < policy["definition"]["max-length-bytes"] <= 1_000_000_000


def test_users_have_limits_of_connections_and_channels(render: Render) -> None:
    definitions = json.loads(render("rabbitmq", "definitions.json.j2", rabbitmq_workers_per_host=20))
    of = {user["name"]: user["limits"] for user in definitions["users"]}
    assert of["worker@a.b"] == of["worker@axb"] == {"max-connections": 200, "max-channels": 400}
    assert all(limit.keys() == {"max-connections", "max-channels"} for limit in of.values())
    [parameter] = definitions["parameters"]
    assert (parameter["component"], parameter["name"], parameter["vhost"]) == ("vhost-limits", "limits", "crawler")
    assert parameter["value"]["max-connections"] == sum(limit["max-connections"] for limit in of.values())
    assert parameter["value"]["max-queues"] == 4000  # more than the names that all may declare, but for watchers'


def test_the_largest_honest_message_is_taken(render: Render) -> None:
    (allowed,) = re.findall(r"^max_message_size = (\d+)$", render("rabbitmq", "rabbitmq.conf.j2"), re.MULTILINE)
    fields = limits.BATCH_URLS * extract.MAX_BYTES
    texts = limits.BATCH_URLS * 10_000
    control_characters = 6 * robots.MAX_BYTES  # as JSON writes them
    report = fields + texts + 1.5 * LINKS_SIZE + control_characters
    seeds = seed.CHUNK * urls.MAX_LENGTH
    assert max(report, 3 * seeds) < int(allowed) < 1.5 * report


LINKS_SIZE = 2_000_000
"""As in crawler/processes/worker_tasks.py, which needs a broker's address to be read."""
QUEUES = ["admit", "record", "fetch", "hold", "dead"]
EXCHANGES = ["seeds", "batches", "reports", "dead-letters", "orders", "status", "amq.direct", "amq.topic", "amq.fanout"]
PULSES = ["pulses.ledger", "pulses.worker@a.b", "pulses.worker@axb"]
OWN = ["pulse.worker-1@a.b", "pulse.worker-1@axb", "pulse.recorder-1@f", f"watch.{32 * '0'}"]
STRANGE = [
    *("amq.default", "", "xpulse.", "pulse.", "watch.", "watch.1", f"xwatch.{32 * '0'}", f"watch.{33 * '0'}"),
    *("pulse.worker-0@a.b", "pulse.worker-1000@a.b", "pulse.worker-x@a.b", "pulse.worker-1@", "pulse.worker-1@a.bc"),
    *(
        "pulse.worker-1@xa.b",
        "pulse.worker-1@a.b.c",
        "xpulse.worker-1@a.b",
        "pulses.",
        "pulses.seed",
        "pulses.worker@a.b.c",
    ),
    *("seedsx", "xreports", "reports.x"),
]
EVERYTHING = [*QUEUES, *EXCHANGES, *PULSES, *OWN, *STRANGE]


@pytest.mark.parametrize(
    ("user", "right", "may"),
    [
        ("seed", "configure", {f"watch.{32 * '0'}"}),
        ("seed", "write", {"seeds", f"watch.{32 * '0'}"}),
        ("seed", "read", {"status", f"watch.{32 * '0'}"}),
        *[
            (f"worker@{host}", right, {*more, f"pulse.worker-1@{host}"})
            for host in ("a.b", "axb")
            for right, more in {
                "configure": set(),
                "write": {"reports", f"pulses.worker@{host}"},
                "read": {"fetch", "orders", f"pulses.worker@{host}"},
            }.items()
        ],
        ("ledger", "configure", {"pulse.recorder-1@f"}),
        ("ledger", "write", {"batches", "orders", "status", "reports", "pulses.ledger", "pulse.recorder-1@f"}),
        ("ledger", "read", {"admit", "record", "hold", "pulses.ledger", "pulse.recorder-1@f"}),
    ],
)
def test_users_have_the_least_rights(
    definitions: dict[str, list[dict[str, str]]], user: str, right: str, may: set[str]
) -> None:
    [rule] = [permission[right] for permission in definitions["permissions"] if permission["user"] == user]
    assert {name for name in EVERYTHING if re.search(rule, name)} == may


def test_a_host_may_have_as_many_pulses_as_workers(definitions: dict[str, list[dict[str, str]]]) -> None:
    [rule] = [each["configure"] for each in definitions["permissions"] if each["user"] == "worker@a.b"]
    assert [number for number in range(2000) if re.search(rule, f"pulse.worker-{number}@a.b")] == [*range(1, 1000)]


def test_database_password_is_a_scram_verifier(render: Render) -> None:
    sql = render("postgresql", "crawler.sql.j2")
    assert "database-secret" not in sql
    assert len(re.findall(r"SCRAM-SHA-256\$4096:[\w+/=]+\$[\w+/=]+:[\w+/=]+", sql)) == 2


def test_scram_verifier_proves_the_password() -> None:
    verifier = filter_loader.get("scram_verifier").j2_function("pencil", "user")
    scheme, salting, keys = verifier.split("$")
    iterations, salt = salting.split(":")
    stored_key, server_key = (base64.b64decode(key) for key in keys.split(":"))

    # RFC 5802, section 3: the server knows StoredKey and ServerKey, the client proves that it knows the password.
    message = b"n=user,r=client,r=client-server,s=salt,i=4096,c=biws,r=client-server"
    salted = hashlib.pbkdf2_hmac("sha256", b"pencil", base64.b64decode(salt), int(iterations))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    signature = hmac.digest(stored_key, message, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    recovered = bytes(a ^ b for a, b in zip(proof, signature, strict=True))
    assert scheme == "SCRAM-SHA-256"
    assert hashlib.sha256(recovered).digest() == stored_key
    assert hmac.digest(salted, b"Server Key", "sha256") == server_key


def test_postgresql_listens_on_this_host_alone(render: Render) -> None:
    assert "listen_addresses = '127.0.0.1'" in render("postgresql", "crawler.conf.j2")


def test_erlang_listens_on_this_host_alone(render: Render) -> None:
    # An empty assignment first: without it systemd adds the address to those of the distribution's unit.
    listens = re.findall(r"^ListenStream=(.*)$", render("rabbitmq", "loopback.conf.j2"), re.MULTILINE)
    assert listens == ["", "127.0.0.1:4369"]
    assert "inet_dist_use_interface {127,0,0,1}" in render("rabbitmq", "rabbitmq-env.conf.j2")


def test_rabbitmq_loads_the_definitions_at_its_first_start(render: Render) -> None:
    conf = render("rabbitmq", "rabbitmq.conf.j2")
    assert "load_definitions = /etc/rabbitmq/definitions.json" in conf
    assert all(re.match(r"#|[\w.]+ = \S+$", line) for line in conf.splitlines() if line)
