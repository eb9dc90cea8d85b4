"""Time, handed in: nothing in ``core`` asks the system what time it is.

Whoever builds a policy passes ``time.monotonic``; a test passes a ``ManualClock`` and moves it by hand.
"""

from __future__ import annotations

from collections.abc import Callable

Clock = Callable[[], float]
"""Monotonic seconds from an arbitrary start. Readings of two processes have nothing to do with each other."""


class ManualClock:
    """A clock that stands still until it is moved.

    Args:
        now_s: its first reading, in seconds.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        """Its reading, in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass.

        Raises:
            ValueError: ``seconds`` is negative; a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back {-seconds} s")
        self._now_s += seconds
