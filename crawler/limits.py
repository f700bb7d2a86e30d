"""Every time limit that must be shorter or longer than another, in one place, in seconds.

    FETCH < BATCH < BATCH_WORST < TASK < LEASE - LEASE_MARGIN < LEASE < CONSUMER        FETCH < STOP < WATCHDOG < TASK

A batch must end before its task is killed, and the task before the lease expires: an expired lease is given to another
worker, and a host must never be asked by two. The broker takes a message back (CONSUMER) only after the frontier has
given the lease up. A worker that is told to stop finishes the URL in hand (FETCH) before systemd kills it (STOP).
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
LOOK_UP = 5.0
"""How long a new host waits at most until its address is known, while the frontier looks it up."""
PULSE = 15.0
"""Between two heartbeats that a process sends itself through the broker."""
HEARTBEAT = 30
"""AMQP's own heartbeat: without a sign of life for twice as long, broker and process give one another up."""
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
"""Messages that a recorder holds at most, and so takes into the ledger in one transaction."""
GATHER_BYTES = 4_000_000
"""Bytes of messages after which a recorder gathers no more for one transaction."""
