"""Templates of shell scripts, as they are once rendered; `make lint` checks the scripts that are none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROLES = Path(__file__).parents[2] / "roles"
SCRIPTS = [path for path in sorted(ROLES.glob("*/templates/*.j2")) if path.read_text().startswith("#!")]


def test_there_are_such_templates() -> None:
    assert [path.name for path in SCRIPTS] == ["crawler.j2"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(render: Callable[..., str], path: Path) -> None:
    script = render(path.parent.parent.name, path.name)
    shellcheck = [Path(sys.executable).with_name("shellcheck"), "-"]
    checked = subprocess.run(shellcheck, input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
