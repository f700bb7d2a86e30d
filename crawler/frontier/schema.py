"""The ledger's tables. All times are seconds since the epoch.

Every primary key of what grows with the crawl holds the host, so that the tables can be sharded by host.
"""

from __future__ import annotations

import sqlalchemy as sa

from crawler.messages import TERMINAL

STATES = ("queued", "leased", *TERMINAL)
COUNTS = (*STATES, "discovered", "again", "waiting")
"""What is counted for each job and host: URLs in each state; URLs inserted, which must be their sum; those of the
queued and leased ones that have been pages before (`urls.was_done`); those of the queued ones that wait for another
attempt (`urls.not_before`)."""
OUTDATED_INDEXES = ("urls_queued", "urls_open", "urls_in_queue", "host_queues_due")
"""Indexes of an earlier release that nothing uses any more."""

metadata = sa.MetaData()


def _turns() -> tuple[sa.Column[float], sa.Column[float]]:
    """Where the last batch began and ended in virtual time (lease.py): who began least far gets the next turn."""
    return tuple(sa.Column(name, sa.Float(53), nullable=False, server_default="0") for name in ("began", "ended"))  # type: ignore[return-value]


jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("spec", sa.Text, nullable=False),  # JSON: what a job.Job has besides its defaults
    sa.Column("state", sa.Text, nullable=False),  # running | paused | cancelled | done | deleted
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("finished_at", sa.Float(53)),
    sa.Column("prefixes", sa.Text),  # JSON: URL prefixes that seeds redirected to, for the scope `prefix`
    sa.Column("broken", sa.Text),  # why this release cannot read the row; such a job waits, no other job does
    sa.Column("trapped", sa.Boolean),  # whether a section of one of its hosts was ever closed (table `traps`)
    *_turns(),
)
# Jobs that have ended, however many, are read by nothing that is done each second.
sa.Index("jobs_finished", jobs.c.finished_at)
sa.Index("jobs_began", jobs.c.began)
# What says so of a job, in spec_of's words; in a text of the job's own it does no harm.
VISITED_AGAIN = sa.and_(jobs.c.state == "done", jobs.c.spec.like(sa.literal_column("'%\"recrawl\":%'")))
sa.Index("jobs_visited_again", jobs.c.job_id, postgresql_where=VISITED_AGAIN, sqlite_where=VISITED_AGAIN)

seedings = sa.Table(
    "seedings",  # one row per piece of a seeding that has arrived
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("seeding", sa.Text, primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True),
    sa.Column("chunks", sa.Integer),  # in the last piece: how many there are
    sa.Column("arrived_at", sa.Float(53)),
)

