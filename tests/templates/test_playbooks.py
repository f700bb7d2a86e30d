"""What the playbooks decide, evaluated with Ansible's own engine: no host, nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Evaluate = Callable[..., Any]
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
