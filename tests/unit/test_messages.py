"""What travels: everything but a message as it should be is refused, in words that say what is wrong and where; and
releases understand each other."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from crawler.job import Job
from crawler.messages import (
    Admission,
    BackOff,
    Batch,
    Hold,
    Link,
    Message,
    MessageError,
    Report,
    Request,
    Retry,
    RobotsFile,
    Target,
    UrlResult,
    convert,
    decode,
    decode_task,
    encode,
)

JOB = Job(name="j", delay=3, strip_parameters=("sid",), max_pages_per_prefix={"http://a.test/": 5})
FILE = RobotsFile(fetched_at=1.5, status=200, body="User-agent: *")
URL = "http://a.test/"
BATCH = Batch(
    lease="l",
    job=JOB,
    host="a.test",
    targets=[Target(url=URL, depth=1, seed=True, etag='"e"', warc_file="w", warc_offset=2**40, warc_date=0.5)],
    expires_at=5.0,
    begin_by=4.0,
    robots={"http://a.test": FILE},
    delay=2.0,
    lost_before=True,
    blocked=frozenset({"b.test"}),
)
REPORT = Report(
    lease="l",
    job="j",
    host="a.test",
    worker="w",
    release="r",
    delay=1.0,
    requests=[Request(url=URL, at=1.0, reason="no answer", seconds=0.1)],
    results=[
        UrlResult(url=URL, state="done", fetched_at=1.0, status=200, title="é", bytes=2**40, fields={"a": [1, None]})
    ],
    retries=[Retry(url=f"{URL}r", reason="HTTP 500", cause="server_error")],
    unfetched=[f"{URL}u"],
    links=[Link(url=f"{URL}x", depth=2, found_on=URL, excluded="depth", cause="depth")],
    robots={"http://a.test": FILE},
    back_off=BackOff(reason="HTTP 429", cause="rate_limited", seconds=7.0),
)
ADMISSION = Admission(job=JOB, seeding="s", chunk=0, chunks=1, urls=[URL])
HOLD = Hold(worker="w", leases=["l"], reported=["m"])
ALL = [BATCH, REPORT, ADMISSION, HOLD]


def task(argument: object) -> bytes:
    return json.dumps([[argument], {}, {}]).encode()


def plain(message: Message) -> Any:
    return json.loads(encode(message))


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    assert decode(type(message), encode(message)) == message
    assert decode_task(type(message), task(plain(message))) == message
    assert convert(type(message), plain(message)) == message


def test_what_has_its_default_is_not_sent() -> None:
    assert plain(Report(lease="", job="j", host="h", worker="w", release="r", delay=0, links=[Link(URL, 1)])) == {
        "lease": "",
        "job": "j",
        "host": "h",
        "worker": "w",
        "release": "r",
        "delay": 0,
        "links": [{"url": URL, "depth": 1}],
    }
    assert plain(Admission(job=Job(name="j"), seeding="s", chunk=0))["job"] == {"name": "j"}


# --- releases side by side --------------------------------------------------------------------------------------------


def everywhere(value: Any, change: Callable[[dict[str, Any]], None]) -> Any:
    """`value` with each dict in it changed."""
    if isinstance(value, list):
        return [everywhere(one, change) for one in value]
    if isinstance(value, dict):
        value = {key: everywhere(one, change) for key, one in value.items()}
        change(value)
    return value


@pytest.mark.parametrize("message", [BATCH, REPORT, ADMISSION, HOLD], ids=lambda message: type(message).__name__)
def test_what_a_newer_release_adds_is_passed_over(message: Message) -> None:
    def add(fields: dict[str, Any]) -> None:
        if not any(key.startswith("http") for key in fields):  # what is keyed by URLs has no fields
            fields["of_a_newer_release"] = [{"x": 1}]

    newer = everywhere(plain(message), add)
    if isinstance(message, Report):
        newer["results"][0]["fields"] = message.results[0].fields
        newer["retries"][0]["cause"] = "a newer word"
        message = msgspec.structs.replace(
            message, retries=[Retry(url=f"{URL}r", reason="HTTP 500", cause="a newer word")]
        )
    assert decode_task(type(message), task(newer)) == message


OLDER = {
    Batch: '{"lease": "l", "job": {"name": "j", "delay": 3.0}, "host": "h", "targets": [{"url": "u", "depth": 1}],'
    ' "expires_at": 5.0}',
    Report: '{"lease": "l", "job": "j", "host": "h", "worker": "w", "release": "r", "delay": 1.0, "requests":'
    ' [{"url": "u", "at": 1.0, "status": 200, "seconds": 0}], "results": [{"url": "u", "state": "done",'
    ' "fetched_at": 1.0, "status": 200, "title": "\\u00e9"}], "retries": [{"url": "v", "reason": "HTTP 500"}],'
    ' "links": [{"url": "x", "depth": 2, "found_on": "u"}], "back_off": {"reason": "HTTP 503", "seconds": 30}}',
    Admission: '{"job": {"name": "j"}, "seeding": "s", "chunk": 0, "urls": ["u"]}',
}
"""As releases sent them that made their messages with pydantic, and knew no causes or holds."""


@pytest.mark.parametrize("kind", OLDER, ids=lambda kind: kind.__name__)
def test_what_an_older_release_sends_is_read(kind: type[Message]) -> None:
    message = decode_task(kind, f"[[{OLDER[kind]}], {{}}, {{}}]".encode())
    assert plain(message) == json.loads(OLDER[kind])


# --- what is refused --------------------------------------------------------------------------------------------------

DEEP = "[" * 100_000
NUMBER, TEXT, LIST, DICT = 7, "seven", [7], {"seven": 7}
WRONG: list[tuple[Message, str, Any, str]] = [
    # message, where, what, what is said of it
    (REPORT, "lease", NUMBER, "Expected `str`, got `int` - at `$[0][0].lease`"),
    (REPORT, "host", None, "Expected `str`, got `null`"),
    (REPORT, "delay", TEXT, "Expected `float`, got `str`"),
    (REPORT, "delay", "1.5", "Expected `float`, got `str`"),
    (REPORT, "results", DICT, "Expected `array`, got `object`"),
    (REPORT, "results", [TEXT], "Expected `object`, got `str` - at `$[0][0].results[0]`"),
    (REPORT, "results.0.state", "leased", "Invalid enum value 'leased' - at `$[0][0].results[0].state`"),
    (REPORT, "results.0.status", 1000, "Expected `int` <= 999"),
    (REPORT, "results.0.bytes", 2**63, "`$[0][0].results[0].bytes`"),
    (REPORT, "links.0.hops", 2**31, "Expected `int` <= 2147483647"),
    (REPORT, "results.0.status", -1, "Expected `int` >= 100"),
    (REPORT, "delay", 86401.0, "Expected `float` <= 86400.0"),
    (REPORT, "back_off.seconds", 1e300, "Expected `float` <= 86400.0"),
    (REPORT, "worker", "w" * 301, "Expected `str` of length <= 300"),
    (REPORT, "results.0.status", 2**80, "`$[0][0].results[0].status`"),
    (REPORT, "results.0.status", 200.5, "Expected `int | null`, got `float`"),
    (REPORT, "results.0.bytes", 2**63, "`$[0][0].results[0].bytes`"),
    (REPORT, "results.0.title", LIST, "Expected `str | null`, got `array`"),
    (REPORT, "results.0.fetched_at", DICT, "Expected `float`, got `object`"),
    (REPORT, "links.0.depth", 1.5, "Expected `int`, got `float` - at `$[0][0].links[0].depth`"),
    (REPORT, "links.0.depth", -1, "Expected `int` >= 0"),
    (REPORT, "links.0.depth", 10**30, "`$[0][0].links[0].depth`"),
    (REPORT, "links.0.url", "http://a.test/" + 2000 * "x", "Expected `str` of length <= 2000"),
    (REPORT, "links.0.seed", TEXT, "Expected `bool`, got `str`"),
    (REPORT, "links.0.cause", NUMBER, "Expected `str | null`, got `int`"),
    (REPORT, "unfetched.0", NUMBER, "Expected `str`, got `int` - at `$[0][0].unfetched[0]`"),
    (REPORT, "robots", LIST, "Expected `object`, got `array`"),
    (REPORT, "robots.http://a.test", TEXT, "Expected `object`, got `str`"),
    (REPORT, "back_off.seconds", LIST, "`$[0][0].back_off.seconds`"),
    (REPORT, "redelivered", TEXT, "Expected `bool`, got `str`"),
    (BATCH, "job", TEXT, "a job that cannot be read"),
    (BATCH, "job", None, "a job that cannot be read"),
    (BATCH, "job.name", "../x", "a job that cannot be read: name: String should match pattern"),
    (BATCH, "job.name", 81 * "x", "a job that cannot be read: name: String should match pattern"),
    (BATCH, "job.delay", 3601, "delay: Input should be less than or equal to 3600 - at `$[0][0].job`"),
    (BATCH, "job.first", ["("], "'(' is no regular expression"),
    (BATCH, "targets.0.depth", TEXT, "Expected `int`, got `str`"),
    (BATCH, "targets.0.url", DICT, "Expected `str`, got `object`"),
    (BATCH, "blocked", [NUMBER], "Expected `str`, got `int`"),
    (BATCH, "begin_by", TEXT, "Expected `float | null`, got `str`"),
    (ADMISSION, "chunk", -1, "Expected `int` >= 0"),
    (ADMISSION, "chunks", TEXT, "Expected `int | null`, got `str`"),
    (ADMISSION, "urls", [[URL]], "Expected `str`, got `array`"),
    (ADMISSION, "job.scope", {"kind": "prefix"}, "kind 'prefix' needs 'prefixes'"),
    (HOLD, "leases", TEXT, "Expected `array`, got `str`"),
]
MISSING = [
    (REPORT, "lease"), (REPORT, "delay"), (REPORT, "results.0.state"), (REPORT, "links.0.depth"),
    (REPORT, "back_off.reason"), (BATCH, "job"), (BATCH, "job.name"), (BATCH, "targets"), (BATCH, "targets.0.url"),
    (ADMISSION, "seeding"), (HOLD, "worker"),
]  # fmt: skip


def changed(message: Message, where: str, change: Callable[[Any, Any], None]) -> Any:
    """`message` in plain dicts and lists, with `change` applied to what holds the place, and its name there."""
    whole = here = plain(message)
    *path, last = (int(part) if part.isdigit() else part for part in where.split("."))
    if path == ["robots", "http://a"]:  # the one name with dots in it
        path, last = ["robots"], "http://a.test"
    for part in path:
        here = here[part]
    change(here, last)
    return whole


@pytest.mark.parametrize(("message", "where", "what", "said"), WRONG)
def test_what_is_wrong_is_refused_and_named(message: Message, where: str, what: Any, said: str) -> None:
    wrong = changed(message, where, lambda here, name: here.__setitem__(name, what))
    with pytest.raises(MessageError) as refused:
        decode_task(type(message), task(wrong))
    assert said in str(refused.value)
    with pytest.raises(MessageError):
        convert(type(message), wrong)


@pytest.mark.parametrize(("message", "where"), MISSING)
def test_what_is_missing_is_named(message: Message, where: str) -> None:
    wrong = changed(message, where, lambda here, name: here.__delitem__(name))
    with pytest.raises(MessageError) as refused:
        decode_task(type(message), task(wrong))
    assert where.rpartition(".")[2] in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"[[], {}, {}]", b"[[{}], {}]", b"[[{}, {}], {}, {}]", b'{"args": []}',
        DEEP.encode(), b'[[{"results": ' + DEEP.encode(), b'[[{"lease": "\xff"}], {}, {}]', b"\xff\xfe",
        task(plain(REPORT)).replace(b'"l"', b'"\xe9"'),
        task(plain(REPORT)).replace(b'"l"', b'"\\ud800"'),
        task(plain(REPORT)).replace(b'"delay": 1.0', b'"delay": NaN'),
        task(plain(REPORT)).replace(b'"delay": 1.0', b'"delay": 1e999'),
        task(plain(REPORT)).replace(b'{"a": [1, null]}', DEEP.encode()),
        task(plain(REPORT))[:-3],
        task(plain(REPORT)) + b"x",
        task(plain(REPORT))[:-3] + b'{"callbacks": []}]',
        task(plain(REPORT))[:-7] + b'{"report": {}}, {}]',
    ],
)  # fmt: skip
def test_what_is_no_json_of_ours_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError, match=r"^no Report: ."):
        decode_task(Report, body)


def damaged(dice: random.Random, value: Any) -> Iterator[Any]:
    """`value` with one part of it replaced by something of another type."""
    others: list[Any] = [None, True, 0, -1, 2**70, 1.5, "", "x", "\0", [], [[]], {}, {"x": {}}]
    paths: list[tuple[Any, ...]] = []

    def walk(here: Any, path: tuple[Any, ...]) -> None:
        for key in here if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ():
            paths.append((*path, key))
            walk(here[key], (*path, key))

    walk(value, ())
    for _ in range(400):
        made = copy.deepcopy(value)
        *path, last = dice.choice(paths)
        here = made
        for part in path:
            here = here[part]
        here[last] = dice.choice(others)
        yield made


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_whatever_is_read_is_as_declared(message: Message) -> None:
    """Damage at random: what is not refused has the types that are declared, whichever way it was read, and can be sent
    on. Nothing else than MessageError is raised."""
    read = refused = 0
    for wrong in damaged(random.Random(9), plain(message)):  # noqa: S311
        try:
            taken = decode_task(type(message), task(wrong))
        except MessageError:
            refused += 1
            with pytest.raises(MessageError):
                convert(type(message), wrong)
        else:
            read += 1
            assert decode(type(message), encode(taken)) == taken
    assert read > 10
    assert refused > 100


# --- text from the web ------------------------------------------------------------------------------------------------


def test_what_json_and_postgresql_cannot_hold_is_replaced() -> None:
    page = UrlResult(url=URL, state="done", fetched_at=1.0, title="a\0b\ud800c", reason="é\0", etag="\0")
    assert (page.title, page.reason, page.etag) == ("a\ufffdb?c", "é\ufffd", "\ufffd")
    assert RobotsFile(fetched_at=0.0, status=200, body="\0").body == "\ufffd"
    read = decode(Retry, rb'{"url": "u", "reason": "a\u0000b"}')
    assert read.reason == "a\ufffdb"


def test_half_a_surrogate_pair_anywhere_stops_no_report() -> None:
    report = msgspec.structs.replace(REPORT, host="\ud800", requests=[Request(url=URL, at=1.0, seconds=0.0)])
    report.requests[0].reason = "\udfff"
    read = decode(Report, encode(report))
    assert (read.host, read.requests[0].reason) == ("?", "?")
    assert decode(Batch, encode(msgspec.structs.replace(BATCH, host="\ud800"))).job == JOB


def test_nobody_can_tell_which_links_displace_one_another() -> None:
    """Another process, another place: or a hostile site could choose links that make a worker forget a site's menu."""
    code = "from crawler.known_links import KnownLinks as K; from crawler.messages import Link; k = K()\n"
    code += "k.add('j', [Link('http://a.test/', 1)]); print(next(n for n, key in enumerate(k._keys) if key))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    places = {
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
        for _ in range(3)
    }
    assert len(places) > 1
