"""The links of one batch: cleaned, judged by the job's limits, each once, and not more than memory allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from crawler import urls
from crawler.job import Job
from crawler.messages import Cause, Link

MAX_SIZE = 16_000_000
"""FoundLinks.size above which links are left out."""


class FoundLinks:
    """What one batch has found."""

    def __init__(self, job: Job, growing: Callable[[int], None]) -> None:
        """`growing` is told `size` while it grows, and may raise."""
        self._job = job
        self._growing = growing
        self._links: dict[str, Link] = {}
        self.size = 0
        """In characters: of the URLs, of those of the pages that they are on, and 100 for each link."""
        self.left_out = 0
        """Links for which there was no room."""

    def all(self) -> list[Link]:
        """Each once, in the order in which they were found."""
        return list(self._links.values())

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
        known = self._links.get(url)
        if known and known.depth <= depth and not (known.excluded and seed):
            return
        refusal = None if seed else self._job.refusal(url, found_on, depth)
        if known and refusal and not known.excluded:
            return
        size = len(url) + len(found_on) + 100
        if self.size + size > MAX_SIZE and not known:
            self.left_out += 1
            return
        self.size += size
        self._growing(self.size)
        # Only what is not a default: pydantic keeps the names of the fields that were given, 0.5 KB of them.
        way: dict[str, Any] = {}
        if hops or nested or sitemap or seed:
            way = {"hops": hops, "nested": nested, "sitemap": sitemap, "seed": seed}
        if refusal:
            way |= {"excluded": refusal.reason, "cause": Cause(refusal.cause)}
        self._links[url] = Link(url=url, depth=depth, found_on=found_on, **way)

    def add_written(self, address: str, file: str, *, nested: int = 0, sitemap: bool = False) -> None:
        """As `add`, at depth 0, of an address as it is written in `file`, a robots.txt or sitemap; one that is none is
        passed over."""
        try:
            url = urls.normalise(address, base=file)
        except urls.InvalidURLError:
            return
        self.add(url, 0, file, nested=nested, sitemap=sitemap)
