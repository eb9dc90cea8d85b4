"""Which answers an operator has forgotten, seen from one replica.

The control plane says when each program was last forgotten (``Orders.forgotten``), and every replica hears of it within
a second. It then drops what it has, and keeps no answer begun before it heard. The order's own time only tells one
order from another: clocks differ between machines. What is compared is this replica's time, so an answer that comes
from elsewhere counts as begun its age ago.
"""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.core.clock import Clock


class Forgotten:
    """What was forgotten when, over an injected monotonic ``clock``."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._orders: dict[str, float] | None = None
        self._at: dict[str, float] = {}

    def update(self, orders: Mapping[str, float]) -> frozenset[str]:
        """The programs forgotten since the last look; none at the first, for this replica had nothing before it."""
        before = self._orders
        self._orders = (
            dict(orders)
            if before is None
            else before | {name: max(at, before.get(name, 0.0)) for name, at in orders.items()}
        )
        if before is None:
            return frozenset()
        news = frozenset(name for name, at in orders.items() if at > before.get(name, 0.0))
        self._at |= dict.fromkeys(news, self._clock())
        return news

    def outlives(self, program: str, begun_at: float) -> bool:
        """Whether an answer of that program, begun then, was begun after the program was last forgotten."""
        forgotten_at = self._at.get(program)
        return forgotten_at is None or begun_at > forgotten_at
