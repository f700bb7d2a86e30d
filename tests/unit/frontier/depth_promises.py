"""Depth is exact, and no host waits for another."""

from __future__ import annotations

import random
from collections import deque

import pytest
from ledger_promises import SITE, admission, counts, report
from msgspec.structs import replace

from crawler.frontier import orders, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.job import Job, Scope
from crawler.messages import Admission, Batch, Cause, Link, Report, UrlResult
from crawler.urls import host_of

Graph = dict[str, list[str]]
"""The links of each page."""


def random_graph(dice: random.Random, hosts: int, pages: int, links: int) -> Graph:
    """Pages on some hosts. Most links lead within the host, and most to low numbers, as menus do."""
    names = [f"http://{chr(97 + number)}.test/{page}" for number in range(hosts) for page in range(pages)]

    def goal(page: str) -> str:
        if dice.random() < 0.15:
            return dice.choice(names)
        number = int(pages * dice.random() ** 2)
        return f"http://{host_of(page)}/{number}"

    return {page: [goal(page) for _ in range(dice.randrange(1, 2 * links))] for page in names}


DEAD = "b.test"


def breadth_first(graph: Graph, seeds: list[str], depth: int) -> dict[str, int]:
    """The depth of each page that is at most `depth` links away from a seed."""
    reached = dict.fromkeys(seeds, 0)
    waiting = deque(seeds)
    while waiting:
        page = waiting.popleft()
        for goal in graph[page] if reached[page] < depth and host_of(page) != DEAD else ():
            if goal not in reached:
                reached[goal] = reached[page] + 1
                waiting.append(goal)
    return reached


def answered(batch: Batch, graph: Graph, now: float) -> Report:
    """As a worker reports a batch: every page with its links, each link judged by the job."""
    links: dict[str, Link] = {}
    for target in batch.targets:
        for goal in graph[target.url]:
            depth = target.depth + 1
            if goal not in links or links[goal].depth > depth:
                out = batch.job.refuses(goal, target.url, depth)
                cause = Cause.DEPTH if out else None
                links[goal] = Link(url=goal, depth=depth, found_on=target.url, excluded=out and "depth", cause=cause)
    pages = [
        UrlResult(url=target.url, state="done", fetched_at=now, status=200, etag='"1"') for target in batch.targets
    ]
    return replace(report(batch, results=pages), links=list(links.values()))


def simulated(ledger: Ledger, graph: Graph, job: Job, seeds: list[str], dice: random.Random) -> tuple[int, set[str]]:
    """Crawl `graph`, hosts answering at different speeds and DEAD not at all; how many pages were fetched, and the URLs
    asked for conditionally."""
    admit(ledger, Admission(job=job, seeding="s", chunk=0, chunks=1, urls=seeds), now=0)
    speed = {host_of(page): dice.choice((1, 1, 3, 20)) for page in graph}
    under_way: list[tuple[float, Batch]] = []
    fetched, conditional, now = 0, set(), 0.0
    while now < 3600:
        for batch in lease(ledger, 50, now):
            if batch.host == DEAD:
                continue
            fetched += len(batch.targets)
            conditional |= {target.url for target in batch.targets if target.etag}
            under_way.append((now + speed[batch.host] * dice.uniform(0.5, 1.5), batch))
        for back, batch in [one for one in under_way if one[0] <= now]:
            under_way.remove((back, batch))
            record(ledger, [answered(batch, graph, now)], now)
        (snapshot,) = status.snapshots(ledger, now)
        if not any(site["queued"] + site["leased"] for site in snapshot["sites"] if site["host"] != DEAD):
            return fetched, conditional
        now += 1
    raise AssertionError("the crawl did not end")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("connections", [1, 3])
