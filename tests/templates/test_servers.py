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
    assert set(users) == {"seed", "worker", "ledger"}
    assert all(hash_of(f"{name}-secret", user["password_hash"]) for name, user in users.items())


def test_definitions_are_the_same_at_every_run(render: Render) -> None:
    assert render("rabbitmq", "definitions.json.j2") == render("rabbitmq", "definitions.json.j2")


def test_every_exchange_with_a_queue_of_its_name_is_bound_to_it(definitions: dict[str, list[dict[str, str]]]) -> None:
    queues = {queue["name"] for queue in definitions["queues"]}
    bound = {(binding["source"], binding["destination"], binding["routing_key"]) for binding in definitions["bindings"]}
    assert bound == {(name, name, name) for name in queues - {"hold"}} | {("record", "hold", "hold")}
    assert queues - {"hold"} <= {exchange["name"] for exchange in definitions["exchanges"]}


def test_work_lies_in_durable_quorum_queues_with_a_dead_letter_queue(definitions: dict[str, list[dict]]) -> None:
    for queue in definitions["queues"]:
        assert queue["durable"]
        assert queue["arguments"]["x-queue-type"] == "quorum"
        assert (queue["arguments"].keys() == {"x-queue-type"}) == (queue["name"] != "hold")
    [policy] = definitions["policies"]
    covered = {queue["name"] for queue in definitions["queues"] if re.search(policy["pattern"], queue["name"])}
    assert covered == {"admit", "record", "fetch"}
    assert policy["definition"]["dead-letter-exchange"] == "dead"
    assert policy["definition"]["dead-letter-routing-key"] == "dead"
    # Kept until the queue `dead` has them, which RabbitMQ does only where a full queue refuses instead of dropping.
    assert policy["definition"]["dead-letter-strategy"] == "at-least-once"
    assert policy["definition"]["overflow"] == "reject-publish"
    assert policy["definition"]["delivery-limit"] == 20  # a number: RabbitMQ refuses the text "20"


CONFIGURED = ["admit", "record", "fetch", "hold", "dead", "orders", "status", "amq.default", "xpulse.", "xwatch.", ""]
"""What the definitions configure, and nobody else may."""


@pytest.mark.parametrize(
    ("user", "right", "may", "may_not"),
    [
        ("seed", "configure", ["watch.1"], CONFIGURED),
        ("seed", "write", ["admit", "watch.1"], ["record", "fetch", "orders", "status", "dead", "pulse.x"]),
        ("seed", "read", ["status", "watch.1"], ["admit", "record", "fetch", "hold", "dead", "orders", "pulse.x"]),
        ("worker", "read", ["fetch", "orders", "pulse.w"], ["admit", "record", "hold", "dead", "status"]),
        ("worker", "write", ["record", "amq.default"], ["admit", "fetch", "orders", "status", "dead"]),
        ("worker", "configure", ["pulse.worker-1@worker1"], CONFIGURED),
        ("ledger", "configure", ["pulse.recorder-1@frontier1"], CONFIGURED),
        ("ledger", "read", ["admit", "record", "fetch", "hold", "pulse.x"], ["dead", "orders", "status"]),
        ("ledger", "write", ["fetch", "orders", "status", "record", "amq.default", "pulse.x"], ["admit", "dead"]),
    ],
)
def test_users_have_the_least_rights(
    definitions: dict[str, list[dict[str, str]]], user: str, right: str, may: list[str], may_not: list[str]
) -> None:
    [rule] = [permission[right] for permission in definitions["permissions"] if permission["user"] == user]
    assert all(re.search(rule, name) for name in may)
    assert not any(re.search(rule, name) for name in may_not)


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
