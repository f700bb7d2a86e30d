"""seed.py: what a person types, what the fleet is handed, and what the person gets to read."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_progress import snapshot
from website import Site

from crawler import seed
from crawler.job import Job, JobError
from crawler.messages import Admission
from crawler.worker import connect
from crawler.worker.egress import Egress

ROOT = Path(__file__).parents[2]
SITE = "http://a.test"


class BrokerGoneError(Exception):
    pass


class FakeBroker:
    """Stands for RabbitMQ, which cannot fail, or be slow, on command: remembers what it is told, in order."""

    errors = (BrokerGoneError,)

    def __init__(self) -> None:
        self.events: list[str] = []
        self.admissions: list[Admission] = []
        self.fails_after = 1_000_000
        self.snapshots: list[list[dict[str, Any]]] = []
        """What the scheduler publishes; "OURS" among the seedings stands for the id of what was handed over."""

    def check(self) -> None:
        self.events.append("check")

    def admit(self, admission: Admission) -> None:
        if len(self.admissions) >= self.fails_after:
            raise BrokerGoneError("connection reset")
        self.events.append("admit")
        self.admissions.append(admission)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Iterator[list[dict[str, Any]]]]:
        self.events.append("watch")
        yield self._stream()

    def _stream(self) -> Iterator[list[dict[str, Any]]]:
        for jobs in self.snapshots:
            for job in jobs:
                seedings = job.get("seedings", {})
                if "OURS" in seedings:
                    seedings[self.admissions[0].seeding] = seedings.pop("OURS")
            yield jobs
        raise BrokerGoneError("nothing more is published")

    @property
    def job(self) -> Job:
        return self.admissions[0].job


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    fake = FakeBroker()
    monkeypatch.setenv("CRAWLER_BROKER_URL", "amqp://seed:secret@broker.test/crawler")
    monkeypatch.setattr("crawler.processes.broker.Broker", lambda: fake)
    return fake


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.yml"
    path.write_text(f"name: j\nseeds: [{SITE}/]\ndelay: 3\nscope: {{kind: domain, deny: ['[.]pdf$']}}\n")
    return path


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


# --- the name: the same command goes on with its job ------------------------------------------------------------------


def name_of(broker: FakeBroker, *arguments: str) -> str:
    broker.admissions.clear()
    assert seed.main(list(arguments)) == 0
    return broker.job.name


def test_the_same_seeds_and_description_give_the_same_name(
    broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = name_of(broker, f"{SITE}/", "http://b.test/x", "--depth", "2", "--max-pages", "9")
    assert name.startswith("a.test-")
    same = [
        ("--max-pages", "9", "--depth", "2", "http://b.test/x", f"{SITE}/"),  # in another order
        (f"{SITE}", "HTTP://B.test:80/x#top", f"{SITE}/", "--depth", "2", "--max-pages", "9"),  # in another spelling
        (f"{SITE}/", "http://b.test/x", "--depth", "2", "--max-pages", "9", "--delay", "1"),  # a default, spelled out
    ]
    for arguments in same:
        assert name_of(broker, *arguments) == name
    text = f"# two\nhttp://b.test/x\n\n{SITE}/\n"
    (tmp_path / "urls.txt").write_text(text)
    assert name_of(broker, "--file", str(tmp_path / "urls.txt"), "--depth", "2", "--max-pages", "9") == name
    typed(monkeypatch, text)
    assert name_of(broker, "-", "--depth", "2", "--max-pages", "9") == name


def test_other_seeds_or_another_description_give_another_name(broker: FakeBroker) -> None:
    names = {
        name_of(broker, f"{SITE}/"),
        name_of(broker, f"{SITE}/x"),
        name_of(broker, f"{SITE}/", f"{SITE}/x"),
        name_of(broker, f"{SITE}/", "--depth", "2"),
        name_of(broker, f"{SITE}/", "--depth", "3"),
        name_of(broker, f"{SITE}/", "--delay", "2"),
        name_of(broker, f"{SITE}/", "--scope", "domain"),
        name_of(broker, f"{SITE}/", "--scope", "prefix"),
    }
    assert len(names) == 8


def test_the_name_is_the_same_in_every_process() -> None:
    code = (
        f"from crawler import seed, job; print(seed.derived_name(['{SITE}/', '{SITE}/x'], job.Job(name='j', depth=2)))"
    )
    names = set()
    for hash_seed in "012":
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        names.add(run.stdout)
    assert names == {"a.test-78220abd\n"}


@pytest.mark.parametrize(
    ("url", "begins"),
    [
        ("http://127.0.0.1:8080/", "127.0.0.1-8080-"),
        ("http://[fd00::1]:8080/", "fd00-1-8080-"),
        ("http://bücher.test/", "xn--bcher-kva.test-"),
        ("http://_dmarc.a.test/", "dmarc.a.test-"),
        (f"http://{'a' * 60}.{'b' * 60}.test/", f"{'a' * 60}.{'b' * 9}-"),
    ],
)
def test_every_host_makes_a_valid_name(broker: FakeBroker, url: str, begins: str) -> None:
    assert name_of(broker, url).startswith(begins)


def test_a_list_is_named_after_its_first_thousand_seeds(broker: FakeBroker, tmp_path: Path) -> None:
    """So a list of any length is read once, and one that grows at its end goes on with its job."""
    lines = [f"{SITE}/{number}" for number in range(2500)]
    names = []
    for length in (999, 1000, 1001, 2500):
        (tmp_path / "urls.txt").write_text("\n".join(lines[:length]))
        names.append(name_of(broker, "--file", str(tmp_path / "urls.txt")))
        assert sum(len(admission.urls) for admission in broker.admissions) == length
    assert names[0] != names[1] == names[2] == names[3]


def test_a_given_name_is_taken(broker: FakeBroker, job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert name_of(broker, f"{SITE}/", "--name", "mine") == "mine"
    assert name_of(broker, "--job", str(job_file)) == "j"
    assert name_of(broker, "--job", str(job_file), "--name", "mine") == "mine"
    capsys.readouterr()
    name = name_of(broker, f"{SITE}/")
    assert f"job {name}: the same command goes on with it" in capsys.readouterr().err


# --- the description --------------------------------------------------------------------------------------------------


def test_options_override_the_job_file(broker: FakeBroker, job_file: Path) -> None:
    assert seed.main(["--job", str(job_file), "--delay", "0", "--depth", "0", "--scope", "any", f"{SITE}/more"]) == 0
    (admission,) = broker.admissions
    assert (admission.job.delay, admission.job.depth) == (0, 0)
    assert (admission.job.scope.kind, admission.job.scope.deny) == ("any", ("[.]pdf$",))
    assert admission.urls == [f"{SITE}/", f"{SITE}/more"]
    assert admission.job.seeds == ()  # they travel once


def test_retry_wait_is_part_of_the_job(broker: FakeBroker) -> None:
    assert seed.main([f"{SITE}/"]) == 0
    assert seed.main([f"{SITE}/", "--retry-wait", "90"]) == 0
    assert [admission.job.retry_wait for admission in broker.admissions] == [3600, 90]


def test_scope_prefix_means_the_seeds_folders(broker: FakeBroker, job_file: Path) -> None:
    assert seed.main([f"{SITE}/docs/index.html?x=/y/", f"{SITE}/blog/", "--scope", "prefix"]) == 0
    assert broker.job.scope.prefixes == (f"{SITE}/blog/", f"{SITE}/docs/")
    broker.admissions.clear()
    assert seed.main(["--job", str(job_file), "http://b.test/c/d", "--scope", "prefix"]) == 0
    assert broker.job.scope.prefixes == (f"{SITE}/", "http://b.test/c/")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "Nothing to crawl: give URLs, --file, or --job with 'seeds'"),
        ([f"{SITE}/", "--delay", "-1"], "delay: Input should be greater than or equal to 0 (given: -1.0)"),
        ([f"{SITE}/", "--depth", "-1"], "depth: Input should be greater than or equal to 0"),
        ([f"{SITE}/", "--max-pages", "0"], "max_pages: Input should be greater than or equal to 1"),
        ([f"{SITE}/", "--name", "../x"], "name: String should match"),
        ([f"{SITE}/", "--name", ""], "name: String should match"),
        ([f"{SITE}/", "-o", "x"], "-o needs --local"),
        ([f"{SITE}/", "--allow-network", "10.0.0.0/8"], "set crawler_allow_networks in the inventory"),
        ([f"{SITE}/", "--workers", "5"], "ansible-playbook scale.yml -e workers=5"),
        (["-", "--scope", "prefix"], "--scope prefix needs its seeds on the command line"),
        (["nonsense", "--scope", "prefix"], "nonsense: not a URL"),
        (["--file", "gone.txt"], "gone.txt: No such file"),
        (["--job", "gone.yml"], "gone.yml: "),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert seed.main(arguments) == 2
    assert complaint in capsys.readouterr().err
    assert broker.events == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("dealy: 5", "job.yml: dealy: Extra inputs are not permitted"),
        ("scope: {kinds: any}", "job.yml: scope.kinds: Extra inputs are not permitted"),
        ("delay: -1", "job.yml: delay: Input should be greater than or equal to 0 (given: -1)"),
        ("scope: {kind: prefix}", "kind 'prefix' needs 'prefixes'"),
        ("scope: {deny: ['[/a](']}", r"job.yml: scope.deny.0: Value error, '[/a](' is no regular expression"),
        ("extract: {title: {}}", "job.yml: extract"),
        ("extract: {price: {css: 'p['}}", "job.yml: extract.price.css: 'p[' is no CSS selector"),
        ("[", "job.yml: "),
    ],
)
def test_a_job_file_with_a_mistake_is_refused(
    broker: FakeBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, complaint: str
) -> None:
    path = tmp_path / "job.yml"
    path.write_text(f"name: j\nseeds: [{SITE}/]\n{line}\n")
    assert seed.main(["--job", str(path)]) == 2
    assert complaint in capsys.readouterr().err
    assert broker.events == []


def test_options_cannot_be_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    """`--loc` would crawl here without gevent's patches, one host at a time."""
    with pytest.raises(SystemExit):
        seed.main([f"{SITE}/", "--loc"])
    assert "unrecognized arguments: --loc" in capsys.readouterr().err


