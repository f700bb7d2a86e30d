"""A job: what to crawl, how far, how gently. Written as YAML or on seed.py's command line; it needs no deploy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from crawler import urls

Pattern = Annotated[str, Field(min_length=1)]


class JobError(ValueError):
    """A job that cannot be run; the message names the field, the value and the remedy."""


class Scope(BaseModel):
    """Which discovered URLs belong to the job."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["host", "domain", "prefix", "any"] = "host"
    """`host`: the page's own host; `domain`: its registrable domain; `prefix`: below one of `prefixes`; `any`: all."""
    prefixes: tuple[str, ...] = ()
    """URL prefixes for `prefix`; seed.py fills them with the seeds' folders."""
    allow: tuple[Pattern, ...] = ()
    """Regular expressions (searched in the URL), at least one of which must match."""
    deny: tuple[Pattern, ...] = ()
    """Regular expressions, none of which may match."""

    @field_validator("allow", "deny")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _prefix_needs_prefixes(self) -> Scope:
        if self.kind == "prefix" and not self.prefixes:
            raise ValueError("kind 'prefix' needs 'prefixes', such as ['https://example.org/docs/']")
        return self

    def refuses(self, url: str, found_on: str) -> str | None:
        """Why `url`, linked from the page `found_on` (both normalised), is out of scope; None if it is in scope.

        `host` and `domain` compare with the page rather than with the seeds: as every page is itself in scope, this
        says the same and needs no list of a million seeds on every worker.
        """
        if self.kind == "host" and urls.host_of(url) != urls.host_of(found_on):
            return "scope: other host"
        if self.kind == "domain" and urls.domain_of(urls.host_of(url)) != urls.domain_of(urls.host_of(found_on)):
            return "scope: other domain"
        if self.kind == "prefix" and not url.startswith(self.prefixes):
            return "scope: outside the prefixes"
        if self.allow and not any(re.search(pattern, url) for pattern in self.allow):
            return "scope: no allow pattern matches"
        for pattern in self.deny:
            if re.search(pattern, url):
                return f"scope: deny pattern {pattern}"
        return None


class Job(BaseModel):
    """Everything a worker has to know to crawl for a job; it travels with every batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    seeds: tuple[str, ...] = ()
    scope: Scope = Scope()
    depth: Annotated[int, Field(ge=0)] | None = None
    """How many links away from a seed to go; None: no limit."""
    max_pages: Annotated[int, Field(ge=1)] | None = None
    """Stop at exactly this many pages done; None: no limit."""
    delay: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Seconds between two requests to one host; a longer robots Crawl-delay wins."""
    connections: Annotated[int, Field(ge=1, le=64)] = 1
    """Batches of one host under way at once. More than one only for sites whose owner allows it."""
    robots: bool = True
    """Obey robots.txt, robots meta tags and rel=nofollow. False only for sites of your own."""
    content_types: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    """What counts as a page; anything else is excluded unread."""
    max_body: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    """Largest body taken, in bytes after decompression."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """Fetches of one URL before it is failed."""

    @classmethod
    def from_file(cls, path: Path) -> Job:
        """Read a job from a YAML file. Raises JobError with one line for each thing that is wrong."""
        try:
            loaded = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise JobError(f"{path}: {error}") from None
        if not isinstance(loaded, dict):
            raise JobError(f"{path}: a job is a mapping with at least 'name' and 'seeds'")
        return cls.checked(loaded, origin=str(path))

    @classmethod
    def checked(cls, fields: dict[str, object], origin: str) -> Job:
        """A job of plain `fields`. Raises JobError naming `origin` and each wrong field."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            lines = [
                f"{origin}: {'.'.join(str(part) for part in problem['loc']) or 'job'}: {problem['msg']}"
                + (f" (given: {problem['input']!r})" if problem["type"] not in ("missing", "extra_forbidden") else "")
                for problem in error.errors()
            ]
            raise JobError("\n".join(lines)) from None

    def refuses(self, url: str, found_on: str, depth: int) -> str | None:
        """Why a link to `url` at `depth` is not followed; None if it is."""
        if self.depth is not None and depth > self.depth:
            return "depth"
        return self.scope.refuses(url, found_on)
