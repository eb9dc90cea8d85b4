from __future__ import annotations

from random import Random

import pytest

from serve_app.core.circuit_breaker import BreakerSnapshot, CircuitBreaker
from serve_app.core.clock import ManualClock
from serve_app.core.permit import Permit, Refusal
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


def policy(probes: int) -> BreakerPolicy:
    return BreakerPolicy(half_open_probes=probes, open_s=30, max_open_s=300, probe_lease_s=60, slow_call_s=2)


@pytest.fixture
def clock():
    return ManualClock(1000)


def opened(clock: ManualClock, probes: int = 1) -> CircuitBreaker:
    """A breaker whose wait is over."""
    breaker = CircuitBreaker(policy(probes), clock=clock, rng=NoJitter())
    breaker.trip("test")
    clock.advance(30)
    return breaker


def probe_of(breaker: CircuitBreaker) -> Permit:
    permit = breaker.acquire()
    assert isinstance(permit, Permit)
    assert permit.probe
    return permit


@pytest.mark.parametrize("probes", [1, 3])
def test_two_hundred_callers_at_once_get_the_probes_and_no_more(clock, probes):
    breaker = opened(clock, probes)
    answers = [breaker.acquire() for _ in range(200)]

    assert sum(isinstance(answer, Permit) for answer in answers) == probes
    assert answers[-1] == Refusal(60, "half_open")


def test_a_good_probe_closes_it(clock):
    breaker = opened(clock)
    assert breaker.record(probe_of(breaker), Outcome.OK, 0.1)

    assert breaker.state is BreakerState.CLOSED
    assert breaker.health().reason == ""
    assert breaker.acquire() == Permit(generation=3)


def test_it_closes_after_as_many_good_probes_as_asked_for(clock):
    breaker = opened(clock, 3)
    for _ in range(2):
        breaker.record(probe_of(breaker), Outcome.OK, 0.1)
        assert breaker.state is BreakerState.HALF_OPEN
    breaker.record(probe_of(breaker), Outcome.OK, 0.1)

    assert breaker.state is BreakerState.CLOSED


def test_good_probes_count_against_the_probes_that_may_fly(clock):
    breaker = opened(clock, 2)
    breaker.record(probe_of(breaker), Outcome.OK, 0.1)
    probe_of(breaker)

    assert isinstance(breaker.acquire(), Refusal)


@pytest.mark.parametrize(
    ("outcome", "latency_s"),
    [(Outcome.SERVER_ERROR, 0.1), (Outcome.TIMEOUT, 9), (Outcome.DENIED, 0.1), (Outcome.SLOW, 0.1), (Outcome.OK, 2.0)],
)
def test_a_bad_or_slow_probe_opens_it_again(clock, outcome, latency_s):
    breaker = opened(clock)
    assert breaker.record(probe_of(breaker), outcome, latency_s)

    assert breaker.state is BreakerState.OPEN
    assert breaker.acquire() == Refusal(60, "open")


def test_one_bad_probe_makes_the_other_probes_too_late(clock):
    breaker = opened(clock, 3)
    first, second, third = (probe_of(breaker) for _ in range(3))
    breaker.record(first, Outcome.SERVER_ERROR, 0.1)

    assert not breaker.record(second, Outcome.OK, 0.1)
    assert not breaker.record(third, Outcome.SERVER_ERROR, 0.1)
    assert breaker.acquire() == Refusal(60, "open")


def test_a_cancelled_probe_is_given_back_and_counts_nothing(clock):
    breaker = opened(clock)
    assert breaker.release(probe_of(breaker))

    assert breaker.state is BreakerState.HALF_OPEN
    probe_of(breaker)


@pytest.mark.parametrize(
    "outcome", [Outcome.CANCELLED, Outcome.REJECTED, Outcome.BAD_REQUEST, Outcome.BAD_OUTPUT, Outcome.CONTEXT_WINDOW]
)
def test_a_probe_that_says_nothing_of_the_provider_frees_its_place(clock, outcome):
    breaker = opened(clock)
    assert breaker.record(probe_of(breaker), outcome, 0.1)

    assert breaker.state is BreakerState.HALF_OPEN
    probe_of(breaker)


