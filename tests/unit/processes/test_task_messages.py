"""What is refused before Celery, the recorder or the scheduler obeys it."""

from __future__ import annotations

import bz2
from typing import Any

import pytest
from kombu import Message, compression

from crawler.messages import MessageError
from crawler.processes import queues, senders
from crawler.processes.task_messages import check_for_worker, task_of

OURS = {"lang": "py", "task": "fetch", "id": "1"}
assert queues  # it takes kombu's compression away


def message(
    headers: dict[str, Any] | None = None, body: bytes = b"[[{}],{},{}]", user: str | None = "ledger", **fields: Any
) -> Message:
    options = {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "properties": {"user_id": user},
    } | fields
    return Message(body=body, headers=OURS if headers is None else headers, **options)


@pytest.mark.parametrize("task", ["fetch", "recall"])
def test_the_scheduler_s_tasks_and_what_rabbitmq_adds_are_taken(task: str) -> None:
    added = {"x-delivery-count": 1, "x-death": [{}]}
    check_for_worker(message({**OURS, "task": task, **added}), "worker@here")


@pytest.mark.parametrize(
    ("task", "user", "taken"),
    [
        ("pulse", "worker@here", True),
        ("pulse", "worker@there", False),
        ("pulse", "ledger", False),
        ("fetch", "worker@here", False),  # through the queue of its pulse
        ("recall", "worker@here", False),
        ("fetch", "seed", False),
        ("fetch", None, False),
    ],
)
def test_a_task_counts_from_whoever_may_send_it(task: str, user: str | None, taken: bool) -> None:
    sent = message({**OURS, "task": task}, user=user)
    if taken:
        check_for_worker(sent, "worker@here")
    else:
        with pytest.raises(MessageError, match="sent by "):
            check_for_worker(sent, "worker@here")


@pytest.mark.parametrize(
    "embedded",
    [
        {"callbacks": [{"task": "recall"}]},
        {"errbacks": [{"task": "recall"}]},
        {"chain": [{"task": "recall"}]},
        {"chord": {"task": "recall"}},
        {"callbacks": None},
    ],
)
def test_callbacks_are_refused(embedded: dict[str, Any]) -> None:
    with pytest.raises(MessageError, match="no arguments of a task"):
        check_for_worker(message(body=queues.messages.encode([[{}], {}, embedded])), None)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[[],{}]", b"[[],{},{},{}]", b'[[],{"message":{}},{}]', b"[{},{},{}]", b"\xff", b"[" * 100_000],
)
def test_what_is_no_arguments_of_a_task_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        check_for_worker(message(body=body), None)


@pytest.mark.parametrize(
    "header",
    [
        "eta",
        "expires",
        "timelimit",
        "retries",
        "group",
        "root_id",
        "ignore_result",
        "stamps",
        "shadow",
        "argsrepr",
        "CC",
    ],
)
def test_headers_that_are_none_of_ours_are_refused(header: str) -> None:
    with pytest.raises(MessageError, match=f"a header that no task of ours has: '{header}'"):
        task_of(message({**OURS, header: None}))


@pytest.mark.parametrize("header", ["lang", "task", "id"])
def test_our_headers_are_there_and_texts(header: str) -> None:
    for wrong in ([1, 2], {}, 1, None, b"1"):
        with pytest.raises(MessageError, match=f"no text in the header {header}"):
            task_of(message({**OURS, header: wrong}))
    with pytest.raises(MessageError, match=f"without the headers {header}"):
        task_of(message({name: value for name, value in OURS.items() if name != header}))


@pytest.mark.parametrize(
    "kind", ["application/x-bz2", "bzip2", "gzip", "zlib", "lzma", "application/x-gzip", "unknown"]
)
def test_nothing_is_decompressed(kind: str) -> None:
    """kombu would, before anybody can look at the message."""
    sent = message({**OURS, "compression": kind}, body=bz2.compress(b"[[{}],{},{}]"))
    assert sent.errors
    with pytest.raises(MessageError):
        task_of(sent)


def test_no_compression_that_kombu_knows_is_left() -> None:
    for kind in compression.encoders():
        with pytest.raises(ValueError, match="compressed, as no message of ours is"):
            compression.decompress(b"", kind)


@pytest.mark.parametrize(
    ("kind", "encoding"), [("application/x-python-serialize", "binary"), ("application/json", "utf-16")]
)
def test_only_json_in_utf_8_is_read(kind: str, encoding: str) -> None:
    with pytest.raises(MessageError, match="no JSON in UTF-8"):
        task_of(message(content_type=kind, content_encoding=encoding))


def test_a_worker_is_its_host_s_user() -> None:
    assert senders.of_worker("worker-3@host1") == "worker@host1"
    assert senders.of_worker("worker-120@a.b-c_d") == "worker@a.b-c_d"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "w",
        "worker-3",
        "worker-3@",
        "worker-@h",
        "worker-0@h",
        "recorder-1@h",
        "[/zz]",
        "worker-1@h\n",
        "xworker-1@h",
    ],
)
def test_what_is_no_worker_has_no_user(name: str) -> None:
    with pytest.raises(MessageError, match="no name of a worker"):
        senders.of_worker(name)
