"""How long a refusal holds, and for whom."""

from dataclasses import replace

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import UNKNOWN_RETRY_AFTER_S
from serve_app.core.permit import Refusal
from serve_app.core.recent_refusals import MAX_HOLD_S, MAX_KINDS, RecentRefusals
from serve_app.errors import NoRoute, Overloaded, RateLimited, SwitchyardError
from serve_app.messages import Attempt, Call, Level, Options, Outcome, Priority, Result

BUSY = Refusal(0.4, "busy")


def call(text: str = "question one?", *, level: Level = Level.FULL, program: str = "ask", **options) -> Call:
    return Call("c1", "r1", program, {"question": text}, 2.0, Options(**options), level)


def no_room(retry_after_s: float | None = 0.4) -> Result:
    return Result("c1", error=Overloaded("every model of the route is too busy", retry_after_s))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def refusals(clock: ManualClock) -> RecentRefusals:
    return RecentRefusals(clock=clock)


def test_nothing_is_refused_that_was_not_refused_before(refusals: RecentRefusals) -> None:
    assert refusals.find(call(), 2.0) is None
    refusals.note(call(), 2.0, no_room())
    assert refusals.find(call("another one?"), 2.0) == BUSY


@pytest.mark.parametrize(("remaining_s", "holds_s"), [(0.5, 0.01), (2.0, 0.04), (60.0, MAX_HOLD_S)])
def test_a_refusal_holds_for_a_fiftieth_of_the_deadline_and_never_long(clock, refusals, remaining_s, holds_s) -> None:
    refusals.note(call(), remaining_s, no_room())
    clock.advance(holds_s * 0.99)
    assert refusals.find(call(), remaining_s) == BUSY
    clock.advance(holds_s * 0.02)
    assert refusals.find(call(), remaining_s) is None


def test_a_longer_hold_of_another_kind_prolongs_none(clock, refusals) -> None:
    refusals.note(call(), 0.5, no_room())
    refusals.note(call(program="other"), 60.0, no_room())
    clock.advance(0.02)
    assert refusals.find(call(), 0.5) is None


def test_who_has_more_time_asks_anew(refusals: RecentRefusals) -> None:
    refusals.note(call(), 2.0, no_room())
    assert refusals.find(call(), 1.0) == BUSY
    assert refusals.find(call(), 2.01) == BUSY, "what a batch takes to form is no more time"
    assert refusals.find(call(), 2.1) is None


@pytest.mark.parametrize(
    "other",
    [
        call(program="other"),
        call(level=Level.DEGRADED),
        call(priority=Priority.CRITICAL),
        call(model="small"),
        call(budget_usd=1.0),
        call("Prove why, step by step, and compare the trade-offs?"),
        call("word " * 500),
    ],
    ids=["program", "level", "priority", "model", "budget", "complexity", "size"],
)
def test_it_holds_for_calls_that_would_find_the_same_models_busy_and_no_others(refusals, other: Call) -> None:
    refusals.note(call(), 2.0, no_room())
    assert refusals.find(other, 2.0) is None


@pytest.mark.parametrize(
    "result",
    [
        Result("c1", {"answer": "fine"}),
        Result("c1", error=RateLimited("every model is cooling down", 5.0)),
        Result("c1", error=NoRoute("no model could answer", 1.0)),
        Result("c1", error=SwitchyardError("internal failure")),
        replace(no_room(), attempts=(Attempt("large", Outcome.REJECTED, 0.0),)),
    ],
    ids=["an answer", "a rate limit", "no route", "a failure", "a replica's own queue"],
)
def test_what_says_less_than_that_no_model_has_room_does_not_hold(refusals, result: Result) -> None:
    refusals.note(call(), 2.0, result)
    assert refusals.find(call(), 2.0) is None


def test_without_an_estimate_it_asks_for_the_usual_patience(refusals: RecentRefusals) -> None:
    refusals.note(call(), 2.0, no_room(None))
    assert refusals.find(call(), 2.0) == Refusal(UNKNOWN_RETRY_AFTER_S, "busy")


def test_callers_cannot_make_it_grow(refusals: RecentRefusals) -> None:
    calls = [call(budget_usd=float(number)) for number in range(3 * MAX_KINDS)]
    for each in calls:
        refusals.note(each, 2.0, no_room())
    assert sum(refusals.find(each, 2.0) is not None for each in calls) <= MAX_KINDS
    assert refusals.find(calls[-1], 2.0) == BUSY
