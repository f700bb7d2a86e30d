"""The units and RabbitMQ are given the time limits of crawler/limits.py."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from crawler import limits

Render = Callable[..., str]


def values(text: str, name: str) -> list[float]:
    """What a setting is set to, once for each time that it stands in a unit or in a rabbitmq.conf."""
    return [float(value) for value in re.findall(rf"^{name} ?= ?(.*)$", text, re.MULTILINE)]


@pytest.mark.parametrize(
    ("role", "unit"),
    [
        ("worker", "crawler-worker@.service"),
        ("frontier", "crawler-recorder@.service"),
        ("frontier", "crawler-scheduler.service"),
    ],
)
def test_units_stop_and_restart_a_process_when_the_limits_say(render: Render, role: str, unit: str) -> None:
    text = render(role, f"{unit}.j2") + render("release", "common.conf.j2")  # a drop-in would overrule the unit
    assert values(text, "TimeoutStopSec") == [limits.STOP]
    assert values(text, "WatchdogSec") == [limits.WATCHDOG]


def test_the_broker_takes_messages_back_when_the_limits_say(render: Render) -> None:
    assert values(render("rabbitmq", "rabbitmq.conf.j2"), "consumer_timeout") == [limits.CONSUMER * 1000]
