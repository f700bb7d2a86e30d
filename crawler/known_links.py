"""A bounded memory of links that the frontier already has: deduplication before the ledger, without the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from crawler.messages import Link


class KnownLinks:
    """Links that the frontier is known to have: the same menu on every page of a site should not cost a row each time.

    A link is entered once the report with it is confirmed, and displaced by another that falls on its place; so
    forgetting one costs work and never a URL. What is excluded on one page may be wanted from another, so that is told
    apart. The memory it takes is the same from the first link to the last.
    """

    PLACES = 1 << 18
    _KEY, _DEPTH = 16, 4
    """Bytes: a digest that no two links share, and how near to a seed the link was met."""

    def __init__(self) -> None:
        self._table = bytearray(self.PLACES * (self._KEY + self._DEPTH))

    def covers(self, job: str, link: Link) -> bool:
        """Whether the frontier has `link` already, from at least as near to a seed."""
        key, start = self._place(job, link)
        end = start + self._KEY
        known = int.from_bytes(self._table[end : end + self._DEPTH], "big")
        return self._table[start:end] == key and known <= link.depth

    def add(self, job: str, links: Iterable[Link]) -> None:
        for link in links:
            key, start = self._place(job, link)
            self._table[start : start + self._KEY + self._DEPTH] = key + link.depth.to_bytes(self._DEPTH, "big")

    def _place(self, job: str, link: Link) -> tuple[bytes, int]:
        key = hashlib.blake2b(f"{job} {bool(link.excluded):d} {link.url}".encode(), digest_size=self._KEY).digest()
        return key, int.from_bytes(key[:4], "big") % self.PLACES * (self._KEY + self._DEPTH)
