"""How many calls would run now, had none been refused: those that got a slot and those that did not find one in time.

    offered = calls that came in the last window / window * service        Little's law
    window  = service, within LEAST_S..MOST_S

Whoever is refused stands in no queue. Where few slots or tight deadlines keep queues short, half of all calls can be
refused while hardly any waits, and what looks at queues alone sees no reason for another replica. Both kinds are
counted over the same time, so that the sum is what callers want before and after replicas come.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from serve_app.core.clock import Clock

LEAST_S: Final = 5.0
MOST_S: Final = 120.0
UNKNOWN_S: Final = 1.0
"""Seconds that a call is taken to run before any has."""


@dataclass(slots=True)
class _Second:
    at: int
    taken: int = 0
    lost: int = 0


class OfferedCalls:
    """The calls of one model at one place.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._seconds: deque[_Second] = deque(maxlen=int(MOST_S) + 1)

    def took(self) -> None:
        """Count a call that got a slot."""
        self._this_second().taken += 1

    def lose(self) -> None:
        """Count one that was refused for want of slots."""
        self._this_second().lost += 1

    def running(self, service_s: float) -> tuple[float, float]:
        """How many of each would run now, given the seconds that a call runs; 0 when those are not known."""
        run_s = min(MOST_S, service_s or UNKNOWN_S)
        window_s = max(LEAST_S, run_s)
        since = self._clock() - window_s
        taken = lost = 0
        for second in reversed(self._seconds):
            if second.at < since:
                break
            taken += second.taken
            lost += second.lost
        return taken * run_s / window_s, lost * run_s / window_s

    def _this_second(self) -> _Second:
        now = int(self._clock())
        if not self._seconds or self._seconds[-1].at != now:
            self._seconds.append(_Second(now))
        return self._seconds[-1]
