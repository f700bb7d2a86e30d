"""The frontier's tests run on SQLite, or on the database that CRAWLER_TEST_DATABASE_URL names (and that they empty)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import metadata


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    url = os.environ.get("CRAWLER_TEST_DATABASE_URL")
    made = Ledger.open(url or f"sqlite:///{tmp_path}/ledger.sqlite")
    if url:
        metadata.drop_all(made.engine)
    made.create()
    yield made
    made.engine.dispose()
