"""The broker: what it holds and who may do what. Who can reach it: test_ports.py."""

from __future__ import annotations

import json

import pytest
from fleet import Fleet, eventually
from testinfra.host import Host

from crawler import limits

EMPTY = {"admit": 0, "record": 0, "fetch": 0, "dead": 0}


def rabbitmq(host: Host, command: str) -> list[dict[str, str]]:
    listed: list[dict[str, str]] = json.loads(host.check_output(f"rabbitmqctl --quiet --formatter json {command}"))
    return listed


def test_server_comes_back_after_a_reboot(host: Host) -> None:
    server = host.service("rabbitmq-server")
    assert server.is_running
    assert server.is_enabled


def test_each_worker_host_has_a_user_and_so_have_seed_py_and_the_frontier(host: Host, fleet: Fleet) -> None:
    users = {user["user"]: user["tags"] for user in rabbitmq(host, "list_users")}
    workers = {f"worker@{name}": [] for name in fleet.groups["workers"]}
    assert workers
    assert users == {"seed": [], "ledger": [], **workers}


@pytest.mark.parametrize("queue", ["admit", "record", "fetch", "dead"])
def test_queues_keep_messages_over_a_crash(host: Host, queue: str) -> None:
    types = {found["name"]: found["type"] for found in rabbitmq(host, "list_queues --vhost crawler name type")}
    assert types[queue] == "quorum"


def test_takes_messages_back_when_the_limits_say(host: Host) -> None:
    told = host.check_output("rabbitmqctl --quiet eval 'application:get_env(rabbit, consumer_timeout).'")
    assert told == f"{{ok,{limits.CONSUMER * 1000:.0f}}}"


def test_nothing_was_given_up(fleet: Fleet, crawled: str) -> None:
    assert fleet.status()[crawled]["done"]
    # The broker's figures are some seconds old; but what is in `dead` stays there.
    eventually(lambda: {name: fleet.queues()[name] for name in EMPTY} == EMPTY)
