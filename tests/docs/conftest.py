from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from website import NETWORKS, Site

os.environ["CRAWLER_ALLOW_NETWORKS"] = NETWORKS  # also for the commands that tests run


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()
