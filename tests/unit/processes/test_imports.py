"""What each process loads: a worker host has no database to speak to, and a parser that reads hostile pages has no
place beside the database's password."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

DATABASE = ["sqlalchemy", "psycopg", "crawler.frontier"]
PAGES = ["selectolax", "bs4", "requests", "urllib3", "crawler.worker"]


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, json, sys; print(json.dumps(list(sys.modules)))"
    environment = os.environ | {"CRAWLER_BROKER_URL": "memory://"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_a_worker_with_a_setting_that_cannot_be_used_ends_as_it_begins() -> None:
    environment = os.environ | {"CRAWLER_BROKER_URL": "memory://", "CRAWLER_ALLOW_NETWORKS": "10.0.0.1/8"}
    code = "import crawler.processes.worker_tasks"
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "CRAWLER_ALLOW_NETWORKS: 10.0.0.1/8 has host bits set; write networks as 192.0.2.0/24" in run.stderr


@pytest.mark.parametrize(
    ("module", "needs", "never"),
    [
        ("crawler.processes.worker_tasks", ["celery", "crawler.worker"], [*DATABASE, "bs4", "requests", "urllib3"]),
        ("crawler.processes.recorder", ["kombu", "sqlalchemy"], [*PAGES, "celery"]),
        ("crawler.processes.scheduler", ["sqlalchemy"], PAGES),
        ("crawler.cli", ["sqlalchemy", "rich"], [*PAGES, "celery"]),
        ("crawler.seed", ["rich"], [*DATABASE, "celery"]),
        ("crawler.progress", ["rich"], [*DATABASE, *PAGES, "celery"]),
    ],
)
def test_a_process_loads_what_it_needs_and_no_more(module: str, needs: list[str], never: list[str]) -> None:
    loaded = loaded_by(module)
    assert set(needs) <= loaded
    assert loaded.isdisjoint(never)
