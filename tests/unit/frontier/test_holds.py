"""Which leases are dead, on a clock of the test's: sent, heard, marked and looked at in the order of the lines."""

from __future__ import annotations

import pytest

from crawler import limits
from crawler.frontier.holds import Holds
from crawler.messages import Hold

NOTHING: tuple[list[str], list[str]] = ([], [])


class Scheduler:
    """Hears holds, marks and looks each second."""

    def __init__(self, *leases: str) -> None:
        self.now = 1000.0
        self.holds = Holds(leases, self.now)
        self.consumers = 1
        self.reports_wait = False
        self.marks = True
        self.speaking: dict[str, list[str]] = {"w": []}

    def until(self, seconds: float) -> tuple[list[str], list[str]]:
        """What is given back in the seconds until then."""
        had: list[str] = []
        not_had: list[str] = []
        while self.now < 1000 + seconds:
            self.now += 1
            for worker, leases in self.speaking.items():
                self.holds.heard(Hold(worker=worker, leases=leases), self.now)
            if self.marks:
                self.holds.mark(self.now)
            self.holds.look(self.consumers, self.reports_wait, self.now)
            more = self.holds.give_back(self.now)
            had += more[0]
            not_had += more[1]
        return had, not_had


def test_what_is_named_lives() -> None:
    scheduler = Scheduler()
    scheduler.holds.leased(["l"], scheduler.now)
    scheduler.speaking["w"] = ["l"]
    assert scheduler.until(2000) == NOTHING


def test_what_a_silent_worker_held_is_given_back_once() -> None:
    scheduler = Scheduler("l")
    scheduler.speaking["lost"] = ["l"]
    scheduler.until(10)
    del scheduler.speaking["lost"]
    assert scheduler.until(10 + limits.KEEP - 1) == NOTHING
    assert scheduler.until(10 + limits.KEEP + limits.IN_HAND + 1) == (["l"], [])
    assert scheduler.until(2000) == NOTHING


def test_what_a_worker_names_no_more_is_given_back_at_once() -> None:
    """Its process was killed and began anew, or its task was cancelled."""
    scheduler = Scheduler("l", "m")
    scheduler.speaking["w"] = ["l", "m"]
    scheduler.until(10)
    scheduler.speaking["w"] = ["m"]
    assert scheduler.until(10 + limits.IN_HAND) == NOTHING
    assert scheduler.until(10 + limits.IN_HAND + 1) == (["l"], [])


@pytest.mark.parametrize("begins_anew", [True, False])
def test_what_nobody_ever_named_is_given_back(begins_anew: bool) -> None:
    scheduler = Scheduler(*(["l"] if begins_anew else []))
    if not begins_anew:
        scheduler.holds.leased(["l"], scheduler.now)
    assert scheduler.until(limits.KEEP - 1) == NOTHING
    assert scheduler.until(limits.KEEP + limits.IN_HAND) == ([], ["l"])


def test_nothing_is_dead_before_all_holds_were_heard() -> None:
    scheduler = Scheduler("l", "m")
    scheduler.speaking["lost"] = ["l"]
    scheduler.until(10)
    del scheduler.speaking["lost"]
    scheduler.marks = False
    assert scheduler.until(1000) == NOTHING
    scheduler.marks = True
    assert scheduler.until(1000 + limits.IN_HAND + 1) == (["l"], ["m"])


def test_a_report_may_wait_in_the_queue_and_in_a_recorder_s_hand() -> None:
    scheduler = Scheduler("l")
    scheduler.speaking["lost"] = ["l"]
    scheduler.until(10)
    del scheduler.speaking["lost"]
    scheduler.until(30)
    scheduler.reports_wait = True  # the queue had been empty before the worker sent its report
    assert scheduler.until(500) == NOTHING
    scheduler.reports_wait = False
    assert scheduler.until(500 + limits.IN_HAND) == NOTHING
    assert scheduler.until(500 + limits.IN_HAND + 1) == (["l"], [])


def test_while_a_dead_lease_waits_for_reports_nothing_new_is_begun() -> None:
    """Recorders that are what limits the crawl would never empty their queue, and no lease come back."""
    scheduler = Scheduler("l")
    scheduler.speaking["w"] = ["l"]
    scheduler.until(10)
    scheduler.reports_wait = True
    scheduler.until(20)
    assert not scheduler.holds.wait_for_reports(scheduler.now)
    scheduler.speaking["w"] = []
    scheduler.until(21 + limits.HOLD)
    assert not scheduler.holds.wait_for_reports(scheduler.now)
    scheduler.until(22 + limits.HOLD)
    assert scheduler.holds.wait_for_reports(scheduler.now)
    scheduler.reports_wait = False
    scheduler.until(23 + limits.HOLD)
    assert not scheduler.holds.wait_for_reports(scheduler.now)  # though it is not given back yet
    assert scheduler.until(24 + limits.HOLD + limits.IN_HAND) == (["l"], [])
    assert not scheduler.holds.wait_for_reports(scheduler.now)


def test_a_reported_lease_waits_until_a_hanging_recorder_s_messages_are_another_s() -> None:
    scheduler = Scheduler("l")
    scheduler.speaking["w"] = ["l"]
    scheduler.until(10)
    scheduler.speaking["w"] = []
    scheduler.holds.heard(Hold(worker="w", reported=["l"]), scheduler.now + 0.5)
    assert scheduler.until(10 + limits.REPORTED) == NOTHING
    assert scheduler.until(10 + limits.REPORTED + 1) == ([], ["l"])


def test_workers_of_a_release_that_sends_no_holds_keep_what_they_have() -> None:
    scheduler = Scheduler("l")
    scheduler.consumers = 2
    assert scheduler.until(300) == NOTHING
    scheduler.holds.leased(["m"], scheduler.now)
    scheduler.consumers = 1  # one of both is gone, perhaps the one that sends holds
    assert scheduler.until(300 + limits.REPORTED) == NOTHING
    scheduler.holds.expired(["l"], scheduler.now)  # by its deadline
    assert scheduler.until(300 + limits.REPORTED + limits.IN_HAND + 1) == (["l"], [])
    assert scheduler.until(300 + limits.REPORTED + limits.KEEP + limits.IN_HAND + 2) == ([], ["m"])


def test_a_consumer_whose_host_is_gone_is_not_taken_for_an_old_worker() -> None:
    scheduler = Scheduler()
    scheduler.consumers = 2
    scheduler.speaking["lost"] = []
    scheduler.until(10)
    del scheduler.speaking["lost"]
    scheduler.holds.leased(["l"], scheduler.now)
    assert scheduler.until(10 + limits.KEEP + limits.IN_HAND) == ([], ["l"])


def test_a_deadline_does_not_end_what_a_worker_holds() -> None:
    scheduler = Scheduler("l")
    scheduler.speaking["w"] = ["l"]
    scheduler.until(10)
    scheduler.holds.expired(["l"], scheduler.now)
    assert scheduler.until(100) == NOTHING
