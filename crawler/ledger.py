"""The frontier's memory: every URL a job ever saw, in exactly one state. PostgreSQL in the fleet, SQLite embedded.

    discovered = queued + leased + done + failed + excluded        (per job, at every commit)

Each public method is one transaction, and each may be repeated: a message seen twice changes nothing. All times are
seconds since the epoch and come in as `now`. Every primary key of what grows with the crawl holds the host, so that the
tables can be sharded by host.

Locks are always taken in the order urls -> leases -> frontier -> hosts -> workers, and within a table by key, so that
recorders and the scheduler cannot wait for each other in a circle.
"""

from __future__ import annotations

import json
import random
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from crawler import urls as url_rules
from crawler.job import Job
from crawler.messages import TERMINAL, Admission, Batch, Link, Report, RobotsFile, Target

MAX_BATCH = 50
"""URLs in a batch at most."""
BATCH_SECONDS = 45.0
"""Seconds of fetching a batch is cut for."""
LEASE_SECONDS = 600.0
"""How long a batch may be away: in the broker, at a worker, and back. Then its URLs are queued again."""
LEASE_MARGIN = 60.0
"""Seconds before a lease's end at which a worker stops fetching for it: more than any two clocks here differ."""
BACK_OFF_FIRST, BACK_OFF_MAX = 5.0, 3600.0
"""Seconds a failing host is left alone: the first time, and at most."""
MAX_HOST_FAILURES = 8
"""Failures in a row (some 20 minutes, with the back-off) after which a host is given up for this job."""

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),  # running | paused | cancelled | done
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("finished_at", sa.Float(53)),
)

seedings = sa.Table(
    "seedings",  # one row per piece of a seeding that has arrived
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("seeding", sa.Text, primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True),
    sa.Column("chunks", sa.Integer),  # in the last piece: how many there are
)

urls = sa.Table(
    "urls",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("hops", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("found_on", sa.Text),
    sa.Column("discovered_at", sa.Float(53), nullable=False),
    sa.Column("lease", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("status", sa.Integer),
    sa.Column("title", sa.Text),
    sa.Column("content_type", sa.Text),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("digest", sa.Text),
    sa.Column("seconds", sa.Float),
    sa.Column("fetched_at", sa.Float(53)),
    sa.Column("worker", sa.Text),
    sa.Column("release", sa.Text),
)
sa.Index(
    "urls_queued",  # the order in which a host's URLs are leased: breadth first
    urls.c.job_id,
    urls.c.host,
    urls.c.depth,
    urls.c.attempts,
    urls.c.discovered_at,
    postgresql_where=urls.c.state == "queued",
    sqlite_where=urls.c.state == "queued",
)
sa.Index("urls_leased", urls.c.lease, postgresql_where=urls.c.state == "leased", sqlite_where=urls.c.state == "leased")

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Integer, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("deadline", sa.Float(53), nullable=False, index=True),
)

frontier = sa.Table(
    "frontier",  # one row per job and host: the counts, and when the host is due
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    *(sa.Column(state, sa.BigInteger, nullable=False, default=0) for state in ("queued", "leased", *TERMINAL)),
    sa.Column("next_due", sa.Float(53), nullable=False),
)
sa.Index(
    "frontier_due",
    frontier.c.next_due,
    postgresql_where=frontier.c.queued > 0,
    sqlite_where=frontier.c.queued > 0,
)
sa.Index("frontier_host", frontier.c.host)

hosts = sa.Table(
    "hosts",  # politeness, shared by all jobs, so that it survives any restart
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("next_due", sa.Float(53), nullable=False),
    sa.Column("failures", sa.Integer, nullable=False, default=0),  # in a row
    sa.Column("failure", sa.Text),
    sa.Column("robots", sa.Text),  # JSON: origin -> RobotsFile
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("worker", sa.Text, primary_key=True),
    sa.Column("pages", sa.BigInteger, nullable=False),
    sa.Column("first_at", sa.Float(53), nullable=False),
    sa.Column("last_at", sa.Float(53), nullable=False),
)

progress = sa.Table(
    "progress",  # samples of each running job's done count, for rates
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float(53), primary_key=True),
    sa.Column("done", sa.BigInteger, nullable=False),
)

