"""How many calls a model's replica runs at once: fewer when the provider slows down or says 429, more when it recovers.

    sample   = seconds in the provider / (output tokens + FIRST_TOKEN)
    short    = mean of a window: at least WINDOW_S seconds and WINDOW_SAMPLES samples
    long     = exponential average of the shorts; pulled down when it is more than twice the short
    gradient = TOLERANCE * long / short, within 0.5..1
    limit    = (1 - SMOOTHING) * limit + SMOOTHING * (limit * gradient + sqrt(limit)), within 1..max

    a window in which less than half of the limit was used raises nothing
    a 429 or a timeout: limit * BACKOFF, at most once in WINDOW_S

Fed with time per token, because an answer of a thousand tokens takes longer than one of ten from the same healthy
provider. A first token takes about as long as ``FIRST_TOKEN`` further ones; counting it keeps short answers from
looking slow. A provider that stays slow becomes the norm within minutes: the limit guards against a *queue* in the
provider, while what is too slow at all is for the breaker to say (``slow_call_s``).

Sources: Gradient2 of Netflix' concurrency-limits (Apache-2.0), after TCP Vegas; the multiplicative decrease of AIMD:
Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989.
"""

from __future__ import annotations

import math
from typing import Final

from serve_app.core.clock import Clock

FIRST_TOKEN: Final = 32
"""Output tokens that a first token counts for."""
WINDOW_S: Final = 1.0
"""Least seconds between two changes for the same reason."""
WINDOW_SAMPLES: Final = 10
"""Least samples in a window."""
LONG_WEIGHT: Final = 0.02
"""What a window weighs in the long average once there have been 50."""
TOLERANCE: Final = 1.5
"""How much slower than usual a provider may be before the limit shrinks."""
SMOOTHING: Final = 0.2
BACKOFF: Final = 0.8
LIMITED: Final = 0.75
"""Share of the configured limit below which the provider is said to set the pace."""


class AdaptiveLimit:
    """One replica's limit, beginning at ``max_limit``.

    Args:
        max_limit: most calls at once.
        clock: monotonic seconds.
    """

    def __init__(self, max_limit: int, *, clock: Clock) -> None:
        self._max = max_limit
        self._clock = clock
        self._limit = float(max_limit)
        self._long = 0.0
        self._windows = 0
        self._backed_off_at = -math.inf
        self._since = clock()
        self._sum = 0.0
        self._samples = 0
        self._most_running = 0

    @property
    def limit(self) -> int:
        """Calls that may run at once: 1..max_limit."""
        return int(self._limit)

    @property
    def is_limited(self) -> bool:
        """Whether the provider, and not the configuration, sets the bound; a small dip is noise."""
        return self.limit < LIMITED * self._max

    def answered(self, seconds: float, output_tokens: int, running: int) -> None:
        """Learn from an answer.

        Args:
            seconds: spent in the provider.
            output_tokens: what it wrote in that time.
            running: calls that ran at once, this one included.
        """
        if seconds <= 0 or output_tokens <= 0:
            return
        self._sum += seconds / (output_tokens + FIRST_TOKEN)
        self._samples += 1
        self._most_running = max(self._most_running, running)
        if self._samples >= WINDOW_SAMPLES and self._clock() - self._since >= WINDOW_S:
            self._close_window()

    def pushed_back(self) -> None:
        """Learn from a 429 or a timeout."""
        now = self._clock()
        if now - self._backed_off_at >= WINDOW_S:
            self._backed_off_at = now
            self._set(self._limit * BACKOFF)
            self._begin()

    def _close_window(self) -> None:
        short = self._sum / self._samples
        self._windows += 1
        self._long += (short - self._long) * max(LONG_WEIGHT, 1 / self._windows)
        if self._long > 2 * short:
            self._long *= 0.95
        gradient = min(1.0, max(0.5, TOLERANCE * self._long / short))
        wanted = self._limit * gradient + math.sqrt(self._limit)
        wanted = self._limit + SMOOTHING * (wanted - self._limit)
        if wanted < self._limit or 2 * self._most_running >= self._limit:
            self._set(wanted)
        self._begin()

    def _set(self, limit: float) -> None:
        self._limit = min(float(self._max), max(1.0, limit))

    def _begin(self) -> None:
        self._since = self._clock()
        self._sum = 0.0
        self._samples = 0
        self._most_running = 0
