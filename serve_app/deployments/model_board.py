"""What the whole cluster knows of each model: its breaker, its recent calls, and why a provider denies it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from serve_app.core.breaker_messages import BreakerReply, BreakerReport
from serve_app.core.clock import Clock
from serve_app.core.cluster_breaker import ClusterBreaker
from serve_app.core.outcomes import MEANINGS, BreakerEffect
from serve_app.core.rolling_window import RollingWindow
from serve_app.errors import InvalidInputs
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy
from serve_app.reports import ModelHealth, OutcomeCount, Report

log = logging.getLogger("switchyard.control_plane")

_NOT_COUNTED: Final = (BreakerEffect.RELEASE, BreakerEffect.IGNORE, BreakerEffect.COOL_DOWN)
_FAILURES: Final = (BreakerEffect.FAILURE, BreakerEffect.OPEN)


class ModelBoard:
    """Every model's cluster-wide breaker and health.

    Args:
        names: of the configured models.
        policy: of the breakers.
        clock: monotonic seconds.
    """

    def __init__(self, names: Iterable[str], policy: BreakerPolicy, *, clock: Clock) -> None:
        self.names = tuple(names)
        self._windows = {name: RollingWindow(policy.window_s, clock=clock) for name in self.names}
        self._breakers = {name: ClusterBreaker(policy, clock=clock) for name in self.names}
        self._denials: dict[str, str] = {}

    def take(self, report: Report) -> dict[str, BreakerReply]:
        """Count what a replica saw; returns the replies for its own breakers."""
        for outcome in report.outcomes:
            self._observe(outcome)
        self._denials |= report.denials
        known = {name: told for name, told in report.breakers.items() if name in self._breakers}
        return {name: self._exchange(name, report.source, told) for name, told in known.items()}

    def health(self, model: str) -> ModelHealth:
        """The model's breaker, over the calls of the whole window."""
        counts = self._windows[model].counts()
        return replace(self._breakers[model].health(), requests=counts.total, failures=counts.failures)

    def states(self) -> tuple[tuple[BreakerState, int], ...]:
        """Each breaker's state and generation."""
        return tuple((breaker.state, breaker.generation) for breaker in self._breakers.values())

    def status(self, model: str) -> dict[str, Any]:
        """What ``GET /v1/status`` shows of a model."""
        health, counts = self.health(model), self._windows[model].counts()
        why = self._denials.get(model) if health.reason == Outcome.DENIED else None
        return {
            "breaker": health.state.value,
            "healthy": health.state is BreakerState.CLOSED,
            "reason": f"{health.reason}: {why}" if why else health.reason,
            "retry_after_s": round(health.retry_after_s, 1),
            "requests": health.requests,
            "failures": health.failures,
            "mean_latency_s": round(counts.latency_s / counts.total, 4) if counts.total else None,
        }

    def isolate(self, model: str, reason: str) -> None:
        """Keep every call away from a model until ``reset``.

        Raises:
            InvalidInputs: no model is called so.
        """
        self._breaker(model).isolate(f"isolated: {reason}")
        log.warning("breaker.isolated", extra={"model": model, "reason": reason})

    def reset(self, model: str) -> None:
        """Close a model's breaker everywhere and forget its failures.

        Raises:
            InvalidInputs: no model is called so.
        """
        self._breaker(model).reset()
        self._windows[model].clear()
        log.warning("breaker.reset", extra={"model": model})

    def reconfigure(self, policy: BreakerPolicy) -> None:
        """Go on under another policy."""
        for name in self.names:
            self._windows[name].resize(policy.window_s)
            self._breakers[name].reconfigure(policy)

    def snapshot(self) -> dict[str, Any]:
        """The breakers as JSON's own types, for a next life."""
        return {name: breaker.snapshot() for name, breaker in self._breakers.items()}

    def restore(self, known: Mapping[str, Any], age_s: float) -> None:
        """Go on where ``snapshot`` left off ``age_s`` seconds ago; what is corrupt or older is left out."""
        for name, breaker in self._breakers.items():
            breaker.restore(known.get(name), age_s)

    def _breaker(self, model: str) -> ClusterBreaker:
        if model not in self._breakers:
            raise InvalidInputs(f"no model is called {model!r}")
        return self._breakers[model]

    def _exchange(self, model: str, source: str, told: BreakerReport) -> BreakerReply:
        breaker = self._breakers[model]
        before = breaker.state
        reply = breaker.exchange(source, told)
        if breaker.state is not before:
            fields = {"model": model, "before": before, "reason": breaker.health().reason}
            log.warning("breaker.%s", breaker.state, extra=fields)
        return reply

    def _observe(self, outcome: OutcomeCount) -> None:
        window, effect = self._windows.get(outcome.model), MEANINGS[outcome.outcome].breaker
        if window is None or effect in _NOT_COUNTED:
            return
        failures = outcome.count if effect in _FAILURES else 0
        slow = outcome.count if effect is BreakerEffect.SLOW else 0
        window.add(outcome.count, failures, slow, outcome.total_latency_s)
