"""``ControlPlane``: one actor that knows the whole cluster, and is never on a request's path.

Every replica reports a few times a second and takes the snapshot home. What is kept here as actor state: the policy,
the health of each model over the sum of all reports, the level of service, and everybody's last metrics.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from serve_app.adapters.telemetry import Family, Labels, MetricsPage, gauge
from serve_app.config import ModelConfig, Policy
from serve_app.config_check import load_policy
from serve_app.core.breaker_messages import BreakerReply
from serve_app.core.clock import Clock
from serve_app.core.cluster_breaker import ClusterBreaker
from serve_app.core.degradation import DegradationController, Readings
from serve_app.core.outcomes import MEANINGS, BreakerEffect
from serve_app.core.rolling_window import RollingQuantile, RollingSums, RollingWindow
from serve_app.errors import ConfigError
from serve_app.messages import BreakerState, ModelHealth, OutcomeCount, Report, Snapshot

log = logging.getLogger("switchyard.control_plane")

SILENCE_S = 5.0
"""Seconds without a report after which a replica is taken to be gone."""
WARM_UP_S = 30.0
"""Seconds after its start in which no level is judged: starting a cluster takes all the CPU there is."""
STATE_RANK = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class ControlPlane:
    """Cluster-wide state: policy, health, level, metrics.

    Args:
        models: the configured models.
        clock: monotonic seconds.
    """

    def __init__(self, models: Iterable[ModelConfig], *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._policy = policy = Policy()
        self._version = 1
        self._page = MetricsPage()
        self._reports: dict[str, tuple[float, Report]] = {}
        names = [model.name for model in models]
        self._windows = {name: RollingWindow(policy.breaker.window_s, clock=clock) for name in names}
        self._breakers = {name: ClusterBreaker(policy.breaker, clock=clock) for name in names}
        self._controller = DegradationController(policy.degradation, clock=clock)
        self._calls = RollingSums(2, policy.degradation.window_s, clock=clock)
        self._latencies = RollingQuantile(policy.degradation.window_s, clock=clock)
        self._waits = RollingQuantile(policy.degradation.window_s, clock=clock)
        self._published: tuple[Any, ...] = ()

    def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Take a new policy; one that does not validate is refused and the old one stays.

        Raises:
            ConfigError: one line for each thing that is wrong.
        """
        try:
            policy = load_policy(user_config)
        except ConfigError as error:
            log.error("policy.refused", extra={"problems": error.problems})  # noqa: TRY400 - the lines say it all
            raise
        self._policy = policy
        self._controller.reconfigure(policy.degradation)
        for window in self._windows.values():
            window.resize(policy.breaker.window_s)
        for breaker in self._breakers.values():
            breaker.reconfigure(policy.breaker)
        for readings in (self._calls, self._latencies, self._waits):
            readings.resize(policy.degradation.window_s)
        log.info("policy.applied")

    async def exchange(self, report: Report) -> Snapshot:
        """Take a replica's report; give it the snapshot."""
        now = self._clock()
        self._reports[report.source] = (now, report)
        self._page.update(report.source, report.metrics)
        self._forget_silent(now)
        for outcome in report.outcomes:
            self._observe(outcome)
        self._calls.add(report.calls, report.failed_calls)
        for latency_s in report.latencies_s:
            self._latencies.add(latency_s)
        for wait_s in report.waits_s:
            self._waits.add(wait_s)
        replies = {name: self._exchange_breaker(name, report) for name in report.breakers if name in self._breakers}
        self._judge_level()
        return replace(self._snapshot(), breakers=replies)

    async def status(self) -> dict[str, Any]:
        """What ``GET /v1/status`` shows."""
        decision = self._controller.decision()
        return {
            "level": {"level": decision.level.value, "reason": decision.reason, "since_s": round(decision.since_s, 1)},
            "models": {name: self._model_status(name) for name in self._windows},
            "replicas": self._replicas(),
            "queues": self._queue_depths(),
            "caches": self._sums("cache_"),
            "cost_usd": self._page.total("dspy_cost_usd_total"),
            "policy": self._policy.model_dump(mode="json"),
        }

    async def metrics(self) -> bytes:
        """The cluster's metrics in Prometheus' text format."""
        return self._page.render(self._cluster_gauges())

    def _exchange_breaker(self, model: str, report: Report) -> BreakerReply:
        breaker = self._breakers[model]
        before = breaker.state
        reply = breaker.exchange(report.source, report.breakers[model])
        if breaker.state is not before:
            fields = {"model": model, "before": before, "reason": breaker.health().reason}
            log.warning("breaker.%s", breaker.state, extra=fields)
        return reply

    def _observe(self, outcome: OutcomeCount) -> None:
        window = self._windows.get(outcome.model)
        effect = MEANINGS[outcome.outcome].breaker
        if window is None or effect in (BreakerEffect.RELEASE, BreakerEffect.IGNORE, BreakerEffect.COOL_DOWN):
            return
        failures = outcome.count if effect in (BreakerEffect.FAILURE, BreakerEffect.OPEN) else 0
        slow = outcome.count if effect is BreakerEffect.SLOW else 0
        window.add(outcome.count, failures, slow, outcome.total_latency_s)

    def _judge_level(self) -> None:
        calls, failed = self._calls.totals()
        is_warm = self._clock() - self._started >= WARM_UP_S
        readings = Readings(
            memory=self._worst("node_memory"),
            cpu=self._worst("node_cpu") if is_warm else None,
            error_rate=failed / calls if calls >= self._policy.breaker.minimum_calls else None,
            p95_latency_s=self._latencies.quantile(0.95),
            queue_wait_s=self._waits.quantile(0.95),
        )
        before = self._controller.decision().level
        after = self._controller.update(readings)
        if after.level is not before:
            log.warning("level.changed", extra={"level": after.level, "before": before, "reason": after.reason})

    def _snapshot(self) -> Snapshot:
        decision = self._controller.decision()
        models = {name: self._health(name) for name in self._windows}
        states = [(health.state, health.generation, health.requests, health.failures) for health in models.values()]
        content = (self._policy, decision.level, decision.reason, states)
        if content != self._published:
            self._published = content
            self._version += 1
        return Snapshot(self._version, self._policy, decision.level, decision.reason, models)

    def _health(self, model: str) -> ModelHealth:
        """The cluster's breaker, over the calls of the whole window."""
        counts = self._windows[model].counts()
        return replace(self._breakers[model].health(), requests=counts.total, failures=counts.failures)

    def _model_status(self, model: str) -> dict[str, Any]:
        health = self._health(model)
        counts = self._windows[model].counts()
        return {
            "breaker": health.state.value,
            "healthy": health.state is BreakerState.CLOSED,
            "reason": health.reason,
            "retry_after_s": round(health.retry_after_s, 1),
            "requests": health.requests,
            "failures": health.failures,
            "mean_latency_s": round(counts.latency_s / counts.total, 4) if counts.total else None,
        }

    def _replicas(self) -> dict[str, int]:
        names = [report.deployment for _, report in self._reports.values()]
        return {name: names.count(name) for name in sorted(set(names))}

    def _queue_depths(self) -> dict[str, float]:
        depths: dict[str, float] = {}
        for _, report in self._reports.values():
            if "queue_depth" in report.gauges:
                depths[report.deployment] = depths.get(report.deployment, 0.0) + report.gauges["queue_depth"]
        return depths

    def _sums(self, prefix: str) -> dict[str, float]:
        sums: dict[str, float] = {}
        for _, report in self._reports.values():
            for name, value in report.gauges.items():
                if name.startswith(prefix):
                    sums[name.removeprefix(prefix)] = sums.get(name.removeprefix(prefix), 0.0) + value
        return sums

    def _worst(self, name: str) -> float | None:
        return max((report.gauges[name] for _, report in self._reports.values() if name in report.gauges), default=None)

    def _cluster_gauges(self) -> tuple[Family, ...]:
        breakers: dict[Labels, float] = {
            (("model", name),): STATE_RANK[self._health(name).state] for name in self._windows
        }
        depths: dict[Labels, float] = {(("deployment", name),): depth for name, depth in self._queue_depths().items()}
        level: dict[Labels, float] = {(): self._controller.decision().level.rank}
        return (
            gauge("dspy_breaker_state", "0 closed, 1 half-open, 2 open.", breakers),
            gauge("dspy_queue_depth", "Calls waiting for a slot.", depths),
            gauge("dspy_degradation_level", "0 full, 1 degraded, 2 minimal.", level),
        )

    def _forget_silent(self, now: float) -> None:
        for source in [name for name, (seen, _) in self._reports.items() if now - seen > SILENCE_S]:
            del self._reports[source]
            self._page.depart(source)
