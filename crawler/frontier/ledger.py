"""The frontier's memory: every URL a job ever saw, in exactly one state. PostgreSQL in the fleet, SQLite embedded.

    discovered = queued + leased + done + failed + excluded        (per job, at every commit)

Each public method is one transaction (`tidy`: one for each job), and each may be repeated: a message seen twice changes
nothing. All times are seconds since the epoch and come in as `now`. What a person asks or orders is in status.py.

Locks are always taken in the order urls -> leases -> host_queues -> hosts -> workers, and within a table by key, so
that recorders and the scheduler cannot wait for each other in a circle. Rows travel to the database as one JSON
parameter each way it takes in bulk: ten times faster than a parameter a value, and the same statement for both
databases.
"""

from __future__ import annotations

import functools
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

from crawler import limits
from crawler import urls as url_rules
from crawler.frontier.schema import (
    STATES,
    host_queues,
    hosts,
    jobs,
    leases,
    metadata,
    progress,
    requests,
    seedings,
    urls,
    workers,
)
from crawler.job import Job
from crawler.messages import TERMINAL, Admission, Batch, Link, Report, RobotsFile, Target, UrlResult

BACK_OFF_FIRST, BACK_OFF_MAX = 5.0, 3600.0
"""Seconds a failing host is left alone: the first time, and at most."""
MAX_HOST_FAILURES = 8
"""Failures in a row (some 20 minutes, with the back-off) after which a host is given up for this job."""
GIVEN_UP_SECONDS = 86400.0
"""How long other jobs take that for granted; then they try the host themselves."""
SUSPICIOUS, MAX_EXPIRIES = 2, 10
"""Leases of a URL that never came back after which it is leased alone, lest it take others with it, and given up."""
SEEDING_PATIENCE = 600.0
"""Seconds without news after which a seeding that was broken off no longer keeps its job open."""

Moves = dict[tuple[int, str], Counter[str]]
"""Changes of the counts: by (job_id, host), by state."""
RESULT = tuple(name for name in UrlResult.model_fields if name not in ("url", "state"))
"""The columns of a URL that say what its last fetch came to."""


_WAY = ("depth", "hops", "nested", "sitemap", "seed", "found_on")
"""The columns that say on which way a URL was found."""
_KEPT_OUT = sa.and_(
    urls.c.state == "excluded",
    sa.or_(urls.c.reason == "depth", urls.c.reason.startswith("scope:"), urls.c.reason.startswith("trap:")),
)
"""What was never asked for, because the way on which it was found led out of the job's limits."""


