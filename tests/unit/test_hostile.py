"""Hostile sites, embedded: every URL of them ends as one row with a readable reason."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path
from typing import Any

import hostile
import pytest
from gevent.event import Event
from website import Answer, Site

from crawler import limits, local, urls
from crawler.frontier import politeness, status
from crawler.frontier.ledger import Ledger
from crawler.job import Job
from crawler.messages import Admission
from crawler.worker.archive import Archive


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(politeness, "BACK_OFF_FIRST", 0.1)
    monkeypatch.setattr(politeness, "GIVE_UP_SECONDS", 1.0)
    monkeypatch.setattr(limits, "FETCH", 2.0)


def crawl(ledger: Ledger, url: str, archive: Archive | None = None, **job: Any) -> dict[str, dict[str, Any]]:
    """The ledger's rows by path."""
    made = Job(name="j", **{"delay": 0, "max_attempts": 1, "retry_wait": 0.1, **job})
    seeds = Admission(job=made, seeding="s", chunk=0, chunks=1, urls=[url])
    local.crawl(ledger, [seeds], Event(), lambda _: None, archive)
    return {urls.path_of(row["url"]): row for row in status.pages(ledger, "j")}


@pytest.fixture(params=["own", "requests"])
def client(request: pytest.FixtureRequest) -> str:
    """Each of the two HTTP clients."""
    return str(request.param)


@pytest.mark.usefixtures("parser")
def test_it_is_crawled_to_the_end(site: Site, ledger: Ledger, tmp_path: Path, client: str) -> None:
    expected = hostile.furnish(site)
    if client == "requests":
        expected |= hostile.REQUESTS
    archive = Archive(tmp_path, host="here", worker="test")
    became = crawl(ledger, f"{site.url}/", archive, **{**hostile.JOB, "max_attempts": 2, "client": client})
    archive.close()
    hostile.check(expected, became)


STARS = "User-agent: *\nDisallow: /" + "*a" * 200 + "b$\n"


@pytest.mark.parametrize(
    ("robots", "outcome"),
    [
        (Answer(bytes(range(256)) * 2000), ("done", None)),
        (Answer("<html>" * 100_000), ("done", None)),
        (Answer(STARS * 1000), ("done", None)),
        (Answer("User-agent: *\nCrawl-delay: nan\nCrawl-delay: -1\nCrawl-delay: \xb2"), ("done", None)),
        (Answer("User-agent: *\nDisallow: /\n" + "\ud7ff\0" * 100_000), ("excluded", "robots.txt")),
        (hostile.packed("gzip", gzip.compress(bytes(100_000_000))), ("done", None)),
        (hostile.packed("lzma", b"x"), ("failed", "host given up: robots.txt: ")),
        (Answer("", 302, {"Location": "/robots.txt"}), ("done", None)),
        (Answer("", 302, {"Location": "http://["}), ("done", None)),
        (Answer("", 500), ("failed", "host given up: robots.txt: ")),
        (hostile.SLOW["/drip"][0], ("failed", "host given up: robots.txt: ")),
        (hostile.SLOW["/interim"][0], ("failed", "host given up: robots.txt: ")),
        (hostile.write(b"\0" * 1000), ("failed", "host given up: robots.txt: ")),
    ],
)
def test_any_robots_txt(
    site: Site,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    client: str,
    robots: Any,
    outcome: tuple[str, str | None],
) -> None:
    monkeypatch.setattr(politeness, "BACK_OFF_FIRST", 0.01)
    monkeypatch.setattr(limits, "FETCH", 0.5)
    (site.pages if isinstance(robots, Answer) else site.raw)["/robots.txt"] = robots
    page = "/" + "a" * 1900
    site.pages[page] = Answer("x")
    row = crawl(ledger, site.url + page, client=client)[page]
    state, reason = outcome
    assert row["state"] == state
    assert (row["reason"] or "").startswith(reason or "")


def test_any_sitemap(site: Site, ledger: Ledger, client: str) -> None:
    names = ["/bomb.gz", "/unclosed", "/lines", "/index/0", "/drip"]
    site.pages["/robots.txt"] = Answer("".join(f"Sitemap: {site.url}{name}\n" for name in names))
    site.pages["/"] = Answer("x")
    site.pages["/bomb.gz"] = Answer(gzip.compress(bytes(200_000_000)))
    site.pages["/unclosed"] = Answer("<urlset>" + "<loc>" * 1_000_000)
    site.pages["/lines"] = Answer("\n" * 10_000_000 + f"{site.url}/1\n")
    site.raw["/drip"] = hostile.SLOW["/drip"][0]
    for number in range(100):
        following = "".join(f"<loc>{site.url}/index/{goal}</loc>" for goal in (0, number + 1))
        site.pages[f"/index/{number}"] = Answer(f"<sitemapindex>{following}</sitemapindex>")
    rows = crawl(ledger, f"{site.url}/", sitemaps=True, client=client)
    assert {path: (row["state"], row["reason"]) for path, row in rows.items()} == {
        "/": ("done", None),
        "/bomb.gz": ("excluded", "sitemap of 0 URLs"),
        "/unclosed": ("excluded", "sitemap of 0 URLs"),
        "/lines": ("excluded", "sitemap of 1 URLs"),
        "/1": ("failed", "HTTP 404"),
        "/drip": ("failed", "took longer than 2 s"),
        "/index/0": ("excluded", "sitemap of 2 URLs"),
        "/index/1": ("excluded", "sitemap of 2 URLs"),
        "/index/2": ("excluded", "sitemap of 2 URLs"),
        "/index/3": ("excluded", "sitemap index behind 3 others: not followed"),
    }


def test_tls_that_is_none(site: Site, ledger: Ledger, client: str) -> None:
    row = crawl(ledger, f"https://{site.host}/", robots=False, client=client)["/"]
    assert (row["state"], row["cause"]) == ("failed", "host_given_up")
    assert row["reason"].startswith("host given up: TLS: ")


def test_a_certificate_that_nobody_signed(site: Site, ledger: Ledger, tmp_path: Path, client: str) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "certificate")]
    subprocess.run([*made, *files], check=True, capture_output=True)
    site.speak_tls(tmp_path / "certificate", tmp_path / "key")
    row = crawl(ledger, f"https://{site.host}/", robots=False, client=client)["/"]
    assert row["state"] == "failed"
    assert "self-signed certificate" in row["reason"]


@pytest.mark.parametrize(
    "said", ["\xb2", "9" * 5000, "1 Jan 99999999999999999999 1:1:1", "Mon, 01 Jan 0001 00:00:00 GMT"]
)
def test_any_retry_after(site: Site, ledger: Ledger, client: str, said: str) -> None:
    site.pages["/"] = Answer("", 503, {"Retry-After": said})
    row = crawl(ledger, f"{site.url}/", robots=False, client=client)["/"]
    assert (row["state"], row["reason"]) == ("failed", "HTTP 503")


def test_a_kept_connection_that_closes_is_not_held_against_the_url(site: Site, ledger: Ledger, client: str) -> None:
    pages = [f"/{number}" for number in range(300)]
    for path in pages:
        site.raw[path] = hostile.write(hostile.HEAD + b"Content-Length: 1\r\n\r\nx")  # and hangs up without saying so
    site.pages["/"] = Answer("".join(f"<a href={path}>" for path in pages))
    rows = crawl(ledger, f"{site.url}/", client=client)
    assert {row["state"] for row in rows.values()} == {"done"}
