"""Sends what a worker holds, over a connection of its own: every limits.HOLD seconds, and at once for a new batch."""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

import gevent
from kombu import Producer

from crawler import limits
from crawler.messages import Hold
from crawler.processes.queues import HOLD, exchange, user_of
from crawler.worker.holding import Holding

log = logging.getLogger(__name__)

GATHER_SECONDS = 0.05
"""After a hold, for which batches that want one are gathered for the next."""
PAUSE_SECONDS = 1.0
"""After a hold that was not confirmed."""


class HoldSender:
    """Sends the holds of one worker from a thread of its own, until the process ends: told to stop, it still holds what
    it finishes."""

    def __init__(self, app: Any, worker: str, holding: Holding) -> None:
        self._app, self._worker, self._holding = app, worker, holding
        self._producer: Producer | None = None

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="holds").start()

    def _run(self) -> None:
        while True:
            self.step()
            self._holding.wanted.wait(limits.HOLD)
            self._holding.wanted.clear()

    def step(self) -> None:
        """Send one hold. Without the broker's confirmation, the next step uses a new connection."""
        try:
            with gevent.Timeout(limits.SILENT):
                self._holding.turn(self._worker, self._send)
            pause = GATHER_SECONDS
        except (Exception, gevent.Timeout) as error:  # whatever it is: without holds, the worker fetches nothing
            log.warning("hold not confirmed: %s", " ".join(str(error).split()) or type(error).__name__)
            self._disconnect()
            pause = PAUSE_SECONDS
        gevent.sleep(pause)

    def _send(self, hold: Hold) -> None:
        if self._producer is None:
            connection = self._app.connection_for_write(connect_timeout=limits.SILENT / 2)
            self._producer = Producer(connection.channel(), exchange=exchange(HOLD))
        # Mandatory: a message that reaches no queue is confirmed as well, but first returned, which raises here.
        options = {"routing_key": HOLD, "delivery_mode": 1, "mandatory": True, "user_id": user_of(self._producer)}
        self._producer.publish(hold, serializer="json", **options)

    def _disconnect(self) -> None:
        if self._producer is not None:
            with contextlib.suppress(Exception):
                self._producer.connection.collect()  # without a word to a broker that may not answer
            self._producer = None
