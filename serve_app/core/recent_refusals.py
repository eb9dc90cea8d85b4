"""What was just refused is refused again for a moment, without asking: a flood then costs the door and nothing behind.

    hold = min(MAX_HOLD_S, share * remaining)

A call is refused downstream because it would wait longer than its deadline allows; a queue of that length does not
vanish within a fiftieth of that deadline, so no room is left unused. One call after each hold asks anew. An equal call
with more time than the refused one may find room, and always asks.

Source: H. Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018 (refuse where a call comes in,
by what the overloaded service said last).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.permit import Refusal

SHARE: Final = 0.02
MAX_HOLD_S: Final = 0.05
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

    def note(self, kind: Hashable, remaining_s: float, refusal: Refusal) -> None:
        """Remember that a call of this kind, with so much time left, was refused."""
        if len(self._refused) >= MAX_KINDS:
            self._refused.clear()
        until = self._clock() + min(MAX_HOLD_S, SHARE * remaining_s)
        self._refused[kind] = (until, remaining_s, refusal)

    def find(self, kind: Hashable, remaining_s: float) -> Refusal | None:
        """The refusal that holds for such a call; ``None`` when it has to ask."""
        known = self._refused.get(kind)
        if known is None:
            return None
        until, refused_s, refusal = known
        return refusal if self._clock() < until and remaining_s <= refused_s else None
