"""What the playbooks decide, evaluated with Ansible's own engine: no host, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Evaluate = Callable[..., Any]
ROLES = Path(__file__).parents[2] / "roles"
PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
PRODUCT = {"broker", "frontier", "workers", "localhost"}


def plays(playbook: str) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = yaml.safe_load((PLAYBOOKS / playbook).read_text())
    return read


def task(playbook: str, name: str) -> dict[str, Any]:
    """The one task of that name."""
    (found,) = [task for play in plays(playbook) for task in play.get("tasks", []) if task["name"] == name]
    return dict(found)


@pytest.mark.parametrize("playbook", sorted(PLAYBOOKS.glob("*.yml")), ids=lambda path: path.name)
def test_plays_name_the_groups_of_the_product_and_no_others(playbook: Path) -> None:
    for play in plays(playbook.name):
        if "hosts" in play:
            assert set(play["hosts"].split(":")) <= PRODUCT, play["name"]
        else:
            assert (PLAYBOOKS / play["ansible.builtin.import_playbook"]).exists()


HOSTS = ["b", "f", "w1", "w2"]


@pytest.mark.parametrize(
    ("reached", "cleaned", "forgets"),
    [
        (HOSTS, HOSTS, True),
        (["w1"], ["w1"], False),  # --limit w1
        (HOSTS, ["b", "f", "w1"], False),  # w2 could not be reached, and still has them
    ],
)
def test_destroying_forgets_the_passwords_with_the_last_host(
    evaluate: Evaluate, reached: list[str], cleaned: list[str], forgets: bool
) -> None:
    when = task("destroy.yml", "Remove the fleet's passwords from the control node")["when"]
    groups = {"broker": ["b"], "frontier": ["f"], "workers": ["w1", "w2"]}
    assert evaluate(when, groups=groups, ansible_play_hosts_all=reached, ansible_play_hosts=cleaned) is forgets


@pytest.mark.parametrize(("dry", "deleted"), [(False, ["d1  a", "d3  c"]), (True, ["d1  a", "d2  b", "d3  c"])])
def test_collecting_deletes_what_is_home_with_the_same_digest(
    evaluate: Evaluate, dry: bool, deleted: list[str]
) -> None:
    loop = task("collect.yml", "Delete there what is home")["loop"]
    there, home = ["d1  a", "d2  b", "d3  c"], ["d1  a", "xx  b", "d3  c", "d4  d"]
    assert sorted(evaluate(loop, ansible_check_mode=dry, __there_sums=there, __home_sums=home)) == deleted


def test_collecting_deletes_when_told_to_alone(evaluate: Evaluate) -> None:
    condition = task("collect.yml", "Delete there what is home")["when"]
    (play,) = plays("collect.yml")
    for given, deletes in (({}, False), ({"delete": "no"}, False), ({"delete": "yes"}, True)):
        assert evaluate(condition, __delete=play["vars"]["__delete"], **given) is deletes


def test_collecting_takes_digests_again_before_it_deletes() -> None:
    names = [task["name"] for task in plays("collect.yml")[0]["tasks"]]
    order = ["Bring what is missing or damaged", "Take the digests at home again", "Delete there what is home"]
    assert sorted(order, key=names.index) == order


@pytest.mark.parametrize(
    ("given", "since"),
    [({}, "1 hour ago"), ({"since": "today"}, "today"), ({"since": "2", "_raw_params": "hours ago"}, "2 hours ago")],
)
def test_logs_begin_where_all_the_words_say(evaluate: Evaluate, given: dict[str, str], since: str) -> None:
    (play,) = plays("logs.yml")
    assert evaluate(play["vars"]["__since"], **given) == since


@pytest.mark.parametrize(("lost", "goes_on"), [([], True), (["w1"], True), (["b"], False), (["f"], False)])
def test_deploy_goes_on_without_a_worker_and_not_without_broker_or_database(
    evaluate: Evaluate, lost: list[str], goes_on: bool
) -> None:
    gate = task("deploy.yml", "Require the broker and the frontier host")
    assert "b" in evaluate(gate["loop"], groups={"broker": ["b"], "frontier": ["f"]})
    left = [host for host in HOSTS if host not in lost]
    condition = gate["ansible.builtin.assert"]["that"]
    known = {"ansible_play_hosts_all": HOSTS, "ansible_play_hosts": left}
    assert all(evaluate(condition, item=item, **known) for item in ("b", "f")) is goes_on
    assert evaluate(condition, item="b", ansible_play_hosts_all=["w1"], ansible_play_hosts=["w1"])  # --limit w1


def test_a_number_that_was_asked_for_replaces_the_one_on_the_host() -> None:
    """deploy.yml keeps the number that scale.yml left, unless one is given with -e; scale.yml never keeps it."""
    (deploy,) = [role for play in plays("deploy.yml") for role in play.get("roles", []) if role["role"] == "worker"]
    assert deploy["worker_keep_count"] == "{{ 'workers' not in lookup('extra_vars') }}"
    assert task("scale.yml", "Set the number of workers")["vars"] == {"worker_keep_count": False}


SECRET = re.compile("password|_url")


def writes() -> Iterator[dict[str, Any]]:
    """Every task of a role that writes a file from a value, those in blocks included."""
    tasks = [task for path in sorted(ROLES.glob("*/tasks/*.yml")) for task in yaml.safe_load(path.read_text())]
    tasks += [inner for task in tasks for inner in task.get("block", [])]
    return (task for task in tasks if "content" in task.get("ansible.builtin.copy", {}))


def test_secrets_are_written_for_their_owner_and_shown_to_nobody() -> None:
    secret = [task for task in writes() if SECRET.search(str(task))]
    assert len(secret) >= 3
    for task in secret:
        assert task["ansible.builtin.copy"]["mode"] == "0600", task["name"]
        assert task["no_log"] is True, task["name"]
        assert task["diff"] is False, task["name"]