def test_a_rate_limited_probe_frees_its_place_and_cools(clock):
    breaker = opened(clock)
    breaker.record(probe_of(breaker), Outcome.RATE_LIMITED, 0.1, retry_after_s=5)
    assert breaker.acquire() == Refusal(5, "cooling")
    clock.advance(5)

    probe_of(breaker)


def test_a_probe_that_hangs_is_given_up_within_its_lease(clock):
    breaker = opened(clock)
    hanging = probe_of(breaker)
    clock.advance(59.9)
    assert breaker.acquire().retry_after_s == pytest.approx(0.1)
    clock.advance(0.1)
    second = probe_of(breaker)

    assert breaker.record(hanging, Outcome.SERVER_ERROR, 70) is False
    assert breaker.release(hanging) is False
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.record(second, Outcome.OK, 0.1)
    assert breaker.state is BreakerState.CLOSED


def test_a_lease_that_ran_out_is_over_even_if_nobody_asked_since(clock):
    breaker = opened(clock)
    hanging = probe_of(breaker)
    clock.advance(60)

    assert breaker.record(hanging, Outcome.OK, 1) is False
    assert breaker.state is BreakerState.HALF_OPEN


def test_a_probe_is_counted_once(clock):
    breaker = opened(clock, 2)
    probe = probe_of(breaker)
    assert breaker.record(probe, Outcome.OK, 0.1)

    assert breaker.record(probe, Outcome.OK, 0.1) is False
    assert breaker.state is BreakerState.HALF_OPEN


def test_a_failure_of_the_closed_time_does_not_touch_a_probe(clock):
    breaker = CircuitBreaker(policy(1), clock=clock, rng=NoJitter())
    old = breaker.acquire()
    breaker.trip("test")
    clock.advance(30)
    probe_of(breaker)

    assert breaker.record(old, Outcome.SERVER_ERROR, 31) is False
    assert breaker.state is BreakerState.HALF_OPEN


def test_reports_of_others_do_not_close_it(clock):
    breaker = opened(clock)
    probe_of(breaker)
    breaker.observe(successes=100, generation=breaker.generation)

    assert breaker.state is BreakerState.HALF_OPEN


def test_a_trip_opens_it_again(clock):
    breaker = opened(clock)
    probe_of(breaker)
    breaker.trip("denied")

    assert breaker.acquire() == Refusal(60, "open")


def test_a_reset_closes_it_and_outdates_its_probe(clock):
    breaker = opened(clock)
    probe = probe_of(breaker)
    breaker.reset()

    assert breaker.record(probe, Outcome.SERVER_ERROR, 0.1) is False
    assert breaker.state is BreakerState.CLOSED


def test_fewer_probes_asked_for_may_mean_that_enough_came_back(clock):
    breaker = opened(clock, 3)
    breaker.record(probe_of(breaker), Outcome.OK, 0.1)
    breaker.record(probe_of(breaker), Outcome.OK, 0.1)
    breaker.reconfigure(policy(2))

    assert breaker.state is BreakerState.CLOSED


def test_more_probes_asked_for_are_admitted_at_once(clock):
    breaker = opened(clock, 1)
    probe_of(breaker)
    breaker.reconfigure(policy(2))

    probe_of(breaker)
    assert isinstance(breaker.acquire(), Refusal)


def test_a_shorter_lease_applies_to_the_probe_in_flight(clock):
    breaker = opened(clock)
    probe_of(breaker)
    breaker.reconfigure(BreakerPolicy(probe_lease_s=5))

    assert breaker.acquire() == Refusal(5, "half_open")


def test_a_snapshot_with_enough_good_probes_is_restored_closed(clock):
    breaker = CircuitBreaker(policy(1), clock=clock)
    breaker.restore(BreakerSnapshot(BreakerState.HALF_OPEN, generation=4, successes=2))

    assert breaker.state is BreakerState.CLOSED
    assert isinstance(breaker.acquire(), Permit)


def test_the_reason_is_kept_until_it_closes(clock):
    breaker = opened(clock)
    probe_of(breaker)

    assert breaker.health().state is BreakerState.HALF_OPEN
    assert breaker.health().reason == "test"
