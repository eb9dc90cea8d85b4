"""How many calls a model's replica runs at once: fewer when the provider slows down or says 429, more when it recovers.

    sample   = seconds in the provider / (output tokens + FIRST_TOKEN * LM calls)
    short    = mean of a window: at least WINDOW_S seconds and WINDOW_SAMPLES samples, or the limit if that is less
    long     = exponential average of the shorts: the norm; pulled down when it is more than twice the short
    gradient = TOLERANCE * long / short, within 0.5..1
    limit    = (1 - SMOOTHING) * limit + SMOOTHING * (limit * gradient + sqrt(limit)), within 1..max

    a window in which less than half of the limit was used leaves the limit as it is
    a 429 or a timeout of a call that began since the last one: limit * BACKOFF, at most once in WINDOW_S
    asked half as much at once, and no faster: long = what it takes now (``Decline``)

Fed with time per token, because an answer of a thousand tokens takes longer than one of ten from the same healthy
provider. A first token takes about as long as ``FIRST_TOKEN`` further ones; counting one for each LM call keeps short
answers, and programs that make many of them, from looking slow.

The limit guards against a *queue* in the provider, while what is too slow at all is for the breaker to say
(``slow_call_s``). A queue of ours shortens as we ask less; a provider that is as slow when asked half as much at once
has changed for reasons of its own: its pace is the norm from then on, and the limit is what it was before it fell.
Whatever else lasts becomes the norm within 50 windows, or noise could hold a limit down for good. Each replica judges
for itself: beside others that ask the same provider and do not ask less in the same seconds, a queue that is theirs as
well may pass for the provider's own slowness.

Sources: Gradient2 of Netflix' concurrency-limits (Apache-2.0), after TCP Vegas; the multiplicative decrease of AIMD:
Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion Avoidance", 1989; one decrease for all
that was sent before it: RFC 5681.
"""

from __future__ import annotations

import math
from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.decline import Decline

FIRST_TOKEN: Final = 32
"""Output tokens that a first token counts for."""
WINDOW_S: Final = 1.0
"""Least seconds between two changes for the same reason."""
WINDOW_SAMPLES: Final = 10
"""Least samples in a window; at a lower limit, as many as that."""
VERDICT_SAMPLES: Final = 50
"""Answers of calls that began at half the concurrency, for a verdict on whether that made the provider faster."""
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
        self._decline: Decline | None = None
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

    def answered(self, lm_s: float, output_tokens: int, *, lm_calls: float, running: int, elapsed_s: float) -> None:
        """Learn from an answer.

        Args:
            lm_s: seconds spent in the provider.
            output_tokens: what it wrote in that time.
            lm_calls: in how many answers; a fraction for a share of a batch.
            running: calls that ran at once, this one included.
            elapsed_s: seconds since the call began.
        """
        if lm_s <= 0 or output_tokens <= 0:
            return
        now = self._clock()
        pace = lm_s / (output_tokens + FIRST_TOKEN * lm_calls)
        self._sum += pace
        self._samples += 1
        self._most_running = max(self._most_running, running)
        if self._decline is not None:
            self._decline.answered(pace, began_at=now - elapsed_s, now=now, running=running, limit=self.limit)
        if self._samples >= min(WINDOW_SAMPLES, self.limit) and now - self._since >= WINDOW_S:
            self._close_window()

    def pushed_back(self, elapsed_s: float) -> None:
        """Learn from a 429 or a timeout of a call that began ``elapsed_s`` seconds ago.

        Those that began before the last one tell nothing new: they were asked for when more ran at once.
        """
        now = self._clock()
        if now - max(elapsed_s, WINDOW_S) >= self._backed_off_at:
            self._backed_off_at = now
            self._set(self._limit * BACKOFF)
            self._decline = None  # no verdict on the pace may take this back

    def _close_window(self) -> None:
        short = self._sum / self._samples
        if 2 * self._most_running >= self._limit:
            self._follow(short)
        else:
            self._decline = None
        if short <= self._long or self._decline is None or not self._decline.is_halved:
            self._learn(short)  # else a verdict is near, on whether that is the norm
        self._begin()

    def _follow(self, short: float) -> None:
        """Move the limit after a window in which it was in use."""
        if self._decline is None and self._gradient(short) < 1:
            self._decline = Decline(min(self._most_running, self.limit), self._limit, enough=VERDICT_SAMPLES)
        if self._decline is not None:
            self._decline.saw(short)
            if self._decline.is_decided:
                self._conclude(self._decline)
        gradient = self._gradient(short)
        if gradient < 1 and self._decline is not None and self._decline.is_halved:
            return  # until the calls that began since then tell
        wanted = self._limit * gradient + math.sqrt(self._limit)
        self._set(self._limit + SMOOTHING * (wanted - self._limit))
        if gradient == 1 and self._decline is not None and self._limit >= self._decline.limit:
            self._decline = None

    def _gradient(self, short: float) -> float:
        return min(1.0, max(0.5, TOLERANCE * self._long / short)) if self._long else 1.0

    def _conclude(self, decline: Decline) -> None:
        self._decline = None
        if not decline.has_helped:
            self._long = decline.pace
            self._set(decline.limit)

    def _learn(self, short: float) -> None:
        self._windows += 1
        self._long += (short - self._long) * max(LONG_WEIGHT, 1 / self._windows)
        if self._long > 2 * short:
            self._long *= 0.95

    def _set(self, limit: float) -> None:
        self._limit = min(float(self._max), max(1.0, limit))

    def _begin(self) -> None:
        self._since = self._clock()
        self._sum = 0.0
        self._samples = 0
        self._most_running = 0
