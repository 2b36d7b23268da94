"""Logs to stderr: lines for people, or one JSON object a line for a collector.

The journal, Loki and Vector read JSON lines as they are; names follow what those expect.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import datetime, timezone
from typing import Any, TextIO

import msgspec

from device_agent.config import LogSettings
from sdk.shown import shown, shown_lines

_encoder = msgspec.json.Encoder()


class JsonLines(logging.Formatter):
    """One record as one line of JSON: ts (UTC), level, logger, device, message, thread; error where there is one.

    Args:
        device: This device's id, so that lines of several devices can lie in one place.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "device": self._device,
            "message": record.getMessage(),
            "thread": record.threadName or "",
        }
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            line["error"] = f"{kind.__name__}: {error}"
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return _encoder.encode(line).decode()


class PlainLines(logging.Formatter):
    """One record as text for people, in which nobody's name has a terminal obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the error's below it."""
        return shown_lines(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line itself: a message with another's line end in it stays one."""
        return shown(super().formatMessage(record))


def set_up_logs(settings: LogSettings, device: str, *, verbose: bool = False, to: TextIO | None = None) -> None:
    """Send all of this process's logs to stderr, in the form that the settings name."""
    handler = logging.StreamHandler(sys.stderr if to is None else to)
    if settings.format == "json":
        handler.setFormatter(JsonLines(device))
    else:
        handler.setFormatter(PlainLines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logging.DEBUG if verbose else getattr(logging, settings.level.upper())
    logging.basicConfig(handlers=[handler], level=level, force=True)
