"""Budgets of domains and prefixes are exact, and sections whose pages are copies are closed: on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from crawler import limits
from crawler.frontier import budgets, orders, status, sweeps, tidy, traps
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import jobs, leases, urls
from crawler.frontier.schema import traps as traps_table
from crawler.job import Job
from crawler.messages import Admission, Batch, Cause, Link, Report, Retry, UrlResult

FORUM = "http://a.test/forum/"


def admit_urls(ledger: Ledger, given: list[str], now: float = 0, seeding: str = "s", **job: Any) -> None:
    made = Job.checked({"name": "j", "delay": 0, "scope": {"kind": "any"}, **job}, origin="test")
    admit(ledger, Admission(job=made, seeding=seeding, chunk=0, chunks=1, urls=given), now)


def report(batch: Batch, links: list[str] = [], digest: Callable[[str], str | None] = str, **fields: Any) -> Report:  # noqa: B006
    """Everything in `batch` was fetched, unless `fields` say otherwise; each page's body has its `digest`."""
    pages = [
        UrlResult(url=target.url, state="done", fetched_at=1, status=200, digest=digest(target.url))
        for target in batch.targets
    ]
    page = batch.targets[0]
    found = [Link(url=url, depth=page.depth + 1, found_on=page.url) for url in links]
    common = {"job": batch.job.name, "host": batch.host, "worker": "w", "release": "r", "delay": 0}
    return Report(**{"lease": batch.lease, "results": pages, "links": found, **common, **fields})


def crawl(ledger: Ledger, answer: Callable[[Batch], Report], now: float = 1, rounds: int = 400) -> float:
    """Crawl until the job is done; returns when that is."""
    for _ in range(rounds):
        now += 1.5
        for batch in lease(ledger, 10, now):
            made = answer(batch)
            made.results = [replace(page, fetched_at=now) for page in made.results]
            record(ledger, [made], now)
        tidy.tidy(ledger, now)
        (job,) = status.snapshots(ledger, now, recount=True)
        assert job["counts"] == job["by_host"] == job["recounted"]
        if job["state"] == "done":
            return now
    raise AssertionError(f"not done: {job['counts']}")


def rows(ledger: Ledger) -> dict[str, tuple[str, str | None]]:
    """State and cause of each URL."""
    return {row["url"]: (row["state"], row["cause"]) for row in status.pages(ledger, "j")}


def number(ledger: Ledger, state: str, begins: str = "http") -> int:
    return sum(url.startswith(begins) and found[0] == state for url, found in rows(ledger).items())


def forum(pages: int) -> list[str]:
    return [f"{FORUM}{page}" for page in range(pages)]


def below_forum(ledger: Ledger) -> int:
    """What the ledger takes for the number of pages of the forum."""
    with ledger.engine.connect() as connection:
        return connection.execute(sa.select(budgets.budgets.c.pages)).scalar_one()


# --- prefixes ---------------------------------------------------------------------------------------------------------


def test_a_prefix_gives_no_more_pages_than_its_budget_and_the_rest_of_the_site_all(ledger: Ledger) -> None:
    others = [f"http://a.test/{page}" for page in range(30)]
    admit_urls(ledger, [*forum(70), *others], max_pages_per_prefix={FORUM: 60, "http://a.test/forum/1": 5})
    crawl(ledger, report)
    assert number(ledger, "done", FORUM) == 60
    assert number(ledger, "done", FORUM + "1") == 5
    assert all(rows(ledger)[url] == ("done", None) for url in others)
    causes = {found for url, found in rows(ledger).items() if found[0] == "excluded"}
    assert causes == {("excluded", Cause.MAX_PAGES_PER_PREFIX)}
    reasons = {row["reason"] for row in status.pages(ledger, "j") if row["state"] == "excluded"}
    assert reasons <= {f"max_pages_per_prefix reached: {FORUM}", f"max_pages_per_prefix reached: {FORUM}1"}
    (job,) = status.snapshots(ledger, 1)
    told = [(budget["prefix"], budget["pages"], budget["most"]) for budget in job["budgets"]]
    assert told == [(FORUM, 60, 60), (FORUM + "1", 5, 5)]
    assert len(reasons) == 2 or number(ledger, "excluded", FORUM + "1") == 6


