"""What a job wants from a page: fields by CSS selector, or a Python function. In the job's YAML either

    extract:
      title: h1                                       # the text of the first match
      price: {css: .price, regex: '([0-9.]+)'}        # the group, or all that matched
      images: {css: .gallery img, attribute: src, all: true}
      body: {css: article, html: true}

or ``extract: example:page``, which calls the function `page` of crawler/extractors/example.py with an extract.Page.
These are the rules alone; crawler/worker/extract.py executes them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    model_validator,
)

from crawler.patterns import Pattern

_REFERENCE = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")


class Rule(BaseModel):
    """How one field is found."""

    model_config = ConfigDict(frozen=True)

    css: str
    """Selector, as in browsers."""
    attribute: str | None = None
    """Take this attribute's value; an element without it does not match."""
    html: bool = False
    """Take the element's HTML. Without this and `attribute`: its text (textContent), white space collapsed."""
    all: bool = False
    """A list of all matches, in the order of the page. Otherwise the first; null where nothing matches."""
    regex: Pattern | None = None
    """Keep of each value what this finds: its first group, or all of it where it has none. What it does not find does
    not match."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: object) -> object:
        return {"css": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_of(self) -> Rule:
        if self.html and self.attribute:
            raise ValueError("take either 'attribute' or 'html', or neither for the text")
        return self


_NAME = Annotated[str, Field(min_length=1, max_length=100)]
_RULES: TypeAdapter[dict[str, Rule]] = TypeAdapter(dict[_NAME, Rule])


def _read(given: object, info: ValidationInfo) -> str | tuple[tuple[str, Rule], ...]:
    if isinstance(given, str):
        if not _REFERENCE.fullmatch(given):
            raise ValueError(
                f"{given!r} names no extractor: write 'module:function' for a function in "
                "crawler/extractors/module.py, or a mapping of field names to CSS selectors"
            )
        return given
    if isinstance(given, tuple):  # read already
        given = dict(given)
    if not isinstance(given, Mapping) or not given:
        raise ValueError("a mapping of field names to CSS selectors, such as {title: h1}, or 'module:function'")
    # Unknown keys of a rule: as of the job itself, see job.Job.
    extra = (info.context or {}).get("extra", "ignore")
    return tuple(_RULES.validate_python(given, extra=extra).items())


def _write(spec: str | tuple[tuple[str, Rule], ...]) -> str | dict[str, Any]:
    return spec if isinstance(spec, str) else {name: rule.model_dump(exclude_defaults=True) for name, rule in spec}


Spec = Annotated[str | tuple[tuple[str, Rule], ...], PlainValidator(_read), PlainSerializer(_write)]
"""The type of a job's `extract`: written as the module's docstring shows, hashable once read."""


def names(spec: Spec | None) -> list[str]:
    """The fields' names, where they are known beforehand."""
    return [] if spec is None or isinstance(spec, str) else [name for name, _ in spec]
