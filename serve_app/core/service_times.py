"""How long served calls of one model's replica run: all of them, and each program's.

    mean       of the last ``WINDOW_S`` seconds; when nothing was served in them, what it was after the last call
    own mean   the same over one program's calls; ``MEMORY_S`` seconds after its last one, the mean of all

How soon a slot comes free is a matter of whatever runs; how much of its deadline a call needs is its own program's. An
old mean is worth more than none: a queue forms only where all slots are taken, and where calls have held theirs for so
long, they take at least as long as before. A program's own is forgotten in the end, or one that was slow for a while
might be refused for ever where others leave no slot free, with no answer to show otherwise.
"""

from __future__ import annotations

from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.rolling_window import RollingMean

WINDOW_S: Final = 30.0
"""Seconds over which service times are averaged."""
MEMORY_S: Final = 300.0
"""Seconds for which a program's own mean outlives its last call."""
MAX_PROGRAMS: Final = 1024
"""Most programs told apart; the one first seen goes first."""


class _Mean:
    """A mean that outlives its window."""

    def __init__(self, clock: Clock) -> None:
        self._recent = RollingMean(WINDOW_S, clock=clock)
        self._clock = clock
        self._last_s = 0.0
        self._told_at = clock()

    @property
    def age_s(self) -> float:
        """Seconds since the last call."""
        return self._clock() - self._told_at

    def add(self, seconds: float) -> None:
        self._recent.add(seconds)
        self._last_s = self._recent.mean() or self._last_s
        self._told_at = self._clock()

    def read(self) -> float:
        return self._recent.mean() or self._last_s


class ServiceTimes:
    """Learns from served calls; ``clock`` reads monotonic seconds."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._all = _Mean(clock)
        self._own: dict[str, _Mean] = {}

    def add(self, program: str, seconds: float) -> None:
        """Count a served call."""
        self._all.add(seconds)
        if program not in self._own:
            if len(self._own) >= MAX_PROGRAMS:
                del self._own[next(iter(self._own))]
            self._own[program] = _Mean(self._clock)
        self._own[program].add(seconds)

    def mean_s(self) -> float:
        """Seconds that a call of whatever program runs; 0 before the first."""
        return self._all.read()

    def own_s(self, program: str) -> float:
        """Seconds that a call of this program runs; of a program that is not known, ``mean_s``."""
        own = self._own.get(program)
        return own.read() if own is not None and own.age_s <= MEMORY_S else self.mean_s()
