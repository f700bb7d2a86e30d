"""What there is to crawl: documentation as it is, sites that nginx makes up (web.conf), and how many pages each has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import corpus
import stage


class Workload(NamedTuple):
    """Sites to crawl to the end."""

    title: str
    seeds: list[str]
    pages: int
    """That links lead to: counted or reckoned by what shares no code with any contestant."""
    contestants: tuple[str, ...] = ("embedded", "system")
    urls: tuple[str, ...] = ()
    """Each of these pages, where a crawl is to be compared with them one by one."""


class Settings(NamedTuple):
    """What the command line says of workloads."""

    hosts: int
    corpus_seed: int
    corpus_sites: int
    corpus_least: int
    corpus_most: int
    corpus_size: int
    large_least: int
    large_installed: int


def documentation(names: str = stage.CRAWLED, scheme: str = "http") -> Workload:
    """The four fixed packages, under each of `names`."""
    pages = sum(len(urls) for urls in stage.pages().values()) * len(names)
    title = f"documentation on {len(stage.hosts(names))} hosts" + (", HTTPS" if scheme == "https" else "")
    return Workload(title, [f"{scheme}://{host}/" for host in stage.hosts(names)], pages)


def one(_: Settings) -> Workload:
    return Workload("one page: the start-up", ["http://h0.many.test/"], 1, ("embedded",))


def small(_: Settings) -> Workload:
    return Workload("one host of 1,000 pages", ["http://a3.tree.test/"], 1 + 9 * (1 + 10 + 100))


def large(_: Settings) -> Workload:
    return Workload("one host of 55,556 pages", ["http://a5.tree.test/"], 1 + 5 * (1 + 10 + 100 + 1000 + 10000))


def links(_: Settings) -> Workload:
    seeds = [f"http://{name}3.links.test/" for name in "abcd"]
    return Workload("300 links a page, four hosts of 1,000 pages", seeds, 4 * 1000)


def hosts(settings: Settings) -> Workload:
    """Hosts with one to five pages, as the last digit of their name says."""
    seeds = [f"http://h{number}.many.test/" for number in range(settings.hosts)]
    pages = sum(number % 10 % 5 + 1 for number in range(settings.hosts))
    # One process would take an hour for a hundred thousand.
    contestants = ("embedded", "system") if settings.hosts <= 20_000 else ("system",)
    return Workload(f"{settings.hosts:,} hosts of one to five pages", seeds, pages, contestants)


def drawn(settings: Settings) -> Workload:
    """Documentation packages drawn by lot."""
    limits = (settings.corpus_least, settings.corpus_most, settings.corpus_size)
    sites = corpus.draw(settings.corpus_seed, settings.corpus_sites, *limits)
    title = f"drawn by seed {settings.corpus_seed}: {', '.join(site.package for site in sites)}"
    seeds = [f"http://{site.host}/" for site in sites]
    return Workload(title, seeds, sum(site.pages for site in sites), ("scrapy", "embedded", "system"))


def large_sites(settings: Settings) -> Workload:
    """Three large documentation packages drawn by lot, on one host."""
    host, sites, urls = corpus.draw_large(settings.corpus_seed, settings.large_least, settings.large_installed)
    names = ", ".join(f"{site.package} ({site.pages:,} pages)" for site in sites)
    title = f"on one host, drawn by seed {settings.corpus_seed}: {names}"
    return Workload(title, [f"http://{host}/"], len(urls), urls=tuple(urls))


WORKLOADS: dict[str, Callable[[Settings], Workload]] = {
    "one": one,
    "small": small,
    "large": large,
    "links": links,
    "http": lambda _: documentation(stage.CRAWLED[:2]),
    "https": lambda _: documentation(stage.CRAWLED[:2], "https"),
    "hosts": hosts,
    "corpus": drawn,
    "sites": large_sites,
}
ONCE = ("large", "sites")
"""Large enough for one round."""
ASKED_FOR = ("sites",)
"""Crawled only when it is named: its packages take an hour to fetch and to walk."""
