"""The passwords that the control node makes, and the users that the broker has by them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROLES = Path(__file__).parents[2] / "roles"
OURS = ["seed", "ledger", "database"]


def make(directory: Path, *hosts: str, options: tuple[str, ...] = ()) -> set[str]:
    """Make the passwords of a fleet; what it says."""
    script = ROLES / "secrets/files/make_passwords.py"
    names = "\n".join([*OURS, *(f"workers/{host}" for host in hosts)])
    ran = subprocess.run(
        [sys.executable, script, directory, *options], input=names, capture_output=True, text=True, check=True
    )
    return set(ran.stdout.splitlines())


def passwords(directory: Path) -> dict[str, str]:
    return {str(file.relative_to(directory)): file.read_text() for file in directory.rglob("*") if file.is_file()}


def test_each_has_a_password_of_its_own_that_only_its_owner_can_read(tmp_path: Path) -> None:
    said = make(tmp_path, "host1", "a.b")
    made = passwords(tmp_path)
    names = {*(f"{name}_password" for name in OURS), "workers/host1_password", "workers/a.b_password"}
    assert set(made) == names
    assert said == {f"made {name}" for name in names}
    assert len(set(made.values())) == len(names)
    assert all(len(password) == 40 and password.isalnum() for password in made.values())
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names} == {0o600}
    assert (tmp_path / "workers").stat().st_mode & 0o777 == 0o700


def test_passwords_that_are_there_are_kept(tmp_path: Path) -> None:
    make(tmp_path, "host1")
    before = passwords(tmp_path)
    assert make(tmp_path, "host1") == set()
    assert passwords(tmp_path) == before


def test_a_host_that_left_the_inventory_has_none_and_gets_another_when_it_returns(tmp_path: Path) -> None:
    make(tmp_path, "host1", "host2")
    before = passwords(tmp_path)
    assert make(tmp_path, "host2", options=("--keep",)) == set()  # a dry run
    assert make(tmp_path, "host2") == {"forgot workers/host1_password"}
    del before["workers/host1_password"]
    assert passwords(tmp_path) == before
    make(tmp_path, "host1", "host2")
    assert passwords(tmp_path)["workers/host1_password"] not in before.values()


RABBITMQCTL = """#!/usr/bin/env python3
import json, pathlib, sys
state = pathlib.Path(__file__).with_name("state.json")
known = json.loads(state.read_text())
command = [word for word in sys.argv[1:] if word not in ("--quiet", "--formatter", "json")]
known["log"].append(command)
if known["down"]:
    sys.exit("Error: unable to perform an operation on node")
if command == ["list_users"]:
    print(json.dumps([{"user": user, "tags": []} for user in known["users"]]))
elif command[0] == "delete_user":
    known["users"].remove(command[1])
state.write_text(json.dumps(known))
"""


class Server:
    """What the script finds on a broker host: a command rabbitmqctl, and the definitions."""

    def __init__(self, folder: Path, users: list[str]) -> None:
        self._folder, self.definitions = folder, folder / "definitions.json"
        (folder / "rabbitmqctl").write_text(RABBITMQCTL)
        (folder / "rabbitmqctl").chmod(0o755)
        self.state = {"users": users, "log": [], "down": False}
        rights = [{"user": user, "vhost": "crawler"} for user in users]
        written = {"users": [{"name": user} for user in users], "permissions": rights, "queues": [{"name": "fetch"}]}
        self.definitions.write_text(json.dumps(written))
        self.definitions.chmod(0o640)

    @property
    def state(self) -> dict[str, Any]:
        known: dict[str, Any] = json.loads((self._folder / "state.json").read_text())
        return known

    @state.setter
    def state(self, known: dict[str, Any]) -> None:
        (self._folder / "state.json").write_text(json.dumps(known))

    def defined(self) -> set[str]:
        read = json.loads(self.definitions.read_text())
        assert read["queues"] == [{"name": "fetch"}]
        assert {user["name"] for user in read["users"]} == {right["user"] for right in read["permissions"]}
        return {user["name"] for user in read["users"]}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{self._folder}:{os.environ['PATH']}", "RABBITMQ_DEFINITIONS": str(self.definitions)}
        command = [sys.executable, ROLES / "rabbitmq/files/worker_users.py", *arguments]
        return subprocess.run(command, env=os.environ | path, capture_output=True, text=True)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path, ["seed", "ledger", "workerbee", "worker", "worker@host1", "worker@host2"])


def test_users_of_hosts_that_left_the_inventory_are_removed_and_cut_off(server: Server) -> None:
    ran = server.run("keep", "worker@host2")
    assert (ran.returncode, ran.stdout.split()) == (0, ["worker", "worker@host1"])
    assert server.state["users"] == ["seed", "ledger", "workerbee", "worker@host2"]
    cut = [command[1] for command in server.state["log"] if command[0] == "close_all_user_connections"]
    assert cut == ["worker", "worker@host1"]
    assert server.run("keep", "worker@host2").stdout == ""  # which Ansible takes for no change


def test_a_revoked_user_is_removed_cut_off_and_does_not_come_back_with_the_next_start(server: Server) -> None:
    ran = server.run("revoke", "worker@host1")
    assert (ran.returncode, ran.stdout) == (0, "worker@host1\n")
    assert "worker@host1" not in server.state["users"]
    assert server.state["log"][-2] == ["close_all_user_connections", "worker@host1", "revoked"]
    assert server.defined() == {"seed", "ledger", "workerbee", "worker", "worker@host2"}
    assert server.definitions.stat().st_mode & 0o777 == 0o640
    again = server.run("revoke", "worker@host1")
    assert (again.returncode, again.stdout) == (0, "")


def test_a_broker_that_does_not_answer_is_no_success(server: Server) -> None:
    server.state = server.state | {"down": True}
    for verb in ("keep", "revoke"):
        ran = server.run(verb, "worker@host1")
        assert (ran.returncode, ran.stdout) == (1, "")
        assert "rabbitmqctl --formatter json list_users failed: Error: unable to perform" in ran.stderr
    assert "worker@host1" not in server.defined()  # so that it does not come back when the server does
