"""URL cases: the WHATWG URL standard (https://url.spec.whatwg.org/) and its tests, and RFC 3986, section 6."""

from __future__ import annotations

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
        ("http://example.org/100%", "http://example.org/100%"),  # a lone percent sign stays
        ("  http://example.org/\t\n", "http://example.org/"),
        ("http:\\\\example.org\\a", "http://example.org/a"),  # special schemes take back-slashes
        ("http://0x7f.1/", "http://127.0.0.1/"),  # IPv4 in any notation
        ("http://[::1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_one_spelling_for_one_address(given_url: str, normal: str) -> None:
    assert urls.normalise(given_url) == normal
    assert urls.normalise(normal) == normal


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
        ("http://example.org/" + "a" * 2000, "longer than 2000"),
        ("http://example.org/" + "%41" * 1_000_000, "longer than 2000"),
        ("http://" + "a." * 130 + "test/", "host longer than 253"),  # DNS knows none
    ],
)
def test_what_cannot_be_crawled_says_why(bad: str, reason: str) -> None:
    with pytest.raises(urls.InvalidURLError, match=reason):
        urls.normalise(bad)


@given(st.text(max_size=200))
def test_any_text_is_either_normal_or_refused(text: str) -> None:
    try:
        normal = urls.normalise(text, base="http://example.org/")
    except urls.InvalidURLError:
        return
    assert urls.normalise(normal) == normal
    assert normal.startswith(urls.origin_of(normal) + "/")
    assert normal == urls.origin_of(normal) + urls.path_of(normal)


def test_host_and_domain() -> None:
    assert urls.host_of("http://example.org:8080/a?b=/c") == "example.org:8080"
    assert urls.domain_of("www.shop.example.co.uk") == "example.co.uk"
    assert urls.domain_of("shop.example.org:8080") == "example.org"
    assert urls.domain_of("python.test") == "python.test"
    assert urls.domain_of("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("url", "cleaned"),
    [
        ("http://a.test/?utm_source=x&id=1&gclid=2", "http://a.test/?id=1"),
        ("http://a.test/?utm_source=x", "http://a.test/"),
        ("http://a.test/p;jsessionid=0A?id=1", "http://a.test/p?id=1"),
        ("http://a.test/p;v=1;JSESSIONID=0A", "http://a.test/p;v=1"),
        ("http://a.test/?side=left&PHPSESSID=1", "http://a.test/?side=left"),  # names match whole, in any case
        ("http://a.test/?", "http://a.test/"),
    ],
)
def test_parameters_that_only_say_who_clicks_are_taken_out(url: str, cleaned: str) -> None:
    assert Job(name="j").cleaned(url) == cleaned


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
