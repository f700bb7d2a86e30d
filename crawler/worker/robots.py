"""robots.txt after RFC 9309: what it means for us, given how its fetch went. origin_rules.py fetches it."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict

from protego import Protego

from crawler.messages import RobotsFile

MAX_BYTES = 500 * 1024
"""How much of a robots.txt is read (RFC 9309, section 2.5)."""
MAX_REDIRECTS = 5
"""How many redirects are followed to find it (section 2.3.1.2)."""
MAX_AGE = 24 * 3600
"""Seconds a copy may be used (section 2.4)."""
MAX_CRAWL_DELAY = 30.0
"""Seconds: a Crawl-delay above this is cut to it, or one host could hold a job for years."""

# In every spelling that Protego reads.
_AGENT_LINE = re.compile(
    r"^([^\S\n]*user(?:-|[^\S\n]*)agent(?:[^\S\n]*:|[^\S\n])[^\S\n]*)(.*)$", re.IGNORECASE | re.MULTILINE
)
_TOKEN = re.compile(r"\*(?=\s|#|$)|[A-Za-z_-]+")
_NOBODY = "/"  # no product token


class Rules:
    """One origin's robots.txt, ready to be asked.

    Raises nothing: a 4xx answer allows everything (section 2.3.1.3); 5xx and no answer allow nothing yet (2.3.1.4),
    which `unreachable` tells.
    """

    def __init__(self, file: RobotsFile, agent: str) -> None:
        self._agent = agent
        self.unreachable = file.status == 0 or file.status >= 500
        parsed = Protego.parse(_exact(file.body, agent)) if 200 <= file.status < 300 else None
        self._parsed = parsed
        self.crawl_delay = min(float((parsed and parsed.crawl_delay(agent)) or 0), MAX_CRAWL_DELAY)
        """Seconds between two requests that the site asks for, at most MAX_CRAWL_DELAY; 0 where it says nothing."""
        self.sitemaps = tuple(parsed.sitemaps) if parsed else ()
        """What the Sitemap lines name, as written."""

    def allows(self, url: str) -> bool:
        if self.unreachable:
            return False
        return self._parsed is None or self._parsed.can_fetch(url, self._agent)


class RulesCache:
    """Rules by what they were parsed from: a batch brings its robots.txt each time, and parsing one of 500 KB takes
    some 160 ms. The least recently used go first."""

    MAX_SIZE = 4_000_000
    """Characters of all files together; their rules take about ten times that memory."""
    OVERHEAD = 2_000
    """What a file counts at least, so that empty ones have an end as well."""

    def __init__(self) -> None:
        self._rules: OrderedDict[bytes, tuple[Rules, int]] = OrderedDict()
        self.size = 0

    def get(self, file: RobotsFile, agent: str) -> Rules:
        """The rules of `file` for the crawler with the product token `agent`."""
        if not 200 <= file.status < 300:
            return Rules(file, agent)
        key = hashlib.blake2b(f"{agent}\n{file.body}".encode("utf-8", "replace"), digest_size=16).digest()
        if key in self._rules:
            self._rules.move_to_end(key)
            return self._rules[key][0]
        rules, size = Rules(file, agent), len(file.body) + self.OVERHEAD
        self._rules[key] = rules, size
        self.size += size
        while self.size > self.MAX_SIZE:
            _, (_, gone) = self._rules.popitem(last=False)
            self.size -= gone
        return rules


def _exact(body: str, agent: str) -> str:
    """`body` with only our own groups and those for all: Protego would take a part of our product token for ours, and
    not see ours before a version. "Crawlers find their group by case-insensitive matching of the product token"
    (section 2.2.1), which consists of letters, "_" and "-" alone."""

    def exact(line: re.Match[str]) -> str:
        token = _TOKEN.match(line[2])
        return line[1] + (token[0] if token and token[0].lower() in ("*", agent.lower()) else _NOBODY)

    return _AGENT_LINE.sub(exact, "\n".join(body.removeprefix("\ufeff").splitlines()))


def is_fresh(file: RobotsFile, now: float) -> bool:
    """Whether a copy may still be used at `now`. A failed fetch is tried again with the next batch."""
    return not (file.status == 0 or file.status >= 500) and now - file.fetched_at < MAX_AGE
