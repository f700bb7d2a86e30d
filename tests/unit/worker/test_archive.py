"""What is archived can be read by a reader that we did not write, whatever happens to the writer."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict
from warcio.archiveiterator import ArchiveIterator
from warcio.checker import Checker

from crawler.worker import archive as archive_module
from crawler.worker.archive import Archive, Position
from crawler.worker.fetch import Response

REQUEST = {"User-Agent": "CrawlerFleet/1 (+ops@example.org)", "Accept-Encoding": "gzip"}


def opened(directory: Path, **options: Any) -> Archive:
    return Archive(directory, **{"host": "host1", "worker": "worker-1@host1", "floor_bytes": 0, **options})


def response(
    path: str = "/page", body: bytes = b"<p>hello</p>", headers: dict[str, str] | None = None, **more: Any
) -> Response:
    headers = {"Content-Type": "text/html; charset=utf-8"} if headers is None else headers
    return Response(
        **{
            "url": f"http://example.org{path}",
            "status": 200,
            "headers": CaseInsensitiveDict(headers),
            "body": body,
            "started_at": 1_790_000_000.25,
            "seconds": 0.1234,
            **more,
        }
    )


def records(path: Path) -> list[tuple[Any, bytes]]:
    """Every record of a file as warcio sees it, with its content; a digest that is wrong raises."""
    with path.open("rb") as stream:
        return [(record, record.content_stream().read()) for record in ArchiveIterator(stream, check_digests="raise")]


def pages(directory: Path) -> dict[str, bytes]:
    """URL to body, of all complete files."""
    return {
        record.rec_headers["WARC-Target-URI"]: content
        for path in directory.glob("*.warc.gz")
        for record, content in records(path)
        if record.rec_type == "response"
    }


def at(directory: Path, position: Position) -> Any:
    """The record that begins at `position`, read from there."""
    with (directory / position.file).open("rb") as stream:
        stream.seek(position.offset)
        return next(iter(ArchiveIterator(stream)))


def test_a_page_is_three_records_that_belong_together(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    archive.write("j", response("/dir/page?q=1"), REQUEST, address="192.0.2.7", about={"depth": 3})
    archive.close()
    (path,) = tmp_path.iterdir()
    (info, about), (answer, body), (request, _), (metadata, fields) = records(path)

    assert info.rec_type == "warcinfo"
    assert info.rec_headers["WARC-Filename"] == path.name
    assert b"software: CrawlerFleet/" in about
    assert b"isPartOf: j\r\n" in about

    assert answer.rec_type == "response"
    assert answer.rec_headers.protocol == "WARC/1.1"
    assert answer.rec_headers["WARC-Target-URI"] == "http://example.org/dir/page?q=1"
    assert answer.rec_headers["WARC-Date"] == "2026-09-21T14:13:20.250000Z"
    assert answer.rec_headers["WARC-IP-Address"] == "192.0.2.7"
    assert answer.rec_headers["WARC-Payload-Digest"] == "sha256:" + hashlib.sha256(body).hexdigest()
    assert answer.http_headers.get_statuscode() == "200"
    assert answer.http_headers["content-type"] == "text/html; charset=utf-8"
    assert body == b"<p>hello</p>"

    assert request.rec_type == "request"
    assert request.http_headers.protocol == "GET"
    assert request.http_headers.statusline == "/dir/page?q=1 HTTP/1.1"
    assert request.http_headers["host"] == "example.org"
    assert request.http_headers["user-agent"] == REQUEST["User-Agent"]

    assert metadata.rec_type == "metadata"
    assert fields == b"fetchTimeMs: 123\r\ndepth: 3\r\n"
    for record in (request, metadata):
        assert record.rec_headers["WARC-Concurrent-To"] == answer.rec_headers["WARC-Record-ID"]
    assert len({record.rec_headers["WARC-Record-ID"] for record in (info, answer, request, metadata)}) == 4


def test_warcio_check_finds_nothing_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command people check an archive with, over bodies of every kind."""
    archive = opened(tmp_path)
    for number, body in enumerate(
        (b"", b"\r\n\r\n", b"\0" * 100, b"\x1f\x8b\x08\0\0\0\0\0 WARC/1.1", os.urandom(9999))
    ):
        archive.write("j", response(f"/{number}", body), REQUEST)
    archive.write("j", response("/0", b""), REQUEST, earlier=archive_module.Earlier(1_790_000_000.25))
    archive.close()
    (path,) = tmp_path.iterdir()

    class Command:
        inputs, verbose = [str(path)], True

    assert Checker(Command()).process_all() == 0
    said = capsys.readouterr().out
    assert said.count("digest pass") == 18  # a warcinfo, 5 pages of 3 records, and a revisit of 2
    assert said.count("revisit\n    digest present but not checked") == 1
    assert "fail" not in said


