"""Who sent a message: a user of the broker.

RabbitMQ takes a message that names a `user_id` only from that user's connection, so the name is true; one that names
none may be anybody's. Every host with workers has a user of its own (roles/rabbitmq): what a worker says counts for
workers of its host alone.

Source: https://www.rabbitmq.com/docs/validated-user-id
"""

from __future__ import annotations

import re
from typing import Any

from crawler.messages import MessageError

SEED, LEDGER = "seed", "ledger"
"""The users of seed.py, and of scheduler and recorders."""
_WORKER = re.compile(r"worker-[1-9][0-9]{0,2}@(?P<host>[A-Za-z0-9][A-Za-z0-9._:-]*)")


def of_worker(worker: str) -> str:
    """The user of the host of a worker: worker@host1 for worker-3@host1. Raises MessageError."""
    if not (named := _WORKER.fullmatch(worker)):
        raise MessageError(f"no name of a worker: {worker[:100]!r}")
    return f"worker@{named['host']}"


def require(message: Any, user: str | None) -> None:
    """Raise MessageError unless `user` has sent a message."""
    if (sent_by := message.properties.get("user_id")) != user:
        raise MessageError(f"sent by {sent_by!r}, and not by {user!r}")
