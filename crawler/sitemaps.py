"""Sitemaps: index, URL list or plain text, gzipped or not. Source: https://www.sitemaps.org/protocol.html"""

from __future__ import annotations

import html
import re
import zlib

MAX_BYTES = 50 * 1024 * 1024
"""The protocol's limit for one file, uncompressed."""
MAX_URLS = 50_000
"""The protocol's limit for one file."""

_LOC = re.compile(rb"<(?:\w+:)?loc\b[^>]*>\s*(?:<!\[CDATA\[)?(.*?)(?:\]\]>)?\s*</(?:\w+:)?loc\s*>", re.DOTALL)


def parse(body: bytes) -> tuple[list[str], bool]:
    """The addresses in a sitemap, as written there, and whether they are sitemaps themselves.

    Read by pattern, not by an XML parser: many sitemaps are not well-formed, and nothing in them needs more.
    """
    if body.startswith(b"\x1f\x8b"):
        body = _unzip(body)
    if b"<" not in body[:1000]:
        lines = body.decode("utf-8-sig", "replace").splitlines()
        return [line.strip() for line in lines if line.strip()][:MAX_URLS], False
    found = [html.unescape(loc.decode("utf-8", "replace")) for loc in _LOC.findall(body)]
    return found[:MAX_URLS], re.search(rb"<(?:\w+:)?sitemapindex\b", body[:10_000]) is not None


def _unzip(body: bytes) -> bytes:
    """As much as is readable of a gzipped file, up to MAX_BYTES."""
    try:
        return zlib.decompressobj(wbits=31).decompress(body, MAX_BYTES)
    except zlib.error:
        return b""
