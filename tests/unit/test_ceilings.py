"""How far any job may go."""

from __future__ import annotations

import pytest

from crawler import ceilings, settings
from crawler.ceilings import NO_CEILINGS, Ceilings
from crawler.job import Job

BOLD = Job(name="j", delay=0, connections=64, max_body=10**9, robots=False)
NAMES = ("LEAST_DELAY", "MOST_CONNECTIONS", "MOST_BODY", "WITHOUT_ROBOTS")


def told(monkeypatch: pytest.MonkeyPatch, *values: str) -> Ceilings:
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(f"CRAWLER_{name}", value)
    return ceilings.from_settings()


def test_without_a_setting_there_is_no_ceiling() -> None:
    assert ceilings.from_settings() == NO_CEILINGS
    assert NO_CEILINGS.under(BOLD, "a.test") is BOLD
    assert NO_CEILINGS.told(BOLD) is None


def test_a_job_goes_as_far_as_the_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    told_of = told(monkeypatch, "0.5", "8", "1000000", "a.test, b.test")
    lowered = told_of.under(BOLD)
    assert (lowered.delay, lowered.connections, lowered.max_body, lowered.robots) == (0.5, 8, 1_000_000, False)
    assert not told_of.under(BOLD, "b.test").robots
    assert told_of.under(BOLD, "c.test").robots
    said = told_of.told(BOLD)
    assert said is not None
    assert said.startswith("delay is 0.5, not 0.0; connections is 8, not 64; max_body is 1000000, not 1000000000; ")
    assert "robots: false holds for a.test, b.test" in said


def test_a_job_within_the_ceilings_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    modest = Job(name="j", delay=1, connections=2)
    told_of = told(monkeypatch, "1", "2", "67108864", "")
    assert told_of.under(modest, "a.test") is modest
    assert told_of.told(modest) is None
    assert "holds for no host" in str(told_of.told(BOLD))


@pytest.mark.parametrize(("name", "value"), [("MOST_BODY", "1e6"), ("MOST_CONNECTIONS", "-1"), ("LEAST_DELAY", "x")])
def test_what_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CRAWLER_{name}", value)
    with pytest.raises(settings.SettingInvalidError, match=f"CRAWLER_{name}|CRAWLER_MOST_CONNECTIONS and"):
        ceilings.from_settings()