def test_pages_under_way_count_against_a_prefix(ledger: Ledger) -> None:
    admit_urls(ledger, forum(120), max_pages_per_prefix={FORUM: 70}, connections=4)
    batches = [batch for now in (0, 2, 4, 6) for batch in lease(ledger, 1, now)]
    assert sum(len(batch.targets) for batch in batches) == 70
    late = batches[0]
    lost = [target.url for target in late.targets]
    record(ledger, [report(late, results=[], unfetched=lost), *(report(batch) for batch in batches[1:])], 7)
    crawl(ledger, report, 7)
    assert number(ledger, "done") == 70
    assert below_forum(ledger) == 70


def test_a_budget_counts_pages_not_attempts(ledger: Ledger) -> None:
    admit_urls(ledger, forum(30), max_pages_per_prefix={FORUM: 10}, max_attempts=1)

    def answer(batch: Batch) -> Report:
        failed = [target.url for target in batch.targets if int(target.url.rpartition("/")[2]) % 2]
        made = report(batch, retries=[Retry(url=url, reason="HTTP 500") for url in failed])
        made.results = [page for page in made.results if page.url not in failed]
        return made

    crawl(ledger, answer)
    assert number(ledger, "done") == below_forum(ledger) == 10


def test_a_report_twice_and_a_late_one_break_no_budget(ledger: Ledger) -> None:
    admit_urls(ledger, ["http://a.test/"], max_pages_per_prefix={FORUM: 10})
    (batch,) = lease(ledger, 1, 0)
    record(ledger, [report(batch, links=forum(20))], 1)
    (old,) = lease(ledger, 1, 2)
    later = limits.LEASE + 3
    tidy.tidy(ledger, later)
    nearer = [f"{FORUM}nearer/{page}" for page in range(10)]
    admit_urls(ledger, nearer, later, "2", max_pages_per_prefix={FORUM: 10})
    (new,) = lease(ledger, 1, later)
    assert (len(old.targets), {target.url for target in new.targets}) == (10, set(nearer))
    record(ledger, [report(old), report(new), report(new)], later + 1)
    record(ledger, [report(old), report(new)], later + 2)
    crawl(ledger, report, later + 2)
    assert (number(ledger, "done", FORUM), below_forum(ledger)) == (10, 10)


def test_links_below_a_full_prefix_are_excluded_as_they_are_met(ledger: Ledger) -> None:
    admit_urls(ledger, [*forum(2), "http://a.test/"], max_pages_per_prefix={FORUM: 2})
    (batch,) = lease(ledger, 1, 0)
    record(ledger, [report(batch, results=[page for page in report(batch).results if page.url in forum(2)])], 1)
    (batch,) = lease(ledger, 1, 700)
    record(ledger, [report(batch, links=[FORUM + "new", "http://a.test/new"])], 701)
    assert rows(ledger)[FORUM + "new"] == ("excluded", Cause.MAX_PAGES_PER_PREFIX)
    assert rows(ledger)["http://a.test/new"] == ("queued", None)


def test_a_wider_budget_goes_on_from_there(ledger: Ledger) -> None:
    admit_urls(ledger, forum(90), max_pages_per_prefix={FORUM: 30})
    now = crawl(ledger, report)
    admit_urls(ledger, [], now, "2", max_pages_per_prefix={FORUM: 40})
    now = crawl(ledger, report, now)
    assert number(ledger, "done") == 40
    admit_urls(ledger, [], now, "3")
    crawl(ledger, report, now)
    assert number(ledger, "done") == 90


def test_a_budget_that_comes_later_counts_what_was_there_before(ledger: Ledger) -> None:
    admit_urls(ledger, forum(120), connections=2)
    (batch,) = lease(ledger, 1, 0)
    admit_urls(ledger, [], 1, "2", max_pages_per_prefix={FORUM: 60}, connections=2)
    tidy.tidy(ledger, 2)
    assert lease(ledger, 5, 2) == []  # what is under way is not counted yet
    record(ledger, [report(batch)], 3)
    crawl(ledger, report, 3)
    assert number(ledger, "done") == below_forum(ledger) == 60


def test_a_page_that_is_visited_again_is_counted_once(ledger: Ledger) -> None:
    admit_urls(ledger, forum(12), max_pages_per_prefix={FORUM: 8}, recrawl=3600)
    now = crawl(ledger, report)
    now = crawl(ledger, report, now + 4000)
    assert number(ledger, "done") == below_forum(ledger) == 8

    def gone(batch: Batch) -> Report:
        made = report(batch)
        made.results = [replace(page, state="failed", cause="http") for page in made.results]
        return made

    tidy.tidy(ledger, now + 4000)
    (batch,) = lease(ledger, 1, now + 4000)
    record(ledger, [gone(batch)], now + 4001)
    assert below_forum(ledger) == 0


