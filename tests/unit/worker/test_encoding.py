"""Encodings: https://html.spec.whatwg.org/multipage/parsing.html#determining-the-character-encoding and the labels of
https://encoding.spec.whatwg.org/#names-and-labels."""

from __future__ import annotations

import codecs
import encodings
import encodings.aliases
import pkgutil
import time

import pytest
import webencodings
from hypothesis import given
from hypothesis import strategies as st

from crawler import urls
from crawler.worker import encoding, parse

pytestmark = pytest.mark.usefixtures("parser")


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
        ("é".encode(), "text/html; charset=é", "é"),
        ("中".encode("gb18030"), "text/html; charset=gb2312", "中"),
        ("ж".encode("cp1251"), "text/html; x-charset=koi8-r; charset=windows-1251", "ж"),  # the real parameter
        ("ж".encode("cp1251"), "text/html;charset = 'windows-1251'", "ж"),
        ("ж".encode("cp1251"), "text/html charset=windows-1251", "ж"),
    ],
)
def test_text(body: bytes, content_type: str, text: str) -> None:
    assert encoding.decode(body, content_type)[0] == text


@pytest.mark.parametrize(
    ("label", "read_as", "text"),
    [
        ("windows-949", "cp949", "뷁"),
        ("euc-kr", "cp949", "뷁"),
        ("ks_c_5601-1987", "cp949", "뷁"),
        ("x-sjis", "cp932", "①髙"),
        ("Shift_JIS", "cp932", "①髙"),
        ("big5", "big5hkscs", "嘅"),
        ("x-gbk", "gb18030", "囧"),
        ("gbk", "gb18030", "㐀"),
        ("windows-874", "cp874", "ก“"),
        ("tis-620", "cp874", "ก“"),
        ("iso-8859-11", "cp874", "ก“"),
        ("x-cp1251", "cp1251", "Жук"),
        ("x-mac-cyrillic", "mac-cyrillic", "Жук"),
        ("iso-8859-8-i", "iso8859-8", "שלום"),
        ("koi8", "koi8-r", "Жук"),
        ("latin1", "cp1252", "“é”"),
        ("iso-8859-9", "cp1254", "“ş”"),
    ],
)
def test_labels_mean_what_browsers_take_them_for(label: str, read_as: str, text: str) -> None:
    body = text.encode(read_as)
    assert encoding.decode(body, f"text/html; charset={label}")[0] == text
    declared = f"<meta charset={label}>"
    assert encoding.decode(declared.encode() + body, "text/html")[0] == declared + text


@pytest.mark.parametrize(
    ("charset", "href", "path"),
    [
        ("windows-1251", "/при?q=при&x=%20y", "/%D0%BF%D1%80%D0%B8?q=%EF%F0%E8&x=%20y"),  # the query alone
        ("iso-8859-1", "/?é#é", "/?%E9"),
        ("shift_jis", "/?日 本", "/?%93%FA%20%96{"),
        ("gb2312", "/?中", "/?%D6%D0"),
        ("iso-2022-jp", "/?日", "/?%1B$BF|%1B(B"),
        ("windows-1251", "/?日=ж", "/?%26%2326085%3B=%E6"),  # not in the encoding: &#26085;
        ("utf-8", "/?é", "/?%C3%A9"),
        ("utf-16le", "/?é", "/?%C3%A9"),
        ("windows-1251", " /?\nq ", "/?q"),
        ("windows-1251", "\n/?при\t \n", "/?%EF%F0%E8"),
    ],
)
def test_a_query_is_in_the_encoding_of_its_page(charset: str, href: str, path: str) -> None:
    """https://url.spec.whatwg.org/#query-state and /#string-percent-encode-after-encoding."""
    html = f'<a href="{href}">x</a><link rel=canonical href="{href}">'
    text, codec = encoding.decode(html.encode(charset, "xmlcharrefreplace"), f"text/html; charset={charset}")
    document = parse.parse(text, "http://example.org/dir/page", "x", codec=codec)
    assert document.links == [document.canonical] == [urls.normalise(f"http://example.org{path}")]


PYTHON_KNOWS = {module.name for module in pkgutil.iter_modules(encodings.__path__)} | set(encodings.aliases.aliases)


