"""What a crawler, a broker and a database leave on a host, beside a host that never saw any of them."""

from __future__ import annotations

import json
import subprocess

from fleet import Fleet

TRACES = (
    "dpkg-query --show --showformat '${Package} ${db:Status-Abbrev}\\n';"
    "cut -d: -f1 /etc/passwd /etc/group;"
    "ls /etc /var/lib /var/log /usr/local/bin /usr/local/sbin /opt;"
    "find /etc/systemd /etc/rc?.d ! -type d -printf '%p -> %l\\n'"
)
# What a first boot and any installation of packages leave, and a crawler's end must not take away.
LOGS = {"alternatives.log", "dpkg.log", "wtmp.db"}


def of(fleet: Fleet, host: str) -> set[str]:
    """The traces on a host."""
    return _listed(fleet.host(host).check_output(TRACES))


def of_a_new(fleet: Fleet, host: str) -> set[str]:
    """The traces in another container of the same image, run the same way."""
    inspect = ["podman", "container", "inspect", f"{fleet.name}-{host}"]
    (as_run,) = json.loads(subprocess.check_output(inspect))
    limits = [
        f"--ulimit={limit['Name'].removeprefix('RLIMIT_').lower()}={limit['Soft']}:{limit['Hard']}"
        for limit in as_run["HostConfig"]["Ulimits"]
    ]
    command = ["podman", "run", "--rm", "--runtime", as_run["OCIRuntime"], *limits, as_run["Image"]]
    return _listed(subprocess.check_output([*command, "sh", "-c", TRACES], text=True))


def _listed(text: str) -> set[str]:
    found = set(text.splitlines()) - LOGS
    assert len(found) > 100, text
    return found
