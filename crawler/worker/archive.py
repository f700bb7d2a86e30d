"""Pages as fetched, in WARC 1.1 files on the worker's own disk.

Each page is three records (response, or revisit where its body has not changed; request; metadata), each a gzip member
of its own, written as one piece. A file is called `….warc.gz.open` while it grows; its name loses `.open` once it is
complete and on the disk, and only then may it be collected. The tests read every record with a reader that is not ours
(warcio), digests checked.

Source: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/ (ISO 28500:2017)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import logging
import mmap
import os
import re
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

import gevent
from isal import isal_zlib

from crawler import settings, urls
from crawler.worker import fetch

MAX_BYTES = 1024**3
"""Size at which a file is complete."""
FLOOR_BYTES = 2 * 1024**3
"""Free space below which nothing more is fetched: what else lives on the disk needs some as well."""
LEVEL = 2
"""isal's, of 0 to 3. Of 56 KB pages, CPU time and the size that is left: isal at 1 takes 74 µs (17.6 %), at 2 80 µs
(17.4 %), at 3 185 µs (16.8 %); zlib at 3 325 µs (16.7 %); zlib-ng at 1 107 µs (21.7 %), at 2 188 µs (17.3 %)."""
IDLE = 60.0
"""Seconds without a page after which a job's file is complete, however small."""
OPEN = ".open"
_MEMBER = b"\x1f\x8b\x08\0\0\0\0\0"  # how every gzip member of ours begins: deflate, no name, no time
_CHUNK = 256 * 1024
_SAME_PAYLOAD = "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a page's response record begins."""

    file: str
    """Name of the file once it is complete, without a folder."""
    offset: int
    """In bytes from its start, to where the record's gzip member begins."""


@dataclass(frozen=True)
class Earlier:
    """An earlier visit of a page, whose body was the same and is in an archive."""

    at: float | None = None
    """When it was, in seconds since the epoch, where that is known."""


