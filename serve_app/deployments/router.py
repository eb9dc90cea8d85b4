"""``Router``: turns a call into a route, and asks one model after the other until one answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from serve_app.adapters.telemetry import Telemetry
from serve_app.adapters.tracing import traced
from serve_app.config import AppConfig
from serve_app.core.breaker_messages import BreakerReply
from serve_app.core.clock import Clock
from serve_app.core.deadline import attempt_timeout_s, passed_on_s
from serve_app.core.expected_wait import BUSY, refusal_at
from serve_app.core.fallback import FallbackPlan
from serve_app.core.outcomes import MEANINGS, classify_latency, classify_timeout
from serve_app.core.permit import Refusal
from serve_app.core.recent_usage import RecentUsage
from serve_app.core.retry_budget import RetryBudget
from serve_app.core.route_gate import RouteGate, RoutePermit
from serve_app.core.routing import Demand, ModelFacts, select
from serve_app.deployments.call_tasks import CallTasks
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.lane import Lane
from serve_app.deployments.stage import Chunks, Stage, StageAbsent, StageLost
from serve_app.errors import (
    CircuitOpen,
    DeadlineExceeded,
    NoRoute,
    Overloaded,
    RateLimited,
    SwitchyardError,
    UpstreamError,
    UpstreamRefused,
)
from serve_app.messages import Attempt, Call, Outcome, Result, Route, Snapshot, Step, Usage

log = logging.getLogger("switchyard.router")

REPLY_GRACE_S = 0.5
"""Seconds a replica has, past an attempt's time, to say itself that the time is over."""
START_S = 60.0
"""Seconds in which a replica starts, or fails to; a model that has none for longer is one that does not answer."""
COOLING = "cooling"
"""Reason of a refusal for a model whose provider asked to be left alone for a while."""


@dataclass(slots=True)
class _Journey:
    """One call on its way from model to model."""

    call: Call
    deadline: float
    demand: Demand
    plan: FallbackPlan
    begun: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    error: SwitchyardError | None = None
    journal: tuple[Step, ...] = ()

    @property
    def ends_at(self) -> float:
        """When the call is over: what is left then was kept for the way back."""
        return self.deadline - (self.call.remaining_s - passed_on_s(self.call.remaining_s))


class _Sent:
    """Calls sent to one model and not back yet; a context manager around each."""

    def __init__(self) -> None:
        self._now = self._before = 0
        self._seen: Snapshot | None = None

    def since(self, snapshot: Snapshot) -> int:
        """How many more there are than when this snapshot was first looked at."""
        if snapshot is not self._seen:
            self._seen, self._before = snapshot, self._now
        return max(0, self._now - self._before)

    def __enter__(self) -> None:
        self._now += 1

    def __exit__(self, *_: object) -> None:
        self._now -= 1


