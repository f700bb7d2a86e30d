"""The crawled web: what the product leaves untouched, though it stands in the same inventory."""

from __future__ import annotations

import traces
from fleet import Fleet
from testinfra.host import Host


def test_product_stays_away(host: Host, fleet: Fleet) -> None:
    name = host.backend.host.name
    assert name not in fleet.product
    assert all("crawler" in traces.of(fleet, worker) for worker in fleet.groups["workers"])
    assert traces.of(fleet, name) == traces.of_a_new(fleet, name)