def test_the_body_is_stored_as_read_and_the_headers_say_so(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    headers = {"Content-Encoding": "gzip", "Transfer-Encoding": "chunked", "Content-Length": "99", "ETag": '"x"'}
    archive.write("j", response(headers=headers), REQUEST)
    archive.close()
    ((_, answer, *_),) = [[record for record, _ in records(path)] for path in tmp_path.iterdir()]
    assert dict(answer.http_headers.headers) == {
        "X-Archive-Orig-Content-Encoding": "gzip",
        "X-Archive-Orig-Transfer-Encoding": "chunked",
        "X-Archive-Orig-Content-Length": "99",
        "ETag": '"x"',
        "Content-Length": "12",
    }


def test_what_came_over_the_wire_is_kept_where_it_is_known(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    sent = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-Name", "caf\xe9"), ("X-Folded", "one\r\n two")]
    position = archive.write("j", response(), REQUEST, status_line="HTTP/1.0 200 Fine by me", headers=sent)
    archive.close()
    answer = at(tmp_path, position)
    assert answer.http_headers.protocol == "HTTP/1.0"
    assert answer.http_headers.statusline == "200 Fine by me"
    assert answer.http_headers.headers == [*sent[:3], ("X-Folded", "one two"), ("Content-Length", "12")]


def test_a_position_leads_to_its_page(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    positions = {number: archive.write("j", response(f"/{number}"), REQUEST) for number in range(20)}
    archive.close()
    for number, position in positions.items():
        record = at(tmp_path, position)
        assert (record.rec_type, record.rec_headers["WARC-Target-URI"]) == ("response", f"http://example.org/{number}")


def test_every_record_is_a_gzip_member_of_its_own(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    archive.write("j", response(), REQUEST)
    archive.close()
    (path,) = tmp_path.iterdir()
    rest, members = path.read_bytes(), 0
    while rest:
        inflater = zlib.decompressobj(31)
        assert inflater.decompress(rest).startswith(b"WARC/1.1\r\n")
        assert inflater.eof
        rest, members = inflater.unused_data, members + 1
    assert members == 4


@pytest.mark.parametrize("size", [0, 1, 100, 100_000])
def test_a_member_begins_as_the_recovery_of_a_file_expects(size: int) -> None:
    record = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    member = archive_module._member(record)
    assert member.startswith(archive_module._MEMBER)
    assert gzip.decompress(member) == record
    assert archive_module._member(record) == member


def test_a_header_cannot_end_its_line(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    for bad in ("a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\rX-Injected: 1", "\xe9\r\nX-Injected: 1"):
        archive.write("j", response(headers={"X-Bad": bad, "X-Next": "2"}), REQUEST)
    archive.close()
    (path,) = tmp_path.iterdir()
    heads = [record.http_headers for record, _ in records(path) if record.rec_type == "response"]
    assert len(heads) == 4
    for head in heads:
        assert head.get_header("X-Injected") is None
        assert head.get_header("X-Bad").endswith("X-Injected: 1")
        assert head.get_header("X-Next") == "2"


def test_a_file_that_is_large_enough_is_completed_and_the_next_begun(tmp_path: Path) -> None:
    archive = opened(tmp_path, max_bytes=20_000)
    for number in range(10):
        archive.write("j", response(f"/{number}", os.urandom(6000)), REQUEST)
    assert len(list(tmp_path.glob("*.open"))) == 1
    archive.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 5
    assert all(path.suffix == ".gz" and path.stat().st_size <= 20_000 for path in files)
    assert len(pages(tmp_path)) == 10


def test_a_page_larger_than_a_file_may_be_gets_one_to_itself(tmp_path: Path) -> None:
    archive = opened(tmp_path, max_bytes=1000)
    for number in range(3):
        archive.write("j", response(f"/{number}", os.urandom(6000)), REQUEST)
    archive.close()
    assert len(list(tmp_path.iterdir())) == len(pages(tmp_path)) == 3


def test_each_job_has_files_of_its_own_and_names_do_not_clash(tmp_path: Path) -> None:
    """Not even those of a process that starts again within the second."""
    for worker in ("worker-1@host1", "worker-1@host1", "worker-2@host1", "../evil worker"):
        archive = opened(tmp_path, worker=worker, now=lambda: 1_790_000_000.0)
        for job in ("one", "two.x-y"):
            archive.write(job, response(f"/{job}"), REQUEST)
        archive.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8
    assert re.fullmatch("CrawlerFleet-one-20260921T141320Z-host1-worker_1_host1-[0-9a-f]{8}-00000.warc.gz", names[1])
    assert sum("-two.x_y-" in name for name in names) == 4


def test_the_name_of_a_file_that_was_collected_and_deleted_is_never_given_again(tmp_path: Path) -> None:
    """Not even by a process that starts again after the clock was set back: at home it would replace another file."""
    names: list[str] = []
    for _ in range(5):
        archive = opened(tmp_path, now=lambda: 1_790_000_000.0)
        archive.write("j", response(), REQUEST)
        archive.close()
        (path,) = tmp_path.iterdir()
        names.append(path.name)
        path.unlink()
    assert len(set(names)) == 5


def test_the_longest_names_still_make_a_file(tmp_path: Path) -> None:
    archive = opened(tmp_path, host="h" * 300, worker="w" * 300)
    for job in ("j" * 79 + "1", "j" * 79 + "2"):
        archive.write(job, response(f"/{job}"), REQUEST)
    archive.close()
    assert len(pages(tmp_path)) == 2


def test_the_file_of_a_job_that_rests_is_completed(tmp_path: Path) -> None:
    time = [1000.0]
    archive = opened(tmp_path, idle=60, now=lambda: time[0])
    archive.write("resting", response(), REQUEST)
    time[0] += 59
    archive.write("busy", response(), REQUEST)
    archive.tidy()
    assert not list(tmp_path.glob("*.gz"))
    time[0] += 1
    archive.tidy()
    assert [path.name.split("-")[1] for path in tmp_path.glob("*.gz")] == ["resting"]
    archive.write("resting", response(), REQUEST)
    archive.close()
    assert len(list(tmp_path.glob("*.gz"))) == 3


def test_greenlets_do_not_mix_their_pages(tmp_path: Path) -> None:
    archive = opened(tmp_path, max_bytes=30_000)

    def crawl(host: int) -> None:
        for number in range(20):
            archive.write("j", response(f"/{host}/{number}", os.urandom(1000)), REQUEST)
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(crawl, host) for host in range(10)], raise_error=True)
    archive.close()
    assert len(pages(tmp_path)) == 200
    for path in tmp_path.iterdir():
        kinds = [record.rec_type for record, _ in records(path)]
        assert kinds == ["warcinfo", *["response", "request", "metadata"] * (len(kinds) // 3)]


def test_a_page_that_has_not_changed_is_a_revisit(tmp_path: Path) -> None:
    """WARC 1.1, section 6.7.2: the headers as they came, the body where it was."""
    archive = opened(tmp_path)
    body = os.urandom(50_000)
    first = archive.write("j", response(body=body), REQUEST)
    size = (tmp_path / (first.file + ".open")).stat().st_size
    again = response(body=body, headers={"Content-Type": "text/html", "X-Visit": "2"}, started_at=1_790_086_400.5)
    second = archive.write("j", again, REQUEST, earlier=archive_module.Earlier(1_790_000_000.25))
    undated = archive.write("j", again, REQUEST, earlier=archive_module.Earlier())
    archive.close()
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size - size < 3_000
    kinds = [record.rec_type for record, _ in records(path)]
    assert kinds == ["warcinfo", *["response", "request", "metadata"], *["revisit", "request", "metadata"] * 2]
    visit = at(tmp_path, second)
    assert visit.rec_type == "revisit"
    named = {name: value for name, value in visit.rec_headers.headers if name.startswith(("WARC-P", "WARC-R"))}
    named.pop("WARC-Record-ID")
    assert named == {
        "WARC-Payload-Digest": at(tmp_path, first).rec_headers["WARC-Payload-Digest"],
        "WARC-Profile": "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest",
        "WARC-Refers-To-Target-URI": "http://example.org/page",
        "WARC-Refers-To-Date": at(tmp_path, first).rec_headers["WARC-Date"],
    }
    assert visit.rec_headers["WARC-Target-URI"] == "http://example.org/page"
    assert visit.http_headers["x-visit"] == "2"
    assert visit.http_headers["content-length"] == "50000"
    assert visit.content_stream().read() == b""
    assert at(tmp_path, undated).rec_headers["WARC-Refers-To-Date"] is None


# --- killed, cut, full ------------------------------------------------------------------------------------------------

WRITER = """
import itertools, os, sys
from pathlib import Path
sys.path.insert(0, os.path.dirname({tests!r}))
from test_archive import REQUEST, opened, response
archive = opened(Path({directory!r}), max_bytes=3_000_000)
for number in itertools.count():
    position = archive.write("j", response(f"/{{number}}", os.urandom(50_000)), REQUEST)
    print(number, position.file, position.offset, flush=True)
"""


def test_a_killed_writer_leaves_every_page_it_reported(tmp_path: Path) -> None:
    code = WRITER.format(tests=__file__, directory=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        said = [writer.stdout.readline() for _ in range(100)]
        writer.send_signal(signal.SIGKILL)
        said += [line for line in writer.stdout if line.endswith("\n")]
    assert len(list(tmp_path.glob("*.open"))) == 1

    opened(tmp_path, worker="another")  # takes it over

    assert not list(tmp_path.glob("*.open"))
    assert len(list(tmp_path.glob("*.gz"))) >= 2
    assert all(map(records, tmp_path.iterdir()))
    for line in said:
        number, file, offset = line.split()
        record = at(tmp_path, Position(file, int(offset)))
        assert record.rec_headers["WARC-Target-URI"] == f"http://example.org/{number}"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    one = opened(tmp_path)
    one.write("j", response("/1"), REQUEST)
    other = opened(tmp_path, worker="2")
    other.tidy()
    assert len(list(tmp_path.glob("*.open"))) == 1
    one.write("j", response("/2"), REQUEST)
    one.close()
    assert set(pages(tmp_path)) == {"http://example.org/1", "http://example.org/2"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of a few pages, one of them full of what looks like the start of a gzip member."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patched:
        # Nothing compressed: the look-alikes stand in the file as they are.
        patched.setattr(archive_module, "_member", lambda record: zlib.compress(record, 0, 31))
        archive = opened(directory)
        for number in range(4):
            archive.write("j", response(f"/{number}", b"\x1f\x8b\x08\0\0\0\0\0\0\x03" * 40), REQUEST)
        archive.close()
    (path,) = directory.iterdir()
    return path.read_bytes()


@hypothesis_settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_record_that_was_not_finished_is_cut_off(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, with anything after the cut: what remains is exactly the records that were whole."""
    cut = data.draw(st.integers(0, len(whole) - 1))
    junk = data.draw(st.sampled_from([b"", b"\0" * 5000, b"junk"]))
    directory = tmp_path_factory.mktemp("cut")
    path = directory / ("x.warc.gz" + archive_module.OPEN)
    damaged = whole[:cut] + junk
    path.write_bytes(damaged)
    kept = sum(_member_sizes(damaged))

    opened(directory)

    left = list(directory.iterdir())
    assert [found.name for found in left] == (["x.warc.gz"] if kept else [])
    if left:
        assert left[0].stat().st_size == kept
        assert damaged.startswith(left[0].read_bytes())
        records(left[0])


def _member_sizes(data: bytes) -> list[int]:
    """Of the gzip members at the start of `data` that are whole, read from the front."""
    sizes: list[int] = []
    while data:
        inflater = zlib.decompressobj(31)
        try:
            inflater.decompress(data)
        except zlib.error:
            break
        if not inflater.eof:
            break
        sizes.append(len(data) - len(inflater.unused_data))
        data = inflater.unused_data
    return sizes


def test_a_page_the_disk_does_not_take_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = opened(tmp_path)
    archive.write("j", response("/1"), REQUEST)
    real, calls = os.pwrite, iter(range(100))

    def full_after_some(descriptor: int, data: Any, offset: int) -> int:
        if next(calls):
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:100], offset)

    monkeypatch.setattr(os, "pwrite", full_after_some)
    with pytest.raises(OSError, match="No space"):
        archive.write("j", response("/2"), REQUEST)
    assert not archive.has_room()
    monkeypatch.undo()
    archive.write("j", response("/3"), REQUEST)
    archive.close()
    assert set(pages(tmp_path)) == {"http://example.org/1", "http://example.org/3"}


def test_a_file_has_its_name_only_once_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page itself first, then its name."""
    synced: list[tuple[str, list[str]]] = []
    real = os.fsync

    def noting(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.suffix or "folder", [found.suffix for found in tmp_path.iterdir()]))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    archive = opened(tmp_path)
    archive.write("j", response(), REQUEST)
    archive.close()
    assert synced == [(".open", [".open"]), ("folder", [".gz"])]


def test_what_was_written_of_a_page_that_failed_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = opened(tmp_path)
    archive.write("j", response("/1"), REQUEST)
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    real, calls = os.pwrite, iter(range(100))

    def full_after_some(descriptor: int, data: Any, offset: int) -> int:
        if next(calls):
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:100], offset)

    monkeypatch.setattr(os, "pwrite", full_after_some)
    with pytest.raises(OSError, match="No space"):
        archive.write("j", response("/2"), REQUEST)
    assert path.read_bytes() == before
    archive.close()


def test_a_job_rests_from_its_last_page_on(tmp_path: Path) -> None:
    time = [1000.0]
    archive = opened(tmp_path, idle=60, now=lambda: time[0])
    for _ in range(3):
        archive.write("j", response(), REQUEST)
        time[0] += 50
        archive.tidy()
    assert [path.suffix for path in tmp_path.iterdir()] == [".open"]
    archive.close()


def test_what_a_process_left_is_taken_over_by_those_that_run(tmp_path: Path) -> None:
    left = tmp_path / "left.warc.gz.open"
    running = opened(tmp_path)
    left.write_bytes(gzip.compress(b"WARC/1.1\r\n", mtime=0) + b"cut")
    running.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["left.warc.gz"]
    running.close()


def test_room_is_what_lies_above_the_floor(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    free = disk.f_bavail * disk.f_frsize
    assert opened(tmp_path, floor_bytes=free // 2).has_room()
    assert not opened(tmp_path, floor_bytes=free * 2).has_room()


def test_gzip_itself_reads_it(tmp_path: Path) -> None:
    archive = opened(tmp_path)
    archive.write("j", response(body="é".encode()), REQUEST)
    archive.close()
    (path,) = tmp_path.iterdir()
    with gzip.open(io.BytesIO(path.read_bytes())) as stream:
        assert "é".encode() in stream.read()