# --- the seeds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "sizes"), [(1, [1]), (999, [999]), (1000, [1000]), (1001, [1000, 1]), (3000, [1000, 1000, 1000])]
)
def test_seeds_are_sent_a_thousand_at_a_time(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, number: int, sizes: list[int]
) -> None:
    wanted = [f"{SITE}/{n}" for n in range(number)]
    typed(monkeypatch, "\n".join(wanted))
    assert seed.main(["-", "--name", "j"]) == 0
    assert [len(admission.urls) for admission in broker.admissions] == sizes
    assert [url for admission in broker.admissions for url in admission.urls] == wanted
    assert [admission.chunk for admission in broker.admissions] == list(range(len(sizes)))
    assert [admission.chunks for admission in broker.admissions] == [None] * (len(sizes) - 1) + [len(sizes)]
    assert len({admission.seeding for admission in broker.admissions}) == 1


def test_each_run_is_a_seeding_of_its_own(broker: FakeBroker) -> None:
    for _ in range(2):
        assert seed.main([f"{SITE}/"]) == 0
    first, second = broker.admissions
    assert first.seeding != second.seeding
    assert first.job == second.job


def test_what_is_no_url_is_named_and_the_rest_is_sent(
    broker: FakeBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "[urls].txt").write_text(f"{SITE}/file\n\n# note\nftp://a.test/\n")
    typed(monkeypatch, f"\x1b]0;owned\x07\n {SITE}/stdin \n")
    arguments = ["nonsense", f" {SITE}/argument", "-", "--file", str(tmp_path / "[urls].txt"), "--name", "j"]
    assert seed.main(arguments) == 0
    assert [admission.urls for admission in broker.admissions] == [
        [f"{SITE}/argument", f"{SITE}/stdin", f"{SITE}/file"]
    ]
    told = capsys.readouterr().err
    assert "argument 1: 'nonsense' is left out: not a URL" in told
    assert r"standard input line 1: '\x1b]0;owned\x07' is left out" in told
    assert "[urls].txt line 4: 'ftp://a.test/' is left out: scheme 'ftp' is not http or https" in told
    assert "3 URLs handed over to job j, 3 left out" in told
    assert "\x1b]" not in told


