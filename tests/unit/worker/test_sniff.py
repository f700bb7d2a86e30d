"""Which bodies without a Content-Type are HTML: https://mimesniff.spec.whatwg.org/, section 7.1."""

from __future__ import annotations

import pytest

from crawler.worker import sniff


@pytest.mark.parametrize(
    ("body", "html"),
    [
        (b"<!DOCTYPE html>", True),
        (b"<!doctype HTML >", True),
        (b" \t\r\n\f<html>", True),
        (b"<HEAD >", True),
        (b"<script >", True),
        (b"<iframe src=x>", True),
        (b"<h1>", True),
        (b"<div class=x>", True),
        (b"<font >", True),
        (b"<table>", True),
        (b"<a href=x>", True),
        (b"<style>", True),
        (b"<title>x", True),
        (b"<b>", True),
        (b"<body>", True),
        (b"<br>", True),
        (b"<p>", True),
        (b"<!-- x", True),
        (b"<!---->", False),  # the byte after the pattern has to be a space or ">"
        (b"<a\thref=x>", False),
        (b"<h2>", False),
        (b"<htmlx>", False),
        (b"<html", False),
        (b"\0<html>", False),
        (b"\xef\xbb\xbf<html>", False),  # a byte order mark says: text
        (b"<?xml version='1.0'?><html>", False),
        (b"%PDF-1.7", False),
        (b"plain <html>", False),
        (b"", False),
    ],
)
def test_patterns(body: bytes, html: bool) -> None:
    assert sniff.is_html(body) is html


@pytest.mark.parametrize(
    ("media_type", "nosniff", "unknown"),
    [
        ("", "", True),
        ("unknown/unknown", "", True),
        ("application/unknown", "", True),
        ("*/*", "", True),
        ("html", "", True),  # no media type
        ("", "nosniff", False),
        ("", "NoSniff, x", False),
        ("", "x, nosniff", True),
        ("text/plain", "", False),
        ("application/octet-stream", "", False),
    ],
)
def test_what_is_looked_at(media_type: str, nosniff: str, unknown: bool) -> None:
    headers = {"x-content-type-options": nosniff} if nosniff else {}
    assert sniff.is_unknown(headers, media_type) is unknown
