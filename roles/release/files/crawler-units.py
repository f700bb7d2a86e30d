#!/usr/bin/python3
"""Make the crawler's running services match what lies on this host.

    crawler-units apply NAME...   stop, restart and start the services of these names until they match
    crawler-units status          print what runs, as JSON

The files are the state: crawler.target says which services are wanted (its drop-ins hold the number of workers), and a
service is stale when something that it read at its start (unit files, environment, credentials, the current release) is
younger than that start. So an interrupted deploy is finished by the next one, and a second run does nothing.

`apply` gives each step to systemd as one command with all units: twenty workers drain at the same time, not in turn. It
returns when all of them are ready, prints a line for each change, and fails with the log of what does not come up.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

# ruff: noqa: S603, S607 - it runs systemctl, by its name, with the names of units

TARGET = "crawler.target"
CURRENT = Path("/opt/crawler/current")


def systemctl(*arguments: str, check: bool = True) -> str:
    """Run systemctl and return what it prints."""
    return subprocess.run(["systemctl", *arguments], check=check, text=True, stdout=subprocess.PIPE).stdout


def show(units: list[str]) -> dict[str, dict[str, str]]:
    """Return the properties of units, by unit."""
    if not units:
        return {}
    properties = "Id,ActiveState,SubState,MainPID,NRestarts,FragmentPath,DropInPaths,InactiveExitTimestamp,StatusText"
    blocks = systemctl("show", "--timestamp=unix", f"--property={properties}", *units).strip().split("\n\n")
    found = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
    return {unit["Id"]: unit for unit in found}


def belongs(unit: str, names: list[str]) -> bool:
    """Tell whether a unit is one of these services: crawler-worker@3.service is of crawler-worker."""
    return re.split(r"[@.]", unit)[0] in names


def loaded() -> list[str]:
    """Return the services that systemd holds in memory: running, starting, failed."""
    listing = systemctl("list-units", "--all", "--plain", "--no-legend", "crawler-*.service")
    return [line.split()[0] for line in listing.splitlines()]


def inputs(unit: dict[str, str]) -> list[Path]:
    """Return the files that a service read at its start."""
    files = [Path(path) for path in [unit["FragmentPath"], *unit["DropInPaths"].split()] if path]
    text = "\n".join(path.read_text() for path in files if path.exists())
    named = re.findall(r"^EnvironmentFile=-?(/\S+)$|^LoadCredential=[^:\s]+:(/\S+)$", text, re.MULTILINE)
    return [*files, CURRENT, *(Path(environment or credential) for environment, credential in named)]


def is_stale(unit: dict[str, str]) -> bool:
    """Tell whether a running service started before something that it reads was changed; in whole seconds."""
    started = int(unit["InactiveExitTimestamp"].lstrip("@") or 0)
    return any(int(path.lstat().st_mtime) > started for path in inputs(unit) if os.path.lexists(path))


def apply(names: list[str]) -> int:
    """Stop what is not wanted, restart what is stale, start what is missing; return the exit status."""
    systemctl("daemon-reload")
    if systemctl("is-enabled", TARGET, check=False).strip() != "enabled":
        systemctl("enable", "--quiet", TARGET)
        print(f"enabled {TARGET}")

    wanted = [unit for unit in systemctl("show", TARGET, "--property=Wants", "--value").split() if belongs(unit, names)]
    running = show([unit for unit in loaded() if belongs(unit, names)])
    active = [name for name, unit in running.items() if unit["ActiveState"] == "active"]
    # One that fails and is started again and again is stale as well, if what it failed with has been put right.
    stale = [
        name for name, unit in running.items() if unit["ActiveState"] not in ("inactive", "failed") and is_stale(unit)
    ]
    steps = {
        "stop": [name for name in running if name not in wanted],
        "restart": [name for name in wanted if name in stale],
        "start": [name for name in wanted if name not in active + stale],
    }
    for verb, units in steps.items():
        if units:
            subprocess.run(["systemctl", verb, *units], check=False)
            print(f"{verb}: {' '.join(units)}")
    systemctl("start", "--no-block", TARGET)  # it waits for its services, and that we have done

    down = [name for name, unit in show(wanted).items() if unit["ActiveState"] != "active"]
    for name in down:
        log = ["journalctl", "--unit", name, "--lines", "20", "--no-pager", "--output", "cat"]
        print(f"\n{name} does not run. The end of its log (journalctl --unit {name}):", flush=True)
        subprocess.run(log, check=False)
    return 1 if down else 0


def release_of(pid: str) -> str:
    """Return the release that a process was started from, which is not always the current one."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return ""
    return dict(line.split("=", 1) for line in environment if "=" in line).get("CRAWLER_RELEASE", "")


def status() -> int:
    """Print the services of this host and the releases that they run."""
    wanted = systemctl("show", TARGET, "--property=Wants", "--value").split()
    names = sorted({*loaded(), *(unit for unit in wanted if unit.startswith("crawler-"))})
    units = [
        {
            "unit": name,
            "state": unit["ActiveState"],
            "restarts": int(unit["NRestarts"] or 0),
            "release": release_of(unit["MainPID"]),
            "says": unit["StatusText"],
        }
        for name, unit in show(names).items()
    ]
    print(json.dumps({"release": CURRENT.resolve().name if CURRENT.exists() else "", "units": units}))
    return 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["apply", *names] if names:
            sys.exit(apply(names))
        case ["status"]:
            sys.exit(status())
        case _:
            sys.exit(__doc__)
