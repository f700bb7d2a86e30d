"""What there is to crawl: documentation as it is, sites that nginx makes up (web.conf), and how many pages each has."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import corpus
import stage

RACING = ("scrapy", "bare", "spider", "crawlee", "alone", "embedded", "system", "warc")
"""The contestants of the corpora that the goals are judged by."""
DRAWN_PAGES = 10_000
"""Of the packages drawn by lot, at least; a third of them for the slow."""


class Workload(NamedTuple):
    """Sites to crawl to the end."""

    title: str
    seeds: list[str]
    pages: int
    """That links lead to: counted or reckoned by what shares no code with any contestant."""
    contestants: tuple[str, ...] = ("embedded", "system")
    urls: tuple[str, ...] = ()
    """Each of these pages, where a crawl is to be compared with them one by one."""
    less: Workload | None = None
    """For slow contestants: fewer hosts of the same pages. A page costs them the same however many there are."""


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


def documentation(scheme: str = "http", contestants: tuple[str, ...] = RACING) -> Workload:
    """The four fixed packages, on 24 hosts; a third of them for the slow."""
    pages = sum(len(urls) for urls in stage.pages().values())

    def crawl(names: str) -> Workload:
        title = f"documentation on {len(stage.hosts(names))} hosts" + (", HTTPS" if scheme == "https" else "")
        seeds = [f"{scheme}://{host}/" for host in stage.hosts(names)]
        return Workload(title, seeds, pages * len(names), contestants)

    return crawl(stage.CRAWLED)._replace(less=crawl(stage.CRAWLED[:2]))


def one(_: Settings) -> Workload:
    return Workload("one page: the start-up", ["http://h0.many.test/"], 1, ("embedded",))


def small(_: Settings) -> Workload:
    return Workload("one host of 1,000 pages", ["http://a3.tree.test/"], 1 + 9 * (1 + 10 + 100))


def large(_: Settings) -> Workload:
    return Workload("one host of 55,556 pages", ["http://a5.tree.test/"], 1 + 5 * (1 + 10 + 100 + 1000 + 10000))


def links(_: Settings) -> Workload:
    """Pages of nearly nothing but links."""

    def crawl(names: str) -> Workload:
        seeds = [f"http://{name}3.links.test/" for name in names]
        hosts = "one host" if len(names) == 1 else f"{len(names)} hosts"
        return Workload(f"300 links a page, {hosts} of 1,000 pages", seeds, len(names) * 1000, RACING)

    return crawl("abcd")._replace(less=crawl("a"))


def hosts(settings: Settings) -> Workload:
    """Hosts with one to five pages, as the last digit of their name says."""
    seeds = [f"http://h{number}.many.test/" for number in range(settings.hosts)]
    pages = sum(number % 10 % 5 + 1 for number in range(settings.hosts))
    # One process would take an hour for a hundred thousand.
    contestants = ("embedded", "system") if settings.hosts <= 20_000 else ("system",)
    return Workload(f"{settings.hosts:,} hosts of one to five pages", seeds, pages, contestants)


def drawn(settings: Settings) -> Workload:
    """Documentation packages drawn by lot, under as many names as make it as large as the fixed ones: or else the
    seconds in which a process starts would be half of what is measured."""
    limits = (settings.corpus_least, settings.corpus_most, settings.corpus_size)
    sites = corpus.draw(settings.corpus_seed, settings.corpus_sites, *limits)
    pages = sum(site.pages for site in sites)
    drawn_by = f"drawn by seed {settings.corpus_seed}: {', '.join(site.package for site in sites)}"

    def crawl(least: int) -> Workload:
        names = stage.NAMES[: math.ceil(least / pages)]
        seeds = [f"http://{name}.{site.host}/" for name in names for site in sites]
        return Workload(f"{drawn_by} on {len(seeds)} hosts", seeds, pages * len(names), RACING)

    return crawl(DRAWN_PAGES)._replace(less=crawl(DRAWN_PAGES // 3))


def large_sites(settings: Settings) -> Workload:
    """Three large documentation packages drawn by lot, on one host."""
    host, sites, urls = corpus.draw_large(settings.corpus_seed, settings.large_least, settings.large_installed)
    names = ", ".join(f"{site.package} ({site.pages:,} pages)" for site in sites)
    title = f"on one host, drawn by seed {settings.corpus_seed}: {names}"
    return Workload(title, [f"http://{host}/"], len(urls), urls=tuple(urls))


WORKLOADS: dict[str, Callable[[Settings], Workload]] = {
    "documentation": lambda _: documentation(contestants=(*RACING, "recipe")),
    "links": links,
    "corpus": drawn,
    "https": lambda _: documentation("https", ("scrapy", "alone", "embedded", "system")),
    "one": one,
    "small": small,
    "large": large,
    "hosts": hosts,
    "sites": large_sites,
}
ONCE = ("large", "sites")
"""Large enough for one round."""
ASKED_FOR = ("sites",)
"""Crawled only when it is named: its packages take an hour to fetch and to walk."""