def test_only_the_first_bad_lines_are_shown(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "nonsense\n" * 30)
    assert seed.main(["-", "--name", "j"]) == 0
    told = capsys.readouterr().err
    assert told.count("is left out") == seed.SHOWN_BAD_LINES
    assert "0 URLs handed over to job j, 30 left out (the first 20 are shown)" in told
    assert [admission.urls for admission in broker.admissions] == [[]]


def test_a_large_file_has_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broker: FakeBroker) -> None:
    terminal = seed.Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    monkeypatch.setattr(seed, "console", terminal)
    path = tmp_path / "{urls}[a](.txt"
    path.write_text(f"{SITE}/{'x' * 100}\n" * 10_000)
    assert seed.main(["--file", str(path), "--name", "j"]) == 0
    assert sum(len(admission.urls) for admission in broker.admissions) == 10_000
    assert isinstance(terminal.file, io.StringIO)
    assert "{urls}[a](.txt" in terminal.file.getvalue()


# --- the broker -------------------------------------------------------------------------------------------------------


def test_a_broker_that_goes_away_is_told_with_what_is_safe(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.fails_after = 2
    typed(monkeypatch, "\n".join(f"{SITE}/{n}" for n in range(5000)))
    assert seed.main(["-", "--name", "j"]) == 1
    told = capsys.readouterr().err
    assert "amqp://seed:***@broker.test/crawler does not take the URLs: connection reset" in told
    assert "2,000 URLs were handed over and are safe" in told
    assert "run the same command again" in told
    assert "secret" not in told


def test_without_a_fleet_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CRAWLER_BROKER_URL", raising=False)
    monkeypatch.setattr(seed.settings, "PROJECT", tmp_path)
    assert seed.main([f"{SITE}/"]) == 2
    assert "ansible-playbook deploy.yml" in capsys.readouterr().err


def test_interrupted(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: Admission) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(broker, "admit", interrupt)
    assert seed.main([f"{SITE}/"]) == 130
    assert "run the same command again to go on" in capsys.readouterr().err


# --- --watch ----------------------------------------------------------------------------------------------------------


def watched(broker: FakeBroker, *snapshots: dict[str, Any], options: tuple[str, ...] = ()) -> int:
    broker.snapshots = [[snapshot("running") | {"job": "another"}, each] for each in snapshots]
    return seed.main([f"{SITE}/", "--name", "j", "--watch", *options])


def of(state: str, seedings: dict[str, bool], **counts: int) -> dict[str, Any]:
    return snapshot(state, **counts) | {"seedings": seedings}


def test_watch_begins_before_the_first_message_is_sent(broker: FakeBroker) -> None:
    assert watched(broker, of("done", {"OURS": True}, done=1)) == 0
    assert broker.events == ["check", "watch", "admit"]


def test_watch_does_not_take_the_end_of_an_earlier_run_for_its_own(
    broker: FakeBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        watched(
            broker,
            of("done", {"earlier": True}, done=1111),
            of("cancelled", {"earlier": True}, done=1111),
            of("done", {"earlier": True, "OURS": False}, done=1111),
            of("running", {"earlier": True, "OURS": True}, done=1111, queued=1),
            of("done", {"later": True}, done=2222),  # only the newest seedings are named
            options=("--summary", str(tmp_path / "summary.json")),
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "2,222" in shown.out
    assert "1,111" not in shown.out
    assert "another" not in shown.err
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["done"] == 2222


@pytest.mark.parametrize("state", ["paused", "cancelled", "broken"])
def test_watch_of_a_job_that_does_not_go_on_says_why(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    ended = of(state, {"OURS": True}, done=3) | {"broken": "spec: \x1b[31m[/a]("}
    assert watched(broker, of("running", {"OURS": True}), ended) == 1
    assert rf"job j is {state}: spec: \x1b[31m[/a](" in capsys.readouterr().err


def test_watch_of_an_older_frontier_does_not_guess(broker: FakeBroker, capsys: pytest.CaptureFixture[str]) -> None:
    older = snapshot("done", done=1)
    del older["seedings"]
    assert watched(broker, older, older) == 1  # until the broker goes away
    assert capsys.readouterr().err.count("frontier is of an older release") == 1


def test_watch_ends_at_its_timeout(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr(seed.time, "monotonic", lambda: float(next(now)))
    running = of("running", {"OURS": True}, queued=1)
    assert watched(broker, *[running] * 500, options=("--timeout", "5")) == 1
    assert "job j did not end within 5 s" in capsys.readouterr().err


def test_a_job_that_is_done_at_its_timeout_is_done(broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 100))
    monkeypatch.setattr(seed.time, "monotonic", lambda: float(next(now)))
    assert watched(broker, of("done", {"OURS": True}, done=1), options=("--timeout", "5")) == 0


def test_a_broker_that_goes_away_while_watching_takes_nothing_back(
    broker: FakeBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watched(broker, of("running", {"OURS": True}, queued=1)) == 1
    told = capsys.readouterr().err
    assert "went away while the job was watched" in told
    assert "1 URLs were handed over and are safe" in told


# --- --local ----------------------------------------------------------------------------------------------------------


def crawled_here(folder: Path, *arguments: str, delay: float = 0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "crawler/seed.py"), *arguments, "--local", "--delay", str(delay)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_same_command_goes_on_where_it_was(site: Site, tmp_path: Path) -> None:
    site.tree(7)
    first = crawled_here(tmp_path, site.url, "-o", "pages.jsonl")
    assert first.returncode == 0, first.stderr
    assert ": new" in first.stderr
    (ledger,) = tmp_path.glob("*.sqlite")
    name = ledger.name.removesuffix(".sqlite")
    assert f"job {name}: new" in first.stderr
    assert len(site.paths) == 8  # robots.txt
    rows = [json.loads(line) for line in (tmp_path / "pages.jsonl").read_text().splitlines()]
    assert sorted(row["url"] for row in rows) == sorted(site.url + path for path in site.pages)

    again = crawled_here(tmp_path, site.url, "-o", "pages.jsonl")
    assert again.returncode == 0, again.stderr
    assert f"job {name}: known, goes on" in again.stderr
    assert len(site.paths) == 8  # nothing was asked twice
    assert crawled_here(tmp_path, site.url, "--name", "anew").returncode == 0
    assert len(site.paths) == 16


def test_a_crawl_that_was_interrupted_goes_on(site: Site, tmp_path: Path) -> None:
    site.tree(12)
    command = [sys.executable, str(ROOT / "crawler/seed.py"), site.url, "--local", "--delay", "0.3"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(site.paths) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "is running; the same command goes on with it" in told
    assert len(site.paths) < 13
    again = crawled_here(tmp_path, site.url, delay=0.3)
    assert again.returncode == 0
    assert "known, goes on" in again.stderr
    assert sorted(site.paths) == sorted(["/robots.txt", *site.pages])  # each page once, over both runs


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ledger", "no/such/folder/x.sqlite"], "ledger no/such/folder/x.sqlite: unable to open database file"),
        (["--ledger", "text"], "ledger text: file is not a database"),
        (["-o", "no/such/folder/x.jsonl"], "cannot write no/such/folder/x.jsonl.part"),
    ],
)
def test_files_that_cannot_be_used_are_named(site: Site, tmp_path: Path, arguments: list[str], complaint: str) -> None:
    (tmp_path / "text").write_text("no database at all, but a text of some length\n" * 100)
    site.tree(1)
    run = crawled_here(tmp_path, site.url, *arguments)
    assert run.returncode == 1
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr


def test_a_site_of_one_s_own_is_crawled_with_the_option_that_the_refusal_names(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CRAWLER_ALLOW_NETWORKS")
    site.tree(3)
    refused = crawled_here(tmp_path, f"{site.url}/")
    told = " ".join(refused.stderr.split())
    assert f"{site.url}/ will not be asked: 127.0.0.1 is no public address. If that network is yours, add:" in told
    assert (refused.returncode, site.requests, list(tmp_path.iterdir())) == (2, [], [])
    (option,) = re.findall("--allow-network [0-9.]+", told)
    crawled = crawled_here(tmp_path, f"{site.url}/", *option.split(), "-o", "pages.jsonl")
    assert crawled.returncode == 0, crawled.stderr
    rows = [json.loads(line) for line in (tmp_path / "pages.jsonl").read_text().splitlines()]
    assert [row["state"] for row in rows] == ["done"] * 3


@pytest.mark.parametrize(
    ("url", "addresses", "remedy"),
    [
        ("http://own.test/", ["10.0.0.1", "fd00::1"], "own.test is 10.0.0.1, fd00::1, which is no public address. If"),
        ("http://own.test/", ["10.0.0.1", "fd00::1"], "add: --allow-network 10.0.0.1 --allow-network fd00::1"),
        ("http://own.test:8000/", ["127.0.0.1"], "add: --allow-network 127.0.0.1"),
        ("http://own.test/", ["fe80::1%lo"], "add: --allow-network fe80::1"),
        ("http://[::1]:8000/", ["::1"], "http://[::1]:8000/ will not be asked: ::1 is no public address. If"),
        ("http://own.test:8000/", ["8.8.8.8", "10.0.0.1"], "port 8000 is not allowed. To allow it, set the "),
        ("http://own.test:8000/", ["8.8.8.8"], "variable CRAWLER_ALLOW_PORTS=8000"),
        ("http://own.test:8000/", [], "variable CRAWLER_ALLOW_PORTS=8000"),
        ("http://own.test/", [], ""),
        ("http://own.test/", ["8.8.8.8"], ""),
        ("http://own.test/", ["8.8.8.8", "10.0.0.1"], ""),
    ],
)
def test_what_a_seed_lacks_is_said_before_the_crawl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, addresses: list[str], remedy: str
) -> None:
    def getaddrinfo(name: str, port: int, **_: Any) -> list[Any]:
        found = ["9.9.9.9"] if name == "public.test" else addresses
        if not found:
            raise OSError("Name or service not known")
        return [(2, 1, 6, "", (address, port)) for address in found]

    monkeypatch.setattr(connect, "_addresses", {})
    monkeypatch.setattr(connect.socket, "getaddrinfo", getaddrinfo)
    if remedy:
        with pytest.raises(JobError, match=re.escape(remedy)):
            seed._check_reach([url, url + "x"], Egress())
    else:
        seed._check_reach([url], Egress())
    # A crawl that has something to do begins, and names what it leaves out.
    seed._check_reach(["http://public.test/", url], Egress())
    assert remedy in " ".join(capsys.readouterr().err.split())
    seed._check_reach([], Egress())
    seed._check_reach([f"http://{number}.test/" for number in range(seed.MAX_CHECKED + 1)], Egress())


def test_a_network_that_is_none_is_refused(tmp_path: Path) -> None:
    run = crawled_here(tmp_path, f"{SITE}/", "--allow-network", "10.0.0.1/8")
    assert run.returncode == 2
    assert "10.0.0.1/8 has host bits set; write a network as 192.0.2.0/24" in " ".join(run.stderr.split())


def test_without_its_packages_the_remedy_is_told(tmp_path: Path) -> None:
    """In a fresh clone, on a machine's own Python: -S leaves out what is installed."""
    code = (ROOT / "crawler/seed.py").read_text()
    (tmp_path / "clone/crawler").mkdir(parents=True)
    (tmp_path / "clone/crawler/seed.py").write_text(code)
    command = [sys.executable, "-S", str(tmp_path / "clone/crawler/seed.py"), SITE]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "seed.py needs the packages that this makes: make .venv/ready\n")
