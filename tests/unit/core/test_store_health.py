from __future__ import annotations

import pytest

from serve_app.adapters.guarded_redis import LINGER_S
from serve_app.core.clock import ManualClock
from serve_app.core.store_health import FIRST_PAUSE_S, MAX_PAUSE_S, StoreHealth


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def health(clock: ManualClock) -> StoreHealth:
    return StoreHealth(clock=clock)


@pytest.fixture
def down(health: StoreHealth) -> StoreHealth:
    assert health.failed(health.generation)
    return health


def test_up_asks_and_never_probes(health: StoreHealth, clock: ManualClock) -> None:
    clock.advance(1000)
    assert health.is_up
    assert not health.claim_probe()


def test_up_goes_down_on_one_failure(health: StoreHealth) -> None:
    assert health.failed(health.generation)
    assert not health.is_up


def test_up_ignores_the_failure_of_an_operation_begun_before_it_last_recovered(
    down: StoreHealth, clock: ManualClock
) -> None:
    before = down.generation
    clock.advance(FIRST_PAUSE_S)
    assert down.claim_probe()
    down.probed(answered=True)
    assert not down.failed(before)
    assert down.is_up


def test_down_does_not_probe_before_its_pause_is_over(down: StoreHealth, clock: ManualClock) -> None:
    clock.advance(FIRST_PAUSE_S - 0.001)
    assert not down.claim_probe()
    clock.advance(0.001)
    assert down.claim_probe()


def test_down_takes_many_failures_at_once_for_one(down: StoreHealth, clock: ManualClock) -> None:
    for _ in range(32):
        assert not down.failed(down.generation - 1)
        assert not down.failed(down.generation)
    clock.advance(FIRST_PAUSE_S)
    assert down.claim_probe()


def test_probing_grants_one_probe_at_a_time(down: StoreHealth, clock: ManualClock) -> None:
    clock.advance(FIRST_PAUSE_S)
    assert [down.claim_probe() for _ in range(3)] == [True, False, False]
    clock.advance(1000)
    assert not down.claim_probe()


def test_probing_keeps_operations_away(down: StoreHealth, clock: ManualClock) -> None:
    clock.advance(FIRST_PAUSE_S)
    down.claim_probe()
    assert not down.is_up


def test_a_probe_that_is_answered_brings_it_up(down: StoreHealth, clock: ManualClock) -> None:
    clock.advance(FIRST_PAUSE_S)
    down.claim_probe()
    down.probed(answered=True)
    assert down.is_up


def test_each_failed_probe_doubles_the_pause_up_to_its_bound(down: StoreHealth, clock: ManualClock) -> None:
    waited = []
    for _ in range(5):
        start = clock()
        while not down.claim_probe():
            clock.advance(0.25)
        waited.append(clock() - start)
        down.probed(answered=False)
    assert waited == [FIRST_PAUSE_S, 2.0, MAX_PAUSE_S, MAX_PAUSE_S, MAX_PAUSE_S]


def test_a_recovery_is_noticed_within_five_seconds_though_a_probe_hangs_and_another_must_connect() -> None:
    assert LINGER_S + MAX_PAUSE_S + LINGER_S <= 5.0


def test_the_next_incident_starts_with_a_short_pause_again(down: StoreHealth, clock: ManualClock) -> None:
    for answered in (False, False, True):
        clock.advance(MAX_PAUSE_S)
        assert down.claim_probe()
        down.probed(answered=answered)
    assert down.failed(down.generation)
    clock.advance(FIRST_PAUSE_S)
    assert down.claim_probe()
