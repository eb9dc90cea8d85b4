"""When refused callers should come back: one after the other, as fast as calls are answered.

    due            = max(now + asked, due of the one refused before + seconds a call)
    seconds a call = time that a call is here / calls here                                  Little's law

What one call would have to wait is next to nothing once a queue is as long as it may be, and the same for everybody
who is refused then. Told no more than that, all of them come back at once, and nearly all are refused again.
``asked`` is that wait; the turn is when those who were refused before can have been answered.
"""

from __future__ import annotations

from serve_app.core.clock import Clock
from serve_app.core.expected_wait import MAX_RETRY_AFTER_S
from serve_app.messages import Priority


class RetryTurns:
    """The turns of refused calls that wait for the same; each priority has its own.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._due: dict[Priority, float] = {}

    def next_s(self, priority: Priority, asked_s: float, seconds_a_call: float) -> float:
        """Seconds after which the call refused now should be made again, at most ``MAX_RETRY_AFTER_S``.

        Args:
            priority: of the call.
            asked_s: what would do for it alone.
            seconds_a_call: between two answers; 0 when that is not known.
        """
        if seconds_a_call <= 0:
            return asked_s
        now = self._clock()
        due = max(now + asked_s, self._due.get(priority, now) + seconds_a_call)
        self._due[priority] = min(due, now + MAX_RETRY_AFTER_S)
        return self._due[priority] - now

    def forget(self) -> None:
        """Nobody is here any more: whoever comes now is taken."""
        self._due.clear()
