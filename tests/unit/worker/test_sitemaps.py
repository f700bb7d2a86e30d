"""Sitemap forms: https://www.sitemaps.org/protocol.html"""

from __future__ import annotations

import gzip

import pytest

from crawler.worker import sitemaps
from crawler.worker.sitemaps import SitemapReader

URLSET = b"""<?xml version="1.0" encoding="UTF-8"?>
<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">
  <url><loc> http://a.test/1?x=1&amp;y=2 </loc><lastmod>2026-01-01</lastmod></url>
  <url><loc><![CDATA[http://a.test/2]]></loc></url>
</urlset>"""
INDEX = b"<sitemapindex><sitemap><loc>http://a.test/more.xml.gz</loc></sitemap></sitemapindex>"


def read(body: bytes, size: int = 1_000_000) -> tuple[list[str], bool]:
    """The addresses, and whether they are sitemaps, of a body that arrives in pieces of `size` bytes."""
    addresses: list[str] = []
    reader = SitemapReader(lambda address, _: addresses.append(address))
    for start in range(0, len(body), size):
        if not reader.write(body[start : start + size]):
            break
    reader.close()
    assert reader.addresses == len(addresses)
    return addresses, reader.is_index


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
    for size in (1_000_000, 7, 1):
        assert read(body, size) == (addresses, are_sitemaps)


@pytest.mark.parametrize(
    "body", [b"<loc>" * 1_000_000, b"<loc>" + b" " * 5_000_000, b"<loc " * 1_000_000, b"\n" * 5_000_000]
)
def test_takes_linear_time(body: bytes) -> None:
    for size in (10_000_000, 64 * 1024):
        assert read(b"<urlset>" + body if b"<" in body else body, size) == ([], False)


def test_a_bomb_stops_at_the_limit() -> None:
    addresses, _ = read(gzip.compress(b"http://a.test/\n" * 10_000_000, compresslevel=1))
    assert len(addresses) == sitemaps.MAX_URLS


@pytest.mark.parametrize("kind", ["xml", "lines"])
@pytest.mark.parametrize("size", [1_000_003, 65_536, 977])
def test_no_address_is_lost_where_pieces_meet(monkeypatch: pytest.MonkeyPatch, kind: str, size: int) -> None:
    monkeypatch.setattr(sitemaps, "_READ_AT_ONCE", 4096)
    expected = [f"http://a.test/{'p' * (number % 700)}/{number}" for number in range(3_000)]
    if kind == "xml":
        body = "<urlset>" + "".join(f"<url><loc>{url}</loc><priority>1</priority></url>" for url in expected)
    else:
        body = "\r\n".join(expected)
    assert read(body.encode(), size) == (expected, False)


def test_an_index_has_as_many_addresses_as_any_sitemap() -> None:
    body = b"<sm:sitemapindex>" + b"<sm:sitemap><sm:loc>http://a.test/1</sm:loc></sm:sitemap>" * 60_000
    addresses, is_index = read(body)
    assert (len(addresses), is_index) == (sitemaps.MAX_URLS, True)


def test_of_a_file_that_is_cut_off_what_is_readable_counts() -> None:
    whole = gzip.compress(b"".join(b"<loc>http://a.test/%d</loc>" % number for number in range(100_000)))
    addresses, _ = read(whole[: len(whole) // 2])
    assert 20_000 < len(addresses) <= 50_000
