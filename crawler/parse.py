"""From bytes to a page: character encoding, title, links and what the page says to robots.

selectolax (lexbor) reads HTML some fifty times faster than BeautifulSoup and builds the tree the WHATWG standard asks
for, garbage included.
"""

from __future__ import annotations

import codecs
import contextlib
import encodings
import encodings.aliases
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from selectolax.lexbor import LexborHTMLParser

from crawler import urls
from crawler.tame import tame

_META_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([A-Za-z0-9_:.-]{2,40})""", re.IGNORECASE)
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# The WHATWG standard reads these labels as their Windows supersets; so do browsers, and so do the pages' authors.
_SUPERSETS = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030"}
# What Python knows besides, and no page is written in: some of these cannot even be read without an error.
_NO_CHARSETS = {
    *("aliases", "idna", "punycode", "undefined", "unicode_escape"),
    *("raw_unicode_escape", "utf_7", "mbcs", "oem"),
}
_MODULES = {module.name for module in pkgutil.iter_modules(encodings.__path__)} - _NO_CHARSETS
_CHARSETS = _MODULES | {alias for alias, module in encodings.aliases.aliases.items() if module in _MODULES}
FOLLOWED = {"iframe": "iframe[src]", "next": "link[rel~=next i][href]"}
"""What a job may follow beside `a` and `area`: the selector of each by its name."""
_SKIPPED = ("#", "javascript:", "mailto:", "tel:", "data:")


@dataclass
class Document:
    """What a page says."""

    title: str | None = None
    canonical: str | None = None
    """The address the page calls its own, normalised."""
    links: list[str] = field(default_factory=list)
    """Normalised, each once, in the order of the page."""
    nofollow: bool = False
    noindex: bool = False
    tree: LexborHTMLParser | None = None


def decode(body: bytes, content_type: str) -> str:
    """`body` as text: by its byte order mark, else the header's charset, else its meta tag, else UTF-8, else
    windows-1252. Never fails: what cannot be read becomes U+FFFD.

    `content_type` is the whole Content-Type header.
    Source: https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding
    """
    for mark, encoding in _BOMS:
        if body.startswith(mark):
            return body[len(mark) :].decode(encoding, "replace")
    header = re.search(r"charset\s*=\s*[\"']?([^\s;\"']+)", content_type, re.IGNORECASE)
    named = _codec(header[1]) if header else None
    if named is None and (meta := _META_CHARSET.search(body, 0, 4096)):
        named = _codec(meta[1].decode("ascii"))
        if named and named.startswith("utf-16"):  # it could not have been read if it were
            named = "utf-8"
    if named:
        return body.decode(named, "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def _codec(label: str) -> str | None:
    # Not for Python to find out: it remembers every name that it does not know, for as long as the process lives.
    if not label.isascii() or encodings.normalize_encoding(label.lower()) not in _CHARSETS:
        return None
    info = codecs.lookup(label)
    # Text codecs only: bytes-to-bytes ones such as "hex" or "zip" have no business in a page.
    return _SUPERSETS.get(info.name, info.name) if getattr(info, "_is_text_encoding", True) else None


def parse(text: str, url: str, agent: str, follow: Sequence[str] = ()) -> Document:
    """Read the page `text` that came from `url`. `agent` is our product token, for meta tags that name us; `follow`
    names what is followed beside links: see FOLLOWED."""
    tree = LexborHTMLParser(tame(text))
    document = Document(tree=tree)
    if (title := tree.css_first("title")) is not None:
        document.title = " ".join(title.text().replace("\0", "").split())[:500] or None
    for meta in tree.css("meta[name]"):
        if (meta.attributes.get("name") or "").strip().lower() in ("robots", agent.lower()):
            nofollow, noindex = directives(meta.attributes.get("content") or "")
            document.nofollow |= nofollow
            document.noindex |= noindex
    base = url
    if (element := tree.css_first("base[href]")) is not None:
        with contextlib.suppress(urls.InvalidURLError):
            base = urls.normalise(element.attributes.get("href") or "", base=url)
    if (element := tree.css_first("link[rel=canonical][href]")) is not None:
        with contextlib.suppress(urls.InvalidURLError):
            document.canonical = urls.normalise(element.attributes.get("href") or "", base=base)
    if not document.nofollow:
        document.links = _links(tree, base, follow)
    return document


def directives(content: str) -> tuple[bool, bool]:
    """(nofollow, noindex) of a robots meta tag's content or an X-Robots-Tag header's value."""
    words = {word.strip().lower() for word in content.split(",")}
    return bool(words & {"nofollow", "none"}), bool(words & {"noindex", "none"})


def _links(tree: LexborHTMLParser, base: str, follow: Sequence[str]) -> list[str]:
    hrefs: dict[str, None] = {}
    for element in tree.css(", ".join(("a[href], area[href]", *(FOLLOWED[name] for name in follow)))):
        attributes = element.attributes
        href = attributes.get("href") or attributes.get("src")
        if href and "nofollow" not in (attributes.get("rel") or "").lower().split():
            hrefs[href.partition("#")[0]] = None  # before the costly part: a table of contents is one address
    found: dict[str, None] = {}
    for href in hrefs:
        if not href or href.startswith(_SKIPPED):
            continue
        try:
            found[urls.normalise(href, base=base)] = None
        except urls.InvalidURLError:
            continue
    return list(found)
