"""What a page says: links, title, its own address, and what robots may do with it."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soup
from hypothesis import given
from hypothesis import strategies as st

from crawler import urls
from crawler.worker import parse
from crawler.worker.html_bounds import bounded

pytestmark = pytest.mark.usefixtures("parser")
PAGE = "http://example.org/dir/page"


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
        # references in attributes, as the standard has them
        ('<a href="?a&copy=1&amp;b&notit;">1</a>', ["http://example.org/dir/page?a&copy=1&b&notit;"]),
        ('<a href="?&copy;&#x41;&#65&#0;">1</a>', ["http://example.org/dir/page?%C2%A9AA%EF%BF%BD"]),
        ('<a href="x&#35;y">1</a><a href="z&num;">2</a>', ["http://example.org/dir/x", "http://example.org/dir/z"]),
        # what is no page of its own, and what is
        ("<template><a href=x></a></template><a href=y>1</a>", ["http://example.org/dir/y"]),
        ("<svg><style><a href=x></style></svg><style><a href=y></style>", ["http://example.org/dir/x"]),
        ("<svg><![CDATA[<a href=x>]]><a href=y></svg><![CDATA[<a href=z>]]>", ["http://example.org/dir/y"]),
        ("<svg><desc><style><a href=x></style><a href=y>", ["http://example.org/dir/y"]),
        ("<a href=x><frameset><frame src=y></frameset>", ["http://example.org/dir/y"]),
        ("text<frameset><frame src=x></frameset><a href=y>", ["http://example.org/dir/y"]),
        ("<script><!-- <script> </script> <a href=x> --></script><a href=y>", ["http://example.org/dir/y"]),
        (
            "<!--><a href=x><!-- --!><a href=y><!-- -- ><a href=z>",
            ["http://example.org/dir/x", "http://example.org/dir/y"],
        ),
        (
            "<textarea><a href=x></textarea><xmp><a href=x></xmp><a href=y><plaintext><a href=z>",
            ["http://example.org/dir/y"],
        ),
        ("<iframe><a href=x></iframe><noembed><a href=x></noembed><noframes><a href=x></noframes>", []),
        ("<a href='x\0y'>1</a>", ["http://example.org/dir/x%EF%BF%BDy"]),
        ("<a href='x' href='y' HREF=z>1</a><a/href=w>2", ["http://example.org/dir/x", "http://example.org/dir/w"]),
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


@pytest.mark.parametrize(
    "html",
    [
        "<title>Page</title><svg><title>icon</title></svg>",
        "<svg><title>icon</title></svg><title>Page</title>",
        "<svg><g><title>icon</title></g></svg><p><title>Page</title>",
    ],
)
def test_a_title_within_a_drawing_is_not_the_page_s(html: str) -> None:
    assert parse.parse(html, PAGE, "x").title == "Page"


@pytest.mark.parametrize(
    ("rel", "canonical"),
    [
        ("canonical", "http://example.org/c"),
        ("Canonical", "http://example.org/c"),
        ("canonical nofollow", "http://example.org/c"),  # rel holds words (HTML, 4.6.6)
        ("alternate\ncanonical", "http://example.org/c"),
        ("noncanonical", None),
    ],
)
def test_canonical(rel: str, canonical: str | None) -> None:
    assert parse.parse(f'<link rel="{rel}" href="/c">', PAGE, "x").canonical == canonical


def test_frames_of_a_frameset_are_followed() -> None:
    html = "<frameset cols=50%,50%><frame src=menu><frame src=/text#top></frameset>"
    assert parse.parse(html, PAGE, "x").links == ["http://example.org/dir/menu", "http://example.org/text"]


@pytest.mark.parametrize(
    ("content", "goal"),
    [
        # https://html.spec.whatwg.org/#shared-declarative-refresh-steps
        ("0; url=/x", "http://example.org/x"),
        ("0;URL='/x'", "http://example.org/x"),
        ('5, url = "/x" and more', "http://example.org/x"),
        ("0 /x", "http://example.org/x"),
        ("0;/x", "http://example.org/x"),
        (".5;url=x#y", "http://example.org/dir/x"),
        ("  3.7 ; url=http://other.test/", "http://other.test/"),
        ("0;url=u", "http://example.org/dir/u"),
        ("0;u", "http://example.org/dir/u"),
        ("10;url=/x", "http://example.org/x"),
        ("11;url=/x", None),  # a page to be read
        ("99999999999999999999;url=/x", None),
        ("0", None),
        ("5;", None),
        ("", None),
        ("url=/x", None),
        ("-1;url=/x", None),
        ("0x;url=/x", None),
        ("0;url=javascript:x()", None),
    ],
)
def test_refresh(content: str, goal: str | None) -> None:
    assert parse.parse("", PAGE, "x", refresh=content).refresh == goal
    quoted = content.replace('"', "&quot;")
    for html in (f'<meta http-equiv="refresh" content="{quoted}">', f'<META HTTP-EQUIV=Refresh content="{quoted}">'):
        document = parse.parse(html, PAGE, "x")
        assert (document.refresh, document.links) == (goal, [])


def test_of_several_refreshes_the_first_counts_and_the_header_before_all() -> None:
    html = '<meta http-equiv=refresh content="0;url=1"><meta http-equiv=refresh content="0;url=2">'
    assert parse.parse(html, PAGE, "x").refresh == "http://example.org/dir/1"
    assert parse.parse(html, PAGE, "x", refresh="0;url=3").refresh == "http://example.org/dir/3"


def test_what_only_browsers_without_scripts_see_is_no_refresh() -> None:
    html = '<noscript><meta http-equiv=refresh content="0;url=/no-scripts"></noscript>'
    assert parse.parse(html, PAGE, "x").refresh is None


def test_a_refresh_is_a_link_to_robots_as_well() -> None:
    html = '<meta name=robots content=nofollow><meta http-equiv=refresh content="0;url=/x"><base href="/other/">'
    assert parse.parse(html, PAGE, "x").refresh is None
    assert parse.parse(html, PAGE, "x", obey=False).refresh == "http://example.org/x"


def test_canonical_is_relative_to_the_base() -> None:
    html = '<base href="http://other.test/dir/"><link rel=canonical href="c">'
    assert parse.parse(html, PAGE, "x").canonical == "http://other.test/dir/c"


def test_a_title_has_an_end() -> None:
    assert parse.parse("<title>" + "x" * 501, PAGE, "x").title == "x" * 500


@pytest.mark.parametrize(("name", "noindex"), [("crawlerfleet", True), ("CrawlerFleet ", True), ("otherbot", False)])
def test_a_page_may_speak_to_one_crawler(name: str, noindex: bool) -> None:
    document = parse.parse(f'<meta name="{name}" content="noindex">', PAGE, "CrawlerFleet")
    assert document.noindex is noindex


NOW = 1_790_000_000.0  # 2026-09-21


@pytest.mark.parametrize(
    ("values", "nofollow", "noindex"),
    [
        # the cases of https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
        (["noindex"], False, True),
        (["noindex, nofollow"], True, True),
        (["NONE"], True, True),
        (["all"], False, False),
        (["noarchive", "nofollow"], True, False),
        (["otherbot: noindex, nofollow"], False, False),
        (["CrawlerFleet: noindex"], False, True),
        (["crawlerfleet/1.0: noindex, nofollow"], True, True),
        (["otherbot: noindex", "nofollow"], True, False),
        (["otherbot: noindex", "CrawlerFleet: nofollow", "thirdbot: none"], True, False),
        (["BadBot: noindex, nofollow, crawlerfleet: nofollow"], True, False),
        (["nofollow, otherbot: noindex"], True, False),
        (["*: noindex"], False, True),
        # directives with a value are no names
        (["max-snippet: 5, noindex"], False, True),
        (["max-image-preview:large, max-video-preview: -1, nofollow"], True, False),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], False, True),
        (["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, nofollow"], True, True),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 UTC"], False, True),
        (["unavailable_after: 2010-06-25"], False, True),
        (["unavailable_after: 2040-06-25T15:00:00+02:00"], False, False),
        (["unavailable_after: tomorrow"], False, False),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST"], False, False),
        (["CrawlerFleet: unavailable_after: 25 Jun 2010 15:00:00 PST"], False, True),
        ([], False, False),
        (["", ":", ",,", ":noindex"], False, False),
    ],
)
def test_x_robots_tag(values: list[str], nofollow: bool, noindex: bool) -> None:
    lines = [("Content-Type", "text/html"), *(("x-robots-TAG", value) for value in values)]
    assert parse.header_directives(lines, "CrawlerFleet", NOW) == (nofollow, noindex)


def test_a_page_may_say_when_it_is_over() -> None:
    html = '<meta name="robots" content="unavailable_after: 25 Jun 2010 15:00:00 PST">'
    assert parse.parse(html, PAGE, "x", now=NOW).noindex
    assert not parse.parse(html, PAGE, "x", now=0).noindex


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
        "<div></p></li>" * 100_000,
        "<a href=x>" * 100_000,
        "<svg>" * 200_000 + "</p></g>" * 100_000,
        "<svg><desc><b><div></b></desc>" * 40_000,
        "<table><tr><td><template>" * 40_000 + "</table></tr>" * 40_000 + "</template>" * 40_000,
        "<form><li></form></em></i>" * 40_000,
        "<i><em>" * 50_000 + "</i>" * 50_000,
        "<a title='" + "&" * 1_000_000 + "'>",
        "<a href='" + "&CounterClockwiseContourIntegral" * 30_000 + "'>",
        "<meta name=robots content='" + "&a" * 300_000 + "'>",
        "<!->" * 300_000,
        "<!--" + "-!" * 300_000 + "-->",
        "<script><!--" + "<script" * 100_000 + "--></script>",
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
    assert bounded(table) == table
    assert bounded(prose) == prose


def test_the_title_of_a_title_is_text() -> None:
    assert parse.parse("<title>a <b>&lt;&copy &notit;</b></title>", PAGE, "x").title == "a <b><© ¬it;</b>"


def test_bytes_that_are_no_utf_8_are_read_as_browsers_do() -> None:
    page = b"<title>\xff\xe2\x82</title><a href='/\xe2\x82?\xff\xf0\x9f\x92'>1</a>"
    document = parse.parse(page, PAGE, "x")
    assert document.title == "\ufffd\ufffd"
    assert document.links == ["http://example.org/%EF%BF%BD?%EF%BF%BD%EF%BF%BD"]


@given(st.binary(max_size=200))
def test_any_bytes_in_a_link_are_read_as_python_reads_them(data: bytes) -> None:
    written = b"x" + data.translate(None, b"'&")
    text = written.decode("utf-8", "replace").replace("\0", "\ufffd")
    try:
        links = [urls.normalise(text.partition("#")[0], base=PAGE)]
    except urls.InvalidURLError:
        links = []
    assert parse.parse(b"<a href='" + written + b"'>", PAGE, "x").links == links


PARTS = (
    "http://",
    "HTTPS:",
    "//",
    "/",
    "\\",
    "h.test",
    "h.test.",
    "..",
    ".",
    ":80",
    "@",
    "?",
    "%7e",
    "%zz",
    "%2F",
    "|",
    "[::1]",
    "é",
)


@given(st.lists(st.sampled_from(PARTS) | st.text(max_size=5), min_size=1, max_size=12).map("".join))
def test_links_are_spelled_as_everywhere(href: str) -> None:
    href = href.replace("&", "").replace("'", "").replace("\0", "").replace("\r", "").replace("#", "")
    try:
        links = [urls.normalise(href, base=PAGE)] if href else []
    except urls.InvalidURLError:
        links = []
    assert parse.parse(f"<a href='{href}'>", PAGE, "x").links == links


@pytest.mark.parametrize("length", [urls.MAX_LENGTH, urls.MAX_LENGTH + 1])
def test_the_longest_link(length: int) -> None:
    link = "http://example.org/" + "%7E" * 600 + "x" * (length - 619)
    assert len(parse.parse(f"<a href={link}>", PAGE, "x").links) == (length <= urls.MAX_LENGTH)


@pytest.mark.parametrize("seed", [1, 2])
def test_scanner_and_lexbor_find_the_same_in_soup(parser: str, seed: int) -> None:
    """All 20,000 documents of a seed, and more: make fuzz."""
    if parser == "lexbor":
        pytest.skip("both are compared at once")
    different = [page for page in soup.documents(seed, 5_000) if soup.difference(page, obey=False)]
    assert len(different) <= 10
    for least in map(soup.shrunk, different):
        assert soup.name_of(least), least


def test_scanner_and_lexbor_find_the_same_in_real_pages(parser: str) -> None:
    if parser == "lexbor":
        pytest.skip("both are compared at once")
    assert soup.compare_files([Path("/usr/share/doc"), Path("/usr/share/perl")], 300) == 0


def test_links_are_taken_until_they_are_too_much_and_the_others_counted() -> None:
    html = "<base href='/dir/'>" + "".join(f"<a href={number}>" for number in range(100, 200)) + "<a href=tel:1>"
    for most, taken in ((0, 1), (25, 1), (26, 2), (2_599, 100), (10_000, 100)):
        document = parse.parse(html, PAGE, "x", most=most)
        assert (len(document.links), document.left_out) == (taken, 100 - taken)
    assert parse.parse(html + "<meta name=robots content=nofollow>", PAGE, "x", most=0).left_out == 0


_HREFS = (
    *("x", "./x", "../x", "x?y", "?y", "/x", "/dir/x", "//h.test/x", "///h.test/x", "/\t/h.test/x", "\\\\h.test/x"),
    *("http:x", "http:?y", "http:/x", "HTTP://h.test/x", "http://h.test/x", "https://h.test/x", "https:x", "ht\ntp:?y"),
    *("http&colon;?y", "&quest;y", "&#47;x", " /x", "\t?y", ";y", "%78", "é", "x/../../y", "ftp://h.test/", "http://["),
)
_BASES = (
    *("http://h.test/", "http://h.test/dir/x", "http://h.test/dir/y", "http://h.test/dir/x?a/b", "https://h.test/dir/"),
    "http://i.test/",
)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(_BASES), st.sampled_from(("", *_BASES)), st.integers(1, 3), st.sets(st.sampled_from(_HREFS))
        ),
        min_size=2,
        max_size=8,
    )
)
def test_only_links_that_a_batch_has_met_as_near_to_a_seed_are_left_out(
    pages: list[tuple[str, str, int, set[str]]],
) -> None:
    batch, met = next(_batches), dict[str, int]()
    for url, base, depth, hrefs in pages:
        html = (f"<base href='{base}'>" if base else "") + "".join(f"<a href='{href}'>" for href in sorted(hrefs))
        every = parse.parse(html, url, "x").links
        document = parse.parse(html, url, "x", batch=batch, depth=depth)
        assert [link for link in document.links if link not in every] == []
        assert [link for link in every if link not in document.links and met.get(link, 9) > depth] == []
        met |= {link: min(depth, met.get(link, 9)) for link in document.links}
        parse.met(document.noted)
    assert parse.parse(html, url, "x", batch=next(_batches), depth=depth).links == every


_batches = itertools.count(10**9)


@pytest.mark.parametrize("href", _HREFS)
def test_a_link_that_is_written_alike_is_left_out_only_where_it_leads_to_the_same_address(href: str) -> None:
    html = f"<a href='{href}'>"
    for first, second in itertools.product(_BASES, repeat=2):
        batch, every = next(_batches), parse.parse(html, second, "x").links
        met = parse.parse(html, first, "x", batch=batch)
        parse.met(met.noted)
        left = parse.parse(html, second, "x", batch=batch).links
        assert left == every or (left, met.links) == ([], every)


def test_links_that_were_met_are_not_spelled_again_by_the_scanner(parser: str) -> None:
    if parser == "lexbor":
        pytest.skip("it looks at each link each time")
    html = "<a href=/x><a href=y><a href='?z'><a href=http://h.test/><a href=ftp://h.test/>"
    batch = next(_batches)

    def found(page: str, depth: int, html: str = html, batch: int = batch) -> list[str]:
        return [urls.path_of(link) for link in parse.parse(html, page, "x", batch=batch, depth=depth).links]

    document = parse.parse(html, PAGE, "x", batch=batch, depth=5)
    assert len(document.links) == 4
    assert found(PAGE, 5) == ["/x", "/dir/y", "/dir/page?z", "/"]  # nobody has noted them
    parse.met(document.noted)
    assert found(PAGE, 5) == []
    assert found(PAGE, 6, html + "<a href=new>") == ["/dir/new"]
    assert found(PAGE, 4) == ["/x", "/dir/y", "/dir/page?z", "/"]  # a shorter way is news
    assert found("http://example.org/dir/other", 5) == ["/dir/other?z"]
    assert found("http://example.org/", 5) == ["/y", "/?z"]
    assert found("http://other.test/dir/page", 5) == ["/x", "/dir/y", "/dir/page?z"]
    assert found(PAGE, 5, batch=next(_batches)) == ["/x", "/dir/y", "/dir/page?z", "/"]
    assert found(PAGE, 5, batch=0) == ["/x", "/dir/y", "/dir/page?z", "/"]


def test_links_that_were_met_count_for_what_a_page_may_have() -> None:
    html, batch = "<a href=/1><a href=/2><a href=/3>", next(_batches)
    parse.met(parse.parse("<a href=/1><a href=/2>", PAGE, "x", batch=batch).noted)
    for most, left_out in ((0, 2), (19, 2), (20, 1), (40, 0)):
        assert parse.parse(html, PAGE, "x", batch=batch, most=most).left_out == left_out


def test_links_that_mean_another_address_in_each_encoding_are_spelled_for_each_page() -> None:
    batch, html = next(_batches), "<a href='?é'>"
    for codec, link in (("utf-8", "%C3%A9"), ("cp1252", "%E9"), ("cp1251", "%26%23233%3B")):
        document = parse.parse(html, PAGE, "x", codec=codec, batch=batch)
        assert document.links == [f"{PAGE}?{link}"]
        parse.met(document.noted)


def test_a_thousand_links_are_told_apart() -> None:
    hrefs = [f"<a href={number}>" for number in range(1_000)]
    html = "<head><a-b>" + "".join(hrefs[:400]) + "".join(hrefs)
    assert parse.parse(html, PAGE, "x").links == [f"http://example.org/dir/{number}" for number in range(1_000)]


def test_a_worker_without_the_scanner_says_so_once(parser: str, caplog: pytest.LogCaptureFixture) -> None:
    parse._say_that_it_is_slow.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            parse.parse("x", PAGE, "x")
    assert caplog.text.count("native scanner is not installed") == (parser == "lexbor")


def test_the_crawler_works_where_there_is_no_scanner(parser: str) -> None:
    assert parser
    program = (
        "import sys; sys.modules['crawler_scanner'] = None\n"
        "from crawler.worker import parse\nprint(parse.parse('<a href=y>', 'http://h.test/', 'x').links)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "['http://h.test/y']\n"
