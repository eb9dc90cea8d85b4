"""What was just refused is refused again for a moment, without asking: a flood then costs little beyond where it is.

    hold = min(MAX_HOLD_S, SHARE * remaining)

A call is refused downstream because it would wait longer than its deadline allows; a queue of that length does not
vanish within a fiftieth of that deadline, so hardly any room is left unused. After a hold calls ask again, until one is
refused. A call with more time than the refused one may find room, and always asks.

Source: H. Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018 (refuse upstream, by what the
overloaded service said last).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
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


class RecentRefusals:
    """The last refusal of each kind of call, for as long as it holds.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._refused: dict[Hashable, tuple[float, float, Refusal]] = {}
        self._holds_until = float("-inf")

    def note(self, call: Call, remaining_s: float, result: Result) -> None:
        """Remember it when a call with so much time left found every model busy.

        A replica's own refusal, or a rate limit, says less, and is not held against others.
        """
        if type(result.error) is not Overloaded or result.attempts:
            return
        if len(self._refused) >= MAX_KINDS:
            self._refused.clear()
        until = self._clock() + min(MAX_HOLD_S, SHARE * remaining_s)
        refusal = Refusal(result.error.retry_after_s or UNKNOWN_RETRY_AFTER_S, BUSY)
        self._refused[_kind(call)] = (until, remaining_s * (1 + SHARE), refusal)
        self._holds_until = max(self._holds_until, until)

    def find(self, call: Call, remaining_s: float) -> Refusal | None:
        """The refusal that holds for a call; ``None`` when it has to ask."""
        now = self._clock()
        if now >= self._holds_until or (known := self._refused.get(_kind(call))) is None:
            return None
        until, refused_s, refusal = known
        return refusal if now < until and remaining_s <= refused_s else None


def _kind(call: Call) -> Hashable:
    """What decides which models a call may ask, and before whom it goes; its size counts coarsely."""
    demand = Demand.of(call.inputs, call.options)
    size = (demand.input_tokens // SMALL_TOKENS).bit_length()
    return call.program, call.level, call.options.priority, replace(demand, input_tokens=size)
