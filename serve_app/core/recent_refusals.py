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
        self._holds_until = float("-inf")

    @property
    def holds(self) -> bool:
        """Whether any refusal holds now."""
        return self._clock() < self._holds_until

    def note(self, kind: Hashable, remaining_s: float, refusal: Refusal) -> None:
        """Remember that a call of this kind, with so much time left, was refused."""
        if len(self._refused) >= MAX_KINDS:
            self._refused.clear()
        until = self._clock() + min(MAX_HOLD_S, SHARE * remaining_s)
        self._refused[kind] = (until, remaining_s * (1 + SHARE), refusal)
        self._holds_until = max(self._holds_until, until)

    def find(self, kind: Hashable, remaining_s: float) -> Refusal | None:
        """The refusal that holds for such a call; ``None`` when it has to ask."""
        known = self._refused.get(kind)
        if known is None:
            return None
        until, refused_s, refusal = known
        return refusal if self._clock() < until and remaining_s <= refused_s else None
