"""Sitemaps: index, URL list or plain text, gzipped or not. Source: https://www.sitemaps.org/protocol.html"""

from __future__ import annotations

import html
import re
import zlib
from collections.abc import Iterator
from itertools import islice

MAX_BYTES = 50 * 1024 * 1024
"""The protocol's limit for one file, uncompressed."""
MAX_URLS = 50_000
"""The protocol's limit for one file."""

MAX_ADDRESS = 20_000
"""Bytes between the tags; no address that long is crawled, however much of it is white space."""

# One tag at a time, of bounded length: a pattern for the pair would take the square of the file's length for a file of
# tags that are never closed.
_TAG = re.compile(rb"<(/?)(?:\w{1,50}:)?loc\b[^<>]{0,200}>")
_LINE = re.compile(rb"[^\r\n]+")


def parse(body: bytes) -> tuple[list[str], bool]:
    """The addresses in a sitemap, as written there, and whether they are sitemaps themselves.

    Read by pattern, not by an XML parser: many sitemaps are not well-formed, and nothing in them needs more.
    """
    if body.startswith(b"\x1f\x8b"):
        body = _unzip(body)
    if b"<" not in body[:1000]:
        lines = (match[0].decode("utf-8-sig", "replace").strip() for match in _LINE.finditer(body))
        return list(islice(filter(None, lines), MAX_URLS)), False
    return list(islice(_addresses(body), MAX_URLS)), re.search(
        rb"<(?:\w{1,50}:)?sitemapindex\b", body[:10_000]
    ) is not None


def _addresses(body: bytes) -> Iterator[str]:
    begin = None
    for tag in _TAG.finditer(body):
        if not tag[1]:
            begin = tag.end()
        elif begin is not None:
            if tag.start() - begin <= MAX_ADDRESS:
                loc = body[begin : tag.start()].strip().removeprefix(b"<![CDATA[").removesuffix(b"]]>")
                yield html.unescape(loc.decode("utf-8", "replace")).strip()
            begin = None


def _unzip(body: bytes) -> bytes:
    """As much as is readable of a gzipped file, up to MAX_BYTES."""
    try:
        return zlib.decompressobj(wbits=31).decompress(body, MAX_BYTES)
    except zlib.error:
        return b""
