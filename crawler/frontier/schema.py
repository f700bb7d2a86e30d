"""The ledger's tables. All times are seconds since the epoch.

Every primary key of what grows with the crawl holds the host, so that the tables can be sharded by host.
"""

from __future__ import annotations

import sqlalchemy as sa

from crawler.messages import TERMINAL

STATES = ("queued", "leased", *TERMINAL)

metadata = sa.MetaData()

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("spec", sa.Text, nullable=False),  # JSON: job.Job
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
    sa.Column("arrived_at", sa.Float(53)),
)

urls = sa.Table(
    "urls",
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("url", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("sitemap", sa.Boolean, nullable=False, server_default=sa.false()),  # a list of URLs, not a page
    sa.Column("seed", sa.Boolean, nullable=False, server_default=sa.false()),  # see messages.Target
    sa.Column("depth", sa.Integer, nullable=False),
    sa.Column("hops", sa.Integer, nullable=False, server_default="0"),  # redirects that led here
    sa.Column("nested", sa.Integer, nullable=False, server_default="0"),  # sitemap indexes that led here
    sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("expiries", sa.Integer, nullable=False, server_default="0"),  # leases that never came back
    sa.Column("found_on", sa.Text),
    sa.Column("discovered_at", sa.Float(53), nullable=False),
    sa.Column("lease", sa.Text),
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
    sa.Column("worker", sa.Text),
    sa.Column("release", sa.Text),
)
_queued, _leased, _done = (urls.c.state == state for state in ("queued", "leased", "done"))
# The order in which a host's URLs are leased: breadth first.
sa.Index(
    "urls_queued",
    urls.c.job_id,
    urls.c.host,
    urls.c.depth,
    urls.c.attempts,
    urls.c.discovered_at,
    postgresql_where=_queued,
    sqlite_where=_queued,
)
# Whether a level is whole, for jobs that go level by level over many hosts.
_open = urls.c.state.in_(("queued", "leased"))
sa.Index("urls_open", urls.c.job_id, urls.c.depth, postgresql_where=_open, sqlite_where=_open)
sa.Index("urls_leased", urls.c.lease, postgresql_where=_leased, sqlite_where=_leased)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease", sa.Text, primary_key=True),
    sa.Column("job_id", sa.Integer, nullable=False),
    sa.Column("host", sa.Text, nullable=False, index=True),
    sa.Column("deadline", sa.Float(53), nullable=False, index=True),
)

host_queues = sa.Table(
    "host_queues",  # one row per job and host: the counts, and when the host is due
    metadata,
    sa.Column("job_id", sa.Integer, primary_key=True),
    sa.Column("host", sa.Text, primary_key=True),
    *(sa.Column(state, sa.BigInteger, nullable=False, server_default="0") for state in STATES),
    sa.Column("next_due", sa.Float(53), nullable=False),
)
_waiting = host_queues.c.queued > 0
sa.Index("host_queues_due", host_queues.c.next_due, postgresql_where=_waiting, sqlite_where=_waiting)
sa.Index("host_queues_host", host_queues.c.host)

hosts = sa.Table(
    "hosts",  # politeness, shared by all jobs, so that it survives any restart
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("next_due", sa.Float(53), nullable=False),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # in a row
    sa.Column("failure", sa.Text),
    sa.Column("robots", sa.Text),  # JSON: origin -> messages.RobotsFile
    sa.Column("blocked_at", sa.Float(53)),
)

requests = sa.Table(
    "requests",  # every request made, for the site's owner and for `crawler explain`
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
