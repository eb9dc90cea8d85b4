"""Logs as events with fields, one JSON object a line; never a prompt, an answer or a key.

Where they go: a file for each replica, beside the one that Ray Serve keeps for it
(``<Ray's session>/logs/serve/replica_….jsonl``), rotated at the same size. Everything but the lines about single
calls also goes to standard error, which Ray shows to whoever started the application (``.switchyard/serve.log``).
Neither takes Ray Serve's own way to a log: in throughput mode that one wraps each line into another and holds back
the last 1,000 of them, and Ray drops lines on standard error that look alike.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CALLS: Final = "switchyard.calls"
"""The logger of lines about single calls: files only."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_request_id: ContextVar[str] = ContextVar("switchyard_request_id", default="")


def about_call(request_id: str) -> None:
    """Put the id on every line that this task logs from now on."""
    _request_id.set(request_id)


def call_in_hand() -> str:
    """The request id that this task's lines have; empty when it works for no one call."""
    return _request_id.get()


def log_fields(logger: logging.Logger, event: str, fields: Mapping[str, object]) -> None:
    """Log a line at info with these fields, as ``logger.info(event, extra=fields)`` does, but for a line a call.

    It spares the search for the place in the code that logs, which no line of ours shows.
    """
    if logger.isEnabledFor(logging.INFO):
        record = logging.LogRecord(logger.name, logging.INFO, "", 0, event, None, None)
        vars(record).update(fields)
        logger.handle(record)


class JsonFormatter(logging.Formatter):
    """``{"at", "level", "event", "logger", …fields}``; whatever was passed as ``extra`` becomes a field.

    A line of a task that works for one call has that call's ``request_id``. A field whose name is taken gets a ``_``
    behind it, and a value that JSON does not have becomes text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        line = {"at": at, "level": record.levelname.lower(), "event": record.getMessage(), "logger": record.name}
        request_id = call_in_hand()
        if request_id and "request_id" not in fields:
            line["request_id"] = request_id
        if record.exc_info:
            # Formatter.formatException prints, and in its default mode Ray Serve has its own in the place of print.
            line["exception"] = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        line |= {f"{name}_" if name in line else name: value for name, value in fields.items()}
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # invalid Unicode, a huge number, a key that is no text
            return json.dumps(line, default=str, skipkeys=True)


class JsonFile(RotatingFileHandler):
    """A file of lines that starts anew, a few times, when it has ``maxBytes``."""

    def shouldRollover(self, _record: logging.LogRecord) -> bool:  # noqa: N802 - its name
        """Whether the file is full; unlike the method of the standard library, without formatting the line twice."""
        return self.stream is not None and self.stream.tell() >= self.maxBytes > 0


def configure_logging(deployment: str) -> None:
    """Send everything under ``switchyard`` to this replica's file and to standard error, as JSON."""
    root = logging.getLogger("switchyard")
    if root.handlers:
        return
    logging.getLogger("ray.serve").addFilter(_is_no_access)
    file = _file_beside(_handlers(logging.getLogger("ray.serve").handlers))
    stream: logging.Handler = logging.StreamHandler(sys.__stderr__)
    if file is not None:
        stream.addFilter(lambda record: record.name != CALLS)
    for handler in filter(None, (file, stream)):
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False
    path = file.baseFilename if file is not None else None
    logging.getLogger("switchyard.start").info("replica.started", extra={"deployment": deployment, "log": path})


def _is_no_access(record: logging.LogRecord) -> bool:
    """Keeps Ray Serve's access log out: a line a call at every hop, where ``call.finished`` says more once."""
    return not getattr(record, "serve_access_log", False)


def _handlers(handlers: Iterable[Any]) -> list[logging.Handler]:
    """The handlers, and behind one that only buffers, the one that it fills."""
    return [getattr(handler, "target", None) or handler for handler in handlers]


def _file_beside(handlers: Iterable[logging.Handler]) -> JsonFile | None:
    """A file beside the one that Ray Serve keeps for this replica; ``None`` outside of a replica."""
    for known in handlers:
        if isinstance(known, RotatingFileHandler):
            path = Path(known.baseFilename).with_suffix(".jsonl")
            return JsonFile(path, maxBytes=known.maxBytes, backupCount=known.backupCount, encoding="utf-8")
    return None
