"""Text from outside, made fit for a terminal or a log: titles, URLs, reasons, names, and what errors quote of them."""

from __future__ import annotations

import logging
import re

# Control characters (C0, DEL, C1), line and paragraph separators, lone surrogates, and the marks that reverse the order
# of what is shown (Unicode TR 9).
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    r"""`text` on one line, with each character that would control the terminal written as an escape: ESC as `\x1b`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class LogFormatter(logging.Formatter):
    """What another formatter makes of a record, printable. Lines after the first are indented: no text from outside can
    pass for a record of its own."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(printable(line) for line in self._inner.format(record).split("\n"))


def log_printably(logger: logging.Logger) -> None:
    """Let all that the handlers of `logger` write be printable. May be repeated."""
    for handler in logger.handlers:
        if not isinstance(handler.formatter, LogFormatter):
            handler.setFormatter(LogFormatter(handler.formatter or logging.Formatter()))
