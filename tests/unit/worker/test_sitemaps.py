"""Sitemap forms: https://www.sitemaps.org/protocol.html"""

from __future__ import annotations

import gzip

import pytest

from crawler.worker import sitemaps

URLSET = b"""<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
  <url><loc> http://a.test/1?x=1&amp;y=2 </loc><lastmod>2026-01-01</lastmod></url>
  <url><loc><![CDATA[http://a.test/2]]></loc></url>
</urlset>"""
INDEX = b"<sitemapindex><sitemap><loc>http://a.test/more.xml.gz</loc></sitemap></sitemapindex>"


@pytest.mark.parametrize(
    ("body", "addresses", "are_sitemaps"),
    [
        (URLSET, ["http://a.test/1?x=1&y=2", "http://a.test/2"], False),
        (gzip.compress(URLSET), ["http://a.test/1?x=1&y=2", "http://a.test/2"], False),
        (INDEX, ["http://a.test/more.xml.gz"], True),
        (b"<sm:urlset><sm:url><sm:loc>http://a.test/</sm:loc></sm:url></sm:urlset>", ["http://a.test/"], False),
        (b"\xef\xbb\xbfhttp://a.test/1\r\n\r\nhttp://a.test/2\n", ["http://a.test/1", "http://a.test/2"], False),
        (b"<urlset><url><loc>http://a.test/1</loc><url><loc>http://a.test/2", ["http://a.test/1"], False),  # cut off
        (b"\x1f\x8bnot gzip", [], False),
        (b"", [], False),
    ],
)
def test_forms(body: bytes, addresses: list[str], are_sitemaps: bool) -> None:
    assert sitemaps.parse(body) == (addresses, are_sitemaps)


@pytest.mark.parametrize(
    "body", [b"<loc>" * 1_000_000, b"<loc>" + b" " * 5_000_000, b"<loc " * 1_000_000, b"\n" * 5_000_000]
)
def test_takes_linear_time(body: bytes) -> None:
    assert sitemaps.parse(b"<urlset>" + body if b"<" in body else body) == ([], False)


def test_a_bomb_stops_at_the_limit() -> None:
    addresses, _ = sitemaps.parse(gzip.compress(b"http://a.test/\n" * 10_000_000, compresslevel=1))
    assert len(addresses) == sitemaps.MAX_URLS
