"""One line a call, ``call.finished``, written by the ingress that answered it; never its inputs or outputs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from serve_app.adapters.json_log import CALLS, log_fields
from serve_app.adapters.tracing import current_trace
from serve_app.deployments.http_problems import attempts_json
from serve_app.messages import CacheStatus, Outcome, Result

if TYPE_CHECKING:
    from serve_app.errors import SwitchyardError
    from serve_app.messages import Level

log = logging.getLogger(CALLS)


class Ending:
    """What became of one call; ``internal`` until something better is known.

    Args:
        program: its configured name.
        request_id: what the caller greps for.
        level: the level of service when it came.
    """

    def __init__(self, program: str, request_id: str, level: Level) -> None:
        self.program = program
        self.model = "none"
        self.code = "internal"
        self._request_id = request_id
        self._level = level
        self._status = 500
        self._result: Result | None = None

    @property
    def was_cut_short(self) -> bool:
        """Whether it was tried, and no attempt had the time that one usually takes."""
        attempts = self._result.attempts if self._result else ()
        return bool(attempts) and all(attempt.outcome is Outcome.CUT_SHORT for attempt in attempts)

    def answered(self, result: Result) -> None:
        """Note what came back, a failure included."""
        self._result = result
        self.model = result.model or self.model
        if result.error is None:
            self.code, self._status = "success", 200

    def failed(self, error: type[SwitchyardError] | SwitchyardError) -> None:
        """Note what the caller is told."""
        self.code, self._status = error.code, error.status

    def write(self, latency_s: float) -> None:
        """Write the line."""
        fields: dict[str, Any] = {
            "request_id": self._request_id,
            "program": self.program,
            "model": self.model,
            "status": self._status,
            "code": self.code,
            "latency_s": round(latency_s, 6),
        }
        fields |= _spent(self._result or Result("", level=self._level, cache=CacheStatus.BYPASS))
        if trace := current_trace():
            fields["trace_id"] = trace.trace_id
        log_fields(log, "call.finished", fields)


def _spent(result: Result) -> dict[str, Any]:
    return {
        "level_of_service": result.level.value,
        "cache": result.cache.value,
        "attempts": attempts_json(result.attempts),
        "input_tokens": result.usage.input_tokens,
        "output_tokens": result.usage.output_tokens,
        "cost_usd": result.cost_usd,
    }
