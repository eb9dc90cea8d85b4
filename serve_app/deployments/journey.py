"""One call on its way from model to model, and what its caller is told when none of them answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from serve_app.core.deadline import passed_on_s
from serve_app.core.expected_wait import BUSY
from serve_app.core.fallback import FallbackPlan
from serve_app.core.permit import Refusal
from serve_app.core.route_gate import RouteGate
from serve_app.core.routing import Demand
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
from serve_app.messages import Attempt, Call, Outcome, Step

COOLING: Final = "cooling"
"""Reason of a refusal for a model whose provider asked to be left alone for a while."""


@dataclass(slots=True)
class Journey:
    """A call, its route, and what happened on it so far.

    Attributes:
        deadline: when the call is over, on the router's clock.
        demand: what it asks of a route.
        route: the models to ask, in order.
        plan: those of them that are left.
        begun: models asked, in order; some may still be at it.
        attempts: those that ended.
        refusals: of models that were not asked.
        error: of the last attempt.
        journal: what the attempts finished before they failed.
        is_answered: whether a model has answered, and others are given up.
        is_out_of_time: whether a model was left out because too little time was left for its answer.
    """

    call: Call
    deadline: float
    demand: Demand
    route: tuple[str, ...]
    plan: FallbackPlan
    begun: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    error: SwitchyardError | None = None
    journal: tuple[Step, ...] = ()
    is_answered: bool = False
    is_out_of_time: bool = False

    @property
    def ends_at(self) -> float:
        """When the call is over: what is left then was kept for the way back."""
        return self.deadline - (self.call.remaining_s - passed_on_s(self.call.remaining_s))

    @property
    def ran(self) -> list[Attempt]:
        """The attempts that reached their model."""
        return [attempt for attempt in self.attempts if attempt.outcome is not Outcome.REJECTED]


def why_unanswered(
    journey: Journey, gates: Mapping[str, RouteGate], windows: Mapping[str, int], *, is_over: bool
) -> SwitchyardError:
    """What a caller is told when no model answered.

    Args:
        journey: of the call, at its end.
        gates: of all models, by name.
        windows: tokens that each model takes.
        is_over: whether the call's time is.
    """
    error = _told(journey, windows)
    if isinstance(error, Overloaded):  # the replica's own queue knew better than the last report
        return error
    if is_over or journey.is_out_of_time:
        return DeadlineExceeded("the deadline passed before a model answered")
    if error is not None and not _is_down(error):
        return error
    retry_after_s = _retry_after_s(journey, gates)
    if error is not None:
        return NoRoute(f"no model could answer; the last one: {error}", retry_after_s)
    return _refused(journey, retry_after_s)


def _refused(journey: Journey, retry_after_s: float) -> SwitchyardError:
    """What a caller is told when no model was asked."""
    reasons = {refusal.reason for refusal in journey.refusals}
    if BUSY in reasons:
        return Overloaded("every model of the route is too busy to answer in time", retry_after_s)
    if reasons == {COOLING}:
        return RateLimited("every model is cooling down after a rate limit", retry_after_s)
    return CircuitOpen("every model of the route is down at the moment", retry_after_s)


def _told(journey: Journey, windows: Mapping[str, int]) -> SwitchyardError | None:
    """The last attempt's error; inputs too long for one model are no fault of theirs while a larger one is down."""
    tried = [windows[each.model] for each in journey.attempts if each.outcome is Outcome.CONTEXT_WINDOW]
    if tried and max(tried) >= max(windows[model] for model in journey.route):
        return UpstreamRefused("the inputs are longer than any model of the route takes")
    return journey.error


def _is_down(error: SwitchyardError) -> bool:
    """Whether the error only says that a model could not answer, so that the call as a whole found no route."""
    return isinstance(error, UpstreamError) and (error.retryable or error.outcome is Outcome.CONTEXT_WINDOW)


def _retry_after_s(journey: Journey, gates: Mapping[str, RouteGate]) -> float:
    """Seconds until the first of the call's models may be asked again."""
    waits = [refusal.retry_after_s for refusal in journey.refusals]
    refusals = [gates[model].refusal() for model in {attempt.model for attempt in journey.attempts}]
    waits += [refusal.retry_after_s if refusal else 1.0 for refusal in refusals]
    return min(waits, default=1.0)
