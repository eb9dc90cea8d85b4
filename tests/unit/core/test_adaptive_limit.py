"""Concurrency that follows the provider's pace per token."""

import heapq
import math
import random
import statistics
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.adaptive_limit import BACKOFF, WINDOW_SAMPLES, AdaptiveLimit
from serve_app.core.clock import ManualClock

TOKENS = 100


@pytest.fixture
def clock():
    return ManualClock(1000)


def windows(
    limit: AdaptiveLimit, clock: ManualClock, count: int, seconds: float, tokens: int = TOKENS, lm_calls: int = 1
) -> None:
    """Let ``count`` windows of full use pass, each answer taking ``seconds`` for ``tokens``."""
    for _ in range(count):
        for _ in range(WINDOW_SAMPLES):
            clock.advance(0.11)
            limit.answered(seconds, tokens, lm_calls=lm_calls, running=limit.limit, elapsed_s=seconds)


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


@dataclass
class Provider:
    """Is asked as much at once as a limit allows; serves ``a_second``, first come first, each ``base_s`` later."""

    limit: AdaptiveLimit
    clock: ManualClock
    base_s: float = 1.0
    a_second: float = math.inf
    _free_at: float = 0.0
    _running: list[tuple[float, float]] = field(default_factory=list)

    def serve(self, seconds: float, most: int = 1000) -> list[int]:
        """Returns the limit at each answer."""
        end, limits = self.clock() + seconds, []
        while self.clock() < end:
            while len(self._running) < min(most, self.limit.limit):
                self._free_at = max(self._free_at, self.clock()) + 1 / self.a_second
                heapq.heappush(self._running, (self._free_at + self.base_s, self.clock()))
            at, began_at = self._running[0]
            self.clock.advance(max(0.0, at - self.clock()))
            self.limit.answered(at - began_at, TOKENS, lm_calls=1, running=len(self._running), elapsed_s=at - began_at)
            heapq.heappop(self._running)
            limits.append(self.limit.limit)
        return limits


@pytest.mark.parametrize("slow_s", [5, 30])
def test_a_provider_as_slow_when_asked_half_as_much_is_asked_as_before(clock, slow_s) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60)
    provider.base_s = slow_s
    limits = provider.serve(30 * slow_s)
    assert 28 < min(limits) <= 32
    assert limits[-1] == 64


def test_a_slowness_that_has_passed_says_nothing_about_the_next(clock) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60)
    provider.base_s = 20
    provider.serve(45)
    assert 32 < provider.limit.limit < 64
    provider.base_s = 1
    assert provider.serve(60)[-1] == 64
    provider.base_s = 5
    assert min(provider.serve(150)) > 28


@pytest.mark.parametrize("a_second", [2.0, 4.0])
def test_a_provider_that_queues_is_asked_less_while_it_does(clock, a_second) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60)
    provider.a_second = a_second
    provider.serve(60)
    assert max(provider.serve(60)) < 35
    provider.a_second = math.inf
    assert provider.serve(120)[-1] == 64


@pytest.mark.parametrize("slower", [1.0, 1.5, 2.0, 4.0])
def test_a_noisy_provider_gets_nearly_all_that_is_configured(clock, slower) -> None:
    noise = random.Random(7)
    limit = AdaptiveLimit(64, clock=clock)
    allowed = []
    for number in range(2000):
        mean = (slower if number >= 500 else 1.0) * noise.lognormvariate(0, 0.2)
        for _ in range(WINDOW_SAMPLES):
            clock.advance(0.11)
            seconds = mean * noise.lognormvariate(0, 0.8)
            limit.answered(seconds, TOKENS, lm_calls=1, running=limit.limit, elapsed_s=seconds)
        allowed.append(limit.limit)
    assert statistics.mean(allowed) > 0.9 * 64
    assert statistics.median(allowed[1000:]) > 0.95 * 64


@pytest.mark.parametrize("running", [2, 31])
def test_a_limit_that_is_not_used_is_not_lowered(clock, running) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60, most=running)
    provider.base_s = 10
    assert set(provider.serve(200, most=running)) == {64}


def test_a_verdict_on_the_pace_undoes_no_push_back(clock) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60)
    provider.base_s = 5
    provider.serve(40)
    provider.limit.pushed_back(0.1)
    pushed = provider.limit.limit
    assert pushed <= 30
    assert max(provider.serve(30)) <= pushed + 10