class Archive:
    """The WARC files that one process writes into `directory`, one at a time for each job.

    `host`, `worker` and this process's random mark make the files' names unique over the fleet, and for ever: files are
    collected and deleted, and clocks are set back. Several processes may share the directory: each file is locked
    (flock) by the process that writes it, so what a killed process left behind is known, and taken over.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str,
        worker: str,
        max_bytes: int = MAX_BYTES,
        floor_bytes: int = FLOOR_BYTES,
        idle: float = IDLE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._directory = directory
        self._host, self._worker = _plain(host), _plain(worker)
        self._max_bytes, self._floor_bytes, self._idle = max_bytes, floor_bytes, idle
        self._now = now
        self._mark = uuid.uuid4().hex[:8]
        self._serials = itertools.count()
        self._files: dict[str, _File] = {}  # by job
        self._lock = threading.Lock()
        self._room, self._room_until = True, 0.0
        directory.mkdir(parents=True, exist_ok=True)
        self._adopt()

    def write(
        self,
        job: str,
        response: fetch.Response,
        request_headers: Mapping[str, str],
        *,
        status_line: str = "",
        headers: Iterable[tuple[str, str]] | None = None,
        address: str | None = None,
        digest: str | None = None,
        about: Mapping[str, object] | None = None,
        earlier: Earlier | None = None,
    ) -> Position:
        """Append a page to `job`'s file; it has reached the operating system when this returns.

        Where they are known: `status_line` and `headers` as the server sent them (each Set-Cookie by itself, say), its
        IP `address`, the body's SHA-256 `digest` (hexadecimal, for it is the costly part), and what else to say
        `about` the page in the metadata record. With `earlier` the page's first record is a `revisit`, without the
        body. Raises OSError where the disk does not take it; nothing of the page is left in the file then.
        """
        page = b"".join(
            _member(record)
            for record in _records(
                response, request_headers, status_line, headers, address, digest, about or {}, earlier
            )
        )
        full = None
        with self._lock:
            file = self._files.get(job)
            if file and file.size + len(page) > self._max_bytes and file.pages:
                full = self._files.pop(job)
                file = None
            if file is None:
                file = self._files[job] = self._begin(job)
            try:
                offset = file.append(page)
            except OSError:
                self._room, self._room_until = False, time.monotonic() + 1
                if file.broken:
                    file.abandon()
                    del self._files[job]
                raise
            file.pages += 1
            file.written_at = self._now()
        if full:  # fsync takes as long as the disk likes: in a thread, or all fetching would stand still meanwhile
            gevent.get_hub().threadpool.apply(full.close)
        return Position(file.name, offset)

    def has_room(self) -> bool:
        """Whether the disk has more than its floor of free space; looked up once a second at most."""
        if time.monotonic() >= self._room_until:
            disk = os.statvfs(self._directory)
            self._room = disk.f_bavail * disk.f_frsize > self._floor_bytes
            self._room_until = time.monotonic() + 1
        return self._room

    def tidy(self) -> None:
        """Complete the files of jobs that rest, and those that a killed process left. For every minute or so."""
        with self._lock:
            resting = [job for job, file in self._files.items() if file.written_at + self._idle <= self._now()]
            files = [self._files.pop(job) for job in resting]
        for file in files:
            gevent.get_hub().threadpool.apply(file.close)
        self._adopt()

    def close(self) -> None:
        """Complete all files."""
        with self._lock:
            files = list(self._files.values())
            self._files.clear()
        for file in files:
            file.close()

    def _begin(self, job: str) -> _File:
        """A new file with its warcinfo record."""
        while True:
            name = "-".join(
                (
                    settings.PRODUCT,
                    _plain(job),
                    datetime.fromtimestamp(self._now(), UTC).strftime("%Y%m%dT%H%M%SZ"),
                    self._host,
                    self._worker,
                    self._mark,
                    f"{next(self._serials):05d}.warc.gz",
                )
            )
            if file := _File.create(self._directory, name, self._now()):
                break
        try:
            file.append(_member(_warcinfo(name, job, self._host, self._now())))
        except OSError:
            file.abandon()
            raise
        return file

    def _adopt(self) -> None:
        """Complete what no living process writes any more."""
        for path in sorted(self._directory.glob(f"*.warc.gz{OPEN}")):
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # completed this moment
            except PermissionError:
                continue  # another user's: none of our processes wrote it
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size = os.fstat(descriptor).st_size
                whole = _whole(descriptor, size)
                if whole < size:
                    log.warning("%s: cut off %d bytes of a record that was not finished", path.name, size - whole)
                    os.ftruncate(descriptor, whole)
                with contextlib.suppress(FileNotFoundError):  # its writer has just completed it
                    _complete(path, descriptor) if whole else path.unlink()
            except BlockingIOError:
                continue  # its writer lives
            except OSError as error:
                log.error("%s: %s; it stays open and is tried again", path, error.strerror)
            finally:
                os.close(descriptor)


@dataclass
class _File:
    """A file that grows."""

    path: Path
    name: str
    descriptor: int
    written_at: float
    size: int = 0
    pages: int = 0
    broken: bool = False

    @classmethod
    def create(cls, directory: Path, name: str, now: float) -> _File | None:
        """None: the name is taken."""
        path = directory / (name + OPEN)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        except FileExistsError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphaned = os.fstat(descriptor).st_nlink == 0
        except BlockingIOError:
            orphaned = True
        if orphaned:  # another process took it for a dead one's, between the two calls
            os.close(descriptor)
            return None
        return cls(path, name, descriptor, now)

    def append(self, data: bytes) -> int:
        """Returns the offset at which `data` begins. All of it is written, or nothing."""
        offset = self.size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.pwrite(self.descriptor, rest, self.size) :]
                self.size = offset + len(data) - len(rest)
        except OSError:
            self.size = offset
            try:
                os.ftruncate(self.descriptor, offset)
            except OSError:
                self.broken = True
            raise
        return offset

    def close(self) -> None:
        try:
            _complete(self.path, self.descriptor)
        except OSError as error:
            log.error("%s: %s; it stays open and is tried again", self.path, error.strerror)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Leave it as it is, for someone to adopt."""
        os.close(self.descriptor)


def _complete(path: Path, descriptor: int) -> None:
    """Bring the file to the disk and give it its final name, in this order, so that the name is a promise."""
    os.fsync(descriptor)
    path.rename(path.with_name(path.name.removesuffix(OPEN)))
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _whole(descriptor: int, size: int) -> int:
    """How many bytes of a file of gzip members are whole records. Reads backwards, so only the end of the file."""
    if not size:
        return 0
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        start = size
        while (start := data.rfind(_MEMBER, 0, start)) >= 0:
            inflater, position = zlib.decompressobj(31), start
            try:
                first = inflater.decompress(data[start : start + _CHUNK])
                position += _CHUNK
                if not first.startswith(b"WARC/"):
                    continue  # the same bytes by chance, within a member
                while not inflater.eof and position < size:
                    inflater.decompress(data[position : position + _CHUNK])
                    position += _CHUNK
            except zlib.error:
                continue
            if inflater.eof:
                return min(position, size) - len(inflater.unused_data)
    return 0


# --- records ----------------------------------------------------------------------------------------------------------


