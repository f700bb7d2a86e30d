"""The commands in README.md and docs/*.md: each is run by a test, or commands.py says why not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import pytest
from commands import ROOT
from website import Site

DOCUMENTED = commands.documented()
MAKE = sorted(command for command in DOCUMENTED if command.startswith("make "))
PYTEST = sorted(command for command in DOCUMENTED if command.startswith("pytest "))


def run(command: str, cwd: Path = ROOT) -> str:
    """What a command prints that a person types into a shell."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(["bash", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    text = (
        "Type `make demo`, not\n`git`:\n\n```sh\n. a/b   # c\n# d\n\nmake x\n```\n```\nmake y\n```\n`crawler\nstatus`"
    )
    assert commands.typed(text) == [". a/b", "make x", "make demo", "crawler status"]


def test_each_command_is_run_somewhere() -> None:
    known = {*commands.HERE, *commands.FLEET, *commands.ELSEWHERE, *commands.NAMES, *MAKE, *PYTEST}
    unknown = {command: files for command, files in DOCUMENTED.items() if command not in known}
    assert not unknown, "enter them in tests/docs/commands.py"
    assert not known - DOCUMENTED.keys(), "no document has them any more: remove them from tests/docs/commands.py"
    assert len(DOCUMENTED) > 20


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target(command: str) -> None:
    """What they do is run by `make test` and in CI; that takes longer than a test may."""
    assert run(f"{command} --dry-run --always-make")


@pytest.mark.parametrize("command", PYTEST)
def test_pytest_selects_tests(command: str) -> None:
    """`make test` runs them. Here: that the expression selects any; where it does not, pytest's exit status is 5."""
    assert "test_" in run(f"{command} --collect-only --quiet")


def test_activate() -> None:
    (command,) = [command for command in commands.HERE if command.startswith(". ")]
    assert command in DOCUMENTED
    found = run(f"{command} && command -v ansible-playbook crawler").split()
    assert found == [str(ROOT / ".venv/bin" / program) for program in ("ansible-playbook", "crawler")]


def test_crawling_without_a_server(tmp_path: Path, site: Site) -> None:
    (command,) = [command for command in commands.HERE if "--local" in command]
    site.tree(3)
    (tmp_path / "crawler").symlink_to(ROOT / "crawler")
    run(command.replace("https://example.org/", shlex.quote(f"{site.url}/")), cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "pages.jsonl").read_text().splitlines()]
    assert sorted((row["url"], row["state"]) for row in rows) == sorted(
        (site.url + path, "done") for path in site.pages
    )