STATES = ("queued", "leased", *TERMINAL)
Rank = tuple[int, str]  # (job_id, host)


class Ledger:
    """The ledger behind an SQLAlchemy engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._postgresql = engine.dialect.name == "postgresql"
        self._insert: Callable[..., Any] = postgresql.insert if self._postgresql else sqlite.insert

    @classmethod
    def open(cls, url: str) -> Ledger:
        """The ledger at an SQLAlchemy database URL."""
        engine = sa.create_engine(url, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":

            @sa.event.listens_for(engine, "connect")
            def _fast_and_safe(connection: Any, _: Any) -> None:
                # WAL with NORMAL loses nothing that was committed when the process dies, only when the power does.
                connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")

        return cls(engine)

    def create(self) -> bool:
        """Create what is missing of the schema. True if anything was."""
        before = set(sa.inspect(self.engine).get_table_names())
        metadata.create_all(self.engine)
        return before != set(sa.inspect(self.engine).get_table_names())

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    # --- in: seeds ------------------------------------------------------------------------------------------------

    def admit(self, admission: Admission, now: float) -> int:
        """Take in a piece of a seeding; returns how many URLs were new. A job that was done runs again."""
        with self._transaction() as tx:
            job_id = self._job_id(tx, admission.job, now)
            arrived: int = tx.execute(
                self._insert(seedings)
                .values(job_id=job_id, seeding=admission.seeding, chunk=admission.chunk, chunks=admission.chunks)
                .on_conflict_do_nothing()
            ).rowcount
            if not arrived:
                return 0
            links = [Link(url=url, depth=0) for url in admission.urls]
            moves: dict[Rank, Counter[str]] = defaultdict(Counter)
            new = self._insert_links(tx, job_id, links, moves, now)
            self._apply(tx, moves, now)
            return new

    def _job_id(self, tx: Connection, job: Job, now: float) -> int:
        spec = job.model_dump_json()
        statement = self._insert(jobs).values(name=job.name, spec=spec, state="running", created_at=now)
        # The latest description counts: re-running a job with a larger limit goes on from where it stopped.
        tx.execute(
            statement.on_conflict_do_update(
                index_elements=["name"],
                set_={
                    "spec": spec,
                    "state": sa.case((jobs.c.state == "done", "running"), else_=jobs.c.state),
                    "finished_at": None,
                },
                where=sa.or_(jobs.c.spec != spec, jobs.c.state == "done"),
            )
        )
        return int(tx.execute(sa.select(jobs.c.job_id).where(jobs.c.name == job.name)).scalar_one())

    def _insert_links(
        self, tx: Connection, job_id: int, links: Iterable[Link], moves: dict[Rank, Counter[str]], now: float
    ) -> int:
        """Insert what is new of `links`, noting it in `moves`; returns how many were."""
        rows = {
            link.url: {
                "job_id": job_id,
                "host": url_rules.host_of(link.url),
                "url": link.url,
                "state": "excluded" if link.excluded else "queued",
                "reason": link.excluded,
                "depth": link.depth,
                "hops": link.hops,
                "attempts": 0,
                "found_on": link.found_on,
                "discovered_at": now,
            }
            for link in links
        }
        if not rows:
            return 0
        ordered = sorted(rows.values(), key=lambda row: (row["host"], row["url"]))
        statement = self._insert(urls).on_conflict_do_nothing().returning(urls.c.host, urls.c.state)
        new = 0
        for host, state in tx.execute(statement, ordered):
            moves[job_id, host][state] += 1
            new += 1
        return new

    def _apply(self, tx: Connection, moves: dict[Rank, Counter[str]], now: float) -> None:
        """Add the changes of state in `moves` to the counts. The same transaction made the changes themselves."""
        ranks = sorted(rank for rank, counts in moves.items() if any(counts.values()))
        if not ranks:
            return
        statement = self._insert(frontier)
        added = {state: frontier.c[state] + statement.excluded[state] for state in STATES}
        tx.execute(
            statement.on_conflict_do_update(index_elements=["job_id", "host"], set_=added),
            [
                {"job_id": job_id, "host": host, "next_due": now, **{s: moves[job_id, host][s] for s in STATES}}
                for job_id, host in ranks
            ],
        )
        tx.execute(
            self._insert(hosts).on_conflict_do_nothing(),
            [{"host": host, "next_due": now, "failures": 0} for host in sorted({host for _, host in ranks})],
        )

    # --- out: leases ----------------------------------------------------------------------------------------------

    def lease(self, limit: int, now: float) -> list[Batch]:
        """Lease up to `limit` batches of hosts that are due, the longest-waiting first. A host has at most one batch
        away over all jobs (or its job's `connections`)."""
        batches = []
        with self._transaction() as tx:
            due = tx.execute(
                sa.select(frontier.c.job_id, frontier.c.host)
                .join(jobs, jobs.c.job_id == frontier.c.job_id)
                .where(frontier.c.queued > 0, frontier.c.next_due <= now, jobs.c.state == "running")
                .order_by(frontier.c.next_due)
                .limit(limit)
            ).all()
            for job_id, host in due:
                if batch := self._lease_host(tx, job_id, host, now):
                    batches.append(batch)
        return batches

    def _lease_host(self, tx: Connection, job_id: int, host: str, now: float) -> Batch | None:
        politeness = tx.execute(sa.select(hosts).where(hosts.c.host == host)).one()
        spec = tx.execute(sa.select(jobs.c.spec).where(jobs.c.job_id == job_id)).scalar_one()
        job = Job.model_validate_json(spec)
        away = tx.execute(sa.select(sa.func.count()).where(leases.c.host == host)).scalar_one()
        if away >= job.connections or politeness.next_due > now:
            # Another job has the host: look again when its batch may be back.
            wait = max(politeness.next_due, now + 1.0)
            tx.execute(
                frontier.update().where(frontier.c.job_id == job_id, frontier.c.host == host).values(next_due=wait)
            )
            return None
        size = min(MAX_BATCH, 1 + int(BATCH_SECONDS / job.delay)) if job.delay else MAX_BATCH
        if job.max_pages is not None:
            size = min(size, job.max_pages - self._spent(tx, job_id))
            if size <= 0:
                return None
        lease = secrets.token_hex(8)
        deadline = now + LEASE_SECONDS
        chosen = tx.execute(
            sa.select(urls.c.url, urls.c.depth, urls.c.hops)
            .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.state == "queued")
            .order_by(urls.c.depth, urls.c.attempts, urls.c.discovered_at)
            .limit(size)
            .with_for_update(skip_locked=True)
        ).all()
        if not chosen:
            return None
        tx.execute(
            urls.update()
            .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.url.in_([row.url for row in chosen]))
            .values(state="leased", lease=lease)
        )
        tx.execute(leases.insert().values(lease=lease, job_id=job_id, host=host, deadline=deadline))
        # With its only batch away the host cannot be due before the lease ends; this keeps it out of the next search.
        busy = away + 1 >= job.connections
        tx.execute(
            frontier.update()
            .where(frontier.c.job_id == job_id, frontier.c.host == host)
            .values(
                queued=frontier.c.queued - len(chosen),
                leased=frontier.c.leased + len(chosen),
                next_due=deadline if busy else now,
            )
        )
        return Batch(
            lease=lease,
            job=job,
            host=host,
            targets=[Target(url=row.url, depth=row.depth, hops=row.hops) for row in chosen],
            expires_at=deadline - LEASE_MARGIN,
            robots=_read_robots(politeness.robots),
        )

    def _spent(self, tx: Connection, job_id: int) -> int:
        """Pages done and perhaps about to be: what counts against a job's max_pages."""
        counts = sa.func.coalesce(sa.func.sum(frontier.c.done + frontier.c.leased), 0)
        return int(tx.execute(sa.select(counts).where(frontier.c.job_id == job_id)).scalar_one())

    # --- in: results ----------------------------------------------------------------------------------------------

    def record(self, report: Report, now: float) -> int:
        """Take in a batch's outcome; returns how many pages it finished. Results of a lease that ran out still count
        where the URL is not finished already."""
        with self._transaction() as tx:
            job_id, spec = tx.execute(sa.select(jobs.c.job_id, jobs.c.spec).where(jobs.c.name == report.job)).one()
            job = Job.model_validate_json(spec)
            moves: dict[Rank, Counter[str]] = defaultdict(Counter)
            rank = (job_id, report.host)
            finished = self._finish_urls(tx, rank, report, job, moves[rank])
            self._insert_links(tx, job_id, report.links, moves, now)
            held = tx.execute(leases.delete().where(leases.c.lease == report.lease)).rowcount
            self._apply(tx, moves, now)
            self._host_reported(tx, report, bool(held), now)
            if finished:
                statement = self._insert(workers).values(
                    job_id=job_id, worker=report.worker, pages=finished, first_at=now, last_at=now
                )
                tx.execute(
                    statement.on_conflict_do_update(
                        index_elements=["job_id", "worker"],
                        set_={"pages": workers.c.pages + statement.excluded.pages, "last_at": now},
                    )
                )
            return finished

    def _finish_urls(self, tx: Connection, rank: Rank, report: Report, job: Job, moved: Counter[str]) -> int:
        """Give every URL of the report its new state; returns how many pages became done."""
        job_id, host = rank
        named = [
            *(page.url for page in report.pages),
            *(retry.url for retry in report.retries),
            *report.unfetched,
        ]
        open_rows = {
            row.url: row
            for row in tx.execute(
                sa.select(urls.c.url, urls.c.state, urls.c.attempts, urls.c.lease)
                .where(
                    urls.c.job_id == job_id,
                    urls.c.host == host,
                    urls.c.url.in_(named),
                    urls.c.state.in_(("queued", "leased")),
                )
                .order_by(urls.c.url)
                .with_for_update()
            )
        }
        changes: list[dict[str, Any]] = []

        def change(url: str, state: str, **columns: Any) -> None:
            row = open_rows.pop(url)
            moved[row.state] -= 1
            moved[state] += 1
            changes.append({"b_url": url, "state": state, "lease": None, "attempts": row.attempts, **columns})

        for page in report.pages:
            if page.url in open_rows:
                result = page.model_dump(exclude={"url", "state"})
                attempts = open_rows[page.url].attempts + (page.status is not None)
                change(page.url, page.state, **result, attempts=attempts)
        for retry in report.retries:
            if retry.url in open_rows and open_rows[retry.url].lease == report.lease:
                attempts = open_rows[retry.url].attempts + 1
                state = "failed" if attempts >= job.max_attempts else "queued"
                change(retry.url, state, reason=retry.reason, attempts=attempts)
        for url in report.unfetched:
            if url in open_rows and open_rows[url].lease == report.lease:
                change(url, "queued")
        blank = dict.fromkeys(("reason", "status", "title", "content_type", "bytes", "digest", "seconds", "fetched_at"))
        if changes:
            tx.execute(
                urls.update()
                .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.url == sa.bindparam("b_url"))
                .values(
                    {
                        column: sa.bindparam(column)
                        for column in ("state", "lease", "attempts", "worker", "release", *blank)
                    }
                ),
                [{**blank, "worker": report.worker, "release": report.release, **row} for row in changes],
            )
        return sum(row["state"] == "done" for row in changes)

    def _host_reported(self, tx: Connection, report: Report, held: bool, now: float) -> None:
        """Set when the host is due again, for every job that wants it."""
        host = tx.execute(sa.select(hosts).where(hosts.c.host == report.host).with_for_update()).one()
        known = _read_robots(host.robots)
        robots = (
            json.dumps({origin: file.model_dump() for origin, file in {**known, **report.robots}.items()})
            if report.robots
            else host.robots
        )
        failures, failure, rest = 0, None, report.delay
        if report.back_off:
            failures, failure = host.failures + 1, report.back_off.reason
            rest = report.back_off.seconds if report.back_off.seconds is not None else back_off(failures)
            rest = max(rest, report.delay)
        elif not report.pages:  # nothing was tried: nothing was learned
            failures, failure = host.failures, host.failure
        next_due = max(now + rest, host.next_due)
        tx.execute(
            hosts.update()
            .where(hosts.c.host == report.host)
            .values(next_due=next_due, failures=failures, failure=failure, robots=robots)
        )
        if held:
            tx.execute(frontier.update().where(frontier.c.host == report.host).values(next_due=next_due))

    # --- housekeeping ---------------------------------------------------------------------------------------------

    def tidy(self, now: float) -> None:
        """What the scheduler does besides leasing: take back expired leases, give up dead hosts, close jobs that have
        reached their limit or their end."""
        with self._transaction() as tx:
            self._expire(tx, now)
        for job_id, spec in self._running():
            with self._transaction() as tx:
                self._give_up_dead_hosts(tx, job_id, now)
                job = Job.model_validate_json(spec)
                if job.max_pages is not None and self._counts(tx, job_id)["done"] >= job.max_pages:
                    self._drop_queued(tx, job_id, urls.c.job_id == job_id, "excluded", "max_pages reached", now)
                self._close_if_done(tx, job_id, now)

    def _running(self) -> list[tuple[int, str]]:
        with self._transaction() as tx:
            rows = tx.execute(sa.select(jobs.c.job_id, jobs.c.spec).where(jobs.c.state == "running"))
            return [(row.job_id, row.spec) for row in rows]

    def take_back_leases(self, now: float) -> None:
        """Queue again all that is leased, whatever its deadline: for an embedded run after one that was killed."""
        with self._transaction() as tx:
            tx.execute(leases.update().values(deadline=now))
            self._expire(tx, now)

    def _expire(self, tx: Connection, now: float) -> None:
        expired = tx.execute(
            sa.select(leases).where(leases.c.deadline <= now).order_by(leases.c.lease).limit(1000)
        ).all()
        moves: dict[Rank, Counter[str]] = defaultdict(Counter)
        for row in expired:
            returned = tx.execute(
                urls.update()
                .where(urls.c.lease == row.lease, urls.c.state == "leased")
                .values(state="queued", lease=None, reason="lease expired")
            ).rowcount
            moves[row.job_id, row.host].update(queued=returned, leased=-returned)
            tx.execute(leases.delete().where(leases.c.lease == row.lease))
            tx.execute(frontier.update().where(frontier.c.host == row.host).values(next_due=now))
        self._apply(tx, moves, now)

    def _give_up_dead_hosts(self, tx: Connection, job_id: int, now: float) -> None:
        dead = tx.execute(
            sa.select(hosts.c.host, hosts.c.failure)
            .join(frontier, sa.and_(frontier.c.host == hosts.c.host, frontier.c.job_id == job_id))
            .where(hosts.c.failures >= MAX_HOST_FAILURES, frontier.c.queued > 0)
        ).all()
        for host, failure in dead:
            of_host = sa.and_(urls.c.job_id == job_id, urls.c.host == host)
            self._drop_queued(tx, job_id, of_host, "failed", f"host given up: {failure}", now)

    def _drop_queued(
        self, tx: Connection, job_id: int, which: sa.ColumnElement[bool], state: str, reason: str, now: float
    ) -> None:
        moves: dict[Rank, Counter[str]] = defaultdict(Counter)
        dropped = tx.execute(
            urls.update()
            .where(which, urls.c.state == "queued")
            .values(state=state, reason=reason)
            .returning(urls.c.host)
        )
        for (host,) in dropped:
            moves[job_id, host].update({"queued": -1, state: 1})
        self._apply(tx, moves, now)

    def _close_if_done(self, tx: Connection, job_id: int, now: float) -> None:
        counts = self._counts(tx, job_id)
        if counts["queued"] or counts["leased"] or not self._all_seeds_arrived(tx, job_id):
            return
        self._note_progress(tx, job_id, counts["done"], now)
        tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="done", finished_at=now))

    def _all_seeds_arrived(self, tx: Connection, job_id: int) -> bool:
        pieces = tx.execute(
            sa.select(sa.func.count(), sa.func.max(seedings.c.chunks))
            .where(seedings.c.job_id == job_id)
            .group_by(seedings.c.seeding)
        ).all()
        return all(expected is not None and arrived == expected for arrived, expected in pieces)

    # --- looking --------------------------------------------------------------------------------------------------

    def _counts(self, tx: Connection, job_id: int) -> dict[str, int]:
        sums = [sa.func.coalesce(sa.func.sum(frontier.c[state]), 0).label(state) for state in STATES]
        row = tx.execute(sa.select(*sums).where(frontier.c.job_id == job_id)).one()
        counts = {state: int(getattr(row, state)) for state in STATES}
        return {"discovered": sum(counts.values()), **counts}

    def status(self, now: float, *, finished_since: float = 0.0, sites: int = 50) -> list[dict[str, Any]]:
        """A snapshot of each job that is running, paused, or finished after `finished_since`: its counts, pages/s over
        the last minute, its `sites` largest hosts, and its workers."""
        with self._transaction() as tx:
            chosen = tx.execute(
                sa.select(jobs)
                .where(sa.or_(jobs.c.finished_at.is_(None), jobs.c.finished_at >= finished_since))
                .order_by(jobs.c.job_id)
            ).all()
            return [self._snapshot(tx, row, now, sites) for row in chosen]

    def _snapshot(self, tx: Connection, row: Any, now: float, sites: int) -> dict[str, Any]:
        counts = self._counts(tx, row.job_id)
        largest = tx.execute(
            sa.select(frontier)
            .where(frontier.c.job_id == row.job_id, frontier.c.done + frontier.c.queued + frontier.c.leased > 0)
            .order_by(frontier.c.done.desc(), frontier.c.host)
            .limit(sites)
        ).all()
        crew = tx.execute(sa.select(workers).where(workers.c.job_id == row.job_id).order_by(workers.c.worker)).all()
        return {
            "job": row.name,
            "state": row.state,
            "at": now,
            "created_at": row.created_at,
            "finished_at": row.finished_at,
            "counts": counts,
            "rate": self._rate(tx, row.job_id, row.finished_at or now, counts["done"]),
            "sites": [
                {
                    "host": site.host,
                    "discovered": sum(getattr(site, state) for state in STATES),
                    **{state: getattr(site, state) for state in STATES},
                }
                for site in largest
            ],
            "workers": [
                {
                    "worker": member.worker,
                    "pages": member.pages,
                    "rate": round(member.pages / max(member.last_at - row.created_at, 1e-3), 1),
                }
                for member in crew
            ],
        }

    def _rate(self, tx: Connection, job_id: int, now: float, done: int) -> float:
        """Pages per second over the last minute of running."""
        first = tx.execute(
            sa.select(progress.c.at, progress.c.done)
            .where(progress.c.job_id == job_id, progress.c.at > now - 60)
            .order_by(progress.c.at)
            .limit(1)
        ).first()
        return round((done - first.done) / (now - first.at), 1) if first and now > first.at else 0.0

    def sample(self, now: float) -> None:
        """Note how far each running job is, for the rates."""
        for job_id, _ in self._running():
            with self._transaction() as tx:
                self._note_progress(tx, job_id, self._counts(tx, job_id)["done"], now)
                tx.execute(progress.delete().where(progress.c.job_id == job_id, progress.c.at < now - 3600))

    def _note_progress(self, tx: Connection, job_id: int, done: int, now: float) -> None:
        tx.execute(self._insert(progress).values(job_id=job_id, at=now, done=done).on_conflict_do_nothing())

    def count_again(self, job: str) -> dict[str, int]:
        """The counts of `job` taken from its URLs one by one, as a check on those kept along the way."""
        with self._transaction() as tx:
            rows = tx.execute(
                sa.select(urls.c.state, sa.func.count())
                .join(jobs, jobs.c.job_id == urls.c.job_id)
                .where(jobs.c.name == job)
                .group_by(urls.c.state)
            ).all()
            counts: dict[str, int] = {**dict.fromkeys(STATES, 0), **{row[0]: row[1] for row in rows}}
            return {"discovered": sum(counts.values()), **counts}

    def pages(self, job: str) -> Iterator[dict[str, Any]]:
        """Every URL of `job` with all that is known of it, streamed in no particular order."""
        with self.engine.connect().execution_options(yield_per=1000) as connection:
            rows = connection.execute(
                sa.select(urls).join(jobs, jobs.c.job_id == urls.c.job_id).where(jobs.c.name == job)
            )
            for row in rows.mappings():
                yield {key: value for key, value in row.items() if key not in ("job_id", "lease")}


def back_off(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to leave a host alone after its `failures`-th failure in a row: doubling, with up to 50 % on top, so that
    hosts behind one broken router do not all come back at once."""
    return min(BACK_OFF_FIRST * 2.0 ** (failures - 1), BACK_OFF_MAX) * (1 + jitter() / 2)


def _read_robots(text: str | None) -> dict[str, RobotsFile]:
    return {origin: RobotsFile.model_validate(file) for origin, file in json.loads(text or "{}").items()}
