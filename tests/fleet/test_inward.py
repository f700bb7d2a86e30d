"""A fleet that is told, by seeds and by redirects, to ask what only its own hosts can reach."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from fleet import Fleet

INWARD = (
    "http://127.0.0.1/",
    "http://localhost/",
    "http://0x7f000001/",
    "http://[::1]/",
    "http://0.0.0.0/",
    "http://[::ffff:127.0.0.1]/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:7f00:1::]/",
)
OTHER_PORTS = ("http://127.0.0.1:5672/", "http://127.0.0.1:22/", "http://[::1]:25/")


def test_nothing_that_leads_inward_is_asked(fleet: Fleet, tmp_path: Path) -> None:
    """Whether robots.txt is obeyed or not. The demo's own networks are allowed; loopback and link-local are in none."""
    for robots in (True, False):
        name = f"inward-{robots}-{time.time():.0f}".lower()
        job = {"name": name, "seeds": [*INWARD, *OTHER_PORTS], "delay": 0, "robots": robots}
        (tmp_path / "job.yml").write_text(yaml.safe_dump(job))
        fleet.seed(name, "--watch", "--timeout", "120", file=tmp_path / "job.yml")
        rows = fleet.export(name)
        of_ports = {row["url"] for row in rows if urlsplit(row["url"]).port}
        assert of_ports == set(OTHER_PORTS)
        assert len(rows) == len(OTHER_PORTS) + len(INWARD) - 1  # 0x7f000001 is 127.0.0.1
        for row in rows:
            cause, told = ("port", "port not") if row["url"] in of_ports else ("address", "address not public: ")
            assert (row["state"], row["cause"]) == ("excluded", cause), row
            assert row["reason"].startswith(told), row
        frontier = fleet.host(fleet.groups["frontier"][0])
        for host in ("127.0.0.1", "169.254.169.254", "127.0.0.1:22"):
            known = json.loads(frontier.check_output("crawler audit --json %s", host))
            assert (known["requests"], known["failures"]) == ([], 0), host
