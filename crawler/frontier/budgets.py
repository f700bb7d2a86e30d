"""Budgets: what parts of a job's web take no more URLs, as they have given all the pages the job wants of them
(`max_pages_per_domain`, `max_pages_per_prefix`), or are closed as traps.

The pages of a domain are the sum over its hosts in host_queues, of which `lease` notes the domain: no second count that
could differ. Those below a prefix are counted in `budgets` where a page is finished, and counted anew by a sweep where
another description brings other prefixes; the job leases nothing meanwhile.
"""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import traps
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import COUNTED, budgets, host_queues, jobs, leases, urls
from crawler.job import Job
from crawler.messages import Cause, Link

Changes = Counter[tuple[int, str]]
"""Pages more, or fewer, by job_id and prefix."""
Key = tuple[int, str]
"""A job_id, and a host or a domain."""


class Refusal(NamedTuple):
    """Why a URL is not fetched any more."""

    cause: Cause
    reason: str
    within: str | None = None
    """The prefix or section for which that is so."""


class Use(NamedTuple):
    """What of a domain's budget is used."""

    pages: int
    leased: int


@dataclass
class Part:
    """A job, of some of its hosts."""

    job: Job
    trapped: bool
    """Whether it may have closed sections."""
    hosts: set[str] = field(default_factory=set)
    full_domains: set[str] = field(default_factory=set)
    pages: dict[str, int] = field(default_factory=dict)
    """By prefix."""
    closed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Sections, and why, by host."""

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to ask the ledger for."""
        return bool(self.trapped or self.job.max_pages_per_domain or self.job.max_pages_per_prefix)

    def refusal(self, url: str, seed: bool) -> Refusal | None:
        """Why a normalised `url` of one of the hosts is not fetched, unless it has been a page before."""
        host = url_rules.host_of(url)
        if self.full_domains and url_rules.domain_of(host) in self.full_domains:
            return Refusal(Cause.MAX_PAGES_PER_DOMAIN, "max_pages_per_domain reached")
        for prefix in self.job.budgets(url):
            if refused := self.full_prefix(prefix):
                return refused
        if not seed and host in self.closed:
            for section in traps.sections_of(url):
                if refused := self.closed_section(host, section):
                    return refused
        return None

    def full_prefix(self, prefix: str) -> Refusal | None:
        """Why nothing more is fetched below a prefix."""
        most = self.job.max_pages_per_prefix.get(prefix)
        if most is None or self.pages.get(prefix, 0) < most:
            return None
        return Refusal(Cause.MAX_PAGES_PER_PREFIX, f"max_pages_per_prefix reached: {prefix}", prefix)

    def closed_section(self, host: str, section: str) -> Refusal | None:
        """Why nothing more is fetched in a section of a host."""
        reason = self.closed.get(host, {}).get(section)
        return None if reason is None else Refusal(Cause.TRAP, reason, section)


def read(ledger: Ledger, tx: Connection, parts: dict[int, Part]) -> None:
    """Fill in, by job_id, what the parts of jobs take no more of. A statement each for domains, prefixes and sections,
    where a job asks for it; locks nothing."""
    of_domains = {
        (job_id, url_rules.domain_of(host))
        for job_id, part in parts.items()
        if part.job.max_pages_per_domain is not None
        for host in part.hosts
    }
    for (job_id, domain), use in used(ledger, tx, of_domains).items():
        if use.pages >= (parts[job_id].job.max_pages_per_domain or 0):
            parts[job_id].full_domains.add(domain)
    if with_prefixes := [job_id for job_id, part in parts.items() if part.job.max_pages_per_prefix]:
        chosen = sa.select(budgets.c.job_id, budgets.c.prefix, budgets.c.pages)
        for row in tx.execute(chosen.where(budgets.c.job_id.in_(with_prefixes))):
            parts[row.job_id].pages[row.prefix] = row.pages
    trapped = [job_id for job_id, part in parts.items() if part.trapped and part.job.traps]
    of_trapped = {(job_id, host) for job_id in trapped for host in parts[job_id].hosts}
    for (job_id, host), sections in traps.closed(ledger, tx, of_trapped).items():
        parts[job_id].closed[host] = sections


def used(ledger: Ledger, tx: Connection, domains: Iterable[Key]) -> dict[Key, Use]:
    """What of the budgets of domains is used. Index host_queues_counted: reads no more rows of a domain than it has
    pages and leases. One that was a page before and is leased counts twice, until it is back."""
    rows = [{"job_id": job_id, "domain": domain} for job_id, domain in sorted(domains)]
    if not rows:
        return {}
    queue = host_queues.c
    given = ledger.given(rows, queue.job_id, queue.domain)
    here = sa.and_(queue.job_id == given.c.job_id, queue.domain == given.c.domain)
    sums = (sa.func.sum(queue.done + queue.again).label("pages"), sa.func.sum(queue.leased).label("leased"))
    chosen = sa.select(queue.job_id, queue.domain, *sums).join(given, here).where(COUNTED)
    found = tx.execute(chosen.group_by(queue.job_id, queue.domain))
    return {(row.job_id, row.domain): Use(int(row.pages), int(row.leased)) for row in found}


