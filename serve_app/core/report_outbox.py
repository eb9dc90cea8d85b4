"""What a router has seen of one model and the control plane has yet to hear, told exactly once.

    ``count``, ``result``   into the open batch
    ``batch``               seals the open batch, unless a sealed one is under way: that is sent again, unchanged
    ``arrived``             the sealed batch is done with

The receiver counts each number once, so a batch whose reply was lost is no trouble. Bounded: calls are counted by
outcome, leased probes are few, and of probes made without a lease only the last is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from serve_app.core.breaker_messages import ProbeResult, ReportBatch
from serve_app.messages import Outcome


class ReportOutbox:
    """Batches for one router's reports of one model."""

    def __init__(self) -> None:
        self._generation = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._probes: list[ProbeResult] = []
        self._sealed: ReportBatch | None = None
        self._number = 0

    @property
    def unheard(self) -> Iterator[ProbeResult]:
        """Results of probes that the receiver may not know of."""
        yield from self._probes
        if self._sealed is not None:
            yield from self._sealed.probes

    def begin(self, generation: int) -> None:
        """Go on in another of the cluster's generations; calls of the one before say nothing any more."""
        self._generation = generation
        self._outcomes.clear()

    def count(self, outcome: Outcome) -> None:
        """One call of the present generation ended so."""
        self._outcomes[outcome] += 1

    def result(self, result: ProbeResult) -> None:
        """A probe ended so."""
        if result.lease == 0:
            self._probes = [probe for probe in self._probes if probe.lease]
        self._probes.append(result)

    def batch(self) -> ReportBatch:
        """What to send now."""
        if self._sealed is None:
            self._number += 1
            self._sealed = ReportBatch(self._number, self._generation, dict(self._outcomes), tuple(self._probes))
            self._outcomes.clear()
            self._probes = []
        return self._sealed

    def arrived(self) -> None:
        """The batch that was last sent has arrived."""
        self._sealed = None