def test_no_label_fails() -> None:
    for label in sorted(PYTHON_KNOWS | set(webencodings.LABELS)):
        for body in (b"abc", b"\xe9\x81\xff", bytes(range(256)), b"-\xff-9999999", b"\\ud800 \\N{x} +2AA-"):
            encoding.decode(body, f"text/html; charset={label}")[0].encode()  # whole characters, no surrogates
            encoding.decode(f"<meta charset={label}>".encode() + body, "")[0].encode()


@pytest.mark.parametrize(
    "label",
    ["utf-7", "unicode_escape", "idna", "punycode", "undefined", "hex", "hz-gb-2312", "replacement", "x-user-defined"],
)
def test_what_is_no_text_in_a_browser_counts_as_not_declared(label: str) -> None:
    assert encoding.decode("+2AA- \\u00e9 é".encode(), f"text/html; charset={label}")[0] == "+2AA- \\u00e9 é"


@pytest.mark.parametrize(
    ("head", "cyrillic"),
    [
        ('<meta charset="windows-1251">', True),
        ("<META name=x CHARSET = 'Windows-1251' />", True),
        ("<meta/charset=windows-1251>", True),
        ('<meta content="text/html; charset=windows-1251" http-equiv=Content-Type>', True),
        ('<meta http-equiv="content-type" content="text/html; CHARSET = windows-1251; x">', True),
        ("<meta charset=nonsense><meta charset=windows-1251>", True),
        ("<!-- <meta charset=utf-8> --><meta charset=windows-1251>", True),
        ("<!--><meta charset=windows-1251>", True),  # an empty comment
        ('<p title="<meta charset=utf-8>"><meta charset=windows-1251>', True),
        ("<p title=don't><meta charset=windows-1251>", True),
        ("<!doctype html><?x <meta ?></p <meta><meta charset=windows-1251>", True),
        ('<?xml version="1.0" encoding="windows-1251"?><html>', True),
        ('<?xml version="1.0" encoding="utf-8"?><meta charset=windows-1251>', True),
        ("<script src=x charset=utf-8></script>" * 5 + "<meta charset=windows-1251>", True),
        ('<meta name="description" content="in windows-1251: charset=windows-1251">', False),
        ('<meta http-equiv="refresh" content="text/html; charset=windows-1251">', False),
        ('<meta property="x" content="charset=windows-1251">', False),
        ("<!-- <meta charset=windows-1251> -->", False),
        ("<!-- <meta charset=windows-1251>", False),
        ("<metal charset=windows-1251>", False),
        ("<script charset=windows-1251></script>", False),
        ('<a title="<meta charset=windows-1251>">', False),
        ('<p>x</p><?xml version="1.0" encoding="windows-1251"?>', False),
        (" " * encoding.SCANNED + "<meta charset=windows-1251>", False),
    ],
)
def test_declared_in_the_page(head: str, cyrillic: bool) -> None:
    text, _ = encoding.decode(head.encode() + "ж".encode("cp1251"), "text/html")
    assert text == head + ("ж" if cyrillic else "æ")


@pytest.mark.parametrize(
    "piece",
    ["<!--", "<!--a--", "<meta ", '<meta a="', "<a='", "<a =\"x' ", "<!-->", "<?", "charset= ", "<meta a" + " " * 99],
)
def test_takes_linear_time(piece: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read to the square of its length each of these would take minutes."""
    monkeypatch.setattr(encoding, "SCANNED", 1_000_000)
    began = time.process_time()
    text = "<meta charset=x>" + piece * (1_000_000 // len(piece))
    encoding.decode(text.encode(), "text/html")
    encoding.decode(b"", text)
    assert time.process_time() - began < 5


def test_python_does_not_remember_every_name_it_was_asked_for() -> None:
    """It does so for names that it does not know, for as long as the process lives."""
    asked: list[str] = []
    codecs.register(asked.append)
    encoding.decode(b"<meta charset=no-such-1>", "text/html; charset=no-such-2")
    codecs.unregister(asked.append)
    assert asked == []


@given(st.binary(max_size=500), st.sampled_from(["text/html", "text/html; charset=utf-16", "text/html;charset=utf-7"]))
def test_no_garbage_breaks_it(body: bytes, content_type: str) -> None:
    text, codec = encoding.decode(body, content_type)
    document = parse.parse(text, "http://example.org/dir/page", "x", codec=codec)
    for link in document.links:
        assert urls.normalise(link) == link
