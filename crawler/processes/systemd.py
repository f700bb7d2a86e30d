"""Readiness, watchdog and stopping of a process under systemd."""

from __future__ import annotations

import logging
import os
import socket

from gevent.event import Event

log = logging.getLogger(__name__)

STOP = Event()
"""Set when this process is told to stop."""


def notify(state: str) -> None:
    """Tell systemd, if it started us. Source: sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.sendto(state.encode(), address)
            except OSError as error:
                log.warning("systemd cannot be told %r: %s", state, error)


def alive() -> None:
    """Feed systemd's watchdog, and say that the unit is ready (READY=1 counts the first time only)."""
    notify("READY=1\nWATCHDOG=1")
