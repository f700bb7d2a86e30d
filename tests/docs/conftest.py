from __future__ import annotations

from collections.abc import Iterator

import pytest
from website import Site


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()
