"""Concurrency that follows the provider's pace per token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.adaptive_limit import BACKOFF, WINDOW_SAMPLES, AdaptiveLimit
from serve_app.core.clock import ManualClock

TOKENS = 100


@pytest.fixture
def clock():
    return ManualClock(1000)


def windows(limit: AdaptiveLimit, clock: ManualClock, count: int, seconds: float, tokens: int = TOKENS) -> None:
    """Let ``count`` windows of full use pass, each answer taking ``seconds`` for ``tokens``."""
    for _ in range(count):
        for _ in range(WINDOW_SAMPLES):
            clock.advance(0.11)
            limit.answered(seconds, tokens, limit.limit)


def test_a_steady_provider_is_given_all_that_is_configured(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    windows(limit, clock, 50, seconds=2)
    assert limit.limit == 64
    assert not limit.is_limited


def test_a_provider_that_becomes_slower_is_asked_less_at_once(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    windows(limit, clock, 20, seconds=1)
    windows(limit, clock, 10, seconds=10)
    assert limit.limit < 40
    assert limit.is_limited


def test_a_provider_that_recovers_is_asked_as_before(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    windows(limit, clock, 20, seconds=1)
    windows(limit, clock, 10, seconds=10)
    windows(limit, clock, 40, seconds=1)
    assert limit.limit == 64


def test_longer_answers_at_the_same_pace_change_nothing(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    windows(limit, clock, 20, seconds=(100 + 32) * 0.01, tokens=100)
    windows(limit, clock, 20, seconds=(2000 + 32) * 0.01, tokens=2000)
    assert limit.limit == 64


def test_noise_within_the_tolerance_changes_nothing(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    for n in range(100):
        windows(limit, clock, 1, seconds=1.3 if n % 2 else 0.8)
    assert limit.limit == 64


@pytest.mark.parametrize("times", [1, 5])
def test_pushing_back_shrinks_it_once_in_a_window(clock, times) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    for _ in range(times):
        limit.pushed_back()
    assert limit.limit == int(64 * BACKOFF)
    clock.advance(1)
    limit.pushed_back()
    assert limit.limit == int(64 * BACKOFF * BACKOFF)


def test_it_never_falls_below_one_and_finds_its_way_back(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    for _ in range(100):
        limit.pushed_back()
        clock.advance(1)
    assert limit.limit == 1
    windows(limit, clock, 200, seconds=1)
    assert limit.limit == 64


def test_a_limit_that_is_not_used_is_not_raised(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    limit.pushed_back()
    before = limit.limit
    for _ in range(500):
        clock.advance(0.11)
        limit.answered(1, TOKENS, running=2)
    assert limit.limit == before


def test_attempts_without_an_answer_say_nothing(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    limit.pushed_back()
    before = limit.limit
    for _ in range(500):
        clock.advance(0.11)
        limit.answered(0.0, 0, running=60)
    assert limit.limit == before


@given(
    maximum=st.integers(1, 200),
    events=st.lists(st.one_of(st.none(), st.tuples(st.floats(0, 100), st.integers(0, 5000))), max_size=300),
)
def test_it_stays_within_its_bounds_whatever_happens(maximum, events) -> None:
    clock = ManualClock()
    limit = AdaptiveLimit(maximum, clock=clock)
    for event in events:
        clock.advance(0.3)
        if event is None:
            limit.pushed_back()
        else:
            limit.answered(*event, running=maximum)
        assert 1 <= limit.limit <= maximum
