"""Calls refused for want of slots, as the replicas that would have had room for them.

    lost = refused a second * seconds a call / slots of a replica        Little's law; at most WINDOW_S count

Whoever is refused stands in no queue. Where few slots or tight deadlines keep queues short, half of all calls can be
refused while hardly any waits, and what looks at queues alone sees no reason for another replica.
"""

from __future__ import annotations

from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.rolling_window import RollingSums

WINDOW_S: Final = 15.0
"""Seconds over which refusals are counted."""
UNKNOWN_S: Final = 1.0
"""Seconds that a call is taken to run before any has."""


class LostDemand:
    """The refusals of one model at one place.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._refused = RollingSums(1, WINDOW_S, clock=clock)

    def note(self) -> None:
        """Count a refused call."""
        self._refused.add(1)

    @property
    def a_second(self) -> float:
        """Calls refused in a second, lately."""
        return self._refused.totals()[0] / WINDOW_S


def replicas_lost(refused_a_second: float, service_s: float, slots: int) -> float:
    """Replicas of ``slots`` slots that the refused calls would fill.

    Args:
        refused_a_second: of the model, for want of slots.
        service_s: seconds that a call runs; 0 when that is not known.
        slots: of one replica.
    """
    return refused_a_second * min(WINDOW_S, service_s or UNKNOWN_S) / max(1, slots)
