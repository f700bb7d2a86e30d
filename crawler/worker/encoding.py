"""What character encoding a page is in, after the WHATWG standards: its text, and how its links spell a query.

Labels mean what browsers take them for (webencodings): "iso-8859-1" is windows-1252 and "euc-kr" is windows-949. Python
itself would know "idna" and "utf-7" besides, which no page is written in, and not "x-sjis".

Source: https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding
"""

from __future__ import annotations

import codecs
import re
from urllib.parse import quote_from_bytes

import webencodings

SCANNED = 8 * 1024
"""Bytes searched for a declaration. The standard asks for 1024; browsers read on to the end of the head."""

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
# "replacement" hides all of a page, so that no script in it passes a filter unseen; we run none, and its links in ASCII
# are readable. "x-user-defined" is a trick to send bytes to scripts.
_NO_TEXT = {"replacement", "x-user-defined"}
# The standard's decoder of GBK is that of GB 18030.
_PYTHON_NAMES = {**webencodings.PYTHON_NAMES, "gbk": "gb18030"}

_PARAMETER = re.compile(r"""(?<![^\s;,])charset\s*=\s*["']?([^\s;,"']+)""", re.IGNORECASE)
_XML = re.compile(rb"""<\?xml[^>]*?\sencoding\s*=\s*["']([^"'>]+)""")
# In lower case. Possessive throughout, and every alternative can end with the text: linear time, whatever is in it.
_REST_OF_TAG = rb"""(?:[^>=]++|=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>]*+))*+"""
_MARKUP = re.compile(
    rb"<(?:!--(?:-?>|(?:[^-]++|-(?!->))*+(?:-->|\Z))"
    rb"|meta(?=[\s/])(?P<meta>" + _REST_OF_TAG + rb")"
    rb"|/?[a-z]" + _REST_OF_TAG + rb"|[!?/][^>]*+)"
)
_ATTRIBUTE = re.compile(rb"""([^\s/>=]++)(?:\s*+=\s*+(?:"([^"]*+)"|'([^']*+)'|([^\s>]*+)))?+""")
_IN_CONTENT = re.compile(rb"""charset\s*=\s*["']?([^\s;"']+)""")


def sniff(body: bytes, content_type: str) -> tuple[str, int]:
    """Python's name for the encoding that `body` is in, and how many bytes its byte order mark has: by that mark, else
    the header's charset, else what it declares itself, else UTF-8, else windows-1252.

    `content_type` is the whole Content-Type header.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return name, len(mark)
    header = _PARAMETER.search(content_type)
    codec = _codec(header[1]) if header else None
    if codec is None:
        codec = _declared(body)
    return codec or ("utf-8" if _is_utf_8(body) else "cp1252"), 0


def decode(body: bytes, content_type: str) -> tuple[str, str]:
    """`body` as text, and Python's name for the encoding that it is in: see `sniff`. Never fails: what cannot be read
    becomes U+FFFD."""
    codec, mark = sniff(body, content_type)
    return body[mark:].decode(codec, "replace"), codec


def _is_utf_8(body: bytes) -> bool:
    if body.isascii():
        return True
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def with_query_in(codec: str, href: str) -> str:
    """`href` as it stands on a page in that encoding, with its query in the bytes that the site means: browsers send
    those, and all else in UTF-8 (https://url.spec.whatwg.org/#query-state)."""
    if codec.startswith("utf") or href.isascii():
        return href
    path, mark, query = href.partition("#")[0].partition("?")
    return path + mark + quote_from_bytes(query.encode(codec, _AS_REFERENCE), safe=_ASCII)


def _reference(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return "".join(f"%26%23{ord(letter)}%3B" for letter in error.object[error.start : error.end]), error.end


_AS_REFERENCE = "crawler.worker.encoding.reference"
"""What to do with a character that the encoding has not: send &#1234; in its place, escaped."""
codecs.register_error(_AS_REFERENCE, _reference)
_ASCII = bytes(range(128)).replace(b"#", b"")  # which may be part of another character, in ISO-2022-JP


def _codec(label: str) -> str | None:
    """Python's name for the encoding that browsers take `label` for; None if they take it for none."""
    name = webencodings.LABELS.get(label.strip("\t\n\f\r ").lower()) if label.isascii() else None
    return None if name is None or name in _NO_TEXT else _PYTHON_NAMES.get(name, name)


def _declared(body: bytes) -> str | None:
    """By a meta tag, else by an XML declaration, within the first SCANNED bytes."""
    head = body[:SCANNED].lower()
    if b"charset" in head:
        for markup in _MARKUP.finditer(head):
            if (tag := markup["meta"]) is not None and (codec := _of_meta(tag)):
                return codec
    if head.startswith(b"<?xml") and (declaration := _XML.match(head)):
        return _in_ascii(declaration[1])
    return None


def _of_meta(tag: bytes) -> str | None:
    attributes: dict[bytes, bytes] = {}
    for name, *values in _ATTRIBUTE.findall(tag):
        attributes.setdefault(name, b"".join(values))
    if b"charset" in attributes:
        return _in_ascii(attributes[b"charset"])
    if attributes.get(b"http-equiv") == b"content-type":
        charset = _IN_CONTENT.search(attributes.get(b"content", b""))
        return _in_ascii(charset[1]) if charset else None
    return None


def _in_ascii(label: bytes) -> str | None:
    """The codec of a label that was read as ASCII, so it cannot be UTF-16, whatever it says."""
    codec = _codec(label.decode("latin-1"))
    return "utf-8" if codec in ("utf-16le", "utf-16be") else codec
