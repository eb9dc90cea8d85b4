"""``traceparent`` and ``tracestate`` as a caller sends them: taken when they are well formed, else ignored.

Syntax and limits: W3C Trace Context Level 1 (https://www.w3.org/TR/trace-context-1/), §3.2 and §3.3. Nothing beyond the
syntax is believed: the values are passed on and never decide anything but which trace a span joins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from serve_app.messages import TraceContext

MAX_TRACESTATE_CHARS = 512
"""Most characters of ``tracestate`` that are passed on: what §3.3.1.5 asks every participant to carry."""
MAX_TRACESTATE_MEMBERS = 32

TRACE_HEADERS = ("traceparent", "tracestate")
"""Both may come in several lines, whose values are then one list (RFC 9110 §5.3): half of it is not the caller's."""

_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<rest>-.*)?"
)
_KEY = r"(?:[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13})"
_MEMBER = re.compile(_KEY + r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")


def trace_context(headers: Mapping[str, str]) -> TraceContext | None:
    """What the headers (names in lower case) say; ``None`` unless ``traceparent`` is well formed.

    A later version than 00 is read as 00, which is what it must contain. A ``tracestate`` that is malformed or longer
    than the bounds is left out.
    """
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", "").strip(" \t"))
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["rest"]):
        return None
    if not found["trace"].strip("0") or not found["span"].strip("0"):
        return None
    return TraceContext(
        f"00-{found['trace']}-{found['span']}-{found['flags']}", _tracestate(headers.get("tracestate", ""))
    )


def _tracestate(raw: str) -> str:
    if len(raw) > MAX_TRACESTATE_CHARS:
        return ""
    members = [member for part in raw.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    is_valid = len(keys) == len(members) <= MAX_TRACESTATE_MEMBERS and all(map(_MEMBER.fullmatch, members))
    return ",".join(members) if is_valid else ""