def test_a_page_whose_leases_are_lost_too_often_counts_no_more(ledger: Ledger) -> None:
    admit_urls(ledger, [FORUM], max_pages_per_prefix={FORUM: 8}, recrawl=3600)
    now = crawl(ledger, report)
    while number(ledger, "failed") == 0:
        now += 4000
        tidy.tidy(ledger, now)
        lease(ledger, 1, now)
    assert below_forum(ledger) == 0


def test_a_large_queue_below_a_full_prefix_is_swept(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "CHUNK", 40)
    admit_urls(ledger, forum(300), max_pages_per_prefix={FORUM: 10})
    (batch,) = lease(ledger, 1, 0)
    record(ledger, [report(batch)], 1)  # and the first chunk is swept at once
    assert number(ledger, "excluded") > 20
    tidy.tidy(ledger, 2, seconds=60)
    assert (number(ledger, "done"), number(ledger, "queued")) == (10, 0)
    admit_urls(ledger, [], 3, "2", max_pages_per_prefix={FORUM: 10}, priority="high")  # queues all of it again
    crawl(ledger, report, 3, rounds=8)
    assert number(ledger, "done") == 10


# --- domains ----------------------------------------------------------------------------------------------------------


def of_domain(hosts: int, pages: int = 5, domain: str = "x.test") -> list[str]:
    return [f"http://h{host}.{domain}/{page}" for host in range(hosts) for page in range(pages)]


def test_a_domain_gives_no_more_pages_than_its_budget(ledger: Ledger) -> None:
    admit_urls(ledger, [*of_domain(9), *of_domain(2, domain="y.test")], max_pages_per_domain=12)
    batches = lease(ledger, 50, 0)
    assert sum(len(batch.targets) for batch in batches if "x.test" in batch.host) == 12
    record(ledger, [report(batch) for batch in batches], 1)
    crawl(ledger, report)
    found = rows(ledger)
    assert sum("x.test" in url and state == "done" for url, (state, _) in found.items()) == 12
    assert sum("y.test" in url and state == "done" for url, (state, _) in found.items()) == 10
    assert {cause for state, cause in found.values() if state == "excluded"} == {Cause.MAX_PAGES_PER_DOMAIN}


def test_what_a_domain_loses_others_of_its_hosts_may_give(ledger: Ledger) -> None:
    admit_urls(ledger, of_domain(6), max_pages_per_domain=12)

    def answer(batch: Batch) -> Report:
        made = report(batch)
        if batch.host < "h3":
            made.results = [replace(page, state="failed", cause="http") for page in made.results]
        return made

    crawl(ledger, answer)
    assert number(ledger, "done") == 12
    assert number(ledger, "done", "http://h0") == 0


def test_links_to_a_full_domain_are_excluded_as_they_are_met(ledger: Ledger) -> None:
    admit_urls(ledger, [*of_domain(1, 2), "http://y.test/"], max_pages_per_domain=2)
    batches = {batch.host: batch for batch in lease(ledger, 5, 0)}
    record(ledger, [report(batches["h0.x.test"])], 1)
    record(ledger, [report(batches["y.test"], links=["http://new.x.test/", "http://y.test/new"])], 2)
    assert rows(ledger)["http://new.x.test/"] == ("excluded", Cause.MAX_PAGES_PER_DOMAIN)
    assert rows(ledger)["http://y.test/new"] == ("queued", None)


def test_a_budget_of_domains_that_comes_later_counts_what_was_there_before(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "CHUNK", 2)
    admit_urls(ledger, of_domain(5, 2))
    batches = lease(ledger, 50, 0)
    admit_urls(ledger, of_domain(8, 2), 1, "2", max_pages_per_domain=12)
    assert lease(ledger, 5, 1) == []
    record(ledger, [report(batch) for batch in batches], 2)
    now = crawl(ledger, report, 2)
    assert number(ledger, "done") == 12
    admit_urls(ledger, [], now, "3", max_pages_per_domain=14)
    crawl(ledger, report, now)
    assert number(ledger, "done") == 14


# --- traps ------------------------------------------------------------------------------------------------------------


def test_sections_of_a_url() -> None:
    of = traps.sections_of
    assert of("http://a.test/") == of("http://a.test/page") == []
    assert of("http://a.test/a/page") == ["/a/"]
    assert of("http://a.test/a/b/c/page") == ["/a/", "/a/b/"]
    assert of("http://a.test/cal.php?month=3/4") == ["/cal.php?"]
    assert of("http://a.test/a/b/?q") == ["/a/", "/a/b/", "/a/b/?"]