sweeps = sa.Table(
    "sweeps",  # bulk orders, worked off in chunks of a job's URLs: see sweeps.py
    metadata,
    sa.Column("sweep_id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("host", sa.Text),  # null: all of the job's
    sa.Column("text", sa.Text),  # retry: what the reason contains; give_up: the reason
    sa.Column("last_host", sa.Text, nullable=False, server_default=""),  # all URLs up to this one have been swept
    sa.Column("last_url", sa.Text, nullable=False, server_default=""),
    sa.Column("moved", sa.BigInteger, nullable=False, server_default="0"),  # URLs whose state has changed
    sa.Column("ordered_at", sa.Float(53), nullable=False),
    sa.Column("worked_at", sa.Float(53), nullable=False),
    sa.Column("finished_at", sa.Float(53)),
)
UNFINISHED = sweeps.c.finished_at.is_(None)
sa.Index("sweeps_unfinished", sweeps.c.job_id, postgresql_where=UNFINISHED, sqlite_where=UNFINISHED)

urls = sa.Table(
    "urls",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("sitemap", sa.Boolean, nullable=False, server_default=sa.false()),  # a list of URLs, not a page
    sa.Column("seed", sa.Boolean, nullable=False, server_default=sa.false()),  # see messages.Target
    sa.Column("turn", sa.Integer, nullable=False, server_default="0"),  # -1: before others of its host, 1: after them
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("hops", sa.Integer, nullable=False, server_default="0"),  # redirects that led here
    sa.Column("nested", sa.Integer, nullable=False, server_default="0"),  # sitemap indexes that led here
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("not_before", sa.Float(53)),  # while queued: waits for this time, as its last attempt failed
    sa.Column("was_done", sa.Boolean, nullable=False, server_default=sa.false()),  # while queued or leased: was a page
    sa.Column("leased_depth", sa.Integer),  # its depth when it was leased last, in a job with `depth`
    sa.Column("expanded", sa.Integer),  # the depth from which its links were followed, in a job with `depth`
    sa.Column("expiries", sa.Integer, nullable=False, server_default="0"),  # leases that never came back
    sa.Column("found_on", sa.Text),
    sa.Column("discovered_at", sa.Float(53), nullable=False),
    sa.Column("lease", sa.Text),  # the last one, until its report is recorded
    # What the last fetch came to:
    sa.Column("reason", sa.Text),  # for people
    sa.Column("cause", sa.Text),  # messages.Cause: what the code decides by
    sa.Column("status", sa.Integer),
    sa.Column("fetched_at", sa.Float(53)),
    sa.Column("title", sa.Text),
    sa.Column("content_type", sa.Text),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("digest", sa.Text),
    sa.Column("canonical", sa.Text),
    sa.Column("etag", sa.Text),
    sa.Column("last_modified", sa.Text),
    sa.Column("fields", sa.Text),  # JSON: what the job's extractor found
    sa.Column("extract_error", sa.Text),  # what the job's extractor raised
    sa.Column("warc_file", sa.Text),
    sa.Column("warc_offset", sa.BigInteger),
    sa.Column("warc_date", sa.Float(53)),
    sa.Column("worker", sa.Text),
    sa.Column("release", sa.Text),
)
# A host's queue: what is ready (no not_before) in the order in which it is leased, breadth first; what waits, by time.
_in_queue = urls.c.state == "queued"
sa.Index(
    "urls_in_turn",
    urls.c.job_id,
    urls.c.host,
    urls.c.not_before,
    urls.c.turn,
    urls.c.depth,
    urls.c.attempts,
    urls.c.discovered_at,
    postgresql_where=_in_queue,
    sqlite_where=_in_queue,
)
_leased = urls.c.state == "leased"
sa.Index("urls_leased", urls.c.lease, postgresql_where=_leased, sqlite_where=_leased)
# What a job with `recrawl` visits again, the oldest first.
ASKED_FOR = sa.and_(
    urls.c.state.in_([sa.literal_column(f"'{state}'") for state in TERMINAL]), urls.c.fetched_at.is_not(None)
)
sa.Index("urls_fetched", urls.c.job_id, urls.c.fetched_at, postgresql_where=ASKED_FOR, sqlite_where=ASKED_FOR)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Integer, nullable=False),
    sa.Column("host", sa.Text, nullable=False, index=True),
    sa.Column("deadline", sa.Float(53), nullable=False, index=True),
    sa.Column("urls", sa.Integer),  # how many
    sa.Column("watched", sa.Boolean),  # whether its host is one that traps.py watches
)

