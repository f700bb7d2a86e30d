"""An extractor to copy: what a page tells search engines and social networks about itself."""

from __future__ import annotations

from typing import Any

from crawler.worker.extract import Page


def page(page: Page) -> dict[str, Any]:
    """The headings, and the meta tags by name.

    `page.soup` is BeautifulSoup, as everybody knows it; `page.tree` (selectolax) says the same some fifty times faster.
    """
    return {
        "headings": [heading.get_text(" ", strip=True) for heading in page.soup.find_all(["h1", "h2"])],
        "meta": {meta["name"]: meta["content"] for meta in page.soup.select("meta[name][content]")},
    }