class Ledger:
    """The ledger behind an SQLAlchemy engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._postgresql = engine.dialect.name == "postgresql"
        self.insert: Callable[..., Any] = postgresql.insert if self._postgresql else sqlite.insert

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
        """Create what is missing of the schema: tables, indexes, columns. True if anything was.

        Between releases the schema only grows, by columns that may be null or have a default: so the release before can
        go on with it while hosts are upgraded one by one, and after a rollback.
        """
        with self.transaction() as tx:
            before = sa.inspect(tx)
            known = {name: {column["name"] for column in before.get_columns(name)} for name in before.get_table_names()}
            for table in metadata.sorted_tables:
                for column in table.columns if table.name in known else ():
                    if column.name not in known[table.name]:
                        definition = sa.schema.CreateColumn(column).compile(dialect=self.engine.dialect)
                        tx.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))
            metadata.create_all(tx)
            for table in metadata.sorted_tables:
                for index in table.indexes:
                    index.create(tx, checkfirst=True)
            after = sa.inspect(tx)
            return known != {
                name: {column["name"] for column in after.get_columns(name)} for name in after.get_table_names()
            }

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        with self.engine.begin() as connection:
            yield connection

    # --- in: seeds ------------------------------------------------------------------------------------------------

    def admit(self, admission: Admission, now: float) -> int:
        """Take in a piece of a seeding; returns how many URLs were new. A job that was done runs again."""
        with self.transaction() as tx:
            job_id = self._job_id(tx, admission, now)
            piece = {"chunk": admission.chunk, "chunks": admission.chunks, "arrived_at": now}
            arrived: int = tx.execute(
                self.insert(seedings).values(job_id=job_id, seeding=admission.seeding, **piece).on_conflict_do_nothing()
            ).rowcount
            if not arrived:
                return 0
            moves: Moves = defaultdict(Counter)
            new = self._insert_links(
                tx, job_id, [Link(url=url, depth=0, seed=True) for url in admission.urls], moves, now
            )
            self.apply(tx, moves, now)
            # Whoever hands over URLs of a host that was given up wants it to be tried again.
            given_up = [host for _, host in moves if moves[job_id, host]["queued"]]
            tx.execute(
                hosts.update()
                .where(hosts.c.host.in_(given_up), hosts.c.failures >= MAX_HOST_FAILURES)
                .values(failures=0)
            )
            return new

    def _job_id(self, tx: Connection, admission: Admission, now: float) -> int:
        """The admission's job, made or brought up to its description, and running again if it had ended."""
        job = admission.job
        spec = job.model_dump_json()
        before = tx.execute(sa.select(jobs).where(jobs.c.name == job.name)).first()
        statement = self.insert(jobs).values(name=job.name, spec=spec, state="running", created_at=now)
        tx.execute(
            statement.on_conflict_do_update(
                index_elements=["name"],
                set_={
                    "spec": spec,
                    "state": sa.case((jobs.c.state == "done", "running"), else_=jobs.c.state),
                    "finished_at": sa.case((jobs.c.state == "cancelled", jobs.c.finished_at)),
                },
                where=sa.or_(jobs.c.spec != spec, jobs.c.state == "done"),
            )
        )
        job_id = int(tx.execute(sa.select(jobs.c.job_id).where(jobs.c.name == job.name)).scalar_one())
        if before is not None and before.state == "cancelled":
            seeding = sa.and_(seedings.c.job_id == job_id, seedings.c.seeding == admission.seeding)
            if not tx.execute(sa.select(sa.literal(1)).where(seeding).limit(1)).first():  # begun after the order
                self.resume(tx, job_id, now)
        if before is not None and before.spec != spec:
            # The latest description counts: with wider limits the job goes on from where the narrower ones stopped it.
            held = urls.c.reason.in_(("max_pages reached", "max_pages_per_host reached"))
            self.move(tx, sa.and_(urls.c.job_id == job_id, held), "excluded", "queued", None, now)
            self._judge_again(tx, job_id, job, now)
        return job_id

    def resume(self, tx: Connection, job_id: int, now: float) -> int:
        """Let a job run, whatever had stopped it; returns how many URLs are queued again that `cancel` had dropped."""
        tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="running", finished_at=None))
        dropped = sa.and_(urls.c.job_id == job_id, urls.c.reason == "job cancelled")
        return self.move(tx, dropped, "excluded", "queued", None, now)

    def _judge_again(self, tx: Connection, job_id: int, job: Job, now: float) -> None:
        """Queue what another description of the job had kept out, and this one does not."""
        last = ("", "")
        while True:
            rows = tx.execute(
                sa.select(*(urls.c[name] for name in ("host", "url", *_WAY)))
                .where(urls.c.job_id == job_id, _KEPT_OUT, sa.tuple_(urls.c.host, urls.c.url) > sa.tuple_(*last))
                .order_by(urls.c.host, urls.c.url)
                .limit(10_000)
            ).all()
            if not rows:
                return
            last = (rows[-1].host, rows[-1].url)
            wanted = [row._asdict() for row in rows if not job.refuses(row.url, row.found_on or row.url, row.depth)]
            moves: Moves = defaultdict(Counter)
            if wanted:
                self._bring_nearer(tx, job_id, wanted, moves)
            self.apply(tx, moves, now)

    def _insert_links(self, tx: Connection, job_id: int, links: Iterable[Link], moves: Moves, now: float) -> int:
        """Insert what is new of `links`, noting it in `moves`; returns how many were. Of those known, what had been
        kept out on one way and is wanted on another is queued, and what is queued is as near to a seed as any way."""
        rows = {
            link.url: {
                "host": url_rules.host_of(link.url),
                "url": link.url,
                "state": "excluded" if link.excluded else "queued",
                "reason": link.excluded,
                "depth": link.depth,
                "hops": link.hops,
                "nested": link.nested,
                "sitemap": link.sitemap,
                "seed": link.seed,
                "found_on": link.found_on,
            }
            for link in links
        }
        if not rows:
            return 0
        ordered = sorted(rows.values(), key=lambda row: (row["host"], row["url"]))
        inserted = (
            self._insert_rows(urls, ordered, job_id=job_id, discovered_at=now)
            .on_conflict_do_nothing()
            .returning(urls.c.host, urls.c.state)
        )
        new = 0
        for host, state in tx.execute(inserted):
            moves[job_id, host][state] += 1
            new += 1
        if new < len(ordered) and (wanted := [row for row in ordered if row["state"] == "queued"]):
            new += self._bring_nearer(tx, job_id, wanted, moves)
        return new

    def _bring_nearer(self, tx: Connection, job_id: int, wanted: list[dict[str, Any]], moves: Moves) -> int:
        """Queue those of the `wanted` that had been kept out, and let those queued have the shorter way; returns how
        many were kept out."""
        key = ("job_id", "host", "url")

        def given_of(rows: list[dict[str, Any]]) -> tuple[Any, sa.ColumnElement[bool]]:
            # The job as a column, not as a constant: or SQLite would walk through all of the job's URLs for these few.
            given = self._relation(
                [{**row, "job_id": job_id} for row in rows], *(urls.c[name] for name in (*key, *_WAY))
            )
            return given, sa.and_(*(urls.c[name] == given.c[name] for name in key))

        given, here = given_of(wanted)
        nearer = sa.and_(urls.c.state == "queued", urls.c.depth > given.c.depth)
        known = tx.execute(
            sa.select(urls.c.host, urls.c.url, urls.c.state)
            .join(given, here)
            .where(sa.or_(_KEPT_OUT, nearer))
            .order_by(urls.c.host, urls.c.url)
            .with_for_update(of=urls)
        ).all()
        if not known:
            return 0
        changed = {(row.host, row.url) for row in known}
        given, here = given_of([row for row in wanted if (row["host"], row["url"]) in changed])
        tx.execute(
            urls.update().where(here).values({name: given.c[name] for name in _WAY}).values(state="queued", reason=None)
        )
        kept_out = [row for row in known if row.state == "excluded"]
        for row in kept_out:
            moves[job_id, row.host].update(excluded=-1, queued=1)
        return len(kept_out)

    def apply(self, tx: Connection, moves: Moves, now: float) -> None:
        """Add the changes of state in `moves` to the counts. The same transaction made the changes themselves."""
        rows: list[dict[str, Any]] = [
            {"job_id": job_id, "host": host, **{state: counts[state] for state in STATES}}
            for (job_id, host), counts in sorted(moves.items())
            if any(counts.values())
        ]
        if not rows:
            return
        statement = self._insert_rows(host_queues, rows, next_due=now)
        added = {state: host_queues.c[state] + statement.excluded[state] for state in STATES}
        tx.execute(statement.on_conflict_do_update(index_elements=["job_id", "host"], set_=added))
        to_crawl = [{"host": host} for host in sorted({row["host"] for row in rows if row["queued"] > 0})]
        if to_crawl:
            tx.execute(self._insert_rows(hosts, to_crawl, next_due=now).on_conflict_do_nothing())

    def _insert_rows(self, table: sa.Table, rows: list[dict[str, Any]], **constants: Any) -> Any:
        """An insert of `rows`, each with the `constants` added."""
        given = self._relation(rows, *(table.c[name] for name in rows[0]))
        values = (sa.literal(value, table.c[name].type) for name, value in constants.items())
        # SQLite takes ON CONFLICT after a SELECT only if that has a WHERE.
        return self.insert(table).from_select([*rows[0], *constants], sa.select(*given.c, *values).where(sa.true()))

    def _relation(self, rows: list[dict[str, Any]], *columns: sa.Column[Any]) -> sa.FromClause:
        """`rows` as a table expression with the given columns: one parameter, however many there are."""
        payload = sa.bindparam(None, json.dumps(rows), type_=sa.Text, unique=True)
        if self._postgresql:
            function = sa.func.json_to_recordset(sa.cast(payload, postgresql.JSON))
            named = (sa.column(column.name, column.type) for column in columns)
            return function.table_valued(*named).render_derived(name="given", with_types=True)
        each = sa.func.json_each(payload).table_valued("value", name="each")
        return sa.select(
            *(
                sa.type_coerce(sa.func.json_extract(each.c.value, f"$.{column.name}"), column.type).label(column.name)
                for column in columns
            )
        ).subquery("given")

    # --- out: leases ----------------------------------------------------------------------------------------------

    def lease(self, limit: int, now: float) -> list[Batch]:
        """Lease up to `limit` batches of hosts that are due, the longest-waiting first. A host has at most one batch
        away over all jobs (or its job's `connections`)."""
        if limit <= 0:
            return []
        batches = []
        with self.transaction() as tx:
            due = tx.execute(
                sa.select(host_queues.c.job_id, host_queues.c.host)
                .join(jobs, jobs.c.job_id == host_queues.c.job_id)
                .where(host_queues.c.queued > 0, host_queues.c.next_due <= now, jobs.c.state == "running")
                .order_by(host_queues.c.next_due)
                .limit(limit)
            ).all()
            for job_id, host in due:
                if batch := self._lease_host(tx, job_id, host, now):
                    batches.append(batch)
        return batches

    def _lease_host(self, tx: Connection, job_id: int, host: str, now: float) -> Batch | None:
        row = tx.execute(
            sa.select(jobs.c.spec, hosts.c.next_due, hosts.c.robots, hosts.c.blocked_at, host_queues.c.done)
            .join(host_queues, host_queues.c.job_id == jobs.c.job_id)
            .join(hosts, hosts.c.host == host_queues.c.host)
            .where(jobs.c.job_id == job_id, host_queues.c.host == host)
        ).one()
        job = _job(row.spec)
        away = tx.execute(sa.select(sa.func.count()).where(leases.c.host == host)).scalar_one()
        here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
        chosen: list[Any] = []
        if away < job.connections and row.next_due <= now and row.blocked_at is None:
            chosen = self._choose(tx, job_id, host, job, away)
        if not chosen:
            # Another batch has the host, or a limit holds it: look again in a while.
            tx.execute(host_queues.update().where(here).values(next_due=max(row.next_due, now + 1.0)))
            return None
        lease, deadline = secrets.token_hex(8), now + limits.LEASE
        tx.execute(
            urls.update()
            .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.url.in_([target.url for target in chosen]))
            .values(state="leased", lease=lease)
        )
        tx.execute(leases.insert().values(lease=lease, job_id=job_id, host=host, deadline=deadline))
        # With its only batch away the host cannot be due before the lease ends; this keeps it out of the next search.
        busy = away + 1 >= job.connections
        tx.execute(
            host_queues.update()
            .where(here)
            .values(
                queued=host_queues.c.queued - len(chosen),
                leased=host_queues.c.leased + len(chosen),
                next_due=deadline if busy else now,
            )
        )
        return Batch(
            lease=lease,
            job=job,
            host=host,
            targets=[Target.model_validate(target._asdict()) for target in chosen],
            expires_at=deadline - limits.LEASE_MARGIN,
            robots=_robots(row.robots),
            lost_before=any(target.expiries for target in chosen),
        )

    def _choose(self, tx: Connection, job_id: int, host: str, job: Job, away: int) -> list[Any]:
        """The URLs of a host's next batch: the shallowest first, as many as time and the job's limits allow."""
        size = min(limits.BATCH_URLS, 1 + int(limits.BATCH / job.delay)) if job.delay else limits.BATCH_URLS
        if job.max_pages is not None:
            size = min(size, job.max_pages - self._spent(tx, host_queues.c.job_id == job_id))
        if job.max_pages_per_host is not None:
            of_host = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
            size = min(size, job.max_pages_per_host - self._spent(tx, of_host))
        if size <= 0:
            return []
        columns = ("url", "depth", "hops", "nested", "sitemap", "seed", "etag", "last_modified", "digest", "expiries")
        rows = tx.execute(
            sa.select(*(urls.c[name] for name in columns))
            .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.state == "queued")
            .order_by(urls.c.depth, urls.c.attempts, urls.c.discovered_at)
            .limit(size)
            .with_for_update(skip_locked=True)
        ).all()
        if rows and job.depth is not None:
            # An exact depth needs each level whole before the next: a page must not be met first on a longer way.
            level = rows[0].depth
            if self._shallower_open(tx, job_id, host, job, away, level):
                return []
            rows = [row for row in rows if row.depth == level]
        return [row for row in rows if row.expiries < SUSPICIOUS] or list(rows[:1])

    def _spent(self, tx: Connection, where: sa.ColumnElement[bool]) -> int:
        """Pages done and perhaps about to be: what counts against a limit."""
        counts = sa.func.coalesce(sa.func.sum(host_queues.c.done + host_queues.c.leased), 0)
        return int(tx.execute(sa.select(counts).where(where)).scalar_one())

    def _shallower_open(self, tx: Connection, job_id: int, host: str, job: Job, away: int, level: int) -> bool:
        """Whether a URL above `level` could still lead to one on it: on this host where links stay on it, else anywhere
        in the job."""
        stays = job.scope.kind == "host"
        if stays and not away:
            return False
        where = [urls.c.job_id == job_id, urls.c.depth < level, urls.c.state.in_(("queued", "leased"))]
        if stays:
            where.append(urls.c.host == host)
        return tx.execute(sa.select(sa.literal(1)).where(*where).limit(1)).first() is not None

    # --- in: results ----------------------------------------------------------------------------------------------

    def record(self, report: Report, now: float) -> int:
        """Take in a batch's outcome; returns how many pages it finished. Results of a lease that ran out still count
        where the URL is not finished already."""
        with self.transaction() as tx:
            job_id, spec = tx.execute(sa.select(jobs.c.job_id, jobs.c.spec).where(jobs.c.name == report.job)).one()
            moves: Moves = defaultdict(Counter)
            moved = moves[job_id, report.host]
            done = self._finish_urls(tx, job_id, report, _job(spec), moved, now)
            if report.redelivered:
                self._lose(tx, report.lease, "its worker was lost", moved, now)
            self._insert_links(tx, job_id, report.links, moves, now)
            held = tx.execute(leases.delete().where(leases.c.lease == report.lease)).rowcount
            self.apply(tx, moves, now)
            self._host_reported(tx, report, bool(held), now)
            self._log_requests(tx, job_id, report)
            if done:
                statement = self.insert(workers).values(
                    job_id=job_id, worker=report.worker, pages=done, first_at=now, last_at=now
                )
                tx.execute(
                    statement.on_conflict_do_update(
                        index_elements=["job_id", "worker"],
                        set_={"pages": workers.c.pages + statement.excluded.pages, "last_at": now},
                    )
                )
            return done

    def _finish_urls(
        self, tx: Connection, job_id: int, report: Report, job: Job, moved: Counter[str], now: float
    ) -> int:
        """Give every URL of the report its new state; returns how many pages became done."""
        named = [page.url for page in report.results] + [retry.url for retry in report.retries] + report.unfetched
        of_host = sa.and_(urls.c.job_id == job_id, urls.c.host == report.host)
        opened = {
            row.url: row
            for row in tx.execute(
                sa.select(urls.c.url, urls.c.state, urls.c.attempts, urls.c.lease)
                .where(of_host, urls.c.url.in_(named), urls.c.state.in_(("queued", "leased")))
                .order_by(urls.c.url)
                .with_for_update()
            )
        }
        results: list[dict[str, Any]] = []
        retried: list[dict[str, Any]] = []
        returned: list[dict[str, Any]] = []

        def move(rows: list[dict[str, Any]], url: str, state: str, attempts: int, **columns: Any) -> None:
            moved[opened.pop(url).state] -= 1
            moved[state] += 1
            rows.append({"url": url, "state": state, "attempts": attempts, **columns})

        limited = job.max_pages is not None or job.max_pages_per_host is not None
        for page in report.results:
            # A late result of a URL that is back in the queue could be one page more than a limit allows.
            if page.url in opened and not (limited and opened[page.url].state == "queued"):
                result = page.model_dump(exclude={"url", "state"})
                if result["fields"] is not None:
                    result["fields"] = json.dumps(result["fields"], ensure_ascii=False)
                move(results, page.url, page.state, opened[page.url].attempts + 1, **result)
        for retry in report.retries:
            if retry.url in opened and opened[retry.url].lease == report.lease:
                attempts = opened[retry.url].attempts + 1
                state = "failed" if attempts >= job.max_attempts else "queued"
                move(retried, retry.url, state, attempts, reason=retry.reason, fetched_at=now)
        for url in () if report.redelivered else report.unfetched:
            if url in opened and opened[url].lease == report.lease:
                move(returned, url, "queued", opened[url].attempts, reason=None)
        # A 304, and a page that failed, keep what an earlier visit found; only a new body replaces it.
        self._update_urls(tx, of_host, [row for row in results if row["digest"]], report, RESULT)
        self._update_urls(
            tx, of_host, [row for row in results if not row["digest"]], report, ("reason", "status", "fetched_at")
        )
        self._update_urls(tx, of_host, retried, report, ("reason", "fetched_at"))
        self._update_urls(tx, of_host, returned, report, ("reason",))
        return sum(row["state"] == "done" for row in results)

    def _update_urls(
        self,
        tx: Connection,
        of_host: sa.ColumnElement[bool],
        rows: list[dict[str, Any]],
        report: Report,
        names: tuple[str, ...],
    ) -> None:
        """Write the columns `names`, and those that always change, of `rows`."""
        if not rows:
            return
        names = ("state", "attempts", *names)
        given = self._relation(rows, urls.c.url, *(urls.c[name] for name in names))
        tx.execute(
            urls.update()
            .where(of_host, urls.c.url == given.c.url)
            .values({name: given.c[name] for name in names})
            .values(lease=None, worker=report.worker, release=report.release)
        )

    def _host_reported(self, tx: Connection, report: Report, held: bool, now: float) -> None:
        """Set when the host is due again, for every job that wants it."""
        host = tx.execute(sa.select(hosts).where(hosts.c.host == report.host).with_for_update()).one()
        robots = host.robots
        if report.robots:
            known = {**_robots(host.robots), **report.robots}
            robots = json.dumps({origin: file.model_dump() for origin, file in known.items()})
        failures, failure, rest = 0, None, report.delay
        if report.back_off:
            # A host that gave pages before it asked for a rest is not dead.
            failures, failure = 1 if report.results else host.failures + 1, report.back_off.reason
            asked = report.back_off.seconds
            rest = max(back_off(failures) if asked is None else asked, report.delay)
        elif not report.results:  # nothing was tried: nothing was learned
            failures, failure = host.failures, host.failure
        next_due = max(now + rest, host.next_due)
        tx.execute(
            hosts.update()
            .where(hosts.c.host == report.host)
            .values(next_due=next_due, failures=failures, failure=failure, robots=robots)
        )
        if held:
            tx.execute(host_queues.update().where(host_queues.c.host == report.host).values(next_due=next_due))

    def _log_requests(self, tx: Connection, job_id: int, report: Report) -> None:
        if not report.requests:
            return
        # Mostly the report's own host; another's where its robots.txt redirects to one.
        rows = [{"host": url_rules.host_of(request.url), **request.model_dump()} for request in report.requests]
        common = {"job_id": job_id, "worker": report.worker, "release": report.release}
        tx.execute(self._insert_rows(requests, rows, **common).on_conflict_do_nothing())

    # --- housekeeping ---------------------------------------------------------------------------------------------

    def tidy(self, now: float) -> None:
        """What the scheduler does besides leasing: take back expired leases, give up dead hosts, enforce limits, call
        pages for another visit, and close jobs that have reached their end."""
        with self.transaction() as tx:
            self._expire(tx, now)
        with self.transaction() as tx:
            self._drop_cancelled(tx, now)
            chosen = tx.execute(
                sa.select(jobs.c.job_id, jobs.c.spec, jobs.c.state).where(jobs.c.state.in_(("running", "done")))
            ).all()
        for job_id, spec, state in chosen:
            job = _job(spec)
            if state == "running" or job.recrawl is not None:
                with self.transaction() as tx:
                    self._tidy_job(tx, job_id, job, state, now)

    def _drop_cancelled(self, tx: Connection, now: float) -> None:
        """Drop what came back of cancelled jobs, from workers that had it at the time."""
        with_more = (
            sa.select(host_queues.c.job_id)
            .join(jobs, jobs.c.job_id == host_queues.c.job_id)
            .where(host_queues.c.queued > 0, jobs.c.state == "cancelled")
            .distinct()
        )
        for job_id in tx.execute(with_more).scalars().all():
            self.drop_queued(tx, urls.c.job_id == job_id, "excluded", "job cancelled", now)

    def _tidy_job(self, tx: Connection, job_id: int, job: Job, state: str, now: float) -> None:
        if job.recrawl is not None:
            self._revisit(tx, job_id, job.recrawl, now)
        counts = self.counts(tx, job_id)
        if counts["queued"]:
            self._give_up_hosts(tx, job_id, job, now)
            if job.max_pages is not None and counts["done"] >= job.max_pages:
                self.drop_queued(tx, urls.c.job_id == job_id, "excluded", "max_pages reached", now)
            counts = self.counts(tx, job_id)
        if counts["queued"] and state == "done":
            tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="running", finished_at=None))
        elif state == "running" and not (counts["queued"] or counts["leased"]) and self._all_seeds_in(tx, job_id, now):
            self._note_progress(tx, job_id, counts["done"], now)
            tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="done", finished_at=now))

    def recalled(self) -> list[str]:
        """The leases whose batches should come back at once, for their host was blocked or their job paused or
        cancelled; a thousand at most, those that come back make room for others."""
        with self.transaction() as tx:
            unwanted = sa.or_(hosts.c.blocked_at.is_not(None), jobs.c.state.in_(("paused", "cancelled")))
            chosen = (
                sa.select(leases.c.lease)
                .join(jobs, jobs.c.job_id == leases.c.job_id)
                .join(hosts, hosts.c.host == leases.c.host)
                .where(unwanted)
            )
            return list(tx.execute(chosen.order_by(leases.c.lease).limit(1000)).scalars())

    def take_back_leases(self, now: float) -> None:
        """Queue again all that is leased, whatever its deadline: for an embedded run after one that was killed."""
        with self.transaction() as tx:
            tx.execute(leases.update().values(deadline=now))
            self._expire(tx, now)

    def _expire(self, tx: Connection, now: float) -> None:
        expired = tx.execute(
            sa.select(leases).where(leases.c.deadline <= now).order_by(leases.c.lease).limit(1000)
        ).all()
        moves: Moves = defaultdict(Counter)
        for row in expired:
            self._lose(tx, row.lease, "lease expired", moves[row.job_id, row.host], now)
            tx.execute(leases.delete().where(leases.c.lease == row.lease))
            tx.execute(host_queues.update().where(host_queues.c.host == row.host).values(next_due=now))
        self.apply(tx, moves, now)

    def _lose(self, tx: Connection, lease: str, reason: str, moved: Counter[str], now: float) -> None:
        """Queue the URLs again of a lease that will not come back; those lost too often have failed."""
        often = urls.c.expiries + 1 >= MAX_EXPIRIES
        lost = (
            urls.update()
            .where(urls.c.lease == lease, urls.c.state == "leased")
            .values(
                state=sa.case((often, "failed"), else_="queued"),
                reason=sa.case((often, f"{reason}, {MAX_EXPIRIES} times"), else_=reason),
                fetched_at=sa.case((often, now), else_=urls.c.fetched_at),
                expiries=urls.c.expiries + 1,
                lease=None,
            )
            .returning(urls.c.state)
        )
        for (state,) in tx.execute(lost):
            moved["leased"] -= 1
            moved[state] += 1

    def _revisit(self, tx: Connection, job_id: int, interval: float, now: float) -> None:
        """Queue again what was last asked for `interval` seconds ago: pages, and what was none then."""
        for state in TERMINAL:
            self.move(
                tx,
                sa.and_(urls.c.job_id == job_id, urls.c.fetched_at <= now - interval),
                state,
                "queued",
                None,
                now,
                attempts=0,
                expiries=0,
            )

    def _give_up_hosts(self, tx: Connection, job_id: int, job: Job, now: float) -> None:
        """Drop what is queued for hosts that are dead, blocked, or have given all the pages the job wants."""
        full = host_queues.c.done >= job.max_pages_per_host if job.max_pages_per_host is not None else sa.false()
        # Its next turn was set by its last failure.
        dead = sa.and_(hosts.c.failures >= MAX_HOST_FAILURES, hosts.c.next_due > now - GIVEN_UP_SECONDS)
        given_up = tx.execute(
            sa.select(hosts.c.host, hosts.c.failure, hosts.c.failures, hosts.c.blocked_at)
            .join(host_queues, sa.and_(host_queues.c.host == hosts.c.host, host_queues.c.job_id == job_id))
            .where(
                host_queues.c.queued > 0,
                sa.or_(dead, hosts.c.blocked_at.is_not(None), full),
            )
            .order_by(hosts.c.host)
        ).all()
        for host in given_up:
            of_host = sa.and_(urls.c.job_id == job_id, urls.c.host == host.host)
            if host.blocked_at is not None:
                self.drop_queued(tx, of_host, "excluded", "host blocked", now)
            elif host.failures >= MAX_HOST_FAILURES:
                self.drop_queued(tx, of_host, "failed", f"host given up: {host.failure}", now)
            else:
                self.drop_queued(tx, of_host, "excluded", "max_pages_per_host reached", now)

    def drop_queued(self, tx: Connection, which: sa.ColumnElement[bool], state: str, reason: str, now: float) -> int:
        """Finish what is queued among `which` unfetched; returns how many URLs that were."""
        # A page that was due for another visit has had it: the next one is as far away as ever.
        looked_at = sa.case((urls.c.fetched_at.is_not(None), now))
        return self.move(tx, which, "queued", state, reason, now, fetched_at=looked_at)

    def move(
        self,
        tx: Connection,
        which: sa.ColumnElement[bool],
        old: str,
        new: str,
        reason: str | None,
        now: float,
        **columns: Any,
    ) -> int:
        """Bring the URLs among `which` from the state `old` into `new`, counts included; returns how many that were."""
        moved = (
            urls.update()
            .where(which, urls.c.state == old)
            .values(state=new, reason=reason, **columns)
            .returning(urls.c.job_id, urls.c.host)
        )
        moves: Moves = defaultdict(Counter)
        number = 0
        for job_id, host in tx.execute(moved):
            moves[job_id, host].update({old: -1, new: 1})
            number += 1
        self.apply(tx, moves, now)
        return number

    def _all_seeds_in(self, tx: Connection, job_id: int, now: float) -> bool:
        pieces = tx.execute(
            sa.select(sa.func.count(), sa.func.max(seedings.c.chunks), sa.func.max(seedings.c.arrived_at))
            .where(seedings.c.job_id == job_id)
            .group_by(seedings.c.seeding)
        ).all()
        recent = now - SEEDING_PATIENCE
        return all(arrived == expected or (latest or 0) < recent for arrived, expected, latest in pieces)

    # --- counts ---------------------------------------------------------------------------------------------------

    def counts(self, tx: Connection, job_id: int) -> dict[str, int]:
        """How many URLs of a job are in each state, and in all ("discovered")."""
        sums = [sa.func.coalesce(sa.func.sum(host_queues.c[state]), 0).label(state) for state in STATES]
        row = tx.execute(sa.select(*sums).where(host_queues.c.job_id == job_id)).one()
        counts = {state: int(getattr(row, state)) for state in STATES}
        return {"discovered": sum(counts.values()), **counts}

    def sample(self, now: float) -> None:
        """Note how far each running job is, for the rates."""
        with self.transaction() as tx:
            for (job_id,) in tx.execute(sa.select(jobs.c.job_id).where(jobs.c.state == "running")).all():
                self._note_progress(tx, job_id, self.counts(tx, job_id)["done"], now)
                tx.execute(progress.delete().where(progress.c.job_id == job_id, progress.c.at < now - 3600))

    def _note_progress(self, tx: Connection, job_id: int, done: int, now: float) -> None:
        tx.execute(self.insert(progress).values(job_id=job_id, at=now, done=done).on_conflict_do_nothing())


def back_off(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to leave a host alone after its `failures`-th failure in a row: doubling, with up to 50 % on top, so that
    hosts behind one broken router do not all come back at once."""
    return float(min(BACK_OFF_FIRST * 2.0 ** (failures - 1), BACK_OFF_MAX) * (1 + jitter() / 2))


@functools.lru_cache(maxsize=256)
def _job(spec: str) -> Job:
    return Job.model_validate_json(spec)


def _robots(text: str | None) -> dict[str, RobotsFile]:
    return {origin: RobotsFile.model_validate(file) for origin, file in json.loads(text or "{}").items()}
