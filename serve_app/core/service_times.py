"""How long served calls of one model's replica run.

The mean of the last ``WINDOW_S`` seconds; when nothing was served in them, what it was after the last call. An old
mean is worth more than none: a queue forms only where all slots are taken, and where calls have held theirs for so
long, they take at least as long as before.
"""

from __future__ import annotations

from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.rolling_window import RollingMean

WINDOW_S: Final = 30.0
"""Seconds over which service times are averaged."""


class ServiceTimes:
    """Learns from served calls; ``clock`` reads monotonic seconds."""

    def __init__(self, *, clock: Clock) -> None:
        self._recent = RollingMean(WINDOW_S, clock=clock)
        self._last_s = 0.0

    def add(self, seconds: float) -> None:
        """Count a served call."""
        self._recent.add(seconds)
        self._last_s = self._recent.mean() or self._last_s

    def mean_s(self) -> float:
        """Seconds that a call runs; 0 before the first."""
        return self._recent.mean() or self._last_s
