"""Wrong or missing input: refused at once, with the reason and the command to type. No host is needed for that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ONE_HOST = "{broker: {hosts: {h: }}, frontier: {hosts: {h: }}, workers: {hosts: {h: }}}"


def play(tmp_path: Path, inventory: str, playbook: str, *extra: str, options: Sequence[str] = ()) -> str:
    """Run a playbook that must fail; return what it says, in one line."""
    (tmp_path / "hosts.yml").write_text(inventory)
    command = [Path(sys.executable).with_name("ansible-playbook"), "--connection=local", "-i", tmp_path / "hosts.yml"]
    command += options
    for variable in extra:
        command += ["-e", variable]
    command.append(ROOT / playbook)
    run = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        # PWD as a shell sets it: with it a refusal completes a relative path.
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PWD": str(ROOT)},
    )
    assert run.returncode != 0, run.stdout
    return " ".join((run.stdout + run.stderr).split())


@pytest.mark.parametrize("group", ["broker", "frontier", "workers"])
def test_an_empty_group(tmp_path: Path, group: str) -> None:
    said = play(tmp_path, ONE_HOST.replace(f"{group}: {{hosts: {{h: }}}}", f"{group}: {{}}"), "deploy.yml")
    assert f"The group `{group}` is empty" in said
    assert "ansible-playbook -i inventory/demo deploy.yml" in said


def test_two_brokers(tmp_path: Path) -> None:
    said = play(tmp_path, ONE_HOST.replace("broker: {hosts: {h: }}", "broker: {hosts: {h: , i: }}"), "deploy.yml")
    assert "The group `broker` has 2 hosts (h, i)" in said


@pytest.mark.parametrize(
    ("contact", "reason"), [("", "is missing"), ("crawler_contact=nobody", "is not an address: nobody")]
)
def test_no_contact_address(tmp_path: Path, contact: str, reason: str) -> None:
    said = play(tmp_path, ONE_HOST, "deploy.yml", *filter(None, [contact]))
    assert f"crawler_contact {reason}" in said
    assert "ansible-playbook deploy.yml -e crawler_contact=you@example.org" in said


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            '{"crawler_allow_networks": ["10.0.0.0/8", "10.0.0.1/8"]}',
            "networks: 10.0.0.1/8 has host bits",
        ),
        ('{"crawler_allow_networks": "10.0.0.1/8"}', "networks: 10.0.0.1/8 has host bits"),
        ('{"crawler_allow_ports": "8443 https"}', "crawler_allow_ports: 'https' is no port; write ports as 8443"),
    ],
)
def test_networks_and_ports_that_do_not_exist(tmp_path: Path, given: str, reason: str) -> None:
    said = play(tmp_path, ONE_HOST, "deploy.yml", "crawler_contact=you@example.org", given)
    assert reason in said
    assert "and type: ansible-playbook deploy.yml" in said


@pytest.mark.parametrize("playbook", ["deploy.yml", "scale.yml"])
@pytest.mark.parametrize("workers", ["0", "-1", "abc", "2.5", "100000", "101"])
def test_a_number_of_workers_that_makes_no_sense(tmp_path: Path, playbook: str, workers: str) -> None:
    said = play(tmp_path, ONE_HOST, playbook, f"workers={workers}", "crawler_contact=you@example.org")
    assert f"workers={workers} is not a number from 1 to 100" in said
    assert "ansible-playbook scale.yml -e workers=4" in said


def test_scaling_to_no_number(tmp_path: Path) -> None:
    assert "Type: ansible-playbook scale.yml -e workers=4" in play(tmp_path, ONE_HOST, "scale.yml")


def test_destroying_without_saying_so(tmp_path: Path) -> None:
    assert "-e confirm=yes" in play(tmp_path, ONE_HOST, "playbooks/destroy.yml")


@pytest.mark.parametrize("options", [[], ["-e", "confirm=yes"], ["--limit", "h"], ["--limit", "h", "-e", "confirm=no"]])
def test_revoking_without_saying_so_and_whom(tmp_path: Path, options: list[str]) -> None:
    said = play(tmp_path, ONE_HOST, "playbooks/revoke.yml", options=options)
    assert "playbooks/revoke.yml -e confirm=yes --limit HOST" in said


def test_revoking_what_is_no_worker_host(tmp_path: Path) -> None:
    inventory = ONE_HOST.replace("broker: {hosts: {h: }}", "broker: {hosts: {b: }}")
    said = play(tmp_path, inventory, "playbooks/revoke.yml", "confirm=yes", options=["--limit", "b,h"])
    assert "b not in the group `workers`" in said
    assert "Nobody was revoked" in said


def test_a_worker_host_that_the_broker_does_not_know(tmp_path: Path) -> None:
    inventory = ONE_HOST.replace("broker: {hosts: {h: }}", "broker: {hosts: {b: }}")
    given = ("crawler_contact=you@example.org", f"crawler_fleet_dir={tmp_path}")
    said = play(tmp_path, inventory, "deploy.yml", *given, options=["--limit", "h"])
    assert "The broker does not know h yet" in said
    assert "ansible-playbook deploy.yml --limit 'b,h'" in said


def test_a_worker_host_whose_name_cannot_be_a_user_s(tmp_path: Path) -> None:
    inventory = ONE_HOST.replace("workers: {hosts: {h: }}", "workers: {hosts: {'h$': }}")
    said = play(tmp_path, inventory, "deploy.yml", "crawler_contact=you@example.org")
    assert "h$ cannot be part of a user's name at the broker" in said


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("delete=maybe", "playbooks/collect.yml -e delete=yes"),
        ("delete=", "playbooks/collect.yml -e delete=yes"),
        ("to=warc", f"playbooks/collect.yml -e to={ROOT}/warc"),
        ("to=", f"playbooks/collect.yml -e to={ROOT}/"),
    ],
)
def test_collecting_to_nowhere_or_with_half_a_wish(tmp_path: Path, given: str, remedy: str) -> None:
    said = play(tmp_path, ONE_HOST, "playbooks/collect.yml", given)
    assert f"{given} is n" in said
    assert remedy in said


@pytest.mark.skipif(Path("/usr/local/sbin/crawler-units").exists(), reason="the crawler is on this machine")
def test_collecting_from_a_host_never_deployed_to(tmp_path: Path) -> None:
    said = play(tmp_path, ONE_HOST, "playbooks/collect.yml")
    assert "The crawler is not on h yet" in said
    assert "ansible-playbook deploy.yml" in said


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="this machine runs systemd")
def test_a_host_without_systemd(tmp_path: Path) -> None:
    said = play(tmp_path, ONE_HOST, "deploy.yml", "crawler_contact=you@example.org")
    assert "h was not started by systemd" in said
    assert "make demo" in said
