"""How long what is ready to travel waits for company: a message between processes costs as much as several calls' work.

The rule is Nagle's (RFC 896): whoever is alone goes at once, and who has neighbours under way waits a little for more
to share a message with. Here *a little* is bounded twice, by ``MAX_LINGER_S`` and by a share of the time that the work
takes anyway, on the average of a way: where calls take 20 ms it is at most 2 ms, where they take a second 5 ms.

Calls on their way out also need a reason to expect company. By Little's law ``in_flight / round_trip_s`` calls arrive
a second; only when at least one is expected within the wait does it begin.
"""

from __future__ import annotations

from typing import Final

MAX_LINGER_S: Final = 0.005
MIN_LINGER_S: Final = 0.001
"""Event loops keep time to the millisecond; a shorter wait is none."""
SHARE: Final = 0.1
WEIGHT: Final = 0.1
"""Of the newest round trip in the average."""


def result_linger_s(elapsed_s: float) -> float:
    """Seconds that finished results wait for unfinished ones of their batch, which began ``elapsed_s`` ago."""
    return _bounded(elapsed_s)


class CallLinger:
    """Seconds that a call waits before it leaves, from how long calls have lately been away."""

    def __init__(self) -> None:
        self._round_trip_s = 0.0

    def answered(self, seconds: float) -> None:
        """Learn from a call that was away for so long."""
        weight = WEIGHT if self._round_trip_s else 1.0
        self._round_trip_s += (seconds - self._round_trip_s) * weight

    def seconds(self, in_flight: int) -> float:
        """The wait while ``in_flight`` calls are away; 0 when no company is to be expected."""
        wait_s = _bounded(self._round_trip_s)
        return wait_s if in_flight * wait_s >= self._round_trip_s else 0.0


def _bounded(seconds: float) -> float:
    wait_s = min(MAX_LINGER_S, SHARE * seconds)
    return wait_s if wait_s >= MIN_LINGER_S else 0.0
