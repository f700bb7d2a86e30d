"""Encodings (https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding) and links."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawler import parse, urls
from crawler.tame import tame

PAGE = "http://example.org/dir/page"


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("é".encode(), "text/html", "é"),
        ("é".encode("latin-1"), "text/html", "é"),  # no declaration, no UTF-8: windows-1252
        ("é".encode("latin-1"), "text/html; charset=ISO-8859-1", "é"),
        ("“x”".encode("cp1252"), "text/html; charset=iso-8859-1", "“x”"),  # the label means windows-1252
        ("ж".encode("koi8-r"), 'text/html; charset="koi8-r"', "ж"),
        (b"\xef\xbb\xbf" + "é".encode(), "text/html; charset=iso-8859-1", "é"),  # the mark beats the header
        ("é".encode("utf-16"), "text/html", "é"),
        (b"<meta charset=shift_jis>" + "日".encode("shift_jis"), "text/html", "<meta charset=shift_jis>日"),
        (
            b'<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">' + "ж".encode("cp1251"),
            "text/html",
            '<meta http-equiv="Content-Type" content="text/html; charset=windows-1251">ж',
        ),
        (b"<meta charset=utf-16>x", "text/html", "<meta charset=utf-16>x"),  # cannot be true
        ("é".encode(), "text/html; charset=nonsense", "é"),
        ("é".encode(), "text/html; charset=hex", "é"),  # a Python codec, not a character encoding
        ("é".encode(), "text/html; charset=idna", "é"),  # these raise, whatever they are given
        ("é".encode(), "text/html; charset=undefined", "é"),
        ("é".encode(), "text/html; charset=" + "x" * 60_000, "é"),
        ("中".encode("gb18030"), "text/html; charset=gb2312", "中"),
    ],
)
def test_encodings(body: bytes, content_type: str, text: str) -> None:
    assert parse.decode(body, content_type) == text


@pytest.mark.parametrize(
    ("html", "links"),
    [
        ('<a href="x">1</a><a href="/y?z#w">2</a>', ["http://example.org/dir/x", "http://example.org/y?z"]),
        ('<a href="x#1">1</a><a href="x#2">2</a><a href="./x">3</a>', ["http://example.org/dir/x"]),
        ('<base href="/other/"><a href="x">1</a>', ["http://example.org/other/x"]),
        ('<base href="::"><a href="x">1</a>', ["http://example.org/dir/x"]),
        ('<map><area href="x"></map>', ["http://example.org/dir/x"]),
        ('<a href="x" rel="nofollow">1</a><a rel="external ugc NoFollow" href="y">2</a>', []),
        ('<meta name="ROBOTS" content="noindex, NOFOLLOW"><a href="x">1</a>', []),
        ('<meta name="robots" content="none"><a href="x">1</a>', []),
        ('<meta name="otherbot" content="nofollow"><a href="x">1</a>', ["http://example.org/dir/x"]),
        ('<a href="#top">1</a><a href="">2</a><a>3</a><a href="mailto:x@y">4</a><a href="JavaScript:x()">5</a>', []),
        ('<script>"<a href=x>"</script><!-- <a href=y> --><a href="z">1</a>', ["http://example.org/dir/z"]),
        ("<a href=x><table><a href=y></a", ["http://example.org/dir/x", "http://example.org/dir/y"]),
        ('<a href="  x\n">1</a>', ["http://example.org/dir/x"]),
    ],
)
def test_links(html: str, links: list[str]) -> None:
    assert parse.parse(html, PAGE, "CrawlerFleet").links == links


def test_frames_and_next_parts_are_followed_if_asked_for() -> None:
    html = '<link rel="prefetch NEXT" href=2><iframe src=/frame></iframe><a href=x>1</a><link rel=icon href=i>'
    assert parse.parse(html, PAGE, "x").links == ["http://example.org/dir/x"]
    assert parse.parse(html, PAGE, "x", ["iframe", "next"]).links == [
        "http://example.org/dir/2",
        "http://example.org/frame",
        "http://example.org/dir/x",
    ]


def test_title() -> None:
    assert parse.parse("<title> A\n  page &amp; more </title>", PAGE, "x").title == "A page & more"
    assert parse.parse("<title></title>", PAGE, "x").title is None


OPEN = "".join(f"<b id={number}>" for number in range(2_000))


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 200_000,
        "<div></x>" * 100_000,
        "<div><table><td></div></table>" * 50_000,
        "<ul><li>" * 100_000,
        "<select>" + "<option>" * 200_000 + "</select>",
        "<p>" + OPEN + "</p>" + "<p>x</p>" * 10_000,
        "<p>" + OPEN.replace(">", "><table><td></b></table>") + "</p>" + "<p>x</p>" * 10_000,
        "<p " + " ".join(f"a{number}=1" for number in range(200_000)) + ">",
        "<p " + "/".join(f"a{number}" for number in range(200_000)) + ">",
    ],
    ids=lambda html: html[:30],
)
def test_takes_linear_time_and_still_finds_the_links(html: str) -> None:
    """Each of these took from half a minute to hours, or gigabytes."""
    began = time.process_time()
    document = parse.parse(
        f"<title>T</title><a href=x>1</a>{html}<script>'<a href=z>'</script><a href=y>2</a>", PAGE, "x"
    )
    assert time.process_time() - began < 10
    assert document.title == "T"
    assert {"http://example.org/dir/x", "http://example.org/dir/y"} == set(document.links)


def test_an_ordinary_large_page_is_left_as_it_is() -> None:
    table = "<table>" + "<tr><td><font size=1>x</td><td><a href=/q>y</a><br></td></tr>" * 20_000 + "</table>"
    prose = "<p>A <b>bold</b> and <i>slanted <code>thing</code></i></p>" * 20_000
    assert tame(table) == table
    assert tame(prose) == prose


@given(st.binary(max_size=500), st.sampled_from(["text/html", "text/html; charset=utf-16", "text/html;charset=utf-7"]))
def test_no_garbage_breaks_it(body: bytes, content_type: str) -> None:
    document = parse.parse(parse.decode(body, content_type), PAGE, "x")
    for link in document.links:
        assert urls.normalise(link) == link
