"""The `crawler` command, over the ledger of a small embedded crawl whose titles and reasons are hostile."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gevent.event import Event
from rich.console import Console
from test_progress import snapshot
from test_seed import FakeBroker
from website import Answer, Site

from crawler import cli, local
from crawler.frontier import schema, traps
from crawler.frontier.ledger import Ledger
from crawler.job import Job
from crawler.messages import Admission

TITLE = "=1+1 [/a]( :100: \x1b]0;owned\x07\x9b2J"
SHOWN = r"=1+1 [/a]( :100: \x1b]0;owned\x07\x9b2J"


class Crawler:
    """The command, typed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.ledger = folder / "ledger.sqlite"
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int | str, str]:
        """The exit status, or the error it ends with, and what it printed."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["--local", str(self.ledger), *arguments])
        status = ended.value.code
        return 0 if status is None else status, self._capsys.readouterr().out

    def json(self, *arguments: str) -> Any:
        status, out = self(*arguments, "--json")
        assert status == 0
        return json.loads(out)


@pytest.fixture
def crawler(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Crawler:
    monkeypatch.setattr(cli, "console", Console(width=200))
    return Crawler(tmp_path, capsys)


def crawl(ledger: Ledger, site: Site, *paths: str, stop: bool = False, **job: Any) -> None:
    told = Event()
    if stop:
        told.set()
    made = Job.model_validate({"name": "j", "delay": 0, **job})
    urls = [site.url + path for path in paths]
    local.crawl(ledger, [Admission(job=made, seeding="s", chunk=0, chunks=1, urls=urls)], told, lambda _: None)


@pytest.fixture
def crawled(ledger: Ledger, site: Site) -> Site:
    """Job j: two pages, and one that is not there."""
    site.pages["/"] = Answer(f"<title>{TITLE}</title><a href='/page'>page</a><a href='/gone'>gone</a>")
    site.pages["/page"] = Answer("<title>Page</title>")
    crawl(ledger, site, "/")
    with ledger.transaction() as tx:  # as a release before frontier/proof.py kept it
        first = schema.urls.update().where(schema.urls.c.url == f"{site.url}/")
        tx.execute(first.values(title=TITLE))
    return site


@pytest.fixture
def waiting(ledger: Ledger, site: Site) -> Site:
    """Job j: three seeds, none of them fetched."""
    crawl(ledger, site, "/1", "/2", "/3", stop=True)
    return site


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("crawled")
def test_status(crawler: Crawler) -> None:
    status, out = crawler("status")
    assert status == 0
    assert "j: done" in out
    assert "counts add up" in out
    (job,) = crawler.json("status", "--recount")["jobs"]
    assert (job["job"], job["conserved"]) == ("j", True)
    assert (job["done"], job["failed"], job["discovered"]) == (2, 1, 3)
    assert job["counts"]["done"] == 2


def test_status_and_explain_say_what_closed_a_part_of_a_site(
    crawler: Crawler, ledger: Ledger, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traps, "WATCH_FROM", 0)
    monkeypatch.setattr(traps, "RUN", 3)
    days = "".join(f"<a href='/cal/{day}'>{day}</a>" for day in range(4))
    site.pages["/"] = Answer(f"<title>Home</title>{days}<a href='/forum/1'>1</a><a href='/forum/2'>2</a>")
    for path in (*(f"/cal/{day}" for day in range(4)), "/forum/1", "/forum/2"):
        site.pages[path] = Answer("<title>Day</title><a href='/cal/more'>more</a>")
    crawl(ledger, site, "/", max_pages_per_prefix={f"{site.url}/forum/": 1})
    reason = "trap: the last 3 pages below /cal/ had been seen before"
    status, out = crawler("status")
    assert status == 0
    assert f"closed: {site.host}/cal/: {reason}" in out
    assert f"1 of 1 pages below {site.url}/forum/" in out
    (row,) = crawler.json("explain", f"{site.url}/cal/more")
    assert (row["state"], row["reason"]) == ("excluded", reason)
    assert reason in crawler("explain", f"{site.url}/cal/more")[1]
    reasons = {found["reason"] for path in ("1", "2") for found in crawler.json("explain", f"{site.url}/forum/{path}")}
    assert reasons == {None, f"max_pages_per_prefix reached: {site.url}/forum/"}
    assert "1 URLs of j" in crawler("retry", "j", "--reason", "trap")[1]


def test_status_sees_counts_that_do_not_add_up(crawler: Crawler, crawled: Site, ledger: Ledger) -> None:
    one = schema.urls.c.url == f"{crawled.url}/page"
    with ledger.engine.begin() as tx:
        assert tx.execute(schema.urls.update().where(one).values(state="excluded")).rowcount == 1
    assert crawler("status")[0] == 0  # the counts add up, but are not true:
    status, out = crawler("status", "--recount")
    assert status == 1
    assert "DO NOT ADD UP" in out
    with ledger.engine.begin() as tx:
        tx.execute(schema.urls.update().where(one).values(state="done"))
        tx.execute(schema.host_queues.update().values(done=schema.host_queues.c.done + 41))
    assert crawler("status")[0] == 0
    assert crawler("status", "--recount")[0] == 1
    with ledger.engine.begin() as tx:
        tx.execute(schema.job_counts.update().values(done=schema.job_counts.c.done + 41))
    status, out = crawler("status")
    assert status == 1
    assert "DO NOT ADD UP" in out
    assert json.loads(crawler("status", "--json")[1])["jobs"][0]["conserved"] is False


def test_status_shows_finished_jobs_for_ten_minutes_or_with_all(
    crawler: Crawler, crawled: Site, ledger: Ledger
) -> None:
    assert "j: done" in crawler("status")[1]
    with ledger.engine.begin() as tx:
        tx.execute(schema.jobs.update().values(finished_at=time.time() - 601))
    assert "Nothing to do: hand over URLs" in crawler("status")[1]
    assert crawled.host in crawler("status", "--all")[1]
    assert len(crawler.json("status")["jobs"]) == 1


@pytest.mark.usefixtures("crawled")
def test_jobs(crawler: Crawler, ledger: Ledger, site: Site) -> None:
    crawl(ledger, site, "/1", stop=True, name="k")
    assert [(job["job"], job["state"], job["done"], job["queued"]) for job in crawler.json("jobs")] == [
        ("j", "done", 2, 0),
        ("k", "running", 0, 1),
    ]
    rows = [[cell.strip() for cell in line.split("│")] for line in crawler("jobs")[1].splitlines() if "│" in line]
    assert [row[1:3] + row[4:10] for row in rows] == [
        ["j", "done", "3", "0", "0", "2", "1", "0"],
        ["k", "running", "1", "1", "0", "0", "0", "0"],
    ]


def test_explain_tells_all_and_steers_no_terminal(crawler: Crawler, crawled: Site) -> None:
    status, out = crawler("explain", crawled.url.upper() + "/#top")
    assert status == 0
    assert f"  title       {SHOWN}\n" in out
    assert "  state       done\n" in out
    assert " as a seed, depth 0\n" in out
    assert ": 200 in 0." in out
    assert not set(out) & {"\x1b", "\x07", "\x9b"}
    assert f" on {crawled.url}/, depth 1" in crawler("explain", f"{crawled.url}/gone")[1]
    assert "  reason      HTTP 404\n" in crawler("explain", f"{crawled.url}/gone")[1]
    (told,) = crawler.json("explain", crawled.url)
    assert told["title"] == TITLE
    assert told["requests"][0]["status"] == 200
    assert "no job has seen this URL" in str(crawler("explain", f"{crawled.url}/never")[0])
    assert "not a URL" in str(crawler("explain", "nonsense")[0])


@pytest.mark.usefixtures("waiting")
def test_explain_tells_when_a_url_is_due(crawler: Crawler, site: Site) -> None:
    assert "  next        due 20" in crawler("explain", f"{site.url}/1")[1]


def test_audit_shows_each_request(crawler: Crawler, crawled: Site) -> None:
    status, out = crawler("audit", crawled.host)
    assert status == 0
    asked = [line for line in out.splitlines() if f" {crawled.url}/" in line and line.startswith("20")]
    assert [line.split(f" {crawled.url}")[1].split()[0] for line in asked] == crawled.paths
    assert "4 requests, shortest rest between two:" in out
    assert f"{crawled.url}/robots.txt: 404 at 20" in out
    assert len(crawler.json("audit", crawled.host)["requests"]) == 4
    assert "never asked anything" in str(crawler("audit", "never.test")[0])


@pytest.mark.usefixtures("waiting")
def test_audit_finds_the_shortest_rest(crawler: Crawler, ledger: Ledger, site: Site) -> None:
    """From the end of one request to the beginning of the next."""
    known = {"host": site.host, "url": f"{site.url}/1", "job_id": 1, "worker": "w", "release": "r", "seconds": 0.25}
    with ledger.engine.begin() as tx:
        tx.execute(schema.requests.insert(), [{**known, "at": at, "status": 200} for at in (10.0, 13.0, 14.0, 19.0)])
    out = crawler("audit", site.host)[1]
    assert [line.split()[4] for line in out.splitlines() if " of rest " in line] == ["2.75", "0.75", "4.75"]
    assert "4 requests, shortest rest between two: 0.750 s" in out


def test_a_reason_in_the_audit_steers_no_terminal(crawler: Crawler, crawled: Site, ledger: Ledger) -> None:
    with ledger.engine.begin() as tx:
        tx.execute(schema.requests.update().values(status=None, reason=TITLE, worker=TITLE))
        tx.execute(schema.hosts.update().values(failure=TITLE))
    out = crawler("audit", crawled.host)[1]
    assert out.count(SHOWN) == 2 * 4 + 1
    assert not set(out) & {"\x1b", "\x07", "\x9b"}
    with ledger.engine.begin() as tx:
        tx.execute(schema.workers.update().values(worker="[/a]("))
    assert "[/a](" in crawler("status")[1]


# --- export -----------------------------------------------------------------------------------------------------------


def test_export(crawler: Crawler, crawled: Site, tmp_path: Path) -> None:
    status, out = crawler("export", "--job", "j", "--where", "state=done", "-o", str(tmp_path / "out.jsonl"))
    assert (status, out) == (0, "")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["url"]: row["title"] for row in rows} == {f"{crawled.url}/": TITLE, f"{crawled.url}/page": "Page"}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--job", "k"), "No job 'k'. Known: j."),
        (("--job", "j", "--where", "colour=red"), "no column 'colour'"),
        (("--job", "j", "--where", "url~[/a]("), "is no regular expression"),
        (("--job", "j", "-o", "no/such/folder/x"), "cannot write no/such/folder/x.part"),
    ],
)
@pytest.mark.usefixtures("crawled")
def test_an_export_that_cannot_be_made_is_explained(
    crawler: Crawler, arguments: tuple[str, ...], complaint: str
) -> None:
    assert complaint in str(crawler("export", *arguments)[0])


@pytest.mark.usefixtures("crawled")
def test_export_to_a_pipe(ledger: Ledger) -> None:
    """As a process: standard output belongs to it, and may close before all is read."""
    program = [sys.executable, "-c", "import sys; from crawler.cli import main; main(sys.argv[1:])"]
    command = [*program, "--local", str(ledger.engine.url.database), "export", "--job", "j"]
    whole = subprocess.run([*command, "--format", "csv"], capture_output=True, text=True, check=True).stdout
    assert sorted(row["title"] for row in csv.DictReader(io.StringIO(whole))) == sorted(["", "'" + TITLE, "Page"])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode in (0, 130)


# --- orders -----------------------------------------------------------------------------------------------------------


def typed_on_a_terminal(ledger: Ledger, *arguments: str) -> str:
    """What a person sees who types `crawler export --job j ...`."""
    program = [sys.executable, "-c", "import sys; from crawler.cli import main; main(sys.argv[1:])"]
    command = [*program, "--local", str(ledger.engine.url.database), "export", "--job", "j", *arguments]
    screen, terminal = pty.openpty()
    with subprocess.Popen(command, stdout=terminal, stderr=subprocess.DEVNULL) as process:
        os.close(terminal)
        seen = b""
        with contextlib.suppress(OSError):  # EIO: the process has closed its end
            while piece := os.read(screen, 65536):
                seen += piece
    os.close(screen)
    assert process.returncode == 0
    return seen.decode()


@pytest.mark.usefixtures("crawled")
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_export_steers_no_terminal_unless_it_is_told_to(ledger: Ledger, form: str) -> None:
    seen = typed_on_a_terminal(ledger, "--format", form)
    assert not set(seen) & {"\x1b", "\x07", "\x9b"}
    if form == "csv":
        assert "'" + SHOWN in seen
    else:
        assert TITLE in {json.loads(line)["title"] for line in seen.splitlines()}
    assert "\x9b" in typed_on_a_terminal(ledger, "--format", form, "--raw")


@pytest.mark.usefixtures("crawled")
def test_export_for_programs_leaves_formulas_as_they_are(crawler: Crawler, tmp_path: Path) -> None:
    for raw, title in (((), "'" + TITLE), (("--raw",), TITLE)):
        assert crawler("export", "--job", "j", "--format", "csv", "-o", str(tmp_path / "o.csv"), *raw)[0] == 0
        rows = list(csv.DictReader((tmp_path / "o.csv").open(newline="")))
        assert sorted(row["title"] for row in rows) == sorted(["", title, "Page"])


def states(crawler: Crawler) -> dict[str, int]:
    (job,) = crawler.json("jobs")
    return {name: job[name] for name in ("queued", "done", "failed", "excluded") if job[name]}


def test_block_and_unblock(crawler: Crawler, waiting: Site) -> None:
    assert f"{waiting.host} is blocked; 3 queued URLs were excluded" in crawler("block", waiting.host)[1]
    assert states(crawler) == {"excluded": 3}
    assert "blocked since 20" in crawler("audit", waiting.host)[1]
    assert f"{waiting.host} is no longer blocked; 3 URLs are queued again" in crawler("unblock", waiting.host)[1]
    assert states(crawler) == {"queued": 3}
    assert "unknown, so not blocked" in str(crawler("unblock", "never.test")[0])


@pytest.mark.usefixtures("waiting")
def test_pause_resume_cancel(crawler: Crawler) -> None:
    assert crawler("pause", "j") == (0, "j is paused\n")
    assert crawler.json("jobs")[0]["state"] == "paused"
    assert crawler("resume", "j") == (0, "j is running\n")
    assert crawler("cancel", "j") == (0, "j is cancelled; 3 queued URLs were excluded\n")
    assert states(crawler) == {"excluded": 3}
    assert crawler("resume", "j") == (0, "j is running; 3 excluded URLs are queued again\n")
    assert states(crawler) == {"queued": 3}
    assert "No job 'k'. Known: j." in str(crawler("pause", "k")[0])


@pytest.mark.usefixtures("crawled")
def test_retry(crawler: Crawler) -> None:
    assert crawler("retry", "j", "--reason", "HTTP 5")[1] == "0 URLs of j are queued again\n"
    assert crawler("retry", "j", "--reason", "404")[1] == "1 URLs of j are queued again\n"
    assert states(crawler) == {"queued": 1, "done": 2}


@pytest.mark.usefixtures("crawled")
def test_delete(crawler: Crawler, ledger: Ledger, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with ledger.engine.begin() as tx:
        tx.execute(schema.urls.update().where(schema.urls.c.state == "done").values(warc_file="a.warc.gz", worker="w"))
    assert "without being asked: --yes" in str(crawler("delete", "j")[0])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(cli.console, "input", lambda *_, **__: "n")
    assert crawler("delete", "j")[0] == "Nothing was deleted."
    assert [job["job"] for job in crawler.json("jobs")] == ["j"]
    monkeypatch.setattr(cli.console, "input", lambda *_, **__: "y")
    status, out = crawler("delete", "j")
    assert status == 0
    assert "2 pages are archived in a.warc.gz, by w\n" in out
    assert "j is deleted: 3 URLs. Its 1 archives were not touched.\n" in out
    assert crawler.json("jobs") == []
    crawl(ledger, site, "/1", stop=True)
    assert "j is running: `crawler cancel j` first." in str(crawler("delete", "j", "--yes")[0])
    crawler("cancel", "j")
    assert crawler("delete", "j", "--yes") == (0, "j is deleted: 1 URLs.\n")


# --- watch ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("crawled")
def test_watch(crawler: Crawler) -> None:
    status, out = crawler("watch", "j")
    assert status == 0
    assert "j (done): 2 pages" in out
    assert "No job 'k'" in str(crawler("watch", "k")[0])


@pytest.mark.parametrize(("state", "exit_status"), [("done", 0), ("cancelled", 0), ("broken", 1)])
def test_watch_on_the_control_node(
    crawler: Crawler, monkeypatch: pytest.MonkeyPatch, state: str, exit_status: int
) -> None:
    broker = FakeBroker()
    broker.snapshots = [[snapshot("running") | {"job": "k"}], [], [snapshot("paused")], [snapshot(state, done=5)]]
    monkeypatch.setenv("CRAWLER_BROKER_URL", "memory://")
    monkeypatch.setattr("crawler.processes.broker.Broker", lambda: broker)
    status, out = crawler("watch", "j", "--fleet", "current")
    assert status == exit_status
    assert f"j ({state}): 5 pages" in out


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_init_creates_what_is_missing_once(tmp_path: Path, crawler: Crawler) -> None:
    (tmp_path / "ledger.sqlite").touch()
    assert crawler("init") == (0, "changed\n")
    assert crawler("init") == (0, "unchanged\n")


def test_a_ledger_that_is_not_there_is_not_made(tmp_path: Path, crawler: Crawler) -> None:
    assert "no such ledger" in str(crawler("status")[0])
    assert not list(tmp_path.iterdir())


def test_without_a_database_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRAWLER_DATABASE_URL", "CRAWLER_DATABASE_URL_FILE", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="sudo crawler"):
        cli.main(["status"])
    monkeypatch.setenv("CRAWLER_DATABASE_URL", "postgresql+psycopg://crawler:secret@127.0.0.1:1/crawler")
    with pytest.raises(SystemExit, match="The ledger's database says: connection ") as ended:
        cli.main(["status"])
    assert "secret" not in str(ended.value.code)


def test_errors_steer_no_terminal(crawler: Crawler, ledger: Ledger, site: Site) -> None:
    crawl(ledger, site, "/", stop=True)
    error, _ = crawler("export", "--job", "j", "-o", f"no/{TITLE}/x")
    assert error == f"cannot write no/{SHOWN}/x.part: No such file or directory"
