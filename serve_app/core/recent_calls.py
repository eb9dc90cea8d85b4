"""The calls answered lately, found again by their request id when a caller gives a verdict.

Bounded: the oldest call goes first. Request ids are the callers' and may repeat; the newest call of an id is the one
that is found. Each call takes one verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from serve_app.messages import AnsweredCall, Claim

MAX_CALLS: Final = 100_000
"""Most calls remembered; about 40 MiB when all are."""


class RecentCalls:
    """Answered calls by request id.

    Args:
        max_calls: most calls remembered.
    """

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        self._max_calls = max_calls
        self._calls: dict[str, AnsweredCall] = {}
        self._claimed: set[str] = set()

    def remember(self, calls: Iterable[AnsweredCall]) -> None:
        """Keep these, newest last; a call that is told twice stays as it is."""
        for call in calls:
            before = self._calls.get(call.request_id)
            if before is None or before.call_id != call.call_id:
                self._forget(call.request_id)
                self._calls[call.request_id] = call
        while len(self._calls) > self._max_calls:
            self._forget(next(iter(self._calls)))

    def claim(self, request_id: str) -> Claim:
        """The call of that id, once: whoever claims it counts the verdict."""
        call = self._calls.get(request_id)
        if call is None or request_id in self._claimed:
            return Claim(is_known=call is not None)
        self._claimed.add(request_id)
        return Claim(call, is_known=True)

    def _forget(self, request_id: str) -> None:
        self._calls.pop(request_id, None)
        self._claimed.discard(request_id)
