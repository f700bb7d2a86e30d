"""The links of one batch: cleaned, each once, judged by the job's limits, and not more than memory allows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from crawler import urls
from crawler.job import Job
from crawler.known_links import KnownLinks
from crawler.messages import Link

MAX_SIZE = 16_000_000
"""FoundLinks.size above which links are left out."""
_numbers = itertools.count(1)


class FoundLinks:
    """What one batch has found, and the frontier is not known to have."""

    def __init__(self, job: Job, growing: Callable[[int], None], known: KnownLinks | None = None) -> None:
        """`growing` is told `size` while it grows, and may raise. `known`: links to leave out."""
        self._job = job
        self._growing = growing
        self._known = known
        self._links: dict[str, Link] = {}
        self.number = next(_numbers)
        """Of this batch, in this process."""
        self.size = 0
        """In characters: of the URLs, of those of the pages that they are on, and 100 for each link."""
        self.left_out = 0
        """Links for which there was no room."""

    def all(self) -> list[Link]:
        """Each once, in the order in which they were found."""
        return list(self._links.values())

    def add_page(self, found: Iterable[str], depth: int, found_on: str) -> bool:
        """As `add`, of a page's links. Whether there was room for all of them."""
        left_out = self.left_out
        for url in found:
            self.add(url, depth, found_on)
        return self.left_out == left_out

    def add(
        self,
        url: str,
        depth: int,
        found_on: str,
        *,
        hops: int = 0,
        nested: int = 0,
        seed: bool = False,
        sitemap: bool = False,
        as_sent: bool = False,
    ) -> None:
        """Note a link to `url` (normalised). Of several to one URL the one counts that is in scope, or else nearer to a
        seed. A `seed`, or what a seed redirects to, is in scope whatever its host.

        `as_sent`: the URL is where a server redirects to, so not cleaned of the job's strip_parameters.
        """
        if not as_sent:
            url = self._job.cleaned(url)
        before = self._links.get(url)
        if before is not None:
            if before.depth <= depth and not (before.excluded and seed):
                return
        elif self._known is not None and self._known.covers(self._job.name, url, depth, False):
            return  # as one that is in scope: whatever is thought of it here, it stays so
        self._judge(url, depth, found_on, hops, nested, sitemap, seed)

    def _judge(
        self,
        url: str,
        depth: int,
        found_on: str,
        hops: int = 0,
        nested: int = 0,
        sitemap: bool = False,
        seed: bool = False,
    ) -> None:
        """Note a link that is new, or nearer than the one that was noted."""
        before = self._links.get(url)
        excluded = cause = None
        if not seed and (refusal := self._job.refusal(url, found_on, depth)):
            cause, excluded = refusal
            if before is None:
                if self._known is not None and self._known.covers(self._job.name, url, depth, True):
                    return
            elif not before.excluded:
                return
        size = len(url) + len(found_on) + 100
        if self.size + size > MAX_SIZE and before is None:
            self.left_out += 1
            return
        self.size += size
        self._growing(self.size)
        self._links[url] = Link(url, depth, found_on, hops, nested, sitemap, seed, excluded, cause)

    def add_written(self, address: str, file: str, *, nested: int = 0, sitemap: bool = False) -> None:
        """As `add`, at depth 0, of an address as it is written in `file`, a robots.txt or sitemap; one that is none is
        passed over."""
        try:
            url = urls.normalise(address, base=file)
        except urls.InvalidURLError:
            return
        self.add(url, 0, file, nested=nested, sitemap=sitemap)
