"""Whether a body without a Content-Type is HTML, as browsers find out.

Source: https://mimesniff.spec.whatwg.org/, sections 5.2 (the resource header) and 7.1 (unknown MIME types)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HEADER = 1445
"""Bytes at the beginning of a body that are looked at."""

_MEDIA_TYPE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNKNOWN = {"unknown/unknown", "application/unknown", "*/*"}
_HTML = re.compile(
    rb"[\t\n\f\r ]*<(?:!doctype html|html|head|script|iframe|h1|div|font|table|a|style|title|b|body|br|p|!--)[ >]",
    re.IGNORECASE,
)


def is_unknown(headers: Mapping[str, str], media_type: str) -> bool:
    """Whether a server left it to the client to find out what it sent: no media type, or one that is none, and no
    `X-Content-Type-Options: nosniff`."""
    if media_type not in _UNKNOWN and _MEDIA_TYPE.fullmatch(media_type):
        return False
    return headers.get("x-content-type-options", "").partition(",")[0].strip().lower() != "nosniff"


def is_html(header: bytes) -> bool:
    """Whether a body that begins with `header` is HTML."""
    return _HTML.match(header) is not None
