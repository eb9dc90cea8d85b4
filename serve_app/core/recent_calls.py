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
        self._calls: dict[str, AnsweredCall | None] = {}

    def remember(self, calls: Iterable[AnsweredCall]) -> None:
        """Keep these, newest last."""
        for call in calls:
            self._calls.pop(call.request_id, None)
            self._calls[call.request_id] = call
        while len(self._calls) > self._max_calls:
            del self._calls[next(iter(self._calls))]

    def claim(self, request_id: str) -> Claim:
        """The call of that id, once: whoever claims it counts the verdict."""
        if request_id not in self._calls:
            return Claim()
        call, self._calls[request_id] = self._calls[request_id], None
        return Claim(call, is_known=True)
