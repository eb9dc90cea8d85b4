"""How late an event loop runs, and for which calls that is too late.

    lateness : of a timer that is due every ``TICK_S``                                  seconds
    lag      : the least lateness in the last ``WINDOW_S``, and of two timers at least
    too late : lag > max(ORDINARY_S, share * min(remaining, MOST_S))

A process that gets more requests than its core can even refuse does not see them queue: they wait in sockets and in the
loop, a turn at a time, before any of our code runs. What shows is that timers are late. The *least* lateness of a while
is a standing delay; a burst that is worked off in between does not count. A call goes through some ten turns (an
estimate), so a lag of 2 % of its time costs it about a fifth of that; each priority bears its share, so that sheddable
calls go first. Of a long deadline only ``MOST_S`` count: a process that is so late for everybody will not catch up by
taking more.

Source: K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012 (the least delay of an interval).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from serve_app.core.expected_wait import refuse
from serve_app.core.permit import Refusal
from serve_app.messages import Priority

TICK_S: Final = 0.02
WINDOW_S: Final = 0.1
LEAST: Final = 2
"""Late timers that make a lag, however late: one may be a single stall."""
ORDINARY_S: Final = 0.01
"""Lag that a loop with plenty to do may have at any time."""
BEARABLE: Final[Mapping[Priority, float]] = MappingProxyType(
    {Priority.SHEDDABLE: 0.01, Priority.DEFAULT: 0.02, Priority.CRITICAL: 0.1}
)
"""Lag that a call of each priority bears, as a share of the time it has left."""
MOST_S: Final = 10.0
"""Most of that time that counts."""


class LoopLag:
    """The lag of one event loop, from the lateness of its timer."""

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque()
        self.seconds = 0.0

    @property
    def is_noticeable(self) -> bool:
        """Whether it is more than a loop with plenty to do has anyway."""
        return self.seconds > ORDINARY_S

    def ticked(self, due: float, now: float) -> None:
        """Learn that the timer that was due at ``due`` came at ``now``, in monotonic seconds."""
        self._late.append((now, max(0.0, now - due)))
        while len(self._late) > LEAST and self._late[0][0] <= now - WINDOW_S:
            self._late.popleft()
        if len(self._late) >= LEAST:
            self.seconds = min(late_s for _, late_s in self._late)

    def refusal(self, priority: Priority, remaining_s: float) -> Refusal | None:
        """Why a call should not even begin; ``None`` when the loop is quick enough for it."""
        bearable_s = max(ORDINARY_S, BEARABLE[priority] * min(remaining_s, MOST_S))
        return refuse(None, "busy_loop") if self.seconds > bearable_s else None