def copies(url: str) -> str:
    """All pages of the calendar are one; others are their own."""
    return "empty" if "/calendar/" in url else url


def calendar(folder: str = "/calendar/", first: int = 0) -> Callable[[Batch], Report]:
    """Answers of a site whose every page leads to fifty more of a calendar without end, and to a page of its own."""
    met = [first]

    def answer(batch: Batch) -> Report:
        links = [f"http://{batch.host}{folder}{met[0] + page}" for page in range(50)]
        pages = [f"http://{batch.host}/page/{page}" for page in range(met[0] // 50 + 1, met[0] // 50 + 4)]
        met[0] += 50
        return report(batch, links + pages * (met[0] < 4000), copies)

    return answer


def site(pages: int = 150) -> list[str]:
    return [f"http://a.test/page/{page}" for page in range(pages)]


def test_a_section_of_copies_is_closed_and_the_rest_goes_on(ledger: Ledger) -> None:
    admit_urls(ledger, site())
    answer = calendar()
    crawl(ledger, answer)
    done = number(ledger, "done", "http://a.test/calendar/")
    assert traps.RUN < done < traps.RUN + 3 * limits.BATCH_URLS
    assert {found for url, found in rows(ledger).items() if "/page/" in url} == {("done", None)}
    left = {found for url, found in rows(ledger).items() if "/calendar/" in url} - {("done", None)}
    assert left == {("excluded", Cause.TRAP)}
    reasons = {row["reason"] for row in status.pages(ledger, "j") if row["cause"] == Cause.TRAP}
    assert reasons == {"trap: the last 200 pages below /calendar/ had been seen before"}
    (job,) = status.snapshots(ledger, 1)
    assert job["closed"] == [{"host": "a.test", "section": "/calendar/", "reason": reasons.pop()}]


def take_in(*bodies: tuple[str, str]) -> tuple[list[str], Any]:
    """What is closed for pages (URL, body), and what is kept of their host."""
    watched = traps._Watched({}, {}, {})
    return [section for url, body in bodies for section in watched.take_in(f"http://a.test{url}", body)], watched


def test_the_narrowest_section_is_closed() -> None:
    closed, watched = take_in(*((f"/en/calendar/{page}", "same") for page in range(500)))
    assert closed == ["/en/calendar/"]
    assert watched.runs == {"/en/": [traps.RUN // 2, 0]}
    closed, _ = take_in(*((f"/view.php?day={page}", "same") for page in range(500)))
    assert closed == ["/view.php?"]


def test_a_second_such_section_closes_the_folder_above() -> None:
    days = [(f"/cal/{year}/{day}", "same") for year in range(9) for day in range(300)]
    assert take_in(*days)[0] == ["/cal/0/", "/cal/"]


def test_sections_with_few_pages_each_are_closed_together() -> None:
    assert take_in(*((f"/cal/{day}/{hour}", "same") for day in range(50) for hour in range(9)))[0] == ["/cal/"]


def test_some_copies_close_nothing() -> None:
    mixed = [(f"/a/{page}", str(page) if page % 20 == 0 else "same") for page in range(5000)]
    assert take_in(*mixed)[0] == []
    assert take_in(*((f"/a/{page}", "same") for page in range(traps.RUN)))[0] == []


def test_a_page_in_a_hundred_that_is_new_keeps_no_trap_open() -> None:
    mixed = [(f"/a/{page}", str(page) if page % 100 == 99 else "same") for page in range(400)]
    closed, watched = take_in(*mixed)
    assert closed == ["/a/"]
    assert watched.closed["/a/"].startswith("trap: 240 of the last 242 pages below /a/ had")


def test_a_mirror_is_no_trap() -> None:
    mirrors = [(f"/mirror{side}/{page}", str(page)) for page in range(1000) for side in (1, 2)]
    assert take_in(*mirrors)[0] == []


def test_what_is_kept_of_a_host_is_bounded() -> None:
    pages = [(f"/{folder}/{part}/?{page}", str(page)) for page in range(4) for folder in range(90) for part in range(9)]
    _, watched = take_in(*pages)
    written = watched.written()
    assert len(json.loads(written["runs"])) <= traps.MAX_RUNS
    assert len(written["seen"]) + len(written["runs"]) < 10_000


def test_small_hosts_cost_no_row(ledger: Ledger) -> None:
    admit_urls(ledger, site(traps.WATCH_FROM))
    crawl(ledger, lambda batch: report(batch, digest=lambda _: "same"))
    with ledger.engine.connect() as connection:
        assert connection.execute(sa.select(traps_table)).all() == []


def test_later_visits_are_no_copies(ledger: Ledger) -> None:
    admit_urls(ledger, [f"http://a.test/x/{page}" for page in range(300)], recrawl=3600)
    now = crawl(ledger, report)
    now = crawl(ledger, report, now + 4000)
    crawl(ledger, report, now + 4000)
    assert number(ledger, "done") == 300
    with ledger.engine.connect() as connection:
        assert connection.execute(sa.select(traps_table.c.runs)).scalar_one() == "{}"


def test_a_report_seen_twice_is_counted_once(ledger: Ledger) -> None:
    admit_urls(ledger, site(100))
    now = crawl(ledger, report)
    admit_urls(ledger, [f"http://a.test/calendar/{page}" for page in range(150)], now, "2")

    def answer(batch: Batch) -> Report:
        made = report(batch, digest=copies)
        record(ledger, [made] * 2, now)
        return made

    crawl(ledger, answer, now)
    with ledger.engine.connect() as connection:
        (runs,) = connection.execute(sa.select(traps_table.c.runs)).scalars()
    assert json.loads(runs) == {"/calendar/": [149, 0]}


def test_seeds_are_fetched_in_a_closed_section_as_well(ledger: Ledger) -> None:
    named = [f"http://a.test/calendar/{page}" for page in range(600)]
    admit_urls(ledger, [*site(100), *named])
    crawl(ledger, lambda batch: report(batch, ["http://a.test/calendar/linked"], copies))
    assert all(rows(ledger)[url][0] == "done" for url in named)


def test_without_traps_nothing_is_closed_and_a_closed_section_is_judged_again(ledger: Ledger) -> None:
    admit_urls(ledger, site())
    now = crawl(ledger, calendar())
    excluded = number(ledger, "excluded")
    assert excluded > 100
    admit_urls(ledger, [], now, "2", priority="high")
    now = crawl(ledger, lambda batch: report(batch, digest=copies), now)
    assert number(ledger, "excluded") == excluded  # another description alone opens nothing
    admit_urls(ledger, [], now, "3", traps=False)
    crawl(ledger, lambda batch: report(batch, digest=copies), now)
    assert number(ledger, "excluded") == 0


def test_a_person_opens_a_closed_section_again(ledger: Ledger) -> None:
    admit_urls(ledger, site())
    now = crawl(ledger, calendar())
    excluded = number(ledger, "excluded")
    assert orders.retry(ledger, "j", None, now) == orders.retry(ledger, "j", "HTTP 500", now) == 0
    assert orders.retry(ledger, "j", "below /calendar/", now) == excluded > 100
    crawl(ledger, lambda batch: report(batch), now)  # now each of its pages is its own
    assert number(ledger, "excluded") == 0


def test_an_opened_section_that_is_a_trap_all_the_same_is_closed_again(ledger: Ledger) -> None:
    admit_urls(ledger, site())
    now = crawl(ledger, calendar())
    before = number(ledger, "done")
    orders.retry(ledger, "j", "trap", now)
    crawl(ledger, calendar(first=5000), now)
    assert before + traps.RUN <= number(ledger, "done") < before + traps.RUN + 2 * limits.BATCH_URLS
    assert {found for url, found in rows(ledger).items() if found[0] == "excluded"} == {("excluded", Cause.TRAP)}


def test_what_was_queued_after_the_sweep_had_passed_is_excluded_when_its_turn_comes(ledger: Ledger) -> None:
    admit_urls(ledger, site())
    now = crawl(ledger, calendar())
    late = "http://a.test/calendar/late"
    with ledger.transaction() as tx:  # as by a recorder that knew nothing of the closing
        tx.execute(jobs.update().values(trapped=None))
    admit_urls(ledger, ["http://a.test/last"], now, "2")
    (batch,) = lease(ledger, 1, now)
    record(ledger, [report(batch, [late])], now)
    assert rows(ledger)[late] == ("queued", None)
    with ledger.transaction() as tx:
        tx.execute(jobs.update().values(trapped=True))
    crawl(ledger, report, now)
    assert rows(ledger)[late] == ("excluded", Cause.TRAP)


def test_a_deleted_job_leaves_no_budgets_and_traps(ledger: Ledger) -> None:
    admit_urls(ledger, site(), max_pages_per_prefix={"http://a.test/page/": 1000})
    now = crawl(ledger, calendar())
    orders.delete(ledger, "j", now)
    with ledger.engine.connect() as connection:
        for table in (traps_table, budgets.budgets, leases, urls):
            assert connection.execute(sa.select(table)).all() == []
