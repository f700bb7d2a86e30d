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

MAX_CLONES = 500_000
"""Formatting elements that could be opened again, some 300 bytes each."""
MAX_STEPS = 200_000_000
"""Steps up the stack of open elements, some 6 ns each."""
MAX_TAG = 4_000
"""Characters of a tag above which its attributes are counted."""
MAX_ATTRIBUTES = 500

_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]{0,20})")
_FORMATTING = {"b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"}
_FORMATTING_TAG = re.compile(rf"<(?:{'|'.join(sorted(_FORMATTING))})[\s/>]", re.IGNORECASE)
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_CLOSED_BY_OTHERS = {"p", "li", "dt", "dd", "tr", "tbody", "thead", "tfoot", "a", "html", "head", "body"}
_BOUNDARIES = {"td", "th", "caption", "button", "object", "template", "applet", "marquee", "svg", "math"}
"""An end tag inside one of these closes nothing outside."""
_KEPT = {"a", "area", "base", "link", "meta", "title", "script", "style", "textarea", "iframe", "head", "body", "html"}
_HIDING_END = re.compile(r"</(?:script|style|textarea|iframe|title)\s*\Z", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"[\s/\"'][^\s/\"'=]")


def tame(text: str) -> str:
    """`text`, or what of it can be parsed in bounded time and memory."""
    if len(text) > MAX_TAG:
        text = _with_few_attributes(text)
    tags = text.count("<")
    if tags * tags <= MAX_CLONES:  # nothing below could reach a limit
        return text
    if tags * tags // 2 > MAX_STEPS or len(_FORMATTING_TAG.findall(text)) * tags > MAX_CLONES:
        deep, formatting = _open_at_once(text)
        if deep * tags > MAX_STEPS or formatting * tags > MAX_CLONES:
            return _thinned(text)
    return text


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


def _open_at_once(text: str) -> tuple[int, int]:
    """At most how many elements, and how many formatting elements, are open at any one time."""
    inside: list[Counter[str]] = [Counter()]
    deep = deepest = formatting = most_formatting = 0
    for slash, written in _TAG.findall(text):
        name = written.lower()
        if name in _VOID or name in _CLOSED_BY_OTHERS:
            continue
        if not slash:
            inside[-1][name] += 1
            deep += 1
            deepest = max(deepest, deep)
            if name in _FORMATTING:
                formatting += 1
                most_formatting = max(most_formatting, formatting)
            if name in _BOUNDARIES:
                inside.append(Counter())
        elif inside[-1][name]:
            inside[-1][name] -= 1
            deep -= 1
            formatting -= name in _FORMATTING
        elif name in _BOUNDARIES or name == "table":
            while len(inside) > 1:
                closed = inside.pop()
                deep -= closed.total()
                formatting -= sum(closed[kind] for kind in _FORMATTING)
                if inside[-1][name]:
                    inside[-1][name] -= 1
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
