"""``ControlPlane``: one actor that knows the whole cluster, and is never on a request's path.

Every replica reports a few times a second and takes the snapshot home. What is kept here as actor state: the policy,
the health of each model over the sum of all reports, the level of service, and everybody's last metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serve_app.adapters.telemetry import Family, Labels, MetricsPage, gauge
from serve_app.config import AppConfig
from serve_app.config_check import load_policy
from serve_app.core.clock import Clock
from serve_app.core.degradation import Decision
from serve_app.core.model_load import LOST, load_of, model_deployment_name
from serve_app.core.quality_board import QualityBoard
from serve_app.core.recent_calls import RecentCalls
from serve_app.core.roster import SILENCE_S, Roster
from serve_app.core.service_level import ServiceLevel
from serve_app.deployments.control_state import ControlState
from serve_app.deployments.model_board import ModelBoard
from serve_app.deployments.quality_status import quality_gauges, quality_status
from serve_app.errors import ConfigError, ControlPlaneUnreachable, InvalidInputs
from serve_app.messages import BreakerState, Level
from serve_app.policy import Policy
from serve_app.reports import Claim, Endpoint, ModelLoad, Orders, Report, Snapshot

log = logging.getLogger("switchyard.control_plane")

GATHER_S = 2.0
"""Seconds after a start anew in which no metrics are shown: not every replica has found the new control plane yet."""
REMEMBER_S = 15.0
"""Most seconds in which none are shown because what the life before wrote down is not read yet."""
RECALL_S = 5.0
"""Most seconds in which a first policy that is refused waits for the remembered one."""
STATE_RANK = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class ControlPlane:
    """Cluster-wide state: policy, health, level, metrics, and what operators ordered.

    A control plane that was born again learns from the replicas' next reports what the one before had told them, and
    from ``restore`` what it had written down.

    Args:
        config: the application's topology.
        clock: monotonic seconds.
        unix_clock: seconds since 1970, to tell orders apart over several lives.
    """

    def __init__(self, config: AppConfig, *, clock: Clock = time.monotonic, unix_clock: Clock = time.time) -> None:
        self.changed = asyncio.Event()
        """Set whenever ``state`` has become worth writing down anew."""
        self.recalled = asyncio.Event()
        """Set once ``restore`` has had all that is remembered, be it nothing."""
        self.endpoint: Endpoint | None = None
        """Where ``exchange`` may be had over a channel."""
        self._clock = clock
        self._unix_clock = unix_clock
        self._started = clock()
        self._policy = policy = Policy()
        self._version = 1
        self._page = MetricsPage(clock=clock)
        self._roster = Roster(clock=clock)
        self._models = ModelBoard((model.name for model in config.models), policy.breaker, clock=clock)
        self._level = ServiceLevel(policy.degradation, clock=clock)
        self._programs = [program.name for program in config.programs]
        self._quality = QualityBoard({model.name: model.quality for model in config.models}, clock=clock)
        self._recent_calls = RecentCalls()
        self._had_a_life_before = False
        self._has_policy = False
        self._remembered_policy: Policy | None = None
        self._policy_problems: tuple[str, ...] = ()
        self._orders = Orders()
        self._published: tuple[Any, ...] = ()
        self._noted: tuple[Any, ...] = ()

    async def recall(self, user_config: Mapping[str, Any] | None) -> None:
        """Wait until ``reconfigure`` can decide on ``user_config``; only a first policy that it will refuse takes time.

        A memory that says nothing for ``RECALL_S`` counts as empty.
        """
        if self._has_policy or _is_valid(user_config):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECALL_S):
                await self.recalled.wait()

    def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Take a new policy; one that does not validate is refused and the old one stays, be it an earlier life's.

        Ray stops a replica whose ``reconfigure`` raises, and with it would go the old policy. So only the first one
        raises, and only where none is remembered; the problems of others are logged and shown in the status.

        Raises:
            ConfigError: there is no old one; one line for each thing that is wrong.
        """
        try:
            policy = load_policy(user_config)
        except ConfigError as error:
            log.error("policy.refused", extra={"problems": error.problems})  # noqa: TRY400 - the lines say it all
            self._keep_policy(error)
        else:
            self._apply(policy)
            self._policy_problems = ()
        self._note_change()

    def _keep_policy(self, error: ConfigError) -> None:
        if not self._has_policy:
            if self._remembered_policy is None:
                raise error
            self._apply(self._remembered_policy)
        self._policy_problems = tuple(error.problems)

    def _apply(self, policy: Policy) -> None:
        self._has_policy = True
        self._policy = self._remembered_policy = policy
        self._models.reconfigure(policy.breaker)
        self._level.reconfigure(policy.degradation)
        log.info("policy.applied")

    async def exchange(self, report: Report) -> Snapshot:
        """Take a replica's report; give it the snapshot."""
        if report.source not in self._roster:
            self._learn(report)
        for gone in self._roster.hear(report):
            self._page.depart(gone)
        self._page.update(report.source, report.metrics)
        self._quality.take(report)
        self._recent_calls.remember(report.answered)
        self._level.take(report)
        replies = self._models.take(report)
        self._judge_level()
        self._note_change()
        endpoints = {name: self._roster.endpoints_of(name) for name in report.callees}
        return replace(self._snapshot(), breakers=replies, endpoints=endpoints, control=self.endpoint)

    async def depart(self, source: str) -> None:
        """Let a replica go that has given its last report; one that says nothing is let go after ``SILENCE_S``."""
        self._roster.forget(source)
        self._page.depart(source)
        self._note_change()

    # ── what operators order ─────────────────────────────────────────────────────────────────────────

    async def isolate(self, model: str, reason: str) -> dict[str, Any]:
        """Keep every call away from a model until ``reset``; returns its status.

        Raises:
            InvalidInputs: no model is called so.
        """
        self._models.isolate(model, reason)
        self._note_change()
        return self._models.status(model)

    async def reset(self, model: str) -> dict[str, Any]:
        """Close a model's breaker everywhere and forget its failures; returns its status.

        Raises:
            InvalidInputs: no model is called so.
        """
        self._models.reset(model)
        self._note_change()
        return self._models.status(model)

    async def pin(self, level: Level | None) -> dict[str, Any]:
        """Hold a level whatever readings and policy say, or with ``None`` leave it to them; returns the level."""
        self._order(Orders(pin=level, pinned_at=self._moment()))
        log.warning("level.pinned", extra={"level": level})
        self._judge_level()
        self._note_change()
        return self._level_status()

    async def forget(self, program: str | None) -> dict[str, float]:
        """Have every cache drop a program's stored answers, or with ``None`` everybody's; returns when each was told.

        Raises:
            InvalidInputs: no program is called so.
        """
        if program is not None and program not in self._programs:
            raise InvalidInputs(f"no program is called {program!r}")
        programs = self._programs if program is None else [program]
        self._order(Orders(forgotten=dict.fromkeys(programs, self._moment())))
        log.warning("cache.forgotten", extra={"program": program or "all"})
        self._note_change()
        return dict(self._orders.forgotten)

    def _moment(self) -> float:
        """Unix time, but later than every order so far, whatever became of the clock."""
        return max(self._unix_clock(), *(t + 1e-3 for t in (self._orders.pinned_at, *self._orders.forgotten.values())))

    def _order(self, orders: Orders) -> None:
        self._orders = self._orders.merged(orders)
        self._level.pin(self._orders.pin)

    # ── from one life to the next ────────────────────────────────────────────────────────────────────

    def state(self) -> dict[str, Any]:
        """What the next life should know, as JSON's own types."""
        level = self._level.decision()
        return ControlState(
            written_at=self._unix_clock(),
            breakers=self._models.snapshot(),
            level=level.level,
            reason=level.reason,
            since_s=level.since_s,
            orders=self._orders,
            departed=self._page.departed(),
            policy=self._remembered_policy,
        ).dump()

    def restore(self, state: object) -> bool:
        """Go on where ``state`` left off; False, and nothing done, when no control plane could have written it.

        Its policy is remembered for ``reconfigure`` to fall back on.
        """
        known = ControlState.read(state)
        if known is None:
            return False
        self._had_a_life_before = True
        age_s = max(0.0, self._unix_clock() - known.written_at)
        self._models.restore(known.breakers, age_s)
        self._level.restore(Decision(known.level, known.reason, known.since_s + age_s))
        self._order(known.orders)
        self._page.restore(known.departed)
        if known.policy is not None and not self._has_policy:
            self._remembered_policy = known.policy
        return True

    def _learn(self, report: Report) -> None:
        """Take over what a replica was told by an earlier life of this control plane."""
        self._order(report.orders)
        is_new_born = self._clock() - self._started < SILENCE_S
        self._had_a_life_before |= is_new_born and report.told > 0
        if is_new_born:
            self._level.restore(Decision(report.level, "as before a restart of the control plane", 0.0))

    def _note_change(self) -> None:
        """Set ``changed`` after anything that ``state`` tells, save for times that merely pass."""
        told = (self._models.states(), self._level.level, self._orders, self._page.changes, self._remembered_policy)
        if told != self._noted:
            self._noted = told
            self.changed.set()

    # ── what it tells ────────────────────────────────────────────────────────────────────────────────

    async def status(self) -> dict[str, Any]:
        """What ``GET /v1/status`` shows."""
        costs = self._page.totals("dspy_cost_usd_total", "model")
        models = {name: self._models.status(name) for name in self._models.names}
        return {
            "level": self._level_status(),
            "models": {name: shown | {"cost_usd": costs.get((name,), 0.0)} for name, shown in models.items()},
            "replicas": self._roster.counts(),
            "queues": self._roster.sum_by_deployment("queue_depth"),
            "caches": self._roster.sums("cache_"),
            "cost_usd": sum(costs.values()),
            "quality": quality_status(self._quality, self._page, self._policy.routing),
            "policy": self._policy.model_dump(mode="json"),
            "policy_problems": list(self._policy_problems),
        }

    async def claim(self, request_id: str, token: str) -> Claim:
        """The call that a caller's verdict is about; until it is settled, handed out to that verdict only."""
        return self._recent_calls.claim(request_id, token)

    async def settle(self, call_id: str) -> bool:
        """Whether the verdict on a claimed call is to be counted; then its call is handed out no more."""
        return self._recent_calls.settle(call_id)

    async def metrics(self) -> bytes:
        """The cluster's metrics in Prometheus' text format.

        Raises:
            ControlPlaneUnreachable: it was born again; a page without everybody's totals would read as a reset.
        """
        if self._is_gathering():
            raise ControlPlaneUnreachable(
                "the control plane was started anew and gathers the replicas' totals", GATHER_S
            )
        return self._page.render(self._cluster_gauges())

    def _is_gathering(self) -> bool:
        """Whether totals may be missing that the life before showed: of those that are there, or of those that left."""
        known_after_s = GATHER_S if self.recalled.is_set() else REMEMBER_S
        return self._had_a_life_before and self._clock() - self._started < known_after_s

    def _level_status(self) -> dict[str, Any]:
        decision = self._level.decision()
        return {"level": decision.level.value, "reason": decision.reason, "since_s": round(decision.since_s, 1)}

    def _judge_level(self) -> None:
        before = self._level.level
        after = self._level.judge(memory=self._roster.worst("node_memory"), cpu=self._roster.worst("node_cpu"))
        if after.level is not before:
            log.warning("level.changed", extra={"level": after.level, "before": before, "reason": after.reason})

    def _snapshot(self) -> Snapshot:
        decision = self._level.decision()
        models = {name: self._models.health(name) for name in self._models.names}
        states = [(health.state, health.generation, health.requests, health.failures) for health in models.values()]
        content = (self._policy, decision.level, decision.reason, states, self._orders)
        if content != self._published:
            self._published = content
            self._version += 1
        routing = self._policy.routing
        quality = self._quality.learned(routing.learning) if routing.learn_quality else {}
        told = (self._policy, decision.level, decision.reason, models, self._orders)
        return Snapshot(self._version, *told, quality=quality, loads=self._loads())

    def _loads(self) -> dict[str, ModelLoad]:
        """How busy each model is, by what its replicas said last."""
        lost = self._roster.sums(LOST)
        return {
            name: load_of(self._roster.gauges_of(model_deployment_name(name)), lost.get(name, 0.0))
            for name in self._models.names
        }

    def _cluster_gauges(self) -> tuple[Family, ...]:
        breakers: dict[Labels, float] = {
            (("model", name),): STATE_RANK[self._models.health(name).state] for name in self._models.names
        }
        waiting = self._roster.sum_by_deployment("queue_depth")
        depths: dict[Labels, float] = {(("deployment", name),): depth for name, depth in waiting.items()}
        decision = self._level.decision()
        level: dict[Labels, float] = {(): decision.level.rank}
        cause: dict[Labels, float] = {(("cause", decision.cause),): 1.0} if decision.reason else {}
        return (
            gauge("dspy_breaker_state", "0 closed, 1 half-open, 2 open.", breakers),
            gauge("dspy_queue_depth", "Calls waiting for a slot.", depths),
            gauge("dspy_degradation_level", "0 full, 1 degraded, 2 minimal.", level),
            gauge("dspy_degradation_cause", "1 for what holds the present level.", cause),
            *quality_gauges(self._quality, self._policy.routing),
        )


def _is_valid(user_config: Mapping[str, Any] | None) -> bool:
    try:
        load_policy(user_config)
    except ConfigError:
        return False
    return True
