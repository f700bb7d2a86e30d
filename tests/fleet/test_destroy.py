"""destroy.yml: a host is left as it was found, and can be deployed to again."""

from __future__ import annotations

import json
import subprocess

import pytest
from fleet import Fleet

# What a crawler, a broker and a database leave their marks on.
TRACES = (
    "dpkg-query --show --showformat '${Package} ${db:Status-Abbrev}\\n';"
    "cut -d: -f1 /etc/passwd /etc/group;"
    "ls /etc /var/lib /var/log /usr/local/bin /usr/local/sbin /opt;"
    "find /etc/systemd -type f"
)
# What a first boot and any installation of packages leave, and a crawler's end must not take away.
LOGS = {"alternatives.log", "dpkg.log", "wtmp.db"}


def traces(listing: str) -> set[str]:
    return set(listing.splitlines()) - LOGS


def never_deployed_to(container: str) -> str:
    """The traces in another container of the same image, run the same way."""
    (as_run,) = json.loads(subprocess.check_output(["podman", "container", "inspect", container]))
    limits = [
        f"--ulimit={limit['Name'].removeprefix('RLIMIT_').lower()}={limit['Soft']}:{limit['Hard']}"
        for limit in as_run["HostConfig"]["Ulimits"]
    ]
    command = ["podman", "run", "--rm", "--runtime", as_run["OCIRuntime"], *limits, as_run["Image"]]
    return subprocess.check_output([*command, "sh", "-c", TRACES], text=True)


@pytest.mark.timeout(900)  # two deploys
def test_host_is_left_as_found_and_can_be_deployed_to_again(fleet: Fleet) -> None:
    destroyed = fleet.playbook("playbooks/destroy.yml", "-e", "confirm=yes")
    assert destroyed.returncode == 0, destroyed.stdout
    for host in fleet.product:
        assert traces(fleet.host(host).check_output(TRACES)) == traces(never_deployed_to(f"{fleet.name}-{host}"))

    dry = fleet.playbook("deploy.yml", "--check", "--diff")
    assert dry.returncode == 0, dry.stdout
    deployed = fleet.playbook("deploy.yml", "--diff")  # where every file is new, and so in the diff
    assert deployed.returncode == 0, deployed.stdout
    for host in fleet.product:
        assert fleet.running(host) == fleet.wanted(host)

    secrets = fleet.secrets()
    assert secrets
    for said in (dry, deployed):
        assert not [secret for secret in secrets if secret in said.stdout + said.stderr]
