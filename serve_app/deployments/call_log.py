"""One line a call, ``call.finished``, written by the ingress that answered it; never its inputs or outputs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from serve_app.adapters.json_log import CALLS, log_fields
from serve_app.adapters.tracing import current_trace
from serve_app.core.deadline import MIN_USEFUL_S
from serve_app.deployments.http_problems import attempts_json
from serve_app.messages import CacheStatus, Outcome, Result

if TYPE_CHECKING:
    from serve_app.errors import SwitchyardError
    from serve_app.messages import Call, Level

log = logging.getLogger(CALLS)

NO_PROGRAM: Final = "none"
"""Under which calls of programs that there are not are counted: a label's values never come from a caller."""
_FAILED: Final = frozenset({"no_route", "bad_output", "deadline_exceeded", "internal"})


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
        self._call: Call | None = None
        self._result: Result | None = None

    @property
    def is_failure(self) -> bool:
        """Whether the call failed for a reason of ours, which lowers the level of service; one caller alone cannot."""
        if self.code == "bad_output":  # cut off where the caller wanted it, perhaps
            return self._call is None or self._call.options.max_tokens is None
        return self.code in _FAILED and not (self.code == "deadline_exceeded" and self._had_no_time)

    @property
    def _had_no_time(self) -> bool:
        """Whether no attempt had the time that one usually takes, or the caller left none for any."""
        if attempts := self._result.attempts if self._result else ():
            return all(attempt.outcome is Outcome.CUT_SHORT for attempt in attempts)
        call = self._call
        return call is not None and (call.freshness.only_if_cached or call.remaining_s < MIN_USEFUL_S)

    def read(self, call: Call) -> None:
        """Note what the caller wants."""
        self._call = call

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
