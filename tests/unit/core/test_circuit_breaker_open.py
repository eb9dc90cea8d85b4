from __future__ import annotations

from random import Random

import pytest

from serve_app.core.circuit_breaker import JITTER, BreakerSnapshot, CircuitBreaker
from serve_app.core.clock import ManualClock
from serve_app.core.permit import Permit, Refusal
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

POLICY = BreakerPolicy(window_s=10, minimum_calls=5, open_s=30, max_open_s=100, probe_lease_s=60)


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


@pytest.fixture
def clock():
    return ManualClock(1000)


@pytest.fixture
def breaker(clock):
    breaker = CircuitBreaker(POLICY, clock=clock, rng=NoJitter())
    breaker.trip("test")
    return breaker


def fail_probe(breaker: CircuitBreaker) -> None:
    permit = breaker.acquire()
    assert isinstance(permit, Permit)
    assert permit.probe
    assert breaker.record(permit, Outcome.SERVER_ERROR, 0.1)


def test_it_refuses_until_its_wait_is_over_and_says_how_long(breaker, clock):
    assert breaker.acquire() == Refusal(30, "open")
    clock.advance(29)
    assert breaker.acquire() == Refusal(1, "open")
    assert breaker.health().retry_after_s == 1
    clock.advance(1)

    assert breaker.acquire() == Permit(generation=2, probe=True, lease=1)
    assert breaker.state is BreakerState.HALF_OPEN


def test_asking_whether_it_would_refuse_changes_nothing(breaker, clock):
    clock.advance(30)
    assert breaker.refusal() is None

    assert breaker.state is BreakerState.OPEN
    assert breaker.generation == 1


def test_results_of_calls_admitted_before_it_opened_are_too_late(clock):
    breaker = CircuitBreaker(POLICY, clock=clock, rng=NoJitter())
    permits = [breaker.acquire() for _ in range(20)]
    for permit in permits[:5]:
        assert breaker.record(permit, Outcome.TIMEOUT, 1)
    opened = breaker.snapshot()

    assert not any(breaker.record(permit, Outcome.OK, 1) for permit in permits[5:10])
    assert not any(breaker.record(permit, Outcome.DENIED, 1) for permit in permits[10:15])
    assert not any(breaker.release(permit) for permit in permits[15:])
    assert breaker.snapshot() == opened


def test_a_trip_while_open_does_not_lengthen_the_wait(breaker, clock):
    clock.advance(20)
    breaker.trip("again")

    assert breaker.acquire() == Refusal(10, "open")
    assert breaker.health().reason == "test"


def test_reports_while_open_say_nothing(breaker):
    breaker.observe(successes=1000, generation=breaker.generation)

    assert breaker.state is BreakerState.OPEN
    assert breaker.health().requests == 0


def test_the_wait_doubles_with_each_failed_probe_up_to_its_cap(breaker, clock):
    waits = []
    for _ in range(5):
        waits.append(breaker.acquire().retry_after_s)
        clock.advance(waits[-1])
        fail_probe(breaker)

    assert waits == [30, 60, 100, 100, 100]


def test_a_thousand_trips_in_a_row_still_wait_for_the_cap(breaker, clock):
    for _ in range(2000):
        clock.advance(100)
        fail_probe(breaker)

    assert breaker.acquire() == Refusal(100, "open")


def test_a_breaker_that_closes_and_trips_within_a_window_goes_on_doubling(breaker, clock):
    clock.advance(30)
    breaker.record(breaker.acquire(), Outcome.OK, 0.1)
    assert breaker.state is BreakerState.CLOSED
    clock.advance(9)
    breaker.trip("flapping")

    assert breaker.acquire() == Refusal(60, "open")


def test_a_breaker_that_stayed_closed_for_a_window_starts_anew(breaker, clock):
    clock.advance(30)
    breaker.record(breaker.acquire(), Outcome.OK, 0.1)
    clock.advance(10)
    breaker.trip("another day")

    assert breaker.acquire() == Refusal(30, "open")


def test_jitter_shortens_waits_by_a_bounded_share_and_spreads_them():
    waits = set()
    for seed in range(50):
        breaker = CircuitBreaker(POLICY, clock=ManualClock(), rng=Random(seed))
        breaker.trip("test")
        waits.add(breaker.acquire().retry_after_s)

    assert len(waits) > 40
    assert all(30 * (1 - JITTER) <= wait <= 30 for wait in waits)


def test_a_rate_limit_that_comes_late_still_cools(breaker, clock):
    late = Permit(generation=0)
    assert breaker.record(late, Outcome.RATE_LIMITED, 0.1, retry_after_s=40) is False

    assert breaker.acquire() == Refusal(40, "open")
    clock.advance(30)
    assert breaker.acquire() == Refusal(10, "cooling")
    assert breaker.state is BreakerState.OPEN


