"""What systemd is told. test_worker.py and test_recorder.py have the whole processes."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from crawler.processes import systemd


def test_systemd_is_told_that_we_are_alive(told: socket.socket) -> None:
    systemd.alive()
    assert told.recv(100) == b"READY=1\nWATCHDOG=1"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with caplog.at_level(logging.WARNING):
        systemd.alive()
    assert caplog.messages == []


def test_a_systemd_that_does_not_listen_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.alive()
    assert "systemd cannot be told" in caplog.text