def keep_out(part: Part, links: Iterable[Link]) -> list[Link]:
    """`links`, those that the part takes no more of as excluded ones."""
    judged = []
    for link in links:
        refusal = None if link.excluded else part.refusal(link.url, link.seed)
        judged.append(link if refusal is None else replace(link, excluded=refusal.reason, cause=refusal.cause))
    return judged


def note(ledger: Ledger, tx: Connection, changes: Changes, described: dict[int, Job]) -> list[tuple[int, str]]:
    """Add to the pages below prefixes; returns the prefixes, by job_id, that have given all their pages by that. Locks
    the rows, by key. Not idempotent, as moves.apply."""
    rows = [
        {"job_id": job_id, "host": url_rules.host_of(prefix), "prefix": prefix, "pages": number}
        for (job_id, prefix), number in changes.items()
        if number
    ]
    if not rows:
        return []
    rows.sort(key=lambda row: (row["job_id"], row["host"], row["prefix"]))
    full = []
    for row in ledger.run(tx, _add, rows):
        key = (row.job_id, row.prefix)
        if row.pages >= described[row.job_id].max_pages_per_prefix[row.prefix] > row.pages - changes[key]:
            full.append(key)
    return full


def _add(ledger: Ledger) -> Any:
    statement = ledger.insert_given(budgets, ("job_id", "host", "prefix", "pages"))
    added = statement.on_conflict_do_update(
        index_elements=["job_id", "host", "prefix"], set_={"pages": budgets.c.pages + statement.excluded.pages}
    )
    return added.returning(budgets.c.job_id, budgets.c.prefix, budgets.c.pages)


def note_gone(ledger: Ledger, tx: Connection, gone: list[tuple[int, str]]) -> None:
    """Take URLs (by job_id) that were pages before, and have failed, from the pages below prefixes. As `note`."""
    if not gone:
        return
    chosen = sa.select(jobs.c.job_id, jobs.c.spec).where(jobs.c.job_id.in_({job_id for job_id, _ in gone}))
    described = {}
    for job_id, spec in tx.execute(chosen):
        with contextlib.suppress(UnreadableJobError):
            described[job_id] = job_of(spec)
    changes: Changes = Counter()
    for job_id, url in gone:
        if job_id in described:
            changes.subtract((job_id, prefix) for prefix in described[job_id].budgets(url))
    note(ledger, tx, changes, described)


def leased_below(
    ledger: Ledger, tx: Connection, keys: Iterable[Key], described: dict[int, Job]
) -> Counter[tuple[int, str]]:
    """URLs under way, of jobs and hosts, that have not been pages before, by job_id and prefix. Index on leases.host,
    then urls_leased. To be read before the pages: what is finished in between then counts twice, and never not."""
    rows = [{"job_id": job_id, "host": host} for job_id, host in sorted(keys)]
    number: Counter[tuple[int, str]] = Counter()
    if not rows:
        return number
    given = ledger.given(rows, leases.c.job_id, leases.c.host)
    chosen = (
        sa.select(urls.c.job_id, urls.c.url)
        .select_from(given)
        .join(leases, sa.and_(leases.c.host == given.c.host, leases.c.job_id == given.c.job_id))
        .join(urls, urls.c.lease == leases.c.lease)
        .where(urls.c.state == "leased", sa.not_(urls.c.was_done))
    )
    for job_id, url in tx.execute(chosen):
        number.update((job_id, prefix) for prefix in described[job_id].budgets(url))
    return number


def count(tx: Connection, job_id: int, prefix: str) -> None:
    """Count the pages below a prefix anew. Reads the host's URLs; nobody may lease or record any meanwhile."""
    host = url_rules.host_of(prefix)
    is_page = sa.or_(urls.c.state == "done", sa.and_(urls.c.was_done, urls.c.state.in_(("queued", "leased"))))
    here = sa.and_(urls.c.job_id == job_id, urls.c.host == host, traps.begins(urls.c.url, prefix), is_page)
    pages = tx.execute(sa.select(sa.func.count()).select_from(urls).where(here)).scalar_one()
    key = {"job_id": job_id, "host": host, "prefix": prefix}
    tx.execute(budgets.delete().where(*(budgets.c[name] == value for name, value in key.items())))
    tx.execute(budgets.insert().values(**key, pages=pages))


class Rooms:
    """How many URLs that have not been pages before may be leased below each prefix, of the hosts of one call."""

    def __init__(self, parts: dict[int, Part], leased: Counter[tuple[int, str]]) -> None:
        self._parts = parts
        self._left: dict[tuple[int, str], int] = defaultdict(int)
        for job_id, part in parts.items():
            for prefix, most in part.job.max_pages_per_prefix.items():
                self._left[job_id, prefix] = most - part.pages.get(prefix, 0) - leased[job_id, prefix]

    def take(self, job_id: int, url: str) -> bool:
        """Whether there is room for a URL; if so, it is taken."""
        prefixes = self._parts[job_id].job.budgets(url)
        if any(self._left[job_id, prefix] <= 0 for prefix in prefixes):
            return False
        for prefix in prefixes:
            self._left[job_id, prefix] -= 1
        return True