class Router:
    """A stage that answers each call with the first model of its route that can.

    Args:
        config: the application's topology.
        stages: who answers for each model, by model name.
        telemetry: this replica's metrics.
        link: the line to the control plane, whose snapshots carry the policy.
    """

    is_remote: ClassVar[bool] = False
    """Whether who asks is in another process."""

    def __init__(
        self,
        config: AppConfig,
        stages: Mapping[str, Stage],
        telemetry: Telemetry,
        link: ControlLink,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._levels = {program.name: program.levels for program in config.programs}
        self._hedge_after_s = {program.name: program.hedge_after_s for program in config.programs}
        self._default_model = config.default_model
        self._models = {model.name: model for model in config.models}
        self._windows = {model.name: model.context_window for model in config.models}
        self._work = CallTasks(is_remote=self.is_remote)
        self._lanes = {name: Lane(stage) for name, stage in stages.items()}
        self._telemetry = telemetry
        self._link = link
        self._clock = clock
        policy = link.snapshot.policy
        self._sent = {name: _Sent() for name in stages}
        self._gates = {name: RouteGate(policy.breaker, clock=clock) for name in stages}
        self._budget = RetryBudget(policy.retry, clock=clock)
        self._recent = RecentUsage(clock=clock)
        self._without_replica: dict[str, float] = {}
        link.add_breakers(lambda: {name: gate.report() for name, gate in self._gates.items()}, self._apply)
        link.on_snapshot(self._reconfigure)

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call, each as it is ready."""
        arrived = self._clock()
        return self._work.run(calls, lambda call: self.answer(call, arrived + call.remaining_s))

    def leave(self, ids: Sequence[str]) -> None:
        """Give up these calls, at their models too."""
        self._work.leave(ids)

    @traced("router")
    async def answer(self, call: Call, deadline: float) -> Result:
        """Walk the call's route until a model answers, or nothing is left to try."""
        demand, route = self._route(call)
        plan = FallbackPlan(route.models, self._windows, self._link.snapshot.policy.routing.max_attempts)
        journey = _Journey(call, deadline, demand, plan)
        while model_and_permit := self._next(journey):
            result = await self._ask(journey, *model_and_permit)
            if result.error is None:
                return self._finished(journey, result)
            journey.error = result.error
            journey.journal = result.journal or journey.journal
        return self._finished(journey, Result(call.id, error=self._why(journey)))

    def _route(self, call: Call) -> tuple[Demand, Route]:
        level = self._levels[call.program].at(call.level)
        demand = Demand.of(call.inputs, call.options, level.max_tokens)
        learned = self._link.snapshot.quality
        facts = {
            name: ModelFacts.of(
                model,
                self._recent.expect(call.program, name, prior_latency_s=model.latency_s),
                learned.get((call.program, call.level, name)),
            )
            for name, model in self._models.items()
        }
        return demand, select(demand, level.models, facts, self._link.snapshot.policy.routing, self._default_model)

    async def _ask(self, journey: _Journey, model: str, permit: RoutePermit) -> Result:
        """One attempt; where the program hedges, a second one beside it when it takes long. The first answer counts."""
        hedge_after_s = self._hedge_after_s[journey.call.program]
        if hedge_after_s is None:
            return await self._attempt(journey, model, permit)
        running = {asyncio.create_task(self._attempt(journey, model, permit))}
        try:
            done, _ = await asyncio.wait(running, timeout=hedge_after_s)
            if not done and (hedge := self._next(journey, is_hedge=True)):
                running.add(asyncio.create_task(self._attempt(journey, *hedge)))
            return await _first_answer(running)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _next(self, journey: _Journey, *, is_hedge: bool = False) -> tuple[str, RoutePermit] | None:
        """The next model that may be asked, with its breaker's permit."""
        if self._clock() >= journey.ends_at:
            return None
        for model in journey.plan.models:
            if busy := self._too_busy(journey, model):
                journey.refusals.append(busy)
                journey.plan.skip(model)
                continue
            permit = self._gates[model].admit()
            if isinstance(permit, RoutePermit):
                if self._may_ask_again(journey, model, is_hedge=is_hedge):
                    journey.plan.begin(model)
                    return model, permit
                self._gates[model].release(permit)
                return None
            journey.refusals.append(permit)
            journey.plan.skip(model)
        return None

    def _too_busy(self, journey: _Journey, model: str) -> Refusal | None:
        """Why the call cannot expect a slot of the model in its time; ``None`` when it can, or nothing is known."""
        load = self._link.snapshot.loads.get(model)
        if load is None:
            return None
        timeout_s = self._timeout_s(journey, model, journey.plan.attempts_left)
        sent = self._sent[model].since(self._link.snapshot)
        run_s = self._recent.usual_run_s(journey.call.program, model)
        refusal = refusal_at(load, journey.call.options.priority, timeout_s, sent, run_s=run_s)
        return replace(refusal, reason=BUSY) if refusal else None

    def _timeout_s(self, journey: _Journey, model: str, attempts_left: int) -> float:
        """A model that takes longer for this program than its prior says gets its time all the same."""
        remaining_s, prior_s = journey.deadline - self._clock(), self._models[model].latency_s
        usual = self._recent.expect(journey.call.program, model, prior_latency_s=prior_s)
        return attempt_timeout_s(remaining_s, attempts_left, max(prior_s, usual.latency_s))

    def _may_ask_again(self, journey: _Journey, model: str, *, is_hedge: bool) -> bool:
        """A first attempt is free, and so is a call's first fallback where ``_is_free``.

        Each further attempt, and one beside another, is paid from the retry budget.
        """
        if not journey.begun:
            self._budget.deposit()
        elif not (self._is_free(journey) and not is_hedge) and not self._budget.withdraw():
            if not is_hedge:
                journey.refusals.append(Refusal(1.0, "retry_budget"))
            return False
        else:
            reason = "hedge" if is_hedge else journey.attempts[-1].outcome
            self._telemetry.fell_back(journey.call.program, journey.begun[-1], model, reason)
        journey.begun.append(model)
        return True

    def _is_free(self, journey: _Journey) -> bool:
        """Whether going on costs nothing: nobody asks that model any more, or it was not given its time."""
        was_cut_short = bool(journey.attempts) and journey.attempts[-1].outcome is Outcome.CUT_SHORT
        return len(journey.begun) == 1 and (was_cut_short or self._gates[journey.begun[0]].refusal() is not None)

    @traced("attempt {model}")
    async def _attempt(self, journey: _Journey, model: str, permit: RoutePermit) -> Result:
        started = self._clock()
        remaining_s = journey.deadline - started
        timeout_s = self._timeout_s(journey, model, 1 + journey.plan.attempts_left)
        given_s = passed_on_s(timeout_s)
        call = replace(journey.call, model=model, remaining_s=given_s, journal=journey.journal)
        lane = self._lanes[model]
        if load := self._link.snapshot.loads.get(model):
            lane.spread = load.spread
        try:
            async with asyncio.timeout(min(timeout_s + REPLY_GRACE_S, remaining_s)):
                with self._sent[model]:
                    result = await lane.ask(call)
                    if _was_lost(result) and not journey.plan.models:  # nobody else to ask: another of its replicas
                        left_s = given_s - (self._clock() - started)
                        result = await lane.ask(replace(call, remaining_s=left_s))
        except TimeoutError:
            result = Result(call.id, error=UpstreamError(f"{model} did not answer in time", outcome=Outcome.TIMEOUT))
        except asyncio.CancelledError:
            self._gates[model].release(permit)
            journey.attempts.append(Attempt(model, Outcome.CANCELLED, self._clock() - started))
            raise
        took_s = self._clock() - started
        outcome = self._outcome(journey, model, result, took_s=took_s, given_s=given_s)
        self._learn(journey, model, permit, result, outcome, took_s)
        return result

    def _outcome(self, journey: _Journey, model: str, result: Result, *, took_s: float, given_s: float) -> Outcome:
        """How the attempt ended; a replica that was still to be started did not work on it."""
        is_starting = self._is_starting(model)
        if result.error is None:
            return Outcome.OK
        if is_starting and result.error.outcome is Outcome.TIMEOUT and not result.attempts:
            return Outcome.CUT_SHORT
        ran_s = result.attempts[-1].latency_s if result.attempts else took_s
        usual_s = self._recent.usual_run_s(journey.call.program, model)
        return classify_timeout(result.error.outcome, ran_s=ran_s, took_s=took_s, given_s=given_s, usual_s=usual_s)

    def _is_starting(self, model: str) -> bool:
        """Whether a model that may scale to zero has no replica, but has not been without one for too long."""
        load = self._link.snapshot.loads.get(model)
        if self._models[model].replicas.min or (load and load.replicas):
            self._without_replica.pop(model, None)
            return False
        return self._clock() - self._without_replica.setdefault(model, self._clock()) < START_S

    def _learn(
        self,
        journey: _Journey,
        model: str,
        permit: RoutePermit,
        result: Result,
        outcome: Outcome,
        latency_s: float,
    ) -> None:
        """Tell everyone who decides how the attempt ended."""
        retry_after_s = result.error.retry_after_s if result.error else None
        self._gates[model].record(permit, outcome, latency_s, retry_after_s=retry_after_s)
        told = result.attempts[-1] if result.attempts else None
        waited_s = max(0.0, latency_s - told.latency_s) if told else None
        slow_call_s = self._link.snapshot.policy.breaker.slow_call_s
        attempt = replace(
            told or Attempt(model, outcome, latency_s),
            outcome=classify_latency(outcome, latency_s, slow_call_s),
            latency_s=latency_s,
            waited_s=waited_s,
        )
        journey.attempts.append(attempt)
        journey.plan.record(model, outcome)
        self._link.attempt_finished(attempt)
        if outcome is Outcome.OK:
            tokens = journey.demand.input_tokens
            ran_s = told.latency_s if told else None
            self._recent.observe(
                journey.call.program, model, attempt.usage, latency_s, estimated_input_tokens=tokens, ran_s=ran_s
            )
        elif MEANINGS[outcome].is_operator_error:
            log.error("model.denied", extra={"model": model, "why": str(result.error)})
            self._link.denied(model, str(result.error))

    @staticmethod
    def _finished(journey: _Journey, result: Result) -> Result:
        """The result with everything that was spent on the way to it."""
        attempts = tuple(journey.attempts)
        return replace(
            result,
            model=next((attempt.model for attempt in result.attempts or attempts[-1:]), ""),
            level=journey.call.level,
            attempts=attempts,
            usage=sum((attempt.usage for attempt in attempts), Usage()),
            journal=(),
            cost_usd=round(sum(attempt.cost_usd for attempt in attempts), 12),
        )

    def _why(self, journey: _Journey) -> SwitchyardError:
        """What a caller is told when no model answered."""
        error, outcomes = journey.error, {attempt.outcome for attempt in journey.attempts}
        if isinstance(error, Overloaded):  # the replica's own queue knew better than the last report
            self._telemetry.shed(BUSY, journey.call.options.priority)
        elif self._clock() >= journey.ends_at or outcomes == {Outcome.REJECTED}:
            return DeadlineExceeded("the deadline passed before a model answered")
        if error is not None and error.outcome is Outcome.CONTEXT_WINDOW:
            return UpstreamRefused("the inputs are longer than any model of the route takes")
        if error is not None and not _is_down(error):
            return error
        retry_after_s = self._retry_after_s(journey, error)
        if error is not None:
            return NoRoute(f"no model could answer; the last one: {error}", retry_after_s)
        return self._refused(journey, retry_after_s)

    def _refused(self, journey: _Journey, retry_after_s: float) -> SwitchyardError:
        """What a caller is told when no model was asked."""
        reasons = {refusal.reason for refusal in journey.refusals}
        if BUSY in reasons:
            self._telemetry.shed(BUSY, journey.call.options.priority)
            return Overloaded("every model of the route is too busy to answer in time", retry_after_s)
        if reasons == {COOLING}:
            self._telemetry.shed(COOLING, journey.call.options.priority)
            return RateLimited("every model is cooling down after a rate limit", retry_after_s)
        return CircuitOpen("every model of the route is down at the moment", retry_after_s)

    def _retry_after_s(self, journey: _Journey, error: SwitchyardError | None) -> float:
        """Seconds until the first of the call's models may be asked again."""
        waits = [refusal.retry_after_s for refusal in journey.refusals]
        if error is not None:
            models = {attempt.model for attempt in journey.attempts}
            refusals = [self._gates[model].refusal() for model in models]
            waits += [refusal.retry_after_s if refusal else 1.0 for refusal in refusals]
        return min(waits, default=1.0)

    def _apply(self, replies: Mapping[str, BreakerReply]) -> None:
        for name, reply in replies.items():
            self._gates[name].apply(reply)

    def _reconfigure(self, snapshot: Snapshot) -> None:
        for gate in self._gates.values():
            gate.reconfigure(snapshot.policy.breaker)
        self._budget.reconfigure(snapshot.policy.retry)


async def _first_answer(running: set[asyncio.Task[Result]]) -> Result:
    """The first result without an error; when none is, the last one."""
    pending = running
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        results = [task.result() for task in done]
        answer = next((result for result in results if result.error is None), None)
        if answer is not None or not pending:
            return answer or results[-1]


def _was_lost(result: Result) -> bool:
    """Whether the replica that had the call is gone, which says nothing of the model."""
    return isinstance(result.error, StageLost) and not isinstance(result.error, StageAbsent)


def _is_down(error: SwitchyardError) -> bool:
    """Whether the error only says that a model is not there, so that the call as a whole found no route."""
    return isinstance(error, UpstreamError) and error.retryable