def test_an_isolated_breaker_stays_open_until_it_is_reset(breaker, clock):
    breaker.isolate("maintenance")
    clock.advance(10_000)
    assert breaker.acquire() == Refusal(100, "isolated")
    assert breaker.health().reason == "maintenance"
    breaker.trip("ignored")
    breaker.observe(successes=100)
    assert breaker.acquire() == Refusal(100, "isolated")

    breaker.reset()
    assert breaker.state is BreakerState.CLOSED
    assert isinstance(breaker.acquire(), Permit)


def test_isolation_overrules_a_closed_breaker_and_its_calls_in_flight(clock):
    breaker = CircuitBreaker(POLICY, clock=clock)
    permit = breaker.acquire()
    breaker.isolate("maintenance")

    assert breaker.record(permit, Outcome.OK, 0.1) is False
    assert breaker.state is BreakerState.OPEN


def test_a_reset_forgets_trips_and_cooling(breaker, clock):
    clock.advance(30)
    fail_probe(breaker)
    breaker.cool_down(500)
    breaker.reset()
    assert breaker.snapshot().trips == 0
    assert isinstance(breaker.acquire(), Permit)
    breaker.trip("first of a new row")

    assert breaker.acquire() == Refusal(30, "open")


def test_a_shorter_open_s_applies_to_the_wait_at_hand(breaker):
    breaker.reconfigure(BreakerPolicy(open_s=5))

    assert breaker.state is BreakerState.OPEN
    assert breaker.acquire() == Refusal(5, "open")


def test_a_longer_open_s_does_not_lengthen_the_wait_at_hand(breaker):
    breaker.reconfigure(BreakerPolicy(open_s=90, max_open_s=300))

    assert breaker.acquire() == Refusal(30, "open")


def test_an_open_breaker_is_still_open_in_its_next_life(breaker, clock):
    clock.advance(10)
    elsewhere = ManualClock(5)
    reborn = CircuitBreaker(POLICY, clock=elsewhere, rng=NoJitter())

    assert reborn.restore(breaker.snapshot())
    assert reborn.snapshot() == breaker.snapshot()
    assert reborn.acquire() == Refusal(20, "open")
    elsewhere.advance(20)
    fail_probe(reborn)
    assert reborn.acquire() == Refusal(60, "open")


def test_isolation_and_cooling_survive_too(breaker):
    breaker.isolate("maintenance")
    breaker.cool_down(7)
    reborn = CircuitBreaker(POLICY, clock=ManualClock(5))
    reborn.restore(breaker.snapshot())

    assert reborn.acquire() == Refusal(100, "isolated")
    assert reborn.snapshot().cooling_s == 7


def test_an_older_snapshot_is_refused(breaker):
    older = CircuitBreaker(POLICY, clock=ManualClock()).snapshot()

    assert breaker.restore(older) is False
    assert breaker.state is BreakerState.OPEN


def test_a_snapshot_cannot_hold_it_open_beyond_the_cap(clock):
    breaker = CircuitBreaker(POLICY, clock=clock)
    breaker.restore(BreakerSnapshot(BreakerState.OPEN, generation=3, wait_s=1e9))

    assert breaker.acquire() == Refusal(100, "open")


def test_a_permit_of_the_life_before_counts_in_the_next(clock):
    first = CircuitBreaker(POLICY, clock=clock, rng=NoJitter())
    first.trip("test")
    clock.advance(30)
    probe = first.acquire()
    reborn = CircuitBreaker(POLICY, clock=ManualClock())
    reborn.restore(first.snapshot())

    assert reborn.acquire() == Refusal(60, "half_open")
    assert reborn.record(probe, Outcome.OK, 0.1)
    assert reborn.state is BreakerState.CLOSED


def test_a_snapshot_read_from_json_is_as_good(breaker):
    import json
    from dataclasses import asdict

    breaker.isolate("maintenance")
    reborn = CircuitBreaker(POLICY, clock=ManualClock())
    reborn.restore(BreakerSnapshot(**json.loads(json.dumps(asdict(breaker.snapshot())))))

    assert reborn.state is BreakerState.OPEN
    assert reborn.snapshot() == breaker.snapshot()


def test_a_row_of_trips_goes_on_in_the_next_life(breaker, clock):
    clock.advance(30)
    breaker.record(breaker.acquire(), Outcome.OK, 0.1)
    elsewhere = ManualClock(50)
    reborn = CircuitBreaker(POLICY, clock=elsewhere, rng=NoJitter())
    reborn.restore(breaker.snapshot())
    assert reborn.snapshot().probation_s == 10
    elsewhere.advance(9)
    reborn.trip("flapping")

    assert reborn.acquire() == Refusal(60, "open")
