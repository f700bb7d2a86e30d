"""Hosts that reboot in the middle of a crawl: everything comes back by itself, and nothing is lost."""

from __future__ import annotations

import time

from fleet import Fleet, eventually


def test_everything_comes_back_and_nothing_is_lost(fleet: Fleet) -> None:
    units = {host: fleet.wanted(host) for host in fleet.product}
    job = f"reboot-{time.time():.0f}"
    # Slow enough to last until the last host is rebooted: 1,170 pages at one site, four at a time.
    fleet.seed(job, "--delay", f"{0.06 * len(fleet.product):.2f}")
    for host in sorted(fleet.product):
        eventually(lambda: fleet.status().get(job, {}).get("done"))
        assert fleet.status()[job]["state"] == "running"
        fleet.reboot(host)
        eventually(lambda host=host: fleet.running(host) == units[host])
    eventually(lambda: fleet.status()[job]["state"] == "done", timeout=240)
    assert fleet.recount()[job]["done"]
    assert fleet.queues()["dead"] == 0
    assert {site["host"]: site["done"] for site in fleet.status()[job]["sites"]} == {
        site: len(pages) for site, pages in fleet.pages().items()
    }
