"""Scrapy, tuned: the same pages, links and fields as ours. Run by bench/run.py in the bench's own environment.

python bench/scrapy_spider.py documented OUTPUT.jsonl SEED...       links and dedup by Scrapy's own means
python bench/scrapy_spider.py bare OUTPUT.jsonl SEED...             both by hand, past LinkExtractor and dupefilter
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.http import HtmlResponse, Response
from scrapy.linkextractors import LinkExtractor

# Everything a crawl of this kind can do without is off, and what costs CPU without need with it.
SETTINGS: dict[str, Any] = {
    "CONCURRENT_REQUESTS": 50,
    "CONCURRENT_REQUESTS_PER_DOMAIN": 4,
    "DOWNLOAD_DELAY": 0,
    "ROBOTSTXT_OBEY": True,
    "COOKIES_ENABLED": False,
    "RETRY_ENABLED": False,
    "REFERER_ENABLED": False,
    "TELNETCONSOLE_ENABLED": False,
    "LOG_ENABLED": False,
    "LOGSTATS_INTERVAL": 0,
    "MEMUSAGE_ENABLED": False,
    "AUTOTHROTTLE_ENABLED": False,
    "HTTPERROR_ALLOWED_CODES": [],
    "USER_AGENT": "CrawlerFleetBench/1 (+https://example.org/bench)",
    "SPIDER_MIDDLEWARES": {
        "scrapy.spidermiddlewares.urllength.UrlLengthMiddleware": None,
        "scrapy.spidermiddlewares.depth.DepthMiddleware": None,
    },
}


def item(response: HtmlResponse, links: list[str]) -> dict[str, Any]:
    return {
        "url": response.url,
        "title": response.xpath("//title/text()").get(),
        "links": links,
        "digest": hashlib.sha256(response.body).hexdigest(),
    }


class Documented(scrapy.Spider):
    """Follows every link on its own host, with Scrapy's own means."""

    name = "documented"

    def __init__(self, seeds: list[str]) -> None:
        super().__init__()
        self.start_urls = seeds
        self.extractor = LinkExtractor(deny_extensions=())

    def parse(self, response: Response) -> Iterator[Any]:
        if isinstance(response, HtmlResponse):
            links = [link.url for link in self.extractor.extract_links(response)]
            yield item(response, links)
            host = urlsplit(response.url).netloc
            yield from (scrapy.Request(link, self.parse) for link in links if urlsplit(link).netloc == host)


class Bare(scrapy.Spider):
    """The same, as fast as we could make it: links known already make no Request, so nothing is left to filter."""

    name = "bare"

    def __init__(self, seeds: list[str]) -> None:
        super().__init__()
        self.start_urls = seeds
        self.known = set(seeds)

    def parse(self, response: Response) -> Iterator[Any]:
        if not isinstance(response, HtmlResponse):
            return
        host = urlsplit(response.url).netloc
        hrefs = {href.partition("#")[0].strip() for href in response.xpath("//a/@href | //area/@href").getall()}
        links = list(dict.fromkeys(urljoin(response.url, href) for href in hrefs if href))
        yield item(response, links)
        for link in links:
            if link not in self.known and link.startswith(("http://", "https://")) and urlsplit(link).netloc == host:
                self.known.add(link)
                yield scrapy.Request(link, self.parse, dont_filter=True)


def main() -> None:
    kind, output, *seeds = sys.argv[1:]
    Path(output).unlink(missing_ok=True)
    process = CrawlerProcess({**SETTINGS, "FEEDS": {output: {"format": "jsonlines"}}})
    process.crawl({"documented": Documented, "bare": Bare}[kind], seeds=seeds)
    process.start()


if __name__ == "__main__":
    main()
