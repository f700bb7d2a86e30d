"""Traps by digest: a section of a large host whose new pages are copies of earlier ones is closed, and stays so until a
person opens it again (orders.retry), or describes the job with `traps: false`.

A section is what a URL's path says of where it stands on its host: its first folder (`/calendar/`), its first two
(`/en/calendar/`), and, with a query, its path (`/calendar.php?`). A page counts in each of its sections, as a copy if
its body was seen there before. A section is closed that has had RUN copies, and ALLOWANCE copies more for each page
that was none; the narrowest such one. Equal pages in two sections, as of a mirror, are no copies of one another.

Only first visits count, as later ones (`recrawl`) are meant to find the same; and only on hosts that have given
WATCH_FROM pages: others cost no row and no statement. What is kept of a host is bounded, so that the part of a site
which has more than MEMORY different pages before it repeats itself is not found out; nor are pages that differ by a
timestamp. Seeds, which a person has named, are fetched in a closed section as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import traps

WATCH_FROM = 100
"""Pages of a host from which on it is watched."""
RUN, ALLOWANCE = 200, 20
"""Copies that close a section; and how many of them a page takes back that is none."""
MEMORY = 1000
"""Bodies remembered of a host, each once for each of its sections: those seen last."""
MAX_RUNS, MAX_CLOSED = 64, 100
"""Sections of a host that are counted, and closed, at most."""

Key = tuple[int, str]
"""A job_id and a host."""
Closing = tuple[int, str, str]
"""A job_id, a host, and a section of it."""


def sections_of(url: str) -> list[str]:
    """The sections that a normalised `url` stands in, the widest first."""
    path, query, _ = url_rules.path_of(url).partition("?")
    folders = path.split("/")[1:-1]
    sections = ["/".join(("", *folders[:depth], "")) for depth in (1, 2) if len(folders) >= depth]
    return [*sections, path + query] if query else sections


def observe(ledger: Ledger, tx: Connection, fetched: dict[Key, list[tuple[str, str]]]) -> list[Closing]:
    """Take in first visits, (URL, digest) by job and host; returns the sections that are to be closed for it. Locks
    rows of traps, by primary key. Not idempotent: given what a lease in force has brought, so once."""
    if not fetched:
        return []
    keys = [{"job_id": job_id, "host": host} for job_id, host in sorted(fetched)]
    given = ledger.given(keys, traps.c.job_id, traps.c.host)
    here = sa.and_(traps.c.job_id == given.c.job_id, traps.c.host == given.c.host)
    chosen = sa.select(traps).join(given, here).order_by(traps.c.job_id, traps.c.host)
    known = {(row.job_id, row.host): _Watched.read(row) for row in tx.execute(chosen.with_for_update(of=traps))}
    closings: list[Closing] = []
    rows = []
    for (job_id, host), pages in sorted(fetched.items()):
        watched = known.get((job_id, host)) or _Watched({}, {}, {})
        closings += [(job_id, host, section) for url, digest in pages for section in watched.take_in(url, digest)]
        rows.append({"job_id": job_id, "host": host, **watched.written()})
    ledger.run(tx, _write, rows)
    return closings


def _write(ledger: Ledger) -> Any:
    names = ("seen", "runs", "closed")
    statement = ledger.insert_given(traps, ("job_id", "host", *names))
    new = {name: statement.excluded[name] for name in names}
    return statement.on_conflict_do_update(index_elements=["job_id", "host"], set_=new)


def closed(ledger: Ledger, tx: Connection, keys: Iterable[Key]) -> dict[Key, dict[str, str]]:
    """The closed sections of hosts, with why each is. By primary key; locks nothing."""
    rows = [{"job_id": job_id, "host": host} for job_id, host in sorted(keys)]
    if not rows:
        return {}
    given = ledger.given(rows, traps.c.job_id, traps.c.host)
    here = sa.and_(traps.c.job_id == given.c.job_id, traps.c.host == given.c.host)
    chosen = sa.select(traps.c.job_id, traps.c.host, traps.c.closed).join(given, here)
    found = tx.execute(chosen.where(traps.c.closed.is_not(None)))
    return {(row.job_id, row.host): json.loads(row.closed) for row in found}


def of_job(tx: Connection, job_id: int, hosts: int) -> list[tuple[str, str, str]]:
    """The closed sections of a job on the first of its hosts: (host, section, why). Reads the job's part of the primary
    key."""
    chosen = sa.select(traps.c.host, traps.c.closed).where(traps.c.job_id == job_id, traps.c.closed.is_not(None))
    found = tx.execute(chosen.order_by(traps.c.host).limit(hosts)).all()
    return [(row.host, section, why) for row in found for section, why in json.loads(row.closed).items()]


def reopen(tx: Connection, job_id: int, text: str) -> int:
    """Open those closed sections of a job again in whose reasons `text` is; returns how many there were. They are
    watched as before, so one that brings RUN copies more is closed again. Idempotent; locks rows of traps."""
    here = sa.and_(traps.c.job_id == job_id, traps.c.closed.is_not(None))
    number = 0
    for row in tx.execute(sa.select(traps).where(here).order_by(traps.c.host).with_for_update()).all():
        every = json.loads(row.closed)
        left = {section: why for section, why in every.items() if text not in why}
        number += len(every) - len(left)
        this = sa.and_(traps.c.job_id == job_id, traps.c.host == row.host)
        tx.execute(traps.update().where(this).values(closed=json.dumps(left) if left else None))
    return number


def below(column: sa.ColumnElement[str], host: str, section: str) -> sa.ColumnElement[bool]:
    """Whether a URL stands in a section of a host."""
    return sa.or_(*(begins(column, f"{scheme}://{host}{section}") for scheme in ("http", "https")))


def begins(column: sa.ColumnElement[str], prefix: str) -> sa.ColumnElement[bool]:
    """Whether a text begins with a prefix. Not by LIKE, which takes capitals for small letters on SQLite."""
    return sa.func.substr(column, 1, len(prefix)) == prefix


@dataclass
class _Watched:
    """A row of traps, read."""

    seen: dict[int, None]
    """Hashes of a section and a body each; what was seen last is last."""
    runs: dict[str, list[int]]
    """Copies, and pages that were none, by section, since the former outweigh the latter."""
    closed: dict[str, str]

    @classmethod
    def read(cls, row: Any) -> _Watched:
        seen = array("I", base64.b64decode(row.seen))
        return cls(dict.fromkeys(seen), json.loads(row.runs), json.loads(row.closed or "{}"))

    def written(self) -> dict[str, Any]:
        seen = base64.b64encode(array("I", list(self.seen)[-MEMORY:]).tobytes()).decode()
        most = sorted(self.runs, key=lambda section: _outweighing(self.runs[section]))[-MAX_RUNS:]
        runs = {section: self.runs[section] for section in most}
        return {"seen": seen, "runs": json.dumps(runs), "closed": json.dumps(self.closed) if self.closed else None}

    def take_in(self, url: str, digest: str) -> list[str]:
        """Count a page; returns the section, if any, that is closed for it."""
        sections = sections_of(url)
        if any(section in self.closed for section in sections):
            return []
        for section in sections:
            key = int.from_bytes(hashlib.blake2b(f"{digest}{section}".encode(), digest_size=4).digest(), "big")
            if key in self.seen:
                del self.seen[key]  # to be the last again
                self.runs.setdefault(section, [0, 0])[0] += 1
            elif section in self.runs:
                self.runs[section][1] += 1
                if _outweighing(self.runs[section]) <= 0:
                    del self.runs[section]
            self.seen[key] = None
        full = [section for section in sections if _outweighing(self.runs.get(section, (0, 0))) >= RUN]
        return [self._close(sections, full[-1])] if full and len(self.closed) < MAX_CLOSED else []

    def _close(self, sections: list[str], section: str) -> str:
        copies, others = self.runs.pop(section)
        number = f"the last {copies}" if not others else f"{copies} of the last {copies + others}"
        self.closed[section] = f"trap: {number} pages below {section} had been seen before"
        # Half of that speaks against the folder above as well: the second such section closes it.
        for wider in sections[: sections.index(section)]:
            if wider in self.runs:
                self.runs[wider] = [min(self.runs[wider][0], RUN // 2), 0]
        return section


def _outweighing(run: Any) -> int:
    copies, others = run
    return int(copies - ALLOWANCE * others)
