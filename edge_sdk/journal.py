"""What programs say on stderr: plain lines, or with priorities where systemd's journal reads them."""

from __future__ import annotations

import logging
import os
import sys

PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))
"""The least level of Python's for each of syslog's severities."""


class _Lines(logging.Formatter):
    """Every line of a record begins with its priority (sd-daemon(3), "<N>"), where the journal reads them."""

    def __init__(self, text: str, *, journal: bool) -> None:
        super().__init__(text)
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self._journal:
            return text
        priority = next(number for level, number in PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def configure_logging() -> None:
    """Shows what is logged at INFO and above on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(name)s: %(message)s", journal=_is_journal()))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def say_error(error: Exception) -> None:
    """What ends a program, as a line on stderr."""
    print(f"{'<3>' if _is_journal() else ''}error: {error}", file=sys.stderr)


def _is_journal() -> bool:
    """Whether stderr is the stream that systemd opened to the journal (systemd.exec(5), ``JOURNAL_STREAM``)."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or none of the system's
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"
