"""Ceilings: how far any job may go, whoever described it. The inventory's; kept by the frontier when it leases, and
once more by each worker, so that neither a stolen seed credential nor a forged batch goes beyond them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crawler import settings
from crawler.job import Job


@dataclass(frozen=True)
class Ceilings:
    """Without an argument: none."""

    delay: float = 0.0
    """Least seconds between two requests to a host."""
    connections: int | None = None
    """Most batches of one host under way at once."""
    max_body: int | None = None
    """Largest body taken, in bytes."""
    without_robots: frozenset[str] | None = None
    """Hosts for which `robots: false` holds; None: all."""

    def under(self, job: Job, host: str | None = None) -> Job:
        """A job as far as it may go, and as it may at a `host`, if one is given."""
        lowered = dict(self._lowered(job))
        if host is not None and not job.robots and self.without_robots is not None and host not in self.without_robots:
            lowered["robots"] = True
        return job.model_copy(update=lowered) if lowered else job

    def told(self, job: Job) -> str | None:
        """What of a job does not hold, for a person; None: nothing."""
        said = [f"{name} is {value}, not {getattr(job, name)}" for name, value in self._lowered(job)]
        if not job.robots and self.without_robots is not None:
            hosts = ", ".join(sorted(self.without_robots)) or "no host"
            said.append(f"robots: false holds for {hosts} (crawler_without_robots in the inventory)")
        return "; ".join(said) or None

    def _lowered(self, job: Job) -> Iterator[tuple[str, Any]]:
        if job.delay < self.delay:
            yield "delay", self.delay
        if self.connections is not None and job.connections > self.connections:
            yield "connections", self.connections
        if self.max_body is not None and job.max_body > self.max_body:
            yield "max_body", self.max_body


NO_CEILINGS = Ceilings()


def from_settings() -> Ceilings:
    """What this process is told. Raises SettingInvalidError."""
    return Ceilings(*settings.ceilings())
