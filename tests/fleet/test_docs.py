"""The commands of README.md and docs/*.md that need a fleet, typed as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import pytest
from fleet import ROOT, Fleet

Type = Callable[[str], str]


@pytest.fixture(scope="module")
def type_(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Type]:
    """Runs a command where a person would, with this fleet's names in place of the document's; what it prints."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "crawler").symlink_to(ROOT / "crawler")
    (folder / "urls.txt").write_text("http://policy.test/\nhttp://devref.test/\n")
    (folder / "job.yml").write_text("name: docs\nseeds: [http://policy.test/]\ndepth: 1\ndelay: 0.02\n")
    frontier, paris = fleet.groups["frontier"][0], fleet.groups["workers"][0]
    workers = sum("worker@" in unit for unit in fleet.wanted(paris))
    names = {"https://example.org/": "http://policy.test/ --delay 0.02", "URL": "http://policy.test/"}
    names |= {"HOST": "policy.test", "JOB": "docs", "--limit paris": f"--limit {paris}"}
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ANSIBLE_INVENTORY": fleet.inventory,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "CRAWLER_BROKER_URL": (ROOT / ".fleet" / fleet.name / "broker_url").read_text().strip(),
    }

    def run(command: str) -> str:
        for theirs, ours in names.items():
            command = command.replace(theirs, ours)
        if "crawler" in command.split()[:2]:
            return fleet.host(frontier).check_output(command.removeprefix("sudo "))
        place = ROOT if command.startswith("ansible-playbook") else folder
        ran = subprocess.run(["bash", "-c", command], cwd=place, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    yield run
    fleet.host(frontier).check_output("crawler unblock policy.test")
    assert fleet.playbook("scale.yml", "-e", f"workers={workers}", "--limit", paris).returncode == 0


@pytest.mark.parametrize("command", commands.FLEET)
def test_command_works_as_it_stands(type_: Type, command: str) -> None:
    assert type_(command).strip()
