"""From HTML to a page: title, links and what the page says to robots.

The scanner (scanner/, native code) finds them in one pass. Where it could not be built, selectolax (lexbor) builds the
tree that the WHATWG standard asks for, garbage included, and that is searched: the same results, at an eighth of the
speed.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from selectolax.lexbor import LexborHTMLParser, LexborNode

from crawler import urls
from crawler.worker.encoding import with_query_in
from crawler.worker.html_bounds import bounded

try:
    import crawler_scanner as scanner
except (ImportError, OSError):  # a wheel of its own, for two architectures
    scanner = None

log = logging.getLogger(__name__)
FOLLOWED = {"iframe": "iframe[src]", "next": "link[rel~=next i][href]"}
"""What a job may follow beside `a`, `area` and `frame`: the selector of each by its name."""
MAX_LINKS = 16_000_000
"""Characters of a page's links, after which the others are counted only. A base of two thousand makes gigabytes of the
links that a page has room for."""
MAX_REFRESH = 10
"""Seconds after which a page that leads on by itself is still a redirect in all but name. A longer one is a page to be
read, that shows its news, or the next picture, from time to time."""
_TITLE = "title:not(svg title, math title)"  # in a drawing it is the name of a shape
_CANONICAL = "link[rel~=canonical i][href]"
# A product token, and the version that some write after it.
_NAMED = re.compile(r"\s*(\*|[A-Za-z_-]+)(?:/[\w.-]*)?\s*:")
_WITH_VALUE = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_UNAVAILABLE_AFTER = re.compile(r"unavailable_after\s*:\s*((?:[A-Za-z]+,)?[^,]+)", re.IGNORECASE)
# https://html.spec.whatwg.org/#shared-declarative-refresh-steps
_REFRESH = re.compile(
    r"[ \t\n\f\r]*(?:(\d+)[\d.]*|\.[\d.]*)(?:[ \t\n\f\r]+[;,]?|[;,])[ \t\n\f\r]*"
    r"(?:url[ \t\n\f\r]*=[ \t\n\f\r]*)?(?:'([^']*)|\"([^\"]*)|(.+))",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_SKIPPED = ("javascript:", "mailto:", "tel:", "data:")


@dataclass
class Document:
    """What a page says."""

    title: str | None = None
    canonical: str | None = None
    """The address the page calls its own, normalised."""
    links: list[str] = field(default_factory=list)
    """Normalised, each once, in the order of the page; less those that the batch has met."""
    left_out: int = 0
    """Links beyond those."""
    noted: bytes = b""
    """`links` as `met` wants them."""
    nofollow: bool = False
    noindex: bool = False
    refresh: str | None = None
    """Where the page leads by itself, within MAX_REFRESH seconds; normalised."""
    tree: LexborHTMLParser | None = None
    """Where one had to be built."""


@dataclass
class _Found:
    """What a page says, before it is judged."""

    title: str
    base: str
    canonical: str
    metas: list[str]
    """Each "r" and what is said to robots, or "f" and a refresh."""
    links: list[str]
    left_out: int
    noted: bytes = b""
    tree: LexborHTMLParser | None = None


def parse(
    page: str | bytes,
    url: str,
    agent: str,
    follow: Sequence[str] = (),
    now: float = 0,
    codec: str = "utf-8",
    *,
    obey: bool = True,
    refresh: str = "",
    most: int = MAX_LINKS,
    batch: int = 0,
    depth: int = 0,
) -> Document:
    """Read the page that came from `url`: its text, or the bytes of it in UTF-8. `agent` is our product token, for meta
    tags that name us; `follow` names what is followed beside links: see FOLLOWED; `now` is the time, for directives
    with a date; `codec` is Python's name for the encoding that the page was in. Without `obey`, what is said to robots
    hides no links. `refresh` is the value of the Refresh header, which counts before a meta tag. Links are taken until
    they have more than `most` characters together. `batch`: a number of its own; links that it has `met` at `depth` or
    nearer to a seed may be left out. 0: none are."""
    agent = agent.lower()
    if scanner:
        found = _scanned(page, url, agent, follow, codec, obey, most, batch, depth)
    else:
        found = _searched(page, url, agent, follow, codec, obey, most)
    document = Document(" ".join(found.title.split())[:500] or None, found.canonical or None, tree=found.tree)
    for meta in found.metas:
        if meta[0] == "r":
            nofollow, noindex = directives(meta[1:], now)
            document.nofollow |= nofollow
            document.noindex |= noindex
        else:
            refresh = refresh or meta[1:]
    if not (obey and document.nofollow):
        document.links, document.left_out, document.noted = found.links, found.left_out, found.noted
        document.refresh = (refresh and refreshed(refresh, found.base, codec)) or None
    return document


def met(noted: bytes) -> None:
    """The links of a document, whose `noted` this is, need no other look from pages of the same batch that are as far
    from a seed, or farther. What lexbor reads is looked at each time."""
    if noted:
        scanner.met(noted)


def _scanned(
    page: str | bytes,
    url: str,
    agent: str,
    follow: Sequence[str],
    codec: str,
    obey: bool,
    most: int,
    batch: int,
    depth: int,
) -> _Found:
    """Found in one pass by the scanner."""
    other = not codec.startswith("utf")
    flags = (
        ("iframe" in follow and scanner.IFRAME)
        | ("next" in follow and scanner.NEXT)
        | (obey and scanner.OBEY)
        | (other and scanner.OTHER_ENCODING)
    )
    page = page if isinstance(page, bytes) else page.encode()
    found = _Found(*scanner.scan(page, url, agent, flags, most, batch, depth))
    if other:
        found.canonical = _spelled(found.canonical, found.base, codec)
        found.links = [_spelled(link, found.base, codec) for link in found.links]
    found.links = [link for link in dict.fromkeys(found.links) if link]
    return found


def _spelled(link: str, base: str, codec: str) -> str:
    """A link of the scanner's, which leaves those to us whose query is in an encoding of the page's."""
    return _normalised(link[1:], base, codec) if link.startswith("\1") else link


def _normalised(href: str, base: str, codec: str = "utf-8") -> str:
    """What `href` leads to; empty if it leads nowhere."""
    with contextlib.suppress(urls.InvalidURLError):
        return urls.normalise(with_query_in(codec, href), base=base)
    return ""


@functools.cache
def _say_that_it_is_slow() -> None:
    log.warning("the native scanner is not installed: pages are read by lexbor, at an eighth of the speed")


def _searched(
    page: str | bytes, url: str, agent: str, follow: Sequence[str], codec: str, obey: bool, most: int
) -> _Found:
    """Found in a tree."""
    _say_that_it_is_slow()
    tree = LexborHTMLParser(bounded(page if isinstance(page, str) else page.decode("utf-8", "replace")))
    title, base, canonical = (tree.css_first(selector) for selector in (_TITLE, "base[href]", _CANONICAL))
    base_url = (base and _normalised(base.attributes["href"] or "", url)) or url
    metas = []
    for meta in tree.css("meta"):
        attributes = meta.attributes
        content = attributes.get("content") or ""
        if (attributes.get("name") or "").strip().lower() in ("robots", agent):
            metas.append("r" + content)
        elif (attributes.get("http-equiv") or "").lower() == "refresh" and not _in_noscript(meta):
            metas.append("f" + content)
    links, left_out = _links(tree, base_url, follow, codec, obey, most)
    return _Found(
        title=title.text() if title else "",
        base=base_url,
        canonical=_normalised(canonical.attributes["href"] or "", base_url, codec) if canonical else "",
        metas=metas,
        links=links,
        left_out=left_out,
        tree=tree,
    )


def refreshed(said: str, base: str, codec: str = "utf-8") -> str | None:
    """Where a Refresh header or meta tag leads (normalised), if it does so within MAX_REFRESH seconds."""
    parts = _REFRESH.match(said)
    if parts is None or int(parts[1] or 0) > MAX_REFRESH:
        return None
    return _normalised(parts[2] or parts[3] or parts[4] or "", base, codec) or None


def _in_noscript(node: LexborNode) -> bool:
    """Browsers that run scripts do not see what is in <noscript>: mostly the way to a page that says so."""
    parent = node.parent
    while parent is not None and parent.tag != "noscript":
        parent = parent.parent
    return parent is not None


def directives(content: str, now: float = 0) -> tuple[bool, bool]:
    """(nofollow, noindex) of a robots meta tag's content or an X-Robots-Tag header's value at the time `now`, from
    which on "unavailable_after" means noindex."""
    words = {word.strip().lower() for word in content.split(",")}
    noindex = bool(words & {"noindex", "none"}) or any(_past(date, now) for date in _UNAVAILABLE_AFTER.findall(content))
    return bool(words & {"nofollow", "none"}), noindex


def header_directives(lines: Iterable[tuple[str, str]], agent: str, now: float = 0) -> tuple[bool, bool]:
    """(nofollow, noindex) of a response's X-Robots-Tag header lines, given with all others as (name, value).

    What follows "name:" is for the crawler of that name; `agent` is our product token.
    Source: https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag#xrobotstag
    """
    for_us: list[str] = []
    for name, value in lines:
        if name.lower() != "x-robots-tag":
            continue
        ours = True  # until a name says otherwise, to the end of the line
        for part in value.split(","):
            named = _NAMED.match(part)
            if named and named[1].lower() not in _WITH_VALUE:
                ours = named[1].lower() in ("*", "robots", agent.lower())
                part = part[named.end() :]
            if ours:
                for_us.append(part)
    return directives(",".join(for_us), now) if for_us else (False, False)


def _past(date: str, now: float) -> bool:
    """Whether `date`, after RFC 822, RFC 850 or ISO 8601, is over. One that cannot be read is not."""
    for read in (email.utils.parsedate_to_datetime, datetime.fromisoformat):
        try:
            then = read(date.strip())
            return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() < now
        except (ValueError, OverflowError):
            continue
    return False


def _links(
    tree: LexborHTMLParser, base: str, follow: Sequence[str], codec: str, obey: bool, most: int
) -> tuple[list[str], int]:
    """The links, and how many were left out."""
    hrefs: dict[str, None] = {}
    for element in tree.css(", ".join(("a[href], area[href], frame[src]", *(FOLLOWED[name] for name in follow)))):
        attributes = element.attributes
        href = attributes.get("src" if element.tag in ("frame", "iframe") else "href")
        if href and not (obey and "nofollow" in (attributes.get("rel") or "").lower().split()):
            hrefs[href.partition("#")[0]] = None  # before the costly part: a table of contents is one address
    found: dict[str, None] = {}
    taken = left_out = 0
    for href in hrefs:
        if not href or href.startswith(_SKIPPED):
            continue
        if taken > most:
            left_out += 1
        elif link := _normalised(href, base, codec):
            found[link] = None
            taken += len(link)
    return list(found), left_out
