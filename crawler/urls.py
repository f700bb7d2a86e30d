"""URLs after the WHATWG standard (ada-url): one spelling per address, and the host that politeness is kept for."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import lru_cache

import ada_url

MAX_LENGTH = 2000
"""Longest URL taken, in characters. Longer ones are traps far more often than pages, and PostgreSQL's B-tree keys end
at 2,700 bytes."""
MAX_HOST = 253
"""Longest host name, in characters: what DNS can carry (RFC 1035). The ledger's key holds the host and the URL."""
MAX_SEGMENTS, MAX_REPEATS, MAX_PARAMETERS = 30, 3, 20
"""Path segments, occurrences of one segment, and query parameters above which a URL counts as a trap."""


class InvalidURLError(ValueError):
    """Not an address this crawler can fetch; the message says why."""


def normalise(url: str, base: str | None = None) -> str:
    r"""The one spelling of `url` (relative to `base`, if given) under which the ledger knows it.

    WHATWG parsing gives lower-case scheme and host, punycode, no default port and no dot segments; percent-encoding
    is made uniform after RFC 3986, section 6.2.2; the fragment is dropped, since it never reaches the server. What goes
    out on the wire is this spelling, so it departs from WHATWG's twice:

    * what browsers send raw though RFC 3986 does not allow it (``|[]^`{}\`` and a lone ``%``) is escaped: every server
      reads that, some (Tomcat, nginx) answer 400 to the other, and urllib3 would escape it behind our back;
    * the dot of a fully qualified host goes: it names the same machine, which is to be asked at one pace.

    Raises InvalidURLError for anything that is not http(s) with a host, or is longer than MAX_LENGTH.
    Source: https://url.spec.whatwg.org/
    """
    try:
        absolute = ada_url.join_url(base, url) if base else ada_url.normalize_url(url.strip())
    except ValueError:
        raise InvalidURLError("not a URL") from None
    absolute, _, _ = absolute.partition("#")
    if not absolute.startswith(("http://", "https://")):
        raise InvalidURLError(f"scheme {absolute.partition(':')[0]!r} is not http or https")
    if len(absolute) > 3 * MAX_LENGTH:  # however much of it is escaped
        raise InvalidURLError(f"longer than {MAX_LENGTH} characters")
    path = absolute.index("/", 8)
    if _UNEVEN.search(absolute, path):
        absolute = absolute[:path] + _UNEVEN.sub(_even, absolute[path:])
    if len(absolute) > MAX_LENGTH:
        raise InvalidURLError(f"longer than {MAX_LENGTH} characters")
    origin = absolute[:path]
    if "@" in origin:
        raise InvalidURLError("carries a user name or password")
    if origin[-1] == "." or ".:" in origin:
        origin = _without_final_dot(origin)
        absolute = origin + absolute[path:]
    if path > MAX_HOST and len(origin.partition("//")[2].partition(":")[0]) > MAX_HOST:
        raise InvalidURLError(f"host longer than {MAX_HOST} characters")
    return absolute


def _without_final_dot(origin: str) -> str:
    scheme, slashes, host = origin.partition("//")
    name, colon, port = host.partition(":")
    name = name.removesuffix(".")
    if not name or name[-1] == ".":
        raise InvalidURLError(f"host {host!r} has an empty label")
    return scheme + slashes + name + colon + port


# What has to be escaped, and escapes that are none, in lower case, or of unreserved characters; all others are in order
# and passed over. The character class comes first since the search is twice as fast with it.
_UNEVEN = re.compile(
    r"[%|\[\]^`{}\\](?:(?<!%)|(?!2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF]|[0189A-F][0-9A-F])([0-9A-Fa-f]{2})?)"
)
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")


def _even(found: re.Match[str]) -> str:
    if not found[1]:
        return f"%{ord(found[0]):02X}"
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()


def without_parameters(url: str, is_stripped: Callable[[str], bool]) -> str:
    """A normalised `url` less the parameters ("name" or "name=value") of which `is_stripped` is true: in its query, and
    those after a ";" in any segment of its path (RFC 3986, section 3.3)."""
    path, mark, query = url.partition("?")
    if mark:
        query = "&".join([part for part in query.split("&") if not is_stripped(part)])
    if ";" in path:
        path = "/".join([_without_path_parameters(segment, is_stripped) for segment in path.split("/")])
    return f"{path}?{query}" if query else path


def _without_path_parameters(segment: str, is_stripped: Callable[[str], bool]) -> str:
    name, *parameters = segment.split(";")
    return ";".join([name, *(part for part in parameters if not is_stripped(part))])


def trap(url: str) -> str | None:
    """Why a normalised `url` looks like one of endlessly many, made by a program for programs; None if it does not."""
    if "&" not in url and url.count("/") < MAX_REPEATS + 3:  # of which two stand before the host: too few for any
        return None
    path, _, query = path_of(url).partition("?")
    segments = [segment for segment in path.split("/") if segment]
    if len(segments) > MAX_SEGMENTS:
        return f"trap: more than {MAX_SEGMENTS} path segments"
    if len(segments) > MAX_REPEATS and max(map(segments.count, segments)) > MAX_REPEATS:
        return f"trap: a path segment more than {MAX_REPEATS} times"
    if query.count("&") >= MAX_PARAMETERS:
        return f"trap: more than {MAX_PARAMETERS} parameters"
    return None


def host_of(url: str) -> str:
    """The host (with its port, unless default) of a normalised URL: the unit of politeness."""
    return url.split("/", 3)[2]


def origin_of(url: str) -> str:
    """Scheme and host of a normalised URL: what one robots.txt speaks for (RFC 9309, section 2.3)."""
    return "/".join(url.split("/", 3)[:3])


def name_and_port_of(url: str) -> tuple[str, int]:
    """The host's name, or its address without brackets, and the port of a normalised URL, or of its origin."""
    scheme, _, host = url.split("/", 3)[:3]
    name, _, port = host.rpartition(":") if host[-1] != "]" and ":" in host else (host, "", "")
    return name.strip("[]"), int(port or (443 if scheme == "https:" else 80))


def path_of(url: str) -> str:
    """Path and query of a normalised URL, as sent in a request line."""
    return "/" + url.split("/", 3)[3]


@lru_cache(maxsize=65536)
def domain_of(host: str) -> str:
    """The registrable domain `host` belongs to, by the Public Suffix List; the host itself where there is none, as for
    an IP address."""
    if host.startswith("["):
        return host
    name = host.partition(":")[0]
    if name.rpartition(".")[2].isdigit():
        return name
    return _public_suffixes().privatesuffix(name) or name


@lru_cache(maxsize=1)
def _public_suffixes():  # type: ignore[no-untyped-def]  # the library has no types
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()
