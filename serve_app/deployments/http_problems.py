"""Errors over HTTP: RFC 9457 ``application/problem+json``, in one place."""

from __future__ import annotations

import json
import math
from typing import Any

import orjson
from fastapi import Response

from serve_app.errors import SwitchyardError
from serve_app.messages import Attempt

PROBLEM_TYPE = "application/problem+json"


def to_json(payload: object) -> bytes:
    """JSON bytes; text that is not valid UTF-8 is written with escapes instead of failing."""
    try:
        return orjson.dumps(payload)
    except TypeError:
        return json.dumps(payload).encode()


def attempts_json(attempts: tuple[Attempt, ...]) -> list[dict[str, Any]]:
    """Attempts as ``meta.attempts`` and problems show them."""
    return [
        {"model": attempt.model, "outcome": attempt.outcome.value, "latency_s": round(attempt.latency_s, 6)}
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
        "retry_after_s": error.retry_after_s,
        "attempts": attempts_json(error.attempts),
    }


def problem_response(error: SwitchyardError, request_id: str) -> Response:
    """The response for an error; ``Retry-After`` in whole seconds, rounded up (RFC 9110 §10.2.3)."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return Response(to_json(problem(error, request_id)), error.status, headers, PROBLEM_TYPE)
