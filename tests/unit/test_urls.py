"""URL cases: the WHATWG URL standard (https://url.spec.whatwg.org/) and its tests, and RFC 3986, section 6."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crawler import urls
from crawler.job import Job


@pytest.mark.parametrize(
    ("given_url", "normal"),
    [
        ("HTTP://Example.ORG/A", "http://example.org/A"),  # case of scheme and host, not of the path
        ("http://example.org", "http://example.org/"),
        ("http://example.org:80/", "http://example.org/"),
        ("https://example.org:443/", "https://example.org/"),
        ("http://example.org:8080/", "http://example.org:8080/"),
        ("http://example.org/a/./b/../c", "http://example.org/a/c"),
        ("http://example.org/a/%2e%2e/c", "http://example.org/c"),  # WHATWG: %2e counts as a dot in a dot segment
        ("http://example.org/#top", "http://example.org/"),
        ("http://example.org/?q#top", "http://example.org/?q"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),  # IDN
        ("http://example.org/é", "http://example.org/%C3%A9"),
        ("http://example.org/a b", "http://example.org/a%20b"),
        ("http://example.org/%7euser/%c3%a9", "http://example.org/~user/%C3%A9"),  # RFC 3986, 6.2.2.1 and 6.2.2.2
        # RFC 3986 wants these escaped; WHATWG leaves them as they are
        ("http://example.org/100%", "http://example.org/100%25"),
        ("http://example.org/%zz?%u0416", "http://example.org/%25zz?%25u0416"),
        ("http://example.org/a|b[1]", "http://example.org/a%7Cb%5B1%5D"),
        ("http://example.org/?a[]=1|2^{`}\\", "http://example.org/?a%5B%5D=1%7C2%5E%7B%60%7D%5C"),
        ("http://example.org/%7c%5B", "http://example.org/%7C%5B"),
        ("http://example.org/a/%2%65/b", "http://example.org/a/%252e/b"),  # no new escape comes about
        ("http://example.org/a/%25%32%65/b", "http://example.org/a/%252e/b"),
        # the name is a fully qualified one with or without its dot
        ("http://example.org./a", "http://example.org/a"),
        ("https://example.org.:443/", "https://example.org/"),
        ("http://example.org.:8080/.", "http://example.org:8080/"),
        ("http://127.0.0.1./", "http://127.0.0.1/"),
        ("  http://example.org/\t\n", "http://example.org/"),
        ("http:\\\\example.org\\a", "http://example.org/a"),  # special schemes take back-slashes
        ("http://0x7f.1/", "http://127.0.0.1/"),  # IPv4 in any notation
        ("http://[::1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_one_spelling_for_one_address(given_url: str, normal: str) -> None:
    assert urls.normalise(given_url) == normal
    assert urls.normalise(normal) == normal


def test_every_escape_has_one_spelling() -> None:
    """RFC 3986, 6.2.2.1: digits in upper case; 6.2.2.2: unreserved characters as they are."""
    for byte in range(256):
        normal = chr(byte) if re.fullmatch("[A-Za-z0-9._~-]", chr(byte)) else f"%{byte:02X}"
        for spelling in (f"%{byte:02X}", f"%{byte:02x}"):
            assert urls.normalise(f"http://example.org/a{spelling}") == f"http://example.org/a{normal}"


@pytest.mark.parametrize(
    ("href", "absolute"),
    [
        ("b", "http://example.org/dir/b"),
        ("../b", "http://example.org/b"),
        ("/b?x=1#y", "http://example.org/b?x=1"),
        ("?q", "http://example.org/dir/page?q"),
        ("//other.example/x", "http://other.example/x"),
        ("https:other", "https://other/"),
        ("http:b", "http://example.org/dir/b"),  # same scheme without slashes is relative
    ],
)
def test_relative_to_the_page(href: str, absolute: str) -> None:
    assert urls.normalise(href, base="http://example.org/dir/page") == absolute


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("nonsense", "not a URL"),
        ("", "not a URL"),
        ("http://", "not a URL"),
        ("http://exa mple.org/", "not a URL"),
        ("http://example.org:99999/", "not a URL"),
        ("ftp://example.org/", "scheme 'ftp'"),
        ("mailto:a@example.org", "scheme 'mailto'"),
        ("http://user:secret@example.org/", "user name or password"),
        ("http://example.org../", "empty label"),
        ("http://./", "empty label"),
        ("http://example.org/" + "a" * 2000, "longer than 2000"),
        ("http://example.org/" + "%41" * 1_000_000, "longer than 2000"),
        ("http://" + "a." * 130 + "test/", "host longer than 253"),  # DNS knows none
    ],
)
def test_what_cannot_be_crawled_says_why(bad: str, reason: str) -> None:
    with pytest.raises(urls.InvalidURLError, match=reason):
        urls.normalise(bad)


@given(st.text(max_size=200) | st.text("%25eE2/.?[|@:#", max_size=30))
def test_any_text_is_either_normal_or_refused(text: str) -> None:
    try:
        normal = urls.normalise(text, base="http://example.org/")
    except urls.InvalidURLError:
        return
    assert urls.normalise(normal) == normal
    assert normal.startswith(urls.origin_of(normal) + "/")
    assert normal == urls.origin_of(normal) + urls.path_of(normal)
    assert re.fullmatch(r"http://[^/?#@]+/([A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*", normal)  # RFC 3986


def test_host_and_domain() -> None:
    assert urls.host_of("http://example.org:8080/a?b=/c") == "example.org:8080"
    assert urls.domain_of("www.shop.example.co.uk") == "example.co.uk"
    assert urls.domain_of("shop.example.org:8080") == "example.org"
    assert urls.domain_of("python.test") == "python.test"
    assert urls.domain_of("127.0.0.1") == "127.0.0.1"


STORY, DIGITS = "a-long-story-about-the-election-of-2026", "0123456789" * 4


@pytest.mark.parametrize(
    ("url", "cleaned"),
    [
        ("http://a.test/?utm_source=x&id=1&gclid=2", "http://a.test/?id=1"),
        ("http://a.test/?utm_source=x", "http://a.test/"),
        ("http://a.test/p;jsessionid=0A?id=1", "http://a.test/p?id=1"),
        ("http://a.test/p;v=1;JSESSIONID=0A", "http://a.test/p;v=1"),
        ("http://a.test/?side=left&PHPSESSID=1", "http://a.test/?side=left"),  # names match whole, in any case
        ("http://a.test/?", "http://a.test/"),
        # sid is the number of a story as often as a session's
        ("http://a.test/article.pl?sid=04/05/12/1234", "http://a.test/article.pl?sid=04/05/12/1234"),
        ("http://a.test/modules.php?name=News&sid=77", "http://a.test/modules.php?name=News&sid=77"),
        (f"http://a.test/?sid={STORY}", f"http://a.test/?sid={STORY}"),
        (f"http://a.test/?sid={DIGITS}&t=1", f"http://a.test/?sid={DIGITS}&t=1"),
        ("http://a.test/?sid=3f2504e04f8911d39a0c0305e82c3301&t=1", "http://a.test/?t=1"),
        ("http://a.test/?SID=3F2504E04F8911D39A0C0305E82C3301", "http://a.test/"),
        # each segment of a path has its own parameters
        ("http://a.test/shop;jsessionid=A1/cart", "http://a.test/shop/cart"),
        ("http://a.test/shop;jsessionid=A1/cart;v=2;jsessionid=B?x=1", "http://a.test/shop/cart;v=2?x=1"),
        ("http://a.test/a;b;c/d;e", "http://a.test/a;b;c/d;e"),
        ("http://a.test/?q=a;jsessionid=1", "http://a.test/?q=a;jsessionid=1"),
    ],
)
def test_parameters_that_only_say_who_clicks_are_taken_out(url: str, cleaned: str) -> None:
    assert Job(name="j").cleaned(url) == cleaned


@pytest.mark.parametrize(
    ("pattern", "cleaned"),
    [
        (".*id", "http://a.test/?page=grid"),  # a name, never a value
        ("page", "http://a.test/?kid=1"),
        ("page=gr.*", "http://a.test/?kid=1"),
        ("page=g", "http://a.test/?kid=1&page=grid"),  # in full
        ("page|x=1", "http://a.test/?kid=1&page=grid"),  # with "=", whatever else it may match
    ],
)
def test_a_job_may_name_parameters_of_its_own(pattern: str, cleaned: str) -> None:
    assert Job(name="j", strip_parameters=(pattern,)).cleaned("http://a.test/?kid=1&page=grid") == cleaned


def test_without_patterns_nothing_is_taken_out() -> None:
    url = "http://a.test/p;jsessionid=1?utm_source=x"
    assert Job(name="j", strip_parameters=()).cleaned(url) == url


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/a/b/a/b/a/b/", None),
        ("/a/b/a/b/a/b/a/b/", "a path segment more than 3 times"),
        ("/" + "/".join(map(str, range(30))), None),
        ("/" + "/".join(map(str, range(31))), "more than 30 path segments"),
        ("/?" + "&".join(f"p{n}=1" for n in range(20)), None),
        ("/?" + "&".join(f"p{n}=1" for n in range(21)), "more than 20 parameters"),
    ],
)
def test_traps(path: str, reason: str | None) -> None:
    assert urls.trap("http://a.test" + path) == (reason and f"trap: {reason}")


@pytest.mark.parametrize(
    ("url", "name_and_port"),
    [
        ("http://a.test/x:1", ("a.test", 80)),
        ("https://a.test", ("a.test", 443)),
        ("http://a.test:8080/", ("a.test", 8080)),
        ("https://[::1]/", ("::1", 443)),
        ("http://[::1]:8080", ("::1", 8080)),
        ("http://127.0.0.1:81/?x=[y]:2", ("127.0.0.1", 81)),
    ],
)
def test_name_and_port(url: str, name_and_port: tuple[str, int]) -> None:
    assert urls.name_and_port_of(url) == name_and_port
