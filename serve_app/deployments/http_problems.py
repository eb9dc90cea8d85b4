"""Errors over HTTP: RFC 9457 ``application/problem+json``, in one place."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
from fastapi import Response

from serve_app.errors import KeyRequired, SwitchyardError
from serve_app.messages import Attempt

PROBLEM_TYPE = "application/problem+json"
CHALLENGE = 'Bearer realm="switchyard operator"'


def to_json(payload: object) -> bytes:
    """JSON bytes; text that is not valid UTF-8 is written with escapes instead of failing."""
    try:
        return orjson.dumps(payload)
    except TypeError:
        return json.dumps(_finite(payload), allow_nan=False).encode()


def _finite(value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
    """The value with ``null`` in place of numbers that JSON does not have, as orjson writes them."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def attempts_json(attempts: tuple[Attempt, ...]) -> list[dict[str, Any]]:
    """Attempts as ``meta.attempts`` and problems show them."""
    return [
        {
            "model": attempt.model,
            "outcome": attempt.outcome.value,
            "latency_s": round(attempt.latency_s, 6),
            "resumed": attempt.resumed,
        }
        for attempt in attempts
    ]


def problem(error: SwitchyardError, request_id: str) -> dict[str, Any]:
    """The members of a problem document."""
    return {
        "type": f"urn:switchyard:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "code": error.code,
        "request_id": request_id,
        "retryable": error.retryable,
        "retry_after_s": _finite(error.retry_after_s),
        "attempts": attempts_json(error.attempts),
    }


def problem_response(error: SwitchyardError, request_id: str) -> Response:
    """An error's response: ``Retry-After`` in whole seconds, rounded up (RFC 9110 §10.2.3), 401 with its challenge."""
    headers = {"WWW-Authenticate": CHALLENGE} if isinstance(error, KeyRequired) else {}
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return Response(to_json(problem(error, request_id)), error.status, headers, PROBLEM_TYPE)
