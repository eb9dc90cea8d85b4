"""Logs as events with fields, one JSON object a line; never a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
import sys
import time

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """``{"at", "level", "event", "logger", …fields}``; whatever was passed as ``extra`` becomes a field.

    A field whose name is taken gets a ``_`` behind it, and a value that JSON does not have becomes text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage(), "logger": record.name}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= {f"{name}_" if name in line else name: value for name, value in fields.items()}
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # invalid Unicode, a huge number, a key that is no text
            return json.dumps(line, default=str, skipkeys=True)


def configure_logging(deployment: str) -> None:
    """Send everything under ``switchyard`` to standard error as JSON; Ray collects it by replica."""
    root = logging.getLogger("switchyard")
    if root.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    logging.getLogger("switchyard.start").info("replica.started", extra={"deployment": deployment})
