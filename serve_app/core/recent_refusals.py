"""What was just refused is refused again for a moment, without asking: a flood then costs little beyond where it is.

    hold = min(MAX_HOLD_S, SHARE * remaining)

A call is refused downstream because it would wait longer than its deadline allows; a queue of that length does not
vanish within a fiftieth of that deadline, so hardly any room is left unused. Where an answer has come back since, there
is room for one more, and one more call may ask. When a hold ends, again one asks, and the others wait as long for what
it hears; with no new refusal by then, all may ask. A call with more time than the refused one may find room, and always
asks.

Sources: H. Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018 (refuse upstream, by what the
overloaded service said last); V. Jacobson, "Congestion Avoidance and Control", SIGCOMM 1988 (one enters when one has
left).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.expected_wait import BUSY, UNKNOWN_RETRY_AFTER_S
from serve_app.core.permit import Refusal
from serve_app.core.routing import Demand
from serve_app.errors import Overloaded
from serve_app.messages import Call, Result

SHARE: Final = 0.02
MAX_HOLD_S: Final = 0.05
SMALL_TOKENS: Final = 64
"""Inputs up to which all are of one size; above, each power of two is a size."""
MAX_KINDS: Final = 256
"""Kinds of calls that are remembered: callers choose what makes one."""


@dataclass(slots=True)
class _Hold:
    """A refusal, for whom it holds, and until when; ``is_asked`` once a call has gone to see whether it still does."""

    refusal: Refusal
    refused_s: float
    seconds: float
    until: float
    is_asked: bool = False


class RecentRefusals:
    """The last refusal of each kind of call, for as long as it holds.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._holds: dict[Hashable, _Hold] = {}
        self._holds_until = float("-inf")
        self._returned = 0

    def note(self, call: Call, remaining_s: float, result: Result) -> None:
        """Learn from what became of a call with so much time left: every model was busy, or one has room again.

        A replica's own refusal, or a rate limit, says less, and is not held against others.
        """
        if type(result.error) is not Overloaded:
            self._returned += bool(result.attempts)  # a stored answer has left no place
            return
        if result.attempts:
            return
        if len(self._holds) >= MAX_KINDS:
            self._holds.clear()
        seconds, now = min(MAX_HOLD_S, SHARE * remaining_s), self._clock()
        refusal = Refusal(result.error.retry_after_s or UNKNOWN_RETRY_AFTER_S, BUSY)
        self._holds[_kind(call)] = _Hold(refusal, remaining_s * (1 + SHARE), seconds, now + seconds)
        self._holds_until = max(self._holds_until, now + 3 * seconds)
        self._returned = 0

    def find(self, call: Call, remaining_s: float) -> Refusal | None:
        """The refusal that holds for a call; ``None`` when it has to ask."""
        now = self._clock()
        if now >= self._holds_until or (hold := self._holds.get(_kind(call))) is None or remaining_s > hold.refused_s:
            return None
        if now >= hold.until:
            if not hold.is_asked and now < hold.until + hold.seconds:
                hold.is_asked, hold.until = True, now + hold.seconds
            return None
        if self._returned:
            self._returned -= 1
            return None
        return hold.refusal


def _kind(call: Call) -> Hashable:
    """What decides which models a call may ask, and before whom it goes; its size counts coarsely."""
    demand = Demand.of(call.inputs, call.options)
    size = (demand.input_tokens // SMALL_TOKENS).bit_length()
    return call.program, call.level, call.options.priority, replace(demand, input_tokens=size)
