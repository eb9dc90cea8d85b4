"""The calls answered lately, found again by their request id when a caller gives a verdict.

    claim: the newest call of the id     it is told
    is not there                         not known
    has no claim, or the same verdict's  the call, and that verdict's claim on it
    has another's, or is settled         known, and no call

    settle: a call's verdict             it is told
    was not counted yet                  to count it: the call is settled
    was counted                          not to

Either reply may be lost on its way. After a claim's, nothing is counted and the caller is told to give the verdict
again: so the same verdict, which its ``token`` stands for, may claim a call twice. After a settlement's, the verdict is
counted all the same.

Bounded: the oldest goes first. Request ids are the callers' and may repeat; the newest call of an id is the one that is
found. Call ids are unique, so that a call that is told again, be it after a newer one of its id, is still settled.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from serve_app.reports import AnsweredCall, Claim

MAX_CALLS: Final = 100_000
"""Most calls remembered, and most verdicts; about 55 MiB when all are."""
_SETTLED: Final = ""
"""No verdict's token."""


class RecentCalls:
    """Answered calls by request id.

    Args:
        max_calls: most calls remembered, and most verdicts.
    """

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        self._max_calls = max_calls
        self._calls: dict[str, AnsweredCall] = {}
        self._claims: dict[str, str] = {}

    def remember(self, calls: Iterable[AnsweredCall]) -> None:
        """Keep these, newest last; a call that is told twice stays as it is."""
        for call in calls:
            before = self._calls.get(call.request_id)
            if before is None or before.call_id != call.call_id:
                self._calls.pop(call.request_id, None)
                self._calls[call.request_id] = call
        self._trim(self._calls)

    def claim(self, request_id: str, token: str) -> Claim:
        """The call of that id for the verdict that ``token`` stands for."""
        call = self._calls.get(request_id)
        if call is None or self._claims.get(call.call_id, token) != token:
            return Claim(is_known=call is not None)
        self._claims[call.call_id] = token
        self._trim(self._claims)
        return Claim(call, is_known=True)

    def settle(self, call_id: str) -> bool:
        """Whether the verdict on a claimed call is to be counted; it is to be once."""
        if self._claims.get(call_id) == _SETTLED:
            return False
        self._claims[call_id] = _SETTLED
        self._trim(self._claims)
        return True

    def _trim(self, kept: dict[str, Any]) -> None:
        while len(kept) > self._max_calls:
            del kept[next(iter(kept))]
