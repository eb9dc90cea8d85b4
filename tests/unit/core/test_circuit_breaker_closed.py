from __future__ import annotations

import pytest

from serve_app.core.circuit_breaker import COOL_DOWN_S, CircuitBreaker
from serve_app.core.clock import ManualClock
from serve_app.core.permit import Permit, Refusal
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy
from serve_app.reports import ModelHealth


@pytest.fixture
def clock():
    return ManualClock(1000)


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(BreakerPolicy(window_s=10, minimum_calls=5, slow_call_s=2), clock=clock)


def call(breaker: CircuitBreaker, outcome: Outcome, latency_s: float = 0.1, times: int = 1, **kwargs) -> None:
    for _ in range(times):
        permit = breaker.acquire()
        assert isinstance(permit, Permit)
        assert breaker.record(permit, outcome, latency_s, **kwargs)


def test_a_new_breaker_is_closed_and_admits(breaker):
    assert breaker.state is BreakerState.CLOSED
    assert breaker.acquire() == Permit(generation=0, probe=False)
    assert breaker.health() == ModelHealth()


def test_failures_below_the_minimum_of_calls_judge_nothing(breaker):
    call(breaker, Outcome.SERVER_ERROR, times=4)

    assert breaker.state is BreakerState.CLOSED
    assert breaker.health().requests == 4
    assert breaker.health().failures == 4


@pytest.mark.parametrize("outcome", [Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.UNREACHABLE, Outcome.MALFORMED])
def test_it_opens_when_the_failure_rate_reaches_its_threshold(breaker, outcome):
    call(breaker, Outcome.OK, times=5)
    call(breaker, outcome, times=4)
    assert breaker.state is BreakerState.CLOSED
    call(breaker, outcome)

    assert breaker.state is BreakerState.OPEN
    assert breaker.health().reason == "5 of 10 calls failed"


def test_a_good_answer_that_completes_the_minimum_opens_it_too(breaker):
    call(breaker, Outcome.SERVER_ERROR, times=4)
    call(breaker, Outcome.OK)

    assert breaker.state is BreakerState.OPEN


def test_it_opens_on_slow_answers(breaker):
    call(breaker, Outcome.OK, times=2)
    call(breaker, Outcome.OK, latency_s=2.0, times=7)
    assert breaker.state is BreakerState.CLOSED
    call(breaker, Outcome.SLOW)

    assert breaker.state is BreakerState.OPEN
    assert breaker.health().reason == "8 of 10 calls were slow"


def test_failures_that_left_the_window_do_not_count(breaker, clock):
    call(breaker, Outcome.SERVER_ERROR, times=4)
    clock.advance(10.1)
    call(breaker, Outcome.SERVER_ERROR, times=4)

    assert breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize(
    "outcome",
    [Outcome.CONTEXT_WINDOW, Outcome.CONTENT_POLICY, Outcome.BAD_REQUEST, Outcome.BAD_OUTPUT, Outcome.PROGRAM_ERROR],
)
def test_outcomes_that_are_not_the_providers_fault_neither_trip_nor_dilute(breaker, outcome):
    call(breaker, outcome, times=100)
    assert breaker.health().requests == 0
    call(breaker, Outcome.SERVER_ERROR, times=5)

    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.REJECTED])
def test_a_call_that_never_came_to_an_end_counts_nothing(breaker, outcome):
    call(breaker, outcome, times=100)
    assert breaker.release(breaker.acquire())

    assert breaker.health().requests == 0


def test_a_denied_call_opens_at_once(breaker):
    call(breaker, Outcome.DENIED)

    assert breaker.state is BreakerState.OPEN
    assert breaker.health().reason == "denied"


def test_a_trip_opens_at_once(breaker):
    breaker.trip("the bill is not paid")

    assert breaker.state is BreakerState.OPEN
    assert breaker.health().reason == "the bill is not paid"


def test_reports_of_others_count_like_calls(breaker):
    breaker.observe(successes=4, failures=3, generation=0)
    assert breaker.health() == ModelHealth(requests=7, failures=3)
    breaker.observe(failures=1)

    assert breaker.state is BreakerState.OPEN


def test_slow_calls_in_reports_open_it(breaker):
    breaker.observe(successes=1, slow=4)

    assert breaker.state is BreakerState.OPEN


def test_reports_of_another_generation_say_nothing(breaker):
    breaker.observe(failures=100, generation=7)

    assert breaker.health().requests == 0


def test_a_rate_limit_cools_the_model_until_its_time_and_does_not_trip(breaker, clock):
    call(breaker, Outcome.RATE_LIMITED, retry_after_s=5)
    assert breaker.state is BreakerState.CLOSED
    assert breaker.health().requests == 0

    assert breaker.acquire() == Refusal(5, "cooling")
    clock.advance(4.5)
    assert breaker.acquire() == Refusal(0.5, "cooling")
    assert breaker.health().retry_after_s == 0.5
    clock.advance(0.5)
    assert isinstance(breaker.acquire(), Permit)


def test_a_rate_limit_without_a_time_cools_for_a_moment(breaker):
    call(breaker, Outcome.RATE_LIMITED)

    assert breaker.acquire() == Refusal(COOL_DOWN_S, "cooling")


def test_a_second_rate_limit_never_shortens_the_first(breaker):
    first, second = breaker.acquire(), breaker.acquire()
    breaker.record(first, Outcome.RATE_LIMITED, 0.1, retry_after_s=5)
    breaker.record(second, Outcome.RATE_LIMITED, 0.1, retry_after_s=1)

    assert breaker.acquire() == Refusal(5, "cooling")


def test_answers_of_calls_in_flight_still_count_while_it_cools(breaker):
    permits = [breaker.acquire() for _ in range(5)]
    breaker.cool_down(5)
    for permit in permits:
        assert breaker.record(permit, Outcome.SERVER_ERROR, 0.1)

    assert breaker.state is BreakerState.OPEN


def test_a_new_policy_is_judged_by_from_the_next_result_on(breaker):
    call(breaker, Outcome.SERVER_ERROR, times=2)
    call(breaker, Outcome.OK, times=4)
    breaker.reconfigure(BreakerPolicy(window_s=10, minimum_calls=5, failure_rate_threshold=0.2))
    assert breaker.state is BreakerState.CLOSED
    assert breaker.health().requests == 6
    call(breaker, Outcome.OK)

    assert breaker.state is BreakerState.OPEN


def test_a_shorter_window_forgets_what_is_older(breaker, clock):
    call(breaker, Outcome.SERVER_ERROR, times=4)
    clock.advance(6)
    breaker.reconfigure(BreakerPolicy(window_s=5, minimum_calls=5))

    assert breaker.health().requests == 0
