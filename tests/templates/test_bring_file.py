"""The action that brings a file home: whole and right under its name, or not under that name at all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONTENT = os.urandom(20_000_000)  # three pieces, the last of them not full
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Write the file as it lies on a host, under a name that a shell would take apart."""
    path = tmp_path / "there" / "it's $HOME.warc.gz"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


def bring(there: Path, home: Path, *options: str, sha256: str = SHA256) -> dict[str, Any]:
    """Run the action; return its result."""
    arguments = json.dumps({"src": str(there), "dest": str(home), "sha256": sha256})
    ansible = Path(sys.executable).with_name("ansible")
    command = [ansible, "--connection=local", "-i", "h,", "h", "-m", "bring_file", "-a", arguments, *options]
    environment = os.environ | {
        "ANSIBLE_ACTION_PLUGINS": str(ROOT / "playbooks" / "action_plugins"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "ANSIBLE_NOCOLOR": "1",
    }
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment).stdout
    result: dict[str, Any] = json.loads(said.partition(" => ")[2])
    return result


def test_a_file_comes_home_whole(there: Path, tmp_path: Path) -> None:
    home = tmp_path / "new" / "folder" / "x.warc.gz"
    result = bring(there, home)
    assert (result["changed"], result["bytes"]) == (True, len(CONTENT))
    assert home.read_bytes() == CONTENT
    assert list(home.parent.iterdir()) == [home]


def test_a_dry_run_writes_nothing(there: Path, tmp_path: Path) -> None:
    result = bring(there, tmp_path / "home" / "x", "--check")
    assert (result["changed"], result["bytes"]) == (True, len(CONTENT))
    assert not (tmp_path / "home").exists()


def test_an_interrupted_one_is_gone_on_with(there: Path, tmp_path: Path) -> None:
    home = tmp_path / "x"
    (tmp_path / "x.part").write_bytes(CONTENT[:15_000_000])
    assert bring(there, home)["bytes"] == 5_000_000
    assert home.read_bytes() == CONTENT
    assert not (tmp_path / "x.part").exists()


@pytest.mark.parametrize("left", [b"\0" * 15_000_000, CONTENT + b"more"], ids=["damaged", "too long"])
def test_one_whose_beginning_is_wrong_is_begun_anew(there: Path, tmp_path: Path, left: bytes) -> None:
    home = tmp_path / "x"
    (tmp_path / "x.part").write_bytes(left)
    assert bring(there, home)["changed"]
    assert home.read_bytes() == CONTENT


def test_what_arrives_wrong_is_not_kept_and_named(there: Path, tmp_path: Path) -> None:
    home = tmp_path / "home" / "x"
    result = bring(there, home, sha256="0" * 64)
    assert not result["changed"]
    assert str(there) in result["msg"]
    assert not list(home.parent.iterdir())


def test_a_damaged_copy_is_replaced(there: Path, tmp_path: Path) -> None:
    home = tmp_path / "x"
    home.write_bytes(b"damaged")
    assert bring(there, home)["changed"]
    assert home.read_bytes() == CONTENT


def test_a_file_that_is_gone_is_named(there: Path, tmp_path: Path) -> None:
    there.unlink()
    result = bring(there, tmp_path / "x")
    assert not result["changed"]
    assert "No such file" in result["msg"]
    assert not (tmp_path / "x").exists()


def test_a_home_that_cannot_be_written_is_named(there: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    result = bring(there, tmp_path / "home" / "x")
    assert not result["changed"]
    assert f"cannot be kept as {tmp_path}/home/x: " in result["msg"]
