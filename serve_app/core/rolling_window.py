"""What happened during the last ``window_s`` seconds, in bounded memory.

A window is cut into ``SLICES`` equal slices of time and forgets one slice at once. It therefore covers at
least ``window_s * (1 - 1 / SLICES)`` and never more than ``window_s`` seconds. Adding and reading cost the same
whatever the traffic: sums are kept as they come in and summed anew, over the few slices, only when one expires, so
rounding errors do not pile up.

    RollingSums       sums of any few figures; what the others and the retry budget build upon
    RollingWindow     calls, failures, slow calls and their latency: what a breaker judges
    RollingMean       mean of a gauge
    RollingQuantile   quantiles of durations, within 5 %
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from serve_app.core.clock import Clock

SLICES: Final = 10
"""Slices of a window; the window's edge is as sharp as one slice."""

RELATIVE_ERROR: Final = 0.05
"""Most relative error of a quantile between ``MIN_VALUE`` and ``MAX_VALUE``."""
MIN_VALUE: Final = 1e-4
"""Seconds up to which durations are not told apart; their quantile is 0."""
MAX_VALUE: Final = 1e4
"""Seconds from which durations are not told apart."""

_BASE: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)

SliceT = TypeVar("SliceT")


class _Slices(Generic[SliceT]):
    """The slices of a window that are still in it, oldest first."""

    def __init__(self, window_s: float, make: Callable[[], SliceT], clock: Clock) -> None:
        self._width_s = window_s / SLICES
        self._make = make
        self._clock = clock
        self._kept: deque[tuple[int, SliceT]] = deque()

    def __iter__(self) -> Iterator[SliceT]:
        return (piece for _, piece in self._kept)

    def expire(self) -> bool:
        """Forget what left the window; True when something did."""
        oldest = self._now() - SLICES + 1
        before = len(self._kept)
        while self._kept and self._kept[0][0] < oldest:
            self._kept.popleft()
        return len(self._kept) < before

    def current(self) -> SliceT:
        """The slice of this moment."""
        now = self._now()
        if not self._kept or self._kept[-1][0] < now:
            self._kept.append((now, self._make()))
        return self._kept[-1][1]

    def resize(self, window_s: float) -> None:
        """Change the window's length; a slice goes on at the time it began."""
        before_s, self._width_s = self._width_s, window_s / SLICES
        self._kept = deque((math.floor(at * before_s / self._width_s), piece) for at, piece in self._kept)

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def _now(self) -> int:
        return math.floor(self._clock() / self._width_s)


class RollingSums:
    """Sums of a few figures over the last ``window_s`` seconds.

    Args:
        size: how many figures.
        window_s: seconds that the window covers.
        clock: monotonic seconds.
    """

    def __init__(self, size: int, window_s: float, *, clock: Clock) -> None:
        self._size = size
        self._slices = _Slices(window_s, lambda: [0.0] * size, clock)
        self._totals = [0.0] * size

    def add(self, *amounts: float) -> None:
        """Add one amount to each figure, in order."""
        self._refresh()
        current = self._slices.current()
        for i, amount in enumerate(amounts):
            current[i] += amount
            self._totals[i] += amount

    def totals(self) -> tuple[float, ...]:
        """The sums, in the order of the figures."""
        self._refresh()
        return tuple(self._totals)

    def resize(self, window_s: float) -> None:
        """Go on with another length of window; what is still inside it is kept."""
        self._slices.resize(window_s)

    def clear(self) -> None:
        """Forget everything."""
        self._slices.clear()
        self._totals = [0.0] * self._size

    def _refresh(self) -> None:
        if self._slices.expire():
            self._totals = [math.fsum(column) for column in zip(*self._slices, strict=True)] or [0.0] * self._size


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls of a window; ``failures`` and ``slow`` are disjoint parts of ``total``.

    Attributes:
        latency_s: seconds that all of them took together.
    """

    total: int = 0
    failures: int = 0
    slow: int = 0
    latency_s: float = 0.0

    @property
    def failure_rate(self) -> float:
        """Share of failures, 0..1; 0 without calls."""
        return self.failures / self.total if self.total else 0.0

    @property
    def slow_rate(self) -> float:
        """Share of slow calls, 0..1; 0 without calls."""
        return self.slow / self.total if self.total else 0.0


class RollingWindow:
    """Counts of calls over the last ``window_s`` seconds."""

    def __init__(self, window_s: float, *, clock: Clock) -> None:
        self._sums = RollingSums(4, window_s, clock=clock)

    def add(self, total: int = 1, failures: int = 0, slow: int = 0, latency_s: float = 0.0) -> None:
        """Count ``total`` calls, of which ``failures`` failed and ``slow`` others were slow."""
        self._sums.add(total, failures, slow, latency_s)

    def counts(self) -> Counts:
        """What the window holds."""
        total, failures, slow, latency_s = self._sums.totals()
        return Counts(int(total), int(failures), int(slow), latency_s)

    def resize(self, window_s: float) -> None:
        """Go on with another length of window."""
        self._sums.resize(window_s)

    def clear(self) -> None:
        """Forget everything."""
        self._sums.clear()


class RollingMean:
    """Mean of a gauge's readings over the last ``window_s`` seconds; each reading weighs the same."""

    def __init__(self, window_s: float, *, clock: Clock) -> None:
        self._sums = RollingSums(2, window_s, clock=clock)

    def add(self, value: float) -> None:
        """Take one reading; a NaN or infinite one is no reading."""
        if math.isfinite(value):
            self._sums.add(1, value)

    def mean(self) -> float | None:
        """The mean; ``None`` without readings."""
        readings, total = self._sums.totals()
        return total / readings if readings else None

    def resize(self, window_s: float) -> None:
        """Go on with another length of window."""
        self._sums.resize(window_s)


class RollingQuantile:
    """Quantiles of durations over the last ``window_s`` seconds, each within ``RELATIVE_ERROR``.

    Every slice is a histogram with bin edges ``MIN_VALUE * base ** i``, ``base = (1 + e) / (1 - e)``, and a bin
    answers with the value that is at most ``e`` away from both its edges. At most ``SLICES`` times 186 numbers.

    Source: Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile sketch with relative-error
    guarantees", VLDB 2019.
    """

    def __init__(self, window_s: float, *, clock: Clock) -> None:
        self._slices: _Slices[Counter[int]] = _Slices(window_s, Counter, clock)

    def add(self, value: float, count: int = 1) -> None:
        """Take ``count`` durations of ``value`` seconds; NaN is none."""
        if not math.isnan(value):
            self._slices.expire()
            self._slices.current()[_bin(value)] += count

    def quantile(self, q: float, *, at_least: int = 1) -> float | None:
        """The least value that the share ``q`` (0..1) of durations does not exceed; ``None`` below ``at_least``."""
        self._slices.expire()
        bins: Counter[int] = Counter()
        for piece in self._slices:
            bins.update(piece)
        if bins.total() < at_least:
            return None
        wanted = max(1, math.ceil(q * bins.total()))
        for index in sorted(bins):
            wanted -= bins[index]
            if wanted <= 0:
                return _value(index)
        return None

    def resize(self, window_s: float) -> None:
        """Go on with another length of window."""
        self._slices.resize(window_s)


def _bin(value: float) -> int:
    if value <= MIN_VALUE:
        return 0
    return math.ceil(math.log(min(value, MAX_VALUE) / MIN_VALUE, _BASE))


def _value(index: int) -> float:
    return 2 * MIN_VALUE * _BASE**index / (_BASE + 1) if index else 0.0
