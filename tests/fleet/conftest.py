"""Tests of a deployed fleet, over SSH. `molecule test` runs them; on the fleet that `make demo` left up, type

    pytest tests/fleet [--ansible-inventory=inventory/demo]

A test that takes `host` runs once on every host of the group that its folder is named after; one that takes `fleet`
runs once. What a test changes it puts back, so that they can be run again.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import pytest
from fleet import Crawl, Fleet
from testinfra.host import Host

HERE = Path(__file__).parent
_open = functools.cache(Fleet)


def _fleet(config: pytest.Config) -> Fleet:
    return _open(config.option.ansible_inventory or "inventory/demo")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "host" in metafunc.fixturenames:
        group = metafunc.definition.path.parent.name
        metafunc.parametrize("host", _fleet(metafunc.config).groups[group], indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _fleet(config).ssh_config.exists():
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip("no fleet is up; make demo starts one"))


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> Fleet:
    return _fleet(request.config)


@pytest.fixture(scope="session")
def crawl(fleet: Fleet) -> Crawl:
    """The first crawl of this run; what is looked at afterwards has something to show."""
    web = fleet.host(fleet.groups["web"][0])
    before = int(web.check_output("wc --lines < /var/log/nginx/sites.log"))
    job = f"exact-{time.time():.0f}"
    summary = fleet.crawl(job)
    return Crawl(job, summary, web.check_output(f"tail --lines=+{before + 1} /var/log/nginx/sites.log"))


@pytest.fixture(scope="session")
def crawled(crawl: Crawl) -> str:
    """The name of a job that has crawled the demo's sites."""
    return crawl.job


@pytest.fixture(scope="session")
def host(fleet: Fleet, request: pytest.FixtureRequest) -> Host:
    return fleet.host(request.param)
