"""A bounded memory of links that the frontier already has: deduplication before the ledger, without the ledger."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from crawler.messages import Link


class KnownLinks:
    """Links that the frontier is known to have: the same menu on every page of a site should not cost a row each time.

    A link is entered once the report with it is confirmed, and displaced by another that falls on its place; so
    forgetting one costs work and never a URL. What is excluded on one page may be wanted from another, so that is told
    apart. The memory it takes is the same from the first link to the last.

    A link's place and key are Python's own hash of it: SipHash under a secret of this process (PEP 456), so no site can
    choose links that displace each other, or others'. Two links are taken for one once in 2**46 looks.
    """

    PLACES = 1 << 18

    def __init__(self) -> None:
        self._keys = array("q", bytes(8 * self.PLACES))
        self._depths = array("I", bytes(4 * self.PLACES))
        """How near to a seed each was met."""

    def covers(self, job: str, url: str, depth: int, excluded: bool) -> bool:
        """Whether the frontier has a link to `url` already, from at least as near to a seed."""
        key = hash((job, excluded, url))
        place = key % self.PLACES
        return self._keys[place] == key and self._depths[place] <= depth

    def add(self, job: str, links: Iterable[Link]) -> None:
        for link in links:
            key = hash((job, link.excluded is not None, link.url))
            place = key % self.PLACES
            self._keys[place], self._depths[place] = key, link.depth
