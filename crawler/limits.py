"""Every time limit that must be shorter or longer than another, in one place, in seconds.

    FETCH < BATCH < BATCH_WORST < TASK < LEASE - LEASE_MARGIN < LEASE < CONSUMER        FETCH < STOP < WATCHDOG < TASK
    2 HOLD < SILENT      SILENT + FETCH + 2 HOLD <= KEEP      BEGIN + CLOCKS <= KEEP      KEEP + IN_HAND + 3 HOLD < 60
    3 WORKER_HEARTBEAT <= KEEP      3 HEARTBEAT < REPORTED

A batch must end before its task is killed, and the task before the lease expires: an expired lease is given to another
worker, and a host must never be asked by two. The broker takes a message back (CONSUMER) only after the frontier has
given the lease up. A worker that is told to stop finishes the URL in hand (FETCH) before systemd kills it (STOP).

A lease is given up long before it expires when nobody holds it (frontier/holds.py). A worker whose last confirmed hold
is SILENT seconds old begins no request any more, and what is under way takes FETCH: so KEEP seconds after that hold it
fetches nothing, even if the hold was lost after it was confirmed, so that the frontier counts from the one before. A
batch that waited in the broker for BEGIN seconds is not begun: so after KEEP no worker fetches for it either, even if
the clock of its host is behind by CLOCKS.
tests/unit/test_limits.py asserts this; tests/templates/test_time_limits.py, that units and broker are told the same.
"""

from __future__ import annotations

CONNECT = 10.0
"""Until a connection is established."""
READ = 20.0
"""Without a byte from the server."""
FETCH = 30.0
"""One request, from its beginning to the last byte of the answer."""
BATCH = 45.0
"""What a batch is cut for, the host's delays included; what is left then goes back unfetched."""
BATCH_WORST = 280.0
"""What a batch takes at most: robots.txt behind five slow redirects, then one Crawl-delay and one fetch."""
TASK = 300.0
"""After which Celery kills a task."""
LEASE = 600.0
"""How long a batch may be in the broker, at a worker, and on its way back. Then its URLs are queued again."""
LEASE_MARGIN = 60.0
"""Before a lease's end, when a worker stops fetching for it: more than the clocks of two hosts differ."""
HOLD = 3.0
"""Between two messages in which a worker says which leases it holds."""
SILENT = 9.0
"""After its last confirmed hold, when a worker begins no request any more."""
KEEP = 45.0
"""For which the frontier keeps a lease that no hold names: counted from the last one, or from the lease's beginning."""
BEGIN = 40.0
"""For which a batch may wait in the broker. A worker that takes it later returns it unfetched."""
CLOCKS = 5.0
"""By which the clock of a worker's host may be behind the frontier's."""
IN_HAND = 5.0
"""For which a recorder has a report in hand, after it has left the queue, before it is in the ledger."""
REPORTED = 100.0
"""The same for a recorder that hangs or lost its host: RabbitMQ gives its messages to another after 3 HEARTBEAT."""
LOOK_UP = 5.0
"""How long a new host waits at most until its address is known, while the frontier looks it up."""
PULSE = 15.0
"""Between two heartbeats that a process sends itself through the broker."""
HEARTBEAT = 30
"""AMQP's own heartbeat: without a sign of life for twice as long, broker and process give one another up."""
WORKER_HEARTBEAT = 15
"""A worker's: RabbitMQ hands batches to a consumer whose host is gone for up to three times as long."""
DATABASE = 600.0
"""How long a recorder waits for the database before it gives its messages back to the broker, which makes dead letters
of what comes back 20 times (rabbitmq_delivery_limit)."""
STOP = 90.0
"""Between systemd's SIGTERM and its SIGKILL (TimeoutStopSec)."""
WATCHDOG = 180.0
"""Without a heartbeat, after which systemd restarts a process (WatchdogSec)."""
CONSUMER = 1800.0
"""Without an acknowledgement, after which RabbitMQ takes a message back (consumer_timeout)."""

BATCH_URLS = 50
"""URLs in a batch at most: not a time, but what bounds one."""
GATHER_MESSAGES = 100
"""Reports that a recorder holds at most, and so takes into the ledger in one transaction."""
GATHER_BYTES = 4_000_000
"""Bytes of reports after which a recorder gathers no more for one transaction."""
GATHER_SEEDS = 4
"""Pieces of seedings that a recorder holds at most, and takes in between two transactions of reports."""
