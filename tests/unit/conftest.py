from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from website import Site

from crawler.frontier.ledger import Ledger


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite")
    made.create()
    return made
