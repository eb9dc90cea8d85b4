"""The level of service of the whole cluster, from what all replicas report."""

from __future__ import annotations

from serve_app.core.clock import Clock
from serve_app.core.degradation import Decision, DegradationController, Readings
from serve_app.core.rolling_window import RollingQuantile, RollingSums
from serve_app.messages import Level
from serve_app.policy import DegradationPolicy
from serve_app.reports import Report

WARM_UP_S = 30.0
"""Seconds after its start in which CPU does not count: starting a cluster takes all there is."""
MIN_CALLS = 5
"""Calls in the window, or waits, below which error rate, latency and wait are not judged: the level is everybody's."""


class ServiceLevel:
    """Reads reports and says which level holds.

    Args:
        policy: thresholds and times.
        clock: monotonic seconds.
    """

    def __init__(self, policy: DegradationPolicy, *, clock: Clock) -> None:
        self._policy = policy
        self._pinned: Level | None = None
        self._clock = clock
        self._started = clock()
        self._controller = DegradationController(policy, clock=clock)
        self._calls = RollingSums(2, policy.window_s, clock=clock)
        self._latencies = RollingQuantile(policy.window_s, clock=clock)
        self._waits = RollingQuantile(policy.window_s, clock=clock)

    @property
    def level(self) -> Level:
        """The level that holds."""
        return self._controller.decision().level

    def decision(self) -> Decision:
        """The level that holds, since when, and why."""
        return self._controller.decision()

    def take(self, report: Report) -> None:
        """Count what a replica saw since its last report."""
        self._calls.add(report.calls, report.failed_calls)
        for latency_s in report.latencies_s:
            self._latencies.add(latency_s)
        for wait_s in report.waits_s:
            self._waits.add(wait_s)

    def judge(self, *, memory: float | None, cpu: float | None) -> Decision:
        """Decide anew, given the fullest and the busiest node, 0..1."""
        calls, failed = self._calls.totals()
        is_warm = self._clock() - self._started >= WARM_UP_S
        return self._controller.update(
            Readings(
                memory=memory,
                cpu=cpu if is_warm else None,
                error_rate=failed / calls if calls >= MIN_CALLS else None,
                p95_latency_s=self._latencies.quantile(0.95, at_least=MIN_CALLS),
                queue_wait_s=self._waits.quantile(0.95, at_least=MIN_CALLS),
            )
        )

    def reconfigure(self, policy: DegradationPolicy) -> None:
        """Judge by another policy from now on."""
        self._policy = policy
        for window in (self._calls, self._latencies, self._waits):
            window.resize(policy.window_s)
        self.pin(self._pinned)

    def pin(self, level: Level | None) -> None:
        """Hold a level whatever readings and policy say; ``None`` leaves it to them."""
        self._pinned = level
        pinned = self._policy if level is None else self._policy.model_copy(update={"pin": level})
        self._controller.reconfigure(pinned)

    def restore(self, decision: Decision) -> None:
        """Go on at an earlier life's level, if that is worse than this one's."""
        if decision.level.rank > self.level.rank:
            self._controller.restore(decision)
