"""The crawled web: what the product left untouched."""

from __future__ import annotations

from fleet import Fleet
from testinfra.host import Host


def test_product_stays_away(host: Host, fleet: Fleet) -> None:
    if host.backend.host.name not in fleet.product:
        assert not host.file("/opt/crawler").exists
        assert not host.user("crawler").exists
