"""Whether asking a provider less has made it faster: if it has not, its slowness is no queue of ours."""

from __future__ import annotations

from typing import Final

HELPED: Final = 0.75
"""Share of the pace before, below which asking half as much at once is said to have helped: a queue of ours alone
would come to 0.5, a provider that does not mind to 1."""
PEAK_WEIGHT: Final = 0.3
"""What a window weighs in the average whose peak is the pace before: one slow window is noise."""


class Decline:
    """One falling of a limit, from its begin until calls that began at half the concurrency have answered.

    Attributes:
        limit: as it began.

    Args:
        running: calls at once as it began.
        limit: as it began.
        enough: answers for a verdict.
    """

    def __init__(self, running: int, limit: float, *, enough: int) -> None:
        self.limit = limit
        self._running = running
        self._enough = enough
        self._average = 0.0
        self._peak = 0.0
        self._longest_s = 0.0
        self._halved_at: float | None = None
        self._sum = 0.0
        self._samples = 0

    @property
    def is_halved(self) -> bool:
        """Whether half as many calls run at once."""
        return self._halved_at is not None

    @property
    def is_decided(self) -> bool:
        """Whether enough calls that began at half the concurrency have answered."""
        return self._samples >= self._enough

    @property
    def pace(self) -> float:
        """Mean of those calls, in seconds for a token."""
        return self._sum / self._samples

    @property
    def has_helped(self) -> bool:
        """Whether those calls were answered at a better pace than before."""
        return self.pace < HELPED * self._peak

    def saw(self, pace: float) -> None:
        """Note a window's mean pace, in seconds for a token; a queue in the provider may still be growing."""
        self._average += (pace - self._average) * (PEAK_WEIGHT if self._average else 1)
        if not self.is_halved:
            self._peak = max(self._peak, self._average)

    def answered(self, pace: float, *, began_at: float, now: float, running: int, limit: int) -> None:
        """Note an answer.

        Those that began at half the concurrency count once the longest had time to come: the first are the short ones.

        Args:
            pace: seconds for a token.
            began_at: when its call began, in the clock of ``now``.
            now: monotonic seconds.
            running: calls that run at once.
            limit: most that may.
        """
        if self._halved_at is None:
            self._longest_s = max(self._longest_s, now - began_at)
            if 2 * limit <= self._running and running <= limit:
                self._halved_at = now
        elif began_at >= self._halved_at and now >= self._halved_at + self._longest_s:
            self._sum += pace
            self._samples += 1
