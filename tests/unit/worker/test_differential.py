"""Both HTTP clients make the same of answers made up at random, or differ by a rule that is written down."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("differential.py")
SECONDS, ANSWERS = 20, 1500
"""Whichever ends first; `make fuzz` takes longer, and other answers."""


def test_both_clients_make_the_same_of_every_answer() -> None:
    command = [sys.executable, "-m", "gevent.monkey", str(PROGRAM), str(SECONDS), str(ANSWERS)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "the same" in ran.stdout