host_queues = sa.Table(
    "host_queues",  # one row per job and host: the counts, and when the host is due
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    *(sa.Column(count, sa.BigInteger, nullable=False, server_default="0") for count in COUNTS),
    sa.Column("next_due", sa.Float(53), nullable=False),
    sa.Column("next_wake", sa.Float(53)),  # no URL's not_before is earlier; equal to next_due: nothing else is queued
    # Its host is given up or blocked, or has given all the pages the job wants: `tidy` looks, and drops what is queued.
    sa.Column("give_up", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("domain", sa.Text),  # its registrable domain, if the job has max_pages_per_domain and leased of it
    *_turns(),
)
# Hosts that count against max_pages_per_domain: no more of a domain than it may have pages, and leases.
COUNTED = sa.and_(
    host_queues.c.domain.is_not(None),
    host_queues.c.done + host_queues.c.again + host_queues.c.leased > sa.literal_column("0"),
)
sa.Index(
    "host_queues_counted", host_queues.c.job_id, host_queues.c.domain, postgresql_where=COUNTED, sqlite_where=COUNTED
)
_queued = sa.and_(host_queues.c.queued > 0, sa.not_(host_queues.c.give_up))
sa.Index(
    "host_queues_due_by_job",
    host_queues.c.job_id,
    host_queues.c.next_due,
    postgresql_where=_queued,
    sqlite_where=_queued,
)
sa.Index("host_queues_host", host_queues.c.host)
_to_drop = sa.and_(host_queues.c.queued > 0, host_queues.c.give_up)
sa.Index("host_queues_to_drop", host_queues.c.job_id, postgresql_where=_to_drop, sqlite_where=_to_drop)
# A job's sites as status shows them: those with the most pages first, none of which all is excluded.
SHOWN = host_queues.c.done + host_queues.c.queued + host_queues.c.leased + host_queues.c.failed > sa.literal_column("0")
sa.Index(
    "host_queues_largest",
    host_queues.c.job_id,
    host_queues.c.done.desc(),
    host_queues.c.host,
    postgresql_where=SHOWN,
    sqlite_where=SHOWN,
)
WAITING = host_queues.c.waiting > sa.literal_column("0")
sa.Index(
    "host_queues_waiting", host_queues.c.job_id, host_queues.c.next_wake, postgresql_where=WAITING, sqlite_where=WAITING
)

job_counts = sa.Table(
    # The sums of host_queues over a job's hosts, kept where those change. In a few rows for each job, so that
    # recorders do not wait for one another: each process adds to the row of its own slot.
    "job_counts",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("slot", sa.Integer, primary_key=True),
    *(sa.Column(count, sa.BigInteger, nullable=False, server_default="0") for count in COUNTS),
)

budgets = sa.Table(
    "budgets",  # how much of each of a job's max_pages_per_prefix is used; no row: nothing
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("prefix", sa.Text, primary_key=True),
    sa.Column("pages", sa.BigInteger, nullable=False),  # done; done before, and queued or leased again
)

traps = sa.Table(
    "traps",  # what traps.py knows of each large host of a job
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("seen", sa.Text, nullable=False),  # base64: short hashes of the bodies seen last, by section
    sa.Column("runs", sa.Text, nullable=False),  # JSON: section -> pages seen before, and new ones, lately
    sa.Column("closed", sa.Text),  # JSON: section -> why it is closed
)

hosts = sa.Table(
    "hosts",  # politeness, shared by all jobs, so that it survives any restart
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("next_due", sa.Float(53), nullable=False),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # in a row: it could not be reached
    sa.Column("failure", sa.Text),
    sa.Column("failing_since", sa.Float(53)),  # the first of them
    sa.Column("given_up_at", sa.Float(53)),
    sa.Column("rests", sa.Integer, nullable=False, server_default="0"),  # in a row, that it asked for (429)
    sa.Column("robots", sa.Text),  # JSON: origin -> messages.RobotsFile
    sa.Column("blocked_at", sa.Float(53)),
    sa.Column("address", sa.Text),  # of its server; null: not looked up, or not found
    sa.Column("looked_up_at", sa.Float(53)),
    sa.Column("look_up_at", sa.Float(53)),  # null: nobody needs its address, or it is known
    sa.Column("left_at", sa.Float(53)),  # a job that wanted it was deleted: `tidy` looks, in time, whether any does
)
_to_look_up = hosts.c.look_up_at.is_not(None)
sa.Index("hosts_to_look_up", hosts.c.look_up_at, postgresql_where=_to_look_up, sqlite_where=_to_look_up)
_left = hosts.c.left_at.is_not(None)
sa.Index("hosts_left", hosts.c.left_at, postgresql_where=_left, sqlite_where=_left)
_blocked = hosts.c.blocked_at.is_not(None)
sa.Index("hosts_blocked", hosts.c.host, postgresql_where=_blocked, sqlite_where=_blocked)
_given_up = hosts.c.given_up_at.is_not(None)
sa.Index("hosts_given_up", hosts.c.host, postgresql_where=_given_up, sqlite_where=_given_up)

slots = sa.Table(
    "slots",  # what is taken of the caps of domains and addresses: one row for each lease that has caps
    metadata,
    sa.Column("lease", sa.Text, primary_key=True),
    sa.Column("domain", sa.Text),
    sa.Column("address", sa.Text),
    sa.Column("rest", sa.Float(53), nullable=False),  # seconds for which the slot stays taken after the lease's end
    sa.Column("until", sa.Float(53), nullable=False),  # the lease's deadline; once it has ended, the end of that rest
)
for _column in (slots.c.domain, slots.c.address):
    _capped = _column.is_not(None)
    sa.Index(f"slots_{_column.name}", _column, postgresql_where=_capped, sqlite_where=_capped)

machines = sa.Table(
    "machines",  # domains and addresses at which hosts wait for a slot
    metadata,
    sa.Column("machine", sa.Text, primary_key=True),
    sa.Column("next_due", sa.Float(53), nullable=False, index=True),  # when a slot may be free
)

waiting_hosts = sa.Table(
    "waiting_hosts",
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("since", sa.Float(53), nullable=False),  # when it was due
)
sa.Index("waiting_hosts_in_turn", waiting_hosts.c.machine, waiting_hosts.c.since)

requests = sa.Table(
    "requests",  # every request made, for the site's owner and for `crawler explain`; see request_log.py
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("at", sa.Float(53), primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Integer, nullable=False),
    sa.Column("status", sa.Integer),  # null: no usable answer
    sa.Column("reason", sa.Text),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("release", sa.Text, nullable=False),
    postgresql_partition_by="RANGE (at)",
)
# On PostgreSQL each partition has indexes of its own.
requests.primary_key.ddl_if(dialect="sqlite")
sa.Index("ix_requests_at", requests.c.at).ddl_if(dialect="sqlite")

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
