"""Regular expressions that people write into jobs: RE2's, which take time in proportion to the text that is searched,
whatever the pattern, and so cannot hold up a worker. They have no look-around and no backreferences.

Source: https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

import functools
from typing import Annotated, Any

import re2
from pydantic import AfterValidator, Field

MAX_LENGTH = 2000
"""Characters of a pattern."""


class PatternError(ValueError):
    """A text that is no regular expression; the message says why."""


@functools.lru_cache(maxsize=4096)
def compiled(pattern: str, ignore_case: bool = False) -> Any:
    """A pattern with the methods of re.Pattern. Raises PatternError."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not ignore_case
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        why = error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else str(error)
        why = why.replace("invalid perl operator", "RE2 knows no look-around or backreference")
        raise PatternError(f"{pattern!r} is no regular expression: {why}") from None


def found(pattern: str, text: str) -> bool:
    """Whether a pattern that compiles matches anywhere in `text`."""
    return compiled(pattern).search(text) is not None


def _checked(pattern: str) -> str:
    compiled(pattern)
    return pattern


Pattern = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH), AfterValidator(_checked)]
"""A field of a job that holds a pattern."""