def test_a_decline_that_traffic_left_is_not_judged_by_later_calls(clock) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60)
    provider.base_s = 5
    provider.serve(15)
    provider.serve(15, most=4)
    shrunk = provider.limit.limit
    assert 32 < shrunk < 64
    provider.serve(60, most=4)
    assert provider.limit.limit == shrunk
    provider.serve(10)
    assert 32 < provider.limit.limit < shrunk


def test_longer_answers_at_the_same_pace_change_nothing(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    windows(limit, clock, 20, seconds=(100 + 32) * 0.01, tokens=100)
    windows(limit, clock, 20, seconds=(2000 + 32) * 0.01, tokens=2000)
    assert limit.limit == 64


def test_many_short_answers_a_program_at_the_same_pace_change_nothing(clock) -> None:
    """An agent of fifteen LM calls, where programs of one had set the norm."""
    limit = AdaptiveLimit(64, clock=clock)
    windows(limit, clock, 20, seconds=(200 + 32) * 0.01, tokens=200)
    windows(limit, clock, 20, seconds=(75 + 15 * 32) * 0.01, tokens=75, lm_calls=15)
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
        limit.pushed_back(0.1)
    assert limit.limit == int(64 * BACKOFF)
    clock.advance(1)
    limit.pushed_back(0.1)
    assert limit.limit == int(64 * BACKOFF * BACKOFF)


def test_it_never_falls_below_one_and_finds_its_way_back(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    for _ in range(100):
        limit.pushed_back(0.1)
        clock.advance(1)
    assert limit.limit == 1
    windows(limit, clock, 200, seconds=1)
    assert limit.limit == 64


def test_a_limit_that_is_not_used_is_not_raised(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    limit.pushed_back(0.1)
    before = limit.limit
    for _ in range(500):
        clock.advance(0.11)
        limit.answered(1, TOKENS, lm_calls=1, running=2, elapsed_s=1)
    assert limit.limit == before


def test_attempts_without_an_answer_say_nothing(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    limit.pushed_back(0.1)
    before = limit.limit
    for _ in range(500):
        clock.advance(0.11)
        limit.answered(0.0, 0, lm_calls=1, running=60, elapsed_s=1)
    assert limit.limit == before


@pytest.mark.parametrize("slower", [1.0, 2.0, 4.0])
def test_from_one_call_at_once_it_finds_its_way_back_to_a_provider_that_became_slower(clock, slower) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60)
    for _ in range(100):
        provider.limit.pushed_back(0.1)
        clock.advance(1)
    assert provider.limit.limit == 1
    provider.base_s = slower
    assert provider.serve(600)[-1] == 64


def test_of_calls_that_hung_together_only_the_first_says_something(clock) -> None:
    limit = AdaptiveLimit(64, clock=clock)
    for _ in range(64):
        limit.pushed_back(60)
        clock.advance(0.3)
    assert limit.limit == int(64 * BACKOFF)
    clock.advance(60)
    limit.pushed_back(60)
    assert limit.limit == int(64 * BACKOFF * BACKOFF)


def test_a_push_back_leaves_the_window_that_is_open(clock) -> None:
    """Else long answers beside a 429 every ten seconds would close none, and only ever lower the limit."""
    limit = AdaptiveLimit(64, clock=clock)
    for _ in range(5):
        limit.pushed_back(0.1)
        clock.advance(1)
    for _ in range(WINDOW_SAMPLES - 1):
        clock.advance(0.2)
        limit.answered(1, TOKENS, lm_calls=1, running=limit.limit, elapsed_s=1)
    limit.pushed_back(0.1)
    pushed = limit.limit
    limit.answered(1, TOKENS, lm_calls=1, running=limit.limit, elapsed_s=1)
    assert limit._limit > pushed + 0.5


@pytest.mark.parametrize("running", [50, 64])
def test_after_a_slowness_that_was_no_queue_the_limit_is_what_it_was(clock, running) -> None:
    provider = Provider(AdaptiveLimit(64, clock=clock), clock)
    provider.serve(60, most=running)
    provider.base_s = 4
    limits = provider.serve(180, most=running)
    assert min(limits) <= running // 2
    assert max(limits[limits.index(min(limits)) :]) == 64


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
            limit.pushed_back(0.1)
        else:
            limit.answered(*event, lm_calls=1, running=maximum, elapsed_s=event[0])
        assert 1 <= limit.limit <= maximum
