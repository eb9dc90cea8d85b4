"""Scores of answers by where they came from, faded with time: what one replica knows of quality.

A score counts ``0.5 ** (age / half_life_s)``. So the sums are of the recent past, they need no window of samples, and
reporting them as they stand is harmless: a report that is lost or arrives twice changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from serve_app.reports import MetricType, Origin, ScoreSum

if TYPE_CHECKING:
    from serve_app.core.clock import Clock

MIN_WEIGHT: Final = 0.05
"""A sum that weighs less than this much of one fresh score is forgotten."""
MAX_SUMS: Final = 4096
"""Most sums kept; the one first seen goes first."""


@dataclass(slots=True)
class _Faded:
    weight: float
    total: float
    at: float

    def fade(self, now: float, half_life_s: float) -> None:
        kept = 0.5 ** ((now - self.at) / half_life_s)
        self.weight *= kept
        self.total *= kept
        self.at = now


class ScoreTally:
    """Faded sums of scores.

    Args:
        half_life_s: seconds after which a score counts half.
        clock: monotonic seconds.
    """

    def __init__(self, half_life_s: float, *, clock: Clock) -> None:
        self._half_life_s = half_life_s
        self._clock = clock
        self._sums: dict[tuple[Origin, MetricType], _Faded] = {}

    def add(self, origin: Origin, metric_type: MetricType, score: float) -> None:
        """Count a score in 0..1."""
        now = self._clock()
        faded = self._sums.get((origin, metric_type))
        if faded is None:
            if len(self._sums) >= MAX_SUMS:
                del self._sums[next(iter(self._sums))]
            faded = self._sums[origin, metric_type] = _Faded(0.0, 0.0, now)
        faded.fade(now, self._half_life_s)
        faded.weight += 1
        faded.total += score

    def sums(self) -> tuple[ScoreSum, ...]:
        """Everything that still counts, as of now."""
        self._fade()
        return tuple(
            ScoreSum(origin, metric_type, faded.weight, faded.total)
            for (origin, metric_type), faded in self._sums.items()
        )

    def reconfigure(self, half_life_s: float) -> None:
        """Fade at another pace from now on."""
        self._fade()
        self._half_life_s = half_life_s

    def _fade(self) -> None:
        now = self._clock()
        for faded in self._sums.values():
            faded.fade(now, self._half_life_s)
        self._sums = {key: faded for key, faded in self._sums.items() if faded.weight >= MIN_WEIGHT}