def _records(
    response: fetch.Response,
    request_headers: Mapping[str, str],
    status_line: str,
    headers: Iterable[tuple[str, str]] | None,
    address: str | None,
    digest: str | None,
    about: Mapping[str, object],
    earlier: Earlier | None,
) -> Iterable[bytes]:
    """A page's three records, the response (or revisit) first."""
    response_id = _new_id()
    common = {"WARC-Date": _date(response.started_at), "WARC-Target-URI": response.url}
    if address:
        common["WARC-IP-Address"] = address
    payload = {"WARC-Payload-Digest": f"sha256:{digest or hashlib.sha256(response.body).hexdigest()}"}
    head = _response_head(response, status_line, headers)
    yield _record(
        "revisit" if earlier else "response",
        {
            "WARC-Record-ID": response_id,
            **common,
            **payload,
            **_referring(response, earlier),
        },
        "application/http;msgtype=response",
        head if earlier else head + response.body,
    )
    related = {**common, "WARC-Concurrent-To": response_id}
    yield _record(
        "request",
        {"WARC-Record-ID": _new_id(), **related},
        "application/http;msgtype=request",
        _request_head(response.url, request_headers),
    )
    yield _record(
        "metadata",
        {"WARC-Record-ID": _new_id(), **related},
        "application/warc-fields",
        _lines({"fetchTimeMs": round(response.seconds * 1000), **about}.items()),
    )


def _referring(response: fetch.Response, earlier: Earlier | None) -> dict[str, str]:
    """A revisit's headers (WARC 1.1, section 6.7.2)."""
    if earlier is None:
        return {}
    fields = {"WARC-Profile": _SAME_PAYLOAD, "WARC-Refers-To-Target-URI": response.url}
    return fields if earlier.at is None else fields | {"WARC-Refers-To-Date": _date(earlier.at)}


def _warcinfo(name: str, job: str, host: str, now: float) -> bytes:
    about = {
        "software": settings.user_agent().partition(" ")[0],
        "format": "WARC File Format 1.1",
        "conformsTo": "http://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/",
        "hostname": host,
        "isPartOf": job,
        "operator": settings.contact(),
        "http-header-user-agent": settings.user_agent(),
    }
    return _record(
        "warcinfo",
        {"WARC-Record-ID": _new_id(), "WARC-Date": _date(now), "WARC-Filename": name},
        "application/warc-fields",
        _lines(about.items()),
    )


def _member(record: bytes) -> bytes:
    """A record as a gzip member; the same bytes make the same member."""
    return isal_zlib.compress(record, LEVEL, 31)  # wbits: gzip, with a window of 32 KiB


def _record(kind: str, fields: Mapping[str, str], content_type: str, block: bytes) -> bytes:
    head = _lines(
        (
            ("WARC-Type", kind),
            *fields.items(),
            ("WARC-Block-Digest", f"sha256:{hashlib.sha256(block).hexdigest()}"),
            ("Content-Type", content_type),
            ("Content-Length", len(block)),
        )
    )
    return b"WARC/1.1\r\n%b\r\n%b\r\n\r\n" % (head, block)


def _response_head(response: fetch.Response, status_line: str, headers: Iterable[tuple[str, str]] | None) -> bytes:
    """The status line and headers, true to the body as it is stored: without the encodings that were undone. What they
    were is kept under `X-Archive-Orig-…`, the name that replay tools know."""
    kept: list[tuple[str, object]] = []
    for name, value in response.headers.items() if headers is None else headers:
        if name.lower() in ("content-encoding", "transfer-encoding", "content-length"):
            if name.lower() != "content-length" or value != str(len(response.body)):
                kept.append((f"X-Archive-Orig-{name}", value))
        else:
            kept.append((name, value))
    kept.append(("Content-Length", len(response.body)))
    line = status_line or f"HTTP/1.1 {response.status} {_phrase(response.status)}"
    return _line(line) + _lines(kept) + b"\r\n"


def _request_head(url: str, headers: Mapping[str, str]) -> bytes:
    fields = [("Host", urls.host_of(url)), *headers.items()]
    return _line(f"GET {urls.path_of(url)} HTTP/1.1") + _lines(fields) + b"\r\n"


def _lines(fields: Iterable[tuple[str, object]]) -> bytes:
    lines = [f"{name}: {value}" for name, value in fields]
    text = "\r\n".join(lines)
    if text.isascii() and text.count("\n") == text.count("\r") == len(lines) - 1:  # nearly always: at one go
        return text.encode() + b"\r\n"
    return b"".join([_line(line) for line in lines])


def _line(text: str) -> bytes:
    """One header line. HTTP's headers come as Latin-1 and go back as such; what is none (our own fields) is UTF-8."""
    if "\r" in text or "\n" in text:
        text = " ".join(text.split())
    try:
        return text.encode("latin-1") + b"\r\n"
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace") + b"\r\n"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _new_id() -> str:
    return f"<urn:uuid:{uuid.uuid4()}>"


def _plain(text: str) -> str:
    """`text` as part of a file's name, which holds three of them and 255 bytes at most."""
    return re.sub(r"[^A-Za-z0-9._]+", "_", text)[:60] or "_"
