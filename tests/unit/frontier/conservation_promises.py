"""Conservation: every discovered URL is in exactly one state, whatever happens in whatever order; and no order, limit
or fault leaves one where it can never be fetched."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crawler import limits
from crawler.frontier import addresses, orders, status, sweeps, tidy, traps
from crawler.frontier.admit import admit
from crawler.frontier.caps import NO_CAPS, Cap, Caps
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger, job_of
from crawler.frontier.record import record
from crawler.frontier.schema import (
    COUNTED,
    COUNTS,
    STATES,
    budgets,
    host_queues,
    hosts,
    job_counts,
    jobs,
    leases,
    metadata,
    urls,
)
from crawler.job import Job
from crawler.messages import Admission, BackOff, Batch, Cause, Link, Report, Retry, UrlResult
from crawler.urls import host_of

HOSTS = ("a.test", "b.test", "c.b.test")
JOBS = ("j", "k")
URLS = [f"http://{host}/{path}" for host in HOSTS for path in ("0", "1", "x/2", "x/3", "x/4")]
DESCRIPTIONS: list[dict[str, Any]] = [
    {},
    {"depth": 1},
    {"depth": 3, "connections": 2},
    {"max_pages": 4},
    {"max_pages_per_host": 2, "depth": 2},
    {"max_pages_per_domain": 3, "scope": {"kind": "any"}},
    {"max_pages_per_prefix": {"http://a.test/": 3, "http://a.test/x/": 1}, "connections": 2},
    {"max_pages_per_prefix": {"http://b.test/x/": 1}, "recrawl": 3600, "scope": {"kind": "any"}},
    {"traps": False},
    {"scope": {"kind": "any"}, "max_attempts": 2},
    {"recrawl": 3600},
]
CAPS = (NO_CAPS, Caps(address=Cap(1, 30.0)), Caps(domain=Cap(1, 0.0), address=Cap(2, 5.0)))
ADDRESSES = (None, "192.0.2.1", "192.0.2.1", "198.51.100.7")
EVENTS = (
    *("admit", "lease", "lease", "lease", "page", "page", "page", "retry", "return", "refused", "limited", "partly"),
    *("redeliver", "forget", "repeat", "lose", "tidy", "tidy", "block", "unblock", "pause", "cancel", "resume"),
    "retry failed",
)


class Killed(BaseException):
    """The process that works an order off ends."""


class Crawl:
    """A ledger, and what is under way of it."""

    def __init__(self, ledger: Ledger, draw: Any) -> None:
        self.ledger, self.draw, self.now = ledger, draw, 0.0
        self.under_way: list[Batch] = []
        self.reports: list[Report] = []
        self.gathered: list[Report] = []
        self.number = 0
        with ledger.engine.begin() as tx:
            for table in metadata.sorted_tables:
                tx.execute(table.delete())

    def one_of(self, choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def admit(self, **description: Any) -> None:
        self.number += 1
        job = Job.checked({"name": self.one_of(JOBS), "delay": 0, "retry_wait": 600, **description}, origin="test")
        seeds = [self.one_of(URLS), self.one_of(URLS)]
        admit(self.ledger, Admission(job=job, seeding=str(self.number), chunk=0, chunks=1, urls=seeds), self.now)

    def look_up(self, limit: int) -> None:
        """Some hosts' addresses become known, or that there is none."""
        found = {host: self.one_of(ADDRESSES) for host in addresses.to_look_up(self.ledger, limit)}
        addresses.looked_up(self.ledger, found, self.now)

    def tidy(self) -> None:
        """As much as four looks at the clock allow: the same on a busy machine, as hypothesis wants it."""
        clock = itertools.count()
        tidy.tidy(self.ledger, self.now, seconds=4, clock=lambda: float(next(clock)))

    def lease(self) -> None:
        self.look_up(self.draw(st.integers(0, 3)))
        leased = lease(self.ledger, 3, self.now)
        with self.ledger.engine.connect() as connection:
            blocked = connection.execute(sa.select(hosts.c.host).where(hosts.c.blocked_at.is_not(None))).scalars().all()
        running = {job["job"] for job in status.snapshots(self.ledger, self.now) if job["state"] == "running"}
        for batch in leased:
            assert batch.host not in blocked
            assert batch.job.name in running
        self.under_way += leased

    def report(self, what: str) -> Report:
        batch = self.under_way.pop(self.draw(st.integers(0, len(self.under_way) - 1)))
        targets = [target.url for target in batch.targets]
        depth = batch.targets[0].depth
        made = Report(
            lease=batch.lease, job=batch.job.name, host=batch.host, worker="w", release="r", delay=batch.job.delay
        )
        if what in ("page", "partly", "forget"):
            cut = len(targets) if what == "page" else len(targets) // 2
            made.results = [
                UrlResult(url=url, state="done", fetched_at=self.now, status=200, digest="d") for url in targets[:cut]
            ]
            made.unfetched = targets[cut:] if what == "partly" else []
            for _ in range(3):
                goal = self.one_of(URLS)
                out = batch.job.refuses(goal, targets[0], depth + 1)
                made.links.append(
                    Link(
                        url=goal, depth=depth + 1, found_on=targets[0], excluded=out and "depth", cause=out and "depth"
                    )
                )
        elif what == "retry":
            made.retries = [Retry(url=url, reason="HTTP 500", cause=Cause.SERVER_ERROR) for url in targets]
        else:
            made.unfetched = targets
            made.redelivered = what == "redeliver"
            if what in ("refused", "limited"):
                cause = Cause.CONNECT if what == "refused" else Cause.RATE_LIMITED
                made.back_off = BackOff(reason=what, cause=cause)
        return made

    def shown(self, _: int) -> None:
        """After each chunk of an order: the counts are true, and its process may be killed."""
        self.check()
        if self.draw(st.integers(0, 3)) == 0:
            raise Killed

    def record(self) -> None:
        record(self.ledger, self.gathered, self.now)
        self.gathered = []

    def happen(self, event: str) -> None:
        with contextlib.suppress(Killed):
            self._happen(event)

    def _happen(self, event: str) -> None:
        job, host = self.one_of(JOBS), self.one_of(HOSTS)
        known = {snapshot["job"] for snapshot in status.snapshots(self.ledger, self.now)}
        if event == "admit":
            self.admit(**self.one_of(DESCRIPTIONS))
        elif event == "lease":
            self.lease()
        elif event == "tidy":
            self.tidy()
        elif event == "block":
            orders.block(self.ledger, host, self.now, self.shown)
        elif event == "unblock":
            orders.block(self.ledger, host, self.now)
            orders.unblock(self.ledger, host, self.now, self.shown)
        elif event in ("pause", "cancel", "resume"):
            state = {"pause": "paused", "cancel": "cancelled", "resume": "running"}[event]
            if job in known:
                orders.set_state(self.ledger, job, state, self.now, self.shown)
        elif event == "retry failed":
            if job in known:
                orders.retry(self.ledger, job, self.one_of([None, "trap"]), self.now, self.shown)
        elif event == "repeat":
            if self.reports:
                self.record()
                assert record(self.ledger, [self.one_of(self.reports)] * 2, self.now) == 0
        elif self.under_way:
            made = self.report(event)
            if event != "lose":
                self.reports.append(made)
                self.gathered.append(made)
                if self.draw(st.booleans()):
                    self.record()

    def check(self) -> None:
        """The counts kept along the way are the true ones, to the last."""
        for job in status.snapshots(self.ledger, self.now, recount=True):
            assert job["counts"] == job["by_host"] == job["recounted"]
            assert job["counts"]["discovered"] == sum(job["counts"][state] for state in STATES)
        with self.ledger.engine.connect() as connection:
            counted = sa.select(
                *(sa.func.coalesce(sa.func.sum(host_queues.c[name]), 0) for name in ("again", "waiting"))
            )
            in_queue = urls.c.state == "queued"
            again = sa.and_(urls.c.was_done, sa.or_(in_queue, urls.c.state == "leased"))
            waiting = sa.and_(urls.c.not_before.is_not(None), in_queue)
            real = sa.select(
                *(sa.func.coalesce(sa.func.sum(sa.case((which, 1), else_=0)), 0) for which in (again, waiting))
            )
            assert tuple(connection.execute(counted).one()) == tuple(connection.execute(real).one())
            of_jobs = (
                sa.select(*(sa.func.sum(job_counts.c[name]) for name in COUNTS)).group_by(job_counts.c.job_id)
            ).order_by(job_counts.c.job_id)
            of_hosts = (
                sa.select(*(sa.func.sum(host_queues.c[name]) for name in COUNTS)).group_by(host_queues.c.job_id)
            ).order_by(host_queues.c.job_id)
            assert connection.execute(of_jobs).all() == connection.execute(of_hosts).all()
            least = connection.execute(sa.select(*(sa.func.min(host_queues.c[state]) for state in STATES))).one()
            assert all((number or 0) >= 0 for number in least)
            out = connection.execute(sa.select(leases.c.host, sa.func.count()).group_by(leases.c.host)).all()
            assert all(number <= 2 for _, number in out)
            self.check_budgets(connection)

    def check_budgets(self, connection: sa.Connection) -> None:
        """Of a job whose budgets are counted, what is noted of them is what is there."""
        of_jobs = sa.select(jobs).where(jobs.c.state != "deleted", sa.not_(sweeps.unfinished(jobs.c.job_id, "count")))
        for row in connection.execute(of_jobs).all():
            job = job_of(row.spec)
            chosen = sa.select(budgets.c.prefix, budgets.c.pages).where(budgets.c.job_id == row.job_id)
            noted = {found.prefix: found.pages for found in connection.execute(chosen)}
            is_page = sa.or_(urls.c.state == "done", sa.and_(urls.c.was_done, urls.c.state.in_(("queued", "leased"))))
            pages = (
                connection.execute(sa.select(urls.c.url).where(urls.c.job_id == row.job_id, is_page)).scalars().all()
            )
            for prefix in job.max_pages_per_prefix:
                assert noted.get(prefix, 0) == sum(page.startswith(prefix) for page in pages)
            counted = sa.select(host_queues.c.host).where(host_queues.c.job_id == row.job_id, COUNTED)
            if job.max_pages_per_domain is not None:
                assert {host_of(page) for page in pages} <= set(connection.execute(counted).scalars())

    def bring_to_an_end(self) -> None:
        """Whatever happened: once nothing stands against it, every job ends, and everything queued was asked for."""
        self.record()
        for job in status.snapshots(self.ledger, self.now):
            orders.set_state(self.ledger, job["job"], "running", self.now)
        for host in HOSTS:
            orders.block(self.ledger, host, self.now)
            orders.unblock(self.ledger, host, self.now)
        for name in JOBS:
            job = Job(name=name, delay=0, retry_wait=600)
            admit(self.ledger, Admission(job=job, seeding="end", chunk=0, chunks=1, urls=[URLS[0]]), self.now)
        for _ in range(300):
            self.now += 700
            self.tidy()
            self.lease()
            record(self.ledger, [self.report("page") for _ in range(len(self.under_way))], self.now)
            self.check()
            self.tidy()
            if all(job["state"] == "done" for job in status.snapshots(self.ledger, self.now)):
                break
        ended = status.snapshots(self.ledger, self.now)
        assert {job["state"] for job in ended} == {"done"}
        assert not any(job["counts"]["queued"] + job["counts"]["leased"] for job in ended)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.sampled_from(EVENTS), max_size=40), st.data())
def test_conservation_whatever_happens_in_whatever_order(ledger: Ledger, events: list[str], data: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "CHUNK", data.draw(st.sampled_from([2, 10_000])))  # orders of several chunks
        patch.setattr(traps, "WATCH_FROM", 1)
        patch.setattr(traps, "RUN", 2)
        _crawl(ledger, events, data)


def _crawl(ledger: Ledger, events: list[str], data: Any) -> None:
    ledger.caps = data.draw(st.sampled_from(CAPS))
    crawl = Crawl(ledger, data.draw)
    crawl.admit()
    for event in events:
        crawl.now += crawl.one_of([0.0, 1.0, 40.0, limits.LEASE + 1, 4000.0])
        crawl.happen(event)
        crawl.check()
    crawl.bring_to_an_end()
