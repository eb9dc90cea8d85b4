"""What each outcome leaves of a route."""

import pytest

from serve_app.core.fallback import FallbackPlan
from serve_app.core.outcomes import MEANINGS, NextRoute
from serve_app.messages import Outcome

WINDOWS = {"a": 100, "b": 50, "c": 200, "d": 100}


def plan(max_attempts: int = 10) -> FallbackPlan:
    return FallbackPlan("abcd", WINDOWS, max_attempts)


def ended(made: FallbackPlan, model: str, outcome: Outcome) -> None:
    made.begin(model)
    made.record(model, outcome)


@pytest.mark.parametrize("outcome", Outcome)
def test_each_outcome_leaves_what_the_table_says(outcome) -> None:
    made = plan()
    ended(made, "a", outcome)
    left = {
        NextRoute.NONE: "",
        NextRoute.ANY: "bcd",
        NextRoute.LARGER_WINDOW: "c",
        NextRoute.ONCE: "bcd",
    }
    assert "".join(made.models) == left[MEANINGS[outcome].next_route]


def test_bad_output_escalates_once_in_a_call() -> None:
    made = plan()
    ended(made, "a", Outcome.BAD_OUTPUT)
    ended(made, "b", Outcome.TIMEOUT)
    ended(made, "c", Outcome.BAD_OUTPUT)
    assert made.models == ()


def test_attempts_are_bounded_and_skipping_is_none() -> None:
    made = plan(max_attempts=2)
    made.skip("a")
    assert (made.models, made.attempts_left()) == (("b", "c", "d"), 2)
    ended(made, "b", Outcome.TIMEOUT)
    ended(made, "c", Outcome.TIMEOUT)
    assert (made.models, made.attempts_left()) == ((), 0)


def test_a_model_that_was_begun_is_not_offered_again_while_it_runs() -> None:
    made = plan(max_attempts=2)
    made.begin("a")
    assert made.models == ("b", "c", "d")
    assert made.attempts_left() == 1
    made.begin("b")
    assert made.models == ()


def test_an_attempt_that_never_ran_is_none() -> None:
    made = plan(max_attempts=2)
    ended(made, "a", Outcome.REJECTED)
    assert (made.models, made.attempts_left()) == (("b", "c", "d"), 2)


def test_models_that_are_down_leave_no_attempts() -> None:
    made = plan(max_attempts=3)
    assert made.attempts_left(lambda model: model in "ab") == 2
    made.begin("a")
    assert made.attempts_left(lambda model: model in "ab") == 1
