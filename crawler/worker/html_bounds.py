"""HTML written to cost its reader dearly, made cheap, before a parser sees it that nothing can interrupt.

Three things make a tree that follows the WHATWG standard grow, or take time, with the square of the page:

* elements left open: each new one looks for its kind up the whole stack (100,000 nested <div>, 0.5 MB, take 46 s);
* formatting elements left open: the next paragraph opens them all again (2,000 <b> and 2,000 <p>, 30 KB, 1.2 GB);
* attributes: each is compared with all before it (100,000 of them on one element, 0.8 MB, take 25 s).

Pages are left as they are unless they have the makings of one of these; of those that have, the links, the title and
what they say to robots stay. Nothing here takes more than linear time.
"""

from __future__ import annotations

import re
from collections import Counter

MAX_CLONES = 1_000_000
"""Formatting elements that could be opened again, some 350 bytes each."""
MAX_STEPS = 600_000_000
"""Steps up the stack of open elements, some 6 ns each."""
MAX_TAG = 4_000
"""Characters of a tag above which its attributes are counted."""
MAX_ATTRIBUTES = 500

_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]{0,20})")
_FORMATTING = {"b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"}
_WITH_ATTRIBUTES = re.compile(
    r"<(?=[bceifnstuBCEIFNSTU])(?:[bB](?:[iI][gG])?|[cC][oO][dD][eE]|[eE][mM]|[fF][oO][nN][tT]|[iI]|[nN][oO][bB][rR]"
    r"|[sS](?:[mM][aA][lL][lL]|[tT][rR](?:[iI][kK][eE]|[oO][nN][gG]))?|[tT][tT]|[uU])[\s/][^>]*"
)
_ATTRIBUTES = r"""(?:\s+[\w:.-]+(?:=(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=`]+))?)*\s*/?"""
_WELL_FORMED = re.compile(rf"<\w+{_ATTRIBUTES}", re.ASCII)
_END_THAT_OPENS = re.compile(r"</(?:[pP]|[bB][rR])[\s/>]")
_BOUNDARIES = {"td", "th", "caption", "button", "object", "template", "applet", "marquee", "svg", "math"}
"""An end tag inside one of these closes nothing outside."""
_FORMATTING_OR_BOUNDARY = re.compile(
    rf"<(/?)({'|'.join(sorted({*_FORMATTING, *_BOUNDARIES, 'table'}))})(?=[\s/>])", re.IGNORECASE
)
_VOID = {"area", "base", "br", "col", "embed", "frame", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_CLOSED_BY_OTHERS = {"p", "li", "dt", "dd", "tr", "tbody", "thead", "tfoot", "a", "html", "head", "body"}
_NEVER_DEEP = _VOID | _CLOSED_BY_OTHERS
_KEPT = {"a", "area", "base", "link", "meta", "title", "script", "style", "textarea", "iframe", "head", "body", "html"}
_HIDING_END = re.compile(r"</(?:script|style|textarea|iframe|title)\s*\Z", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[\s/\"'][^\s/\"'=]")


def bounded(text: str) -> str:
    """`text`, or what of it can be parsed in bounded time and memory."""
    # Somewhere within a tag that long, half its length has no ">" from one multiple of that to the next.
    half = MAX_TAG // 2
    if any(text.find(">", start, start + half) < 0 for start in range(0, len(text) - half, half)):
        text = _with_few_attributes(text)
    tags = text.count("<")
    if tags * tags <= 4 * MAX_CLONES:
        return text
    # Cheap tests first: an ordinary page costs a fraction of what its parsing will.
    if (
        (formatting := _formatting(text)) * tags > MAX_CLONES
        and formatting * (paragraphs := tags - text.count("</") + len(_END_THAT_OPENS.findall(text))) > MAX_CLONES
        and _open_at_once(text, _FORMATTING_OR_BOUNDARY)[1] * paragraphs > MAX_CLONES
    ):
        return _thinned(text)
    if tags * tags > 2 * MAX_STEPS and _open_at_once(text, _TAG)[0] * tags > MAX_STEPS:
        return _thinned(text)
    return text


def _formatting(text: str) -> int:
    """At most how many formatting elements can wait to be opened again: of those with the same name and attributes,
    three.

    Source: https://html.spec.whatwg.org/#push-onto-the-list-of-active-formatting-elements
    """
    kinds = Counter(_WITH_ATTRIBUTES.findall(text))
    alike = (3 if _WELL_FORMED.fullmatch(kind) else number for kind, number in kinds.items())
    return 3 * len(_FORMATTING) + sum(alike)


def _with_few_attributes(text: str) -> str:
    """Long tags with more than MAX_ATTRIBUTES are cut short."""
    pieces = text.split(">")
    if max(map(len, pieces)) <= MAX_TAG:
        return text
    for number, piece in enumerate(pieces):
        if len(piece) > MAX_TAG and (tag := _TAG.search(piece)):
            attributes = _ATTRIBUTE.findall(piece, tag.end())
            if len(attributes) > MAX_ATTRIBUTES:
                pieces[number] = piece[: tag.end() + MAX_TAG]
    return ">".join(pieces)


def _open_at_once(text: str, tags: re.Pattern[str]) -> tuple[int, int]:
    """At most how many elements, of those whose tags the pattern finds, are open at any one time, and how many of them
    are formatting elements."""
    outside: list[dict[str, int]] = []
    here: dict[str, int] = {}
    deep = deepest = formatting = most_formatting = 0
    for slash, written in tags.findall(text):
        name = written.lower()
        if not slash:
            if name in _NEVER_DEEP:
                continue
            here[name] = here.get(name, 0) + 1
            deep += 1
            if deep > deepest:
                deepest = deep
            if name in _FORMATTING:
                formatting += 1
                if formatting > most_formatting:
                    most_formatting = formatting
            elif name in _BOUNDARIES:
                outside.append(here)
                here = {}
        elif here.get(name):
            here[name] -= 1
            deep -= 1
            if name in _FORMATTING:
                formatting -= 1
        elif name in _BOUNDARIES or name == "table":
            while outside:
                deep -= sum(here.values())
                formatting -= sum(count for kind, count in here.items() if kind in _FORMATTING)
                here = outside.pop()
                if here.get(name):
                    here[name] -= 1
                    deep -= 1
                    break
    return deepest, most_formatting


def _thinned(text: str) -> str:
    """Only the tags that a crawler reads, and those that hide others."""
    kept = []
    for piece in text.split(">"):
        tag = _TAG.search(piece)
        if tag is None or tag[2].lower() in _KEPT or _HIDING_END.search(piece[-20:]):
            kept.append(piece + ">")
        else:
            kept.append(piece[: tag.start()] + " ")
    return "".join(kept)[:-1]