def test_depth_is_that_of_a_breadth_first_search(ledger: Ledger, seed: int, connections: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    graph = random_graph(dice, hosts=5, pages=60, links=4)
    seeds, depth = ["http://a.test/0", "http://c.test/5", f"http://{DEAD}/0"], dice.choice((4, 6))
    job = Job(name="j", delay=0, depth=depth, scope=Scope(kind="any"), connections=connections)
    fetched, conditional = simulated(ledger, graph, job, seeds, dice)
    reached = breadth_first(graph, seeds, depth)
    expected = {page: depth for page, depth in reached.items() if host_of(page) != DEAD}
    assert len(expected) > 50
    rows = [page for page in status.pages(ledger, "j") if host_of(page["url"]) != DEAD]
    assert {page["url"]: page["depth"] for page in rows if page["state"] == "done"} == expected
    assert {page["state"] for page in rows} <= {"done", "excluded"}
    assert counts(ledger)["done"] == len(expected)
    assert not conditional
    print(f"seed {seed}: {fetched} fetches of {len(expected)} pages")
    assert len(expected) <= fetched <= 1.5 * len(expected)


def test_a_dead_host_holds_no_other(ledger: Ledger) -> None:
    """E4: two seeds, one of a host that never answers; the other's next level is leased at once."""
    job = Job(name="j", depth=2, delay=0, scope=Scope(kind="any"))
    admit(ledger, Admission(job=job, seeding="s", chunk=0, chunks=1, urls=[SITE + "/", "http://dead.test/"]), now=0)
    batches = {batch.host: batch for batch in lease(ledger, 5, now=0)}
    assert set(batches) == {"a.test", "dead.test"}
    record(ledger, [report(batches["a.test"], links=("/next",))], now=1)
    (batch,) = lease(ledger, 5, now=2)
    assert [target.url for target in batch.targets] == [SITE + "/next"]


def links_of(batch: Batch, depth: int, *paths: str) -> Report:
    return replace(report(batch), links=[Link(SITE + path, depth, batch.targets[0].url) for path in paths])


def test_a_later_seed_that_was_a_leaf_is_expanded(ledger: Ledger) -> None:
    """E5: A links to B, B to C, depth 1; then B is handed over as a seed."""
    admit(ledger, admission("/a", depth=1, delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [links_of(batch, 1, "/b")], now=1)
    (batch,) = lease(ledger, 1, now=2)
    out = Link(SITE + "/c", 2, SITE + "/b", excluded="depth", cause=Cause.DEPTH)
    page = UrlResult(url=SITE + "/b", state="done", fetched_at=2, status=200, etag='"1"', title="B", digest="d")
    record(ledger, [replace(report(batch, results=[page]), links=[out])], now=3)
    tidy.tidy(ledger, 4)
    assert counts(ledger, 4) == {"done": 2, "excluded": 1}

    admit(ledger, admission("/b", depth=1, delay=0, seeding="later"), now=5)
    assert counts(ledger, 5) == {"done": 1, "queued": 1, "excluded": 1}
    (batch,) = lease(ledger, 1, now=6)
    (target,) = batch.targets
    assert (target.url, target.depth, target.etag) == (SITE + "/b", 0, None)
    assert next(row for row in status.pages(ledger, "j") if row["url"] == SITE + "/b")["title"] == "B"
    record(ledger, [links_of(batch, 1, "/c")], now=7)
    assert counts(ledger) == {"done": 2, "queued": 1}


def test_what_is_met_on_a_shorter_path_while_a_worker_has_it_is_fetched_again(ledger: Ledger) -> None:
    admit(ledger, admission("/0", "/1", depth=3, delay=0, connections=2), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [links_of(batch, 3, "/x")], now=1)
    (deep,) = lease(ledger, 1, now=2)
    admit(ledger, admission("/x", depth=3, delay=0, connections=2, seeding="2"), now=3)
    assert counts(ledger, 3) == {"done": 2, "leased": 1}
    late = report(deep)
    assert record(ledger, [late], now=4) == 1
    assert record(ledger, [late], now=5) == 0  # a second time it changes nothing
    assert counts(ledger) == {"done": 2, "queued": 1}
    (batch,) = lease(ledger, 1, now=6)
    assert [(target.url, target.depth) for target in batch.targets] == [(SITE + "/x", 0)]
    record(ledger, [report(batch)], now=7)
    assert counts(ledger) == {"done": 3}


@pytest.mark.parametrize("order", ["block", "cancelled", "max_pages", "max_pages_per_host"])
def test_a_page_that_is_dropped_from_the_queue_is_done_again(ledger: Ledger, order: str) -> None:
    limit = {order: 2} if order.startswith("max") else {}
    admit(ledger, admission("/a", depth=3, delay=0, **limit), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [links_of(batch, 2, "/b")], now=1)
    (batch,) = lease(ledger, 1, now=2)
    record(ledger, [report(batch)], now=3)
    admit(ledger, admission("/b", "/new", depth=3, delay=0, seeding="2", **limit), now=4)
    assert counts(ledger, 4) == {"done": 1, "queued": 2}
    if order == "block":
        assert orders.block(ledger, "a.test", now=5) == 2
    elif order == "cancelled":
        assert orders.set_state(ledger, "j", "cancelled", now=5) == 2
    tidy.tidy(ledger, 6)
    if limit:
        assert counts(ledger, 6) == {"done": 1, "queued": 1, "excluded": 1}
        (batch,) = lease(ledger, 1, now=7)
        assert [target.url for target in batch.targets] == [SITE + "/b"]
        record(ledger, [report(batch)], now=8)
        tidy.tidy(ledger, 9)
    assert counts(ledger, 9) == {"done": 2, "excluded": 1}
    if order == "block":
        assert orders.unblock(ledger, "a.test", now=10) == 2
    elif order == "cancelled":
        assert orders.set_state(ledger, "j", "running", now=10) == 2
    if not limit:
        assert {target.url for batch in lease(ledger, 1, now=20) for target in batch.targets} == {
            SITE + "/b",
            SITE + "/new",
        }


def test_redirects_met_on_a_shorter_path_are_followed_again(ledger: Ledger) -> None:
    admit(ledger, admission("/a", depth=1, delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [links_of(batch, 1, "/moved")], now=1)
    (batch,) = lease(ledger, 1, now=2)
    moved = UrlResult(url=SITE + "/moved", state="excluded", cause=Cause.REDIRECT, fetched_at=2, status=301)
    record(ledger, [report(batch, results=[moved], links=("/goal",))], now=3)
    admit(ledger, admission("/moved", depth=1, delay=0, seeding="2"), now=4)
    (batch,) = lease(ledger, 1, now=5)
    assert {(target.url, target.depth) for target in batch.targets} == {(SITE + "/moved", 0)}


def test_without_a_limit_to_depth_nothing_is_fetched_twice(ledger: Ledger) -> None:
    admit(ledger, admission("/a", delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [links_of(batch, 5, "/b")], now=1)
    (batch,) = lease(ledger, 1, now=2)
    record(ledger, [report(batch)], now=3)
    admit(ledger, admission("/b", delay=0, seeding="2"), now=4)
    assert counts(ledger) == {"done": 2}


def test_a_batch_does_not_mix_levels(ledger: Ledger) -> None:
    """A page of a level may be the shorter path to one of the next, which is then fetched once."""
    admit(ledger, admission("/0", "/1", depth=2, delay=0), now=0)
    (batch,) = lease(ledger, 5, now=0)
    record(ledger, [links_of(batch, 1, "/x", "/y")], now=1)
    (batch,) = lease(ledger, 5, now=2)
    assert {target.depth for target in batch.targets} == {1}
    again = links_of(batch, 2, "/deep")
    again.results, again.unfetched = again.results[:1], [again.results[1].url]
    record(ledger, [again], now=3)
    (batch,) = lease(ledger, 5, now=4)
    assert [target.url for target in batch.targets] == again.unfetched
