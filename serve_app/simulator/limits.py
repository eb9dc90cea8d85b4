"""A model's patience: requests at once, and requests in any minute."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_S = 60.0
_BUSY_RETRY_S = 1.0


class Limiter:
    """Admits requests within a sliding minute and a bound on those at once.

    Args:
        max_concurrency: most admitted requests not yet released; ``None`` sets no bound.
        requests_per_minute: most admitted in any 60 seconds; ``None`` sets no bound.
        clock: monotonic seconds.
    """

    def __init__(
        self, max_concurrency: int | None, requests_per_minute: int | None, *, clock: Callable[[], float]
    ) -> None:
        self._max_concurrency = max_concurrency
        self._requests_per_minute = requests_per_minute
        self._clock = clock
        self._running = 0
        self._admitted: deque[float] = deque()

    def admit(self) -> float | None:
        """``None`` when the request may run, and then it must be released; else seconds to wait before asking again."""
        if self._max_concurrency is not None and self._running >= self._max_concurrency:
            return _BUSY_RETRY_S
        if self._requests_per_minute is not None:
            now = self._clock()
            while self._admitted and self._admitted[0] <= now - _WINDOW_S:
                self._admitted.popleft()
            if len(self._admitted) >= self._requests_per_minute:
                return self._admitted[0] + _WINDOW_S - now
            self._admitted.append(now)
        self._running += 1
        return None

    def release(self) -> None:
        """An admitted request has ended."""
        self._running -= 1
