"""Which messages are tasks of ours. Celery obeys much that may stand in a message: callbacks and chains, which are
sent with the rights of whoever executes the task; eta, expires, timelimit; compression. Nothing of that is ours, so a
message that has any of it is refused before Celery, or anything else, obeys it.

Source: https://docs.celeryq.dev/en/stable/internals/protocol.html (version 2)
"""

from __future__ import annotations

from typing import Any

import msgspec

from crawler.messages import MessageError, Nothing
from crawler.processes import senders

HEADERS = frozenset({"lang", "task", "id"})
"""As queues.publish writes them, each a text. RabbitMQ adds some of its own, of which all names begin with `x-`."""
_BODY = msgspec.json.Decoder(tuple[list[msgspec.Raw], Nothing, Nothing])
"""Arguments by place, and neither any by name nor callbacks, errbacks, a chain or a chord."""


def task_of(message: Any) -> str:
    """The task that a message names, whose body is not looked at. Raises MessageError where it is none of ours."""
    if message.errors:
        raise MessageError(str(message.errors[0][1]))
    for name, value in message.headers.items():
        if name not in HEADERS and not name.startswith("x-"):
            raise MessageError(f"a header that no task of ours has: {name[:100]!r}")
        if name in HEADERS and not isinstance(value, str):
            raise MessageError(f"no text in the header {name}: {str(value)[:100]!r}")
    if missing := HEADERS - message.headers.keys():
        raise MessageError(f"without the headers {', '.join(sorted(missing))}")
    if (message.content_type, str(message.content_encoding).lower()) != ("application/json", "utf-8"):
        raise MessageError(f"no JSON in UTF-8: {message.content_type!r}, {message.content_encoding!r}")
    task: str = message.headers["task"]
    return task


def check_for_worker(message: Any, user: str | None) -> None:
    """Raise MessageError unless a message is a task for a worker that is `user` at the broker: a pulse of its own, or
    what the scheduler sends."""
    senders.require(message, user if task_of(message) == "pulse" else senders.LEDGER)
    try:
        _BODY.decode(message.body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError(f"no arguments of a task: {error}") from None
