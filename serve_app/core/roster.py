"""Who is there, and what each replica said last."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from serve_app.core.clock import Clock
from serve_app.reports import Endpoint, Report

SILENCE_S = 5.0
"""Seconds without a report after which a replica is taken to be gone."""


class Roster:
    """The replicas that report, each with its last report.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._reports: dict[str, tuple[float, Report]] = {}

    def __contains__(self, source: str) -> bool:
        return source in self._reports

    def hear(self, report: Report) -> list[str]:
        """Take a report; returns the replicas that have been silent for too long, and are now gone."""
        now = self._clock()
        self._reports[report.source] = (now, report)
        gone = [source for source, (heard_at, _) in self._reports.items() if now - heard_at > SILENCE_S]
        for source in gone:
            del self._reports[source]
        return gone

    def forget(self, source: str) -> None:
        """A replica has said that it goes."""
        self._reports.pop(source, None)

    def counts(self) -> dict[str, int]:
        """Replicas by deployment."""
        return dict(sorted(Counter(report.deployment for report in self._last()).items()))

    def gauges_of(self, deployment: str) -> list[Mapping[str, float]]:
        """What the deployment's replicas measured last."""
        return [report.gauges for report in self._last() if report.deployment == deployment]

    def endpoints_of(self, deployment: str) -> tuple[Endpoint, ...]:
        """Where the deployment's replicas take calls over channels."""
        return tuple(r.endpoint for r in self._last() if r.deployment == deployment and r.endpoint is not None)

    def sum_by_deployment(self, gauge: str) -> dict[str, float]:
        """The sum of one gauge over each deployment that has it."""
        sums: defaultdict[str, float] = defaultdict(float)
        for report in self._last():
            if gauge in report.gauges:
                sums[report.deployment] += report.gauges[gauge]
        return dict(sums)

    def sums(self, prefix: str) -> dict[str, float]:
        """The sum of each gauge whose name begins so, by the rest of its name."""
        sums: defaultdict[str, float] = defaultdict(float)
        for report in self._last():
            for name, value in report.gauges.items():
                if name.startswith(prefix):
                    sums[name.removeprefix(prefix)] += value
        return dict(sums)

    def worst(self, gauge: str) -> float | None:
        """The highest value of one gauge; ``None`` where nobody has it."""
        return max((report.gauges[gauge] for report in self._last() if gauge in report.gauges), default=None)

    def _last(self) -> Iterator[Report]:
        return (report for _, report in self._reports.values())
