"""The recipe that this project replaces: a Celery task for each URL, requests, BeautifulSoup, prefork workers.

celery -A recipe worker …                    a worker
python bench/recipe.py PAGES SEED...         the driver: hands out URLs, each once, until PAGES are fetched
"""

from __future__ import annotations

import json
import os
import sys
from urllib.parse import urldefrag, urljoin, urlsplit

import requests
from bs4 import BeautifulSoup
from celery import Celery
from kombu import Connection, Queue

app = Celery("recipe", broker=os.environ["RECIPE_BROKER_URL"])
app.conf.update(task_ignore_result=True, task_default_queue="recipe")
FOUND = Queue("found")


@app.task(name="fetch", ignore_result=True)
def fetch(url: str) -> None:
    """Fetch one page and tell the driver its links."""
    response = requests.get(url, timeout=20, headers={"User-Agent": "recipe"})
    links = []
    if response.ok and response.headers.get("content-type", "").startswith("text/html"):
        soup = BeautifulSoup(response.text, "html.parser")
        links = [urldefrag(urljoin(url, a["href"])).url for a in soup.find_all("a", href=True)]
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish({"url": url, "links": links, "ok": bool(links)}, routing_key=FOUND.name, declare=[FOUND])


def drive(pages: int, seeds: list[str]) -> None:
    known, fetched, sent = set(seeds), 0, 0

    def send(url: str) -> None:
        nonlocal sent
        fetch.delay(url)
        sent += 1

    with Connection(os.environ["RECIPE_BROKER_URL"]) as connection, connection.SimpleQueue(FOUND) as found:
        for seed in seeds:
            send(seed)
        answered = 0
        while answered < sent:
            message = found.get(timeout=60)
            message.ack()
            answered += 1
            fetched += message.payload["ok"]
            host = urlsplit(message.payload["url"]).netloc
            for link in message.payload["links"]:
                if sent < pages and link not in known and urlsplit(link).netloc == host:
                    known.add(link)
                    send(link)
    json.dump({"pages": fetched}, sys.stdout)


if __name__ == "__main__":
    drive(int(sys.argv[1]), sys.argv[2:])
