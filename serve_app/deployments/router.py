"""``Router``: turns a call into a route, and asks one model after the other until one answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from serve_app.adapters.telemetry import Telemetry
from serve_app.adapters.tracing import traced
from serve_app.config import AppConfig
from serve_app.core.breaker_messages import BreakerReply
from serve_app.core.clock import Clock
from serve_app.core.deadline import attempt_timeout_s, is_worth_asking, passed_on_s
from serve_app.core.expected_wait import BUSY, refusal_at
from serve_app.core.fallback import FallbackPlan
from serve_app.core.model_load import LOST
from serve_app.core.offered_calls import OfferedCalls
from serve_app.core.outcomes import MEANINGS, classify_latency
from serve_app.core.permit import Refusal
from serve_app.core.recent_usage import RecentUsage
from serve_app.core.retry_budget import RetryBudget
from serve_app.core.route_gate import RouteGate, RoutePermit
from serve_app.core.routing import Demand, ModelFacts, select
from serve_app.deployments.attempt_judge import AttemptJudge, was_lost
from serve_app.deployments.call_tasks import CallTasks
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.journey import COOLING, Journey, why_unanswered
from serve_app.deployments.lane import Lane
from serve_app.deployments.stage import Chunks, Stage
from serve_app.errors import Overloaded, RateLimited, SwitchyardError, UpstreamError
from serve_app.messages import Attempt, Call, Outcome, Result, Route, Usage
from serve_app.reports import Snapshot

log = logging.getLogger("switchyard.router")

REPLY_GRACE_S = 0.5
"""Seconds a replica has, past an attempt's time, to say itself that the time is over."""


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
        self._offered = {name: OfferedCalls(clock=clock) for name in stages}
        self._gates = {name: RouteGate(policy.breaker, clock=clock) for name in stages}
        self._budget = RetryBudget(policy.retry, clock=clock)
        self._recent = RecentUsage(clock=clock)
        self._judge = AttemptJudge(self._models, self._recent, link, clock=clock)
        link.add_gauges(self._lost)
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
        journey = Journey(call, deadline, demand, route.models, plan)
        while model_and_permit := self._next(journey):
            result = await self._ask(journey, *model_and_permit)
            if result.error is None:
                return self._finished(journey, result)
            journey.error = result.error
            journey.journal = result.journal or journey.journal
        return self._finished(journey, Result(call.id, error=self._unanswered(journey)))

    def _route(self, call: Call) -> tuple[Demand, Route]:
        level = self._levels[call.program].at(call.level)
        demand = Demand.of(call.inputs, call.options, level)
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

    async def _ask(self, journey: Journey, model: str, permit: RoutePermit) -> Result:
        """One attempt; where the program hedges, a second one beside it when it takes long. The first answer counts."""
        hedge_after_s = self._hedge_after_s[journey.call.program]
        if hedge_after_s is None:
            return await self._attempt(journey, model, permit)
        running = {asyncio.create_task(self._attempt(journey, model, permit))}
        try:
            done, _ = await asyncio.wait(running, timeout=hedge_after_s)
            if not done and (hedge := self._next(journey, is_hedge=True)):
                running.add(asyncio.create_task(self._attempt(journey, *hedge)))
            result = await _first_answer(running)
            journey.is_answered = result.error is None
            return result
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _next(self, journey: Journey, *, is_hedge: bool = False) -> tuple[str, RoutePermit] | None:
        """The next model that may be asked, with its breaker's permit."""
        if self._clock() >= journey.ends_at:
            return None
        for model in self._worth_asking(journey):
            permit = self._too_busy(journey, model) or self._gates[model].admit()
            if isinstance(permit, RoutePermit):
                if self._may_ask_again(journey, model, is_hedge=is_hedge):
                    journey.plan.begin(model)
                    return model, permit
                self._gates[model].release(permit)
                return None
            if not is_hedge:  # what cannot be asked beside another may be asked after it
                self._leave_out(journey, model, permit)
        return None

    def _leave_out(self, journey: Journey, model: str, refusal: Refusal) -> None:
        journey.refusals.append(refusal)
        journey.plan.skip(model)
        if refusal.reason == BUSY:
            self._offered[model].lose()

    def _lost(self) -> dict[str, float]:
        """For each model, how many calls would run there that it was too busy for."""
        loads = self._link.snapshot.loads
        known_s = {name: loads[name].service_s if name in loads else 0.0 for name in self._offered}
        return {LOST + name: offered.running(known_s[name])[1] for name, offered in self._offered.items()}

    def _too_busy(self, journey: Journey, model: str) -> Refusal | None:
        """Why the call cannot expect a slot of the model in its time; ``None`` when it can, or nothing is known."""
        load = self._link.snapshot.loads.get(model)
        if load is None:
            return None
        timeout_s = self._timeout_s(journey, model, journey.plan.attempts_left(self._is_up))
        sent = self._sent[model].since(self._link.snapshot)
        run_s = self._recent.usual_run_s(journey.call.program, model)
        refusal = refusal_at(load, journey.call.options.priority, timeout_s, sent, run_s=run_s)
        return replace(refusal, reason=BUSY) if refusal else None

    def _is_up(self, model: str) -> bool:
        return self._gates[model].refusal() is None

    def _timeout_s(self, journey: Journey, model: str, attempts_left: int) -> float:
        """A model that takes longer for this program than its prior says gets its time all the same."""
        remaining_s, prior_s = journey.deadline - self._clock(), self._models[model].latency_s
        usual = self._recent.expect(journey.call.program, model, prior_latency_s=prior_s)
        return attempt_timeout_s(remaining_s, attempts_left, max(prior_s, usual.latency_s))

    def _worth_asking(self, journey: Journey) -> Sequence[str]:
        """The models left that have time to answer; the first is asked in any case, for its caller wants no more."""
        left, remaining_s = journey.plan.models, journey.ends_at - self._clock()
        if not journey.ran:
            return left
        usual_s = {model: self._judge.usual_run_s(journey.call.program, model) for model in left}
        quick = [model for model in left if is_worth_asking(remaining_s, usual_s[model])]
        journey.is_out_of_time = bool(left) and not quick
        return quick

    def _may_ask_again(self, journey: Journey, model: str, *, is_hedge: bool) -> bool:
        """A first attempt is free, and so is a fallback where ``_is_free``.

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

    def _is_free(self, journey: Journey) -> bool:
        """Whether going on adds no load: no model was asked, or one that had not its time or that nobody asks now."""
        if not (ran := journey.ran):
            return True
        return len(ran) == 1 and (ran[0].outcome is Outcome.CUT_SHORT or not self._is_up(ran[0].model))

    @traced("attempt {model}")
    async def _attempt(self, journey: Journey, model: str, permit: RoutePermit) -> Result:
        started = self._clock()
        remaining_s = journey.deadline - started
        timeout_s = self._timeout_s(journey, model, 1 + journey.plan.attempts_left(self._is_up))
        given_s = passed_on_s(timeout_s)
        call = replace(journey.call, model=model, remaining_s=given_s, journal=journey.journal)
        lane = self._lanes[model]
        if load := self._link.snapshot.loads.get(model):
            lane.spread = load.spread
        try:
            async with asyncio.timeout(min(timeout_s + REPLY_GRACE_S, remaining_s)):
                with self._sent[model]:
                    result = await lane.ask(call)
                    if was_lost(result) and not journey.plan.models:  # nobody else to ask: another of its replicas
                        left_s = given_s - (self._clock() - started)
                        result = await lane.ask(replace(call, remaining_s=left_s))
        except TimeoutError:
            result = Result(call.id, error=UpstreamError(f"{model} did not answer in time", outcome=Outcome.TIMEOUT))
        except asyncio.CancelledError:
            self._give_back(journey, model, permit, self._clock() - started)
            raise
        took_s = self._clock() - started
        outcome = self._judge.outcome(call.program, model, result, took_s=took_s, given_s=given_s)
        self._learn(journey, model, permit, result, outcome, took_s)
        return result

    def _give_back(self, journey: Journey, model: str, permit: RoutePermit, took_s: float) -> None:
        """A caller left, which says nothing; or another model was quicker, and by then this one may have been slow."""
        journey.attempts.append(Attempt(model, Outcome.CANCELLED, took_s))
        is_slow = took_s >= self._link.snapshot.policy.breaker.slow_call_s
        if journey.is_answered and is_slow and not self._judge.is_starting(model):
            self._gates[model].record(permit, Outcome.SLOW, took_s)
        else:
            self._gates[model].release(permit)

    def _learn(
        self,
        journey: Journey,
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
    def _finished(journey: Journey, result: Result) -> Result:
        """The result with everything that was spent on the way to it."""
        attempts = tuple(sorted(journey.attempts, key=lambda attempt: journey.begun.index(attempt.model)))
        return replace(
            result,
            model=next((attempt.model for attempt in result.attempts or attempts[-1:]), ""),
            level=journey.call.level,
            attempts=attempts,
            usage=sum((attempt.usage for attempt in attempts), Usage()),
            journal=(),
            cost_usd=round(sum(attempt.cost_usd for attempt in attempts), 12),
        )

    def _unanswered(self, journey: Journey) -> SwitchyardError:
        is_over = self._clock() >= journey.ends_at
        error = why_unanswered(journey, self._gates, self._windows, is_over=is_over)
        if isinstance(error, Overloaded):
            reason = COOLING if isinstance(error, RateLimited) else BUSY
            self._telemetry.shed(reason, journey.call.options.priority)
        return error

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
