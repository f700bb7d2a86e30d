from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from website import NETWORKS, Site

from crawler.frontier.ledger import Ledger
from crawler.worker import parse

os.environ["CRAWLER_ALLOW_NETWORKS"] = NETWORKS  # also for the processes that tests start


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


@pytest.fixture(scope="module", params=["scanner", "lexbor"])
def parser(request: pytest.FixtureRequest) -> Iterator[str]:
    """What reads pages: once the scanner, once lexbor. The scanner may be missing, but not in CI."""
    if request.param == "scanner" and parse.scanner is None and not os.environ.get("CI"):
        pytest.skip("the scanner is not built: python scanner/build.py says why")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "lexbor":
            patch.setattr(parse, "scanner", None)
        else:
            assert parse.scanner is not None
        yield request.param
