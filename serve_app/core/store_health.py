"""When to leave a sick store alone, and when to ask it again.

    state     what an operation does           leaves it
    ────────  ───────────────────────────────  ─────────────────────────────────────────────────────────────
    up        asks                             one failure → down for ``FIRST_PAUSE_S``
    down      goes without, at once            the pause is over and someone calls → probing (that one probes)
    probing   goes without, at once            probe answered → up; failed → down, twice as long, at most
                                               ``MAX_PAUSE_S``

One failure is enough, because going without costs a cache miss while waiting costs every caller the timeout. A
recovery is noticed within ``MAX_PAUSE_S`` and two probes, the one that just missed it and the one that sees it.
Failures of operations begun before the state last changed say nothing new and count for nothing.
"""

from __future__ import annotations

from typing import Final

from serve_app.core.clock import Clock

FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 3.0


class StoreHealth:
    """A store's state, over an injected monotonic ``clock``."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._generation = 0
        self._pause_s = FIRST_PAUSE_S
        self._down_until: float | None = None
        self._is_probing = False

    @property
    def is_up(self) -> bool:
        """Whether operations ask the store."""
        return self._down_until is None

    @property
    def generation(self) -> int:
        """Grows with every change between up and down; an operation hands it back with its failure."""
        return self._generation

    def failed(self, generation: int) -> bool:
        """An operation failed; true when that took the store down."""
        if not self.is_up or generation != self._generation:
            return False
        self._pause_s = FIRST_PAUSE_S
        self._pause()
        return True

    def claim_probe(self) -> bool:
        """Whether the caller should probe now; true once per pause, until the probe's end is told."""
        if self._down_until is None or self._is_probing or self._clock() < self._down_until:
            return False
        self._is_probing = True
        return True

    def probed(self, *, answered: bool) -> None:
        """The probe that ``claim_probe`` granted has ended."""
        self._is_probing = False
        if answered:
            self._generation += 1
            self._down_until = None
            return
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        self._pause()

    def _pause(self) -> None:
        self._generation += 1
        self._down_until = self._clock() + self._pause_s
