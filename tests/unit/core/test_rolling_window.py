from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.clock import ManualClock
from serve_app.core.rolling_window import (
    MAX_VALUE,
    MIN_VALUE,
    RELATIVE_ERROR,
    SLICES,
    Counts,
    RollingMean,
    RollingQuantile,
    RollingSums,
    RollingWindow,
)

gaps_s = st.floats(min_value=0, max_value=20, allow_nan=False)


def test_a_window_without_calls_has_no_rates():
    counts = RollingWindow(10, clock=ManualClock()).counts()

    assert counts == Counts(0, 0, 0, 0.0)
    assert counts.failure_rate == 0
    assert counts.slow_rate == 0


def test_rates_are_shares_of_all_calls():
    window = RollingWindow(10, clock=ManualClock())
    window.add(10, failures=3, slow=2, latency_s=5.5)
    window.add(latency_s=0.5)
    window.add(failures=1)

    assert window.counts() == Counts(12, 4, 2, 6.0)
    assert window.counts().failure_rate == pytest.approx(4 / 12)
    assert window.counts().slow_rate == pytest.approx(2 / 12)


def test_calls_leave_the_window_slice_by_slice():
    clock = ManualClock()
    window = RollingWindow(10, clock=clock)
    window.add()
    clock.advance(5)
    window.add(2)

    clock.advance(4.9)
    assert window.counts().total == 3
    clock.advance(0.2)
    assert window.counts().total == 2
    clock.advance(5)
    assert window.counts().total == 0


def test_a_cleared_window_is_empty_and_counts_again():
    window = RollingWindow(10, clock=ManualClock())
    window.add(5)
    window.clear()
    assert window.counts().total == 0
    window.add()
    assert window.counts().total == 1


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(gaps_s, st.integers(1, 5)), max_size=60), st.floats(0.5, 30))
def test_sums_hold_everything_that_is_surely_young_and_nothing_that_is_surely_old(events, window_s):
    clock = ManualClock()
    sums = RollingSums(2, window_s, clock=clock)
    seen: list[tuple[float, int]] = []
    for gap, amount in events:
        clock.advance(gap)
        sums.add(amount, 2 * amount)
        seen.append((clock(), amount))

        young = sum(n for at, n in seen if clock() - at < window_s * (1 - 1 / SLICES) - 1e-6)
        not_old = sum(n for at, n in seen if clock() - at <= window_s + 1e-6)
        total, doubled = sums.totals()
        assert young <= total <= not_old
        assert doubled == 2 * total


def test_sums_do_not_drift_after_a_million_seconds_of_fractions():
    clock = ManualClock()
    sums = RollingSums(1, 10, clock=clock)
    sums.add(1e12)
    for _ in range(2000):
        clock.advance(500)
        sums.add(0.1)

    assert sums.totals() == (0.1,)


@settings(deadline=None, max_examples=60)
@given(st.lists(gaps_s, min_size=1, max_size=30), st.floats(0.5, 60), st.floats(0.5, 60))
def test_a_resized_window_forgets_old_calls_and_invents_none(gaps, before_s, after_s):
    clock = ManualClock()
    sums = RollingSums(1, before_s, clock=clock)
    seen = []
    for gap in gaps:
        clock.advance(gap)
        sums.add(1)
        seen.append(clock())
    sums.resize(after_s)

    oldest_s = min(before_s, after_s)
    assert sums.totals()[0] <= sum(clock() - at <= oldest_s + 1e-6 for at in seen)
    assert sums.totals()[0] >= sum(clock() - at < oldest_s * 0.9 - before_s / SLICES - 1e-6 for at in seen)
    clock.advance(after_s + 1e-6)
    assert sums.totals() == (0,)


def test_a_mean_is_taken_over_the_window_and_unknown_without_readings():
    clock = ManualClock()
    mean = RollingMean(10, clock=clock)
    assert mean.mean() is None

    mean.add(0.2)
    clock.advance(5)
    mean.add(0.6)
    assert mean.mean() == pytest.approx(0.4)
    clock.advance(5)
    assert mean.mean() == pytest.approx(0.6)
    clock.advance(10)
    assert mean.mean() is None


@pytest.mark.parametrize("reading", [math.nan, math.inf, -math.inf])
def test_a_reading_that_is_no_number_does_not_spoil_a_mean(reading):
    mean = RollingMean(10, clock=ManualClock())
    mean.add(0.5)
    mean.add(reading)

    assert mean.mean() == 0.5


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(MIN_VALUE * 1.01, MAX_VALUE), min_size=1, max_size=80), st.floats(0, 1))
def test_a_quantile_is_within_its_error_of_the_exact_one(values, q):
    sketch = RollingQuantile(10, clock=ManualClock())
    for value in values:
        sketch.add(value)

    exact = sorted(values)[max(1, math.ceil(q * len(values))) - 1]
    assert sketch.quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9)


def test_a_quantile_forgets_what_left_the_window():
    clock = ManualClock()
    sketch = RollingQuantile(10, clock=clock)
    assert sketch.quantile(0.95) is None
    sketch.add(8.0, count=50)
    clock.advance(9)
    sketch.add(1.0, count=50)
    assert sketch.quantile(0.95) == pytest.approx(8, rel=RELATIVE_ERROR)

    clock.advance(2)
    assert sketch.quantile(0.95) == pytest.approx(1, rel=RELATIVE_ERROR)
    clock.advance(10)
    assert sketch.quantile(0.95) is None


@pytest.mark.parametrize(("value", "answer"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, MAX_VALUE), (1e9, MAX_VALUE)])
def test_durations_beyond_the_range_are_taken_as_its_ends(value, answer):
    sketch = RollingQuantile(10, clock=ManualClock())
    sketch.add(value)
    sketch.add(math.nan)

    assert sketch.quantile(0.5) == pytest.approx(answer, rel=RELATIVE_ERROR)


def test_a_sketch_stays_small_whatever_it_is_fed():
    clock = ManualClock()
    sketch = RollingQuantile(10, clock=clock)
    for i in range(20_000):
        clock.advance(0.01)
        sketch.add(MIN_VALUE * 1.0013**i if i < 15_000 else float(i))

    assert sum(len(piece) for piece in sketch._slices) <= SLICES * 186


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=50))
def test_quantiles_grow_with_q(values):
    sketch = RollingQuantile(10, clock=ManualClock())
    for value in values:
        sketch.add(value)

    assert all(a <= b for a, b in pairwise(sketch.quantile(q / 20) for q in range(21)))


def test_a_clock_cannot_go_back():
    with pytest.raises(ValueError, match="cannot go back"):
        ManualClock().advance(-1)


def test_what_was_cleared_does_not_come_back_when_a_slice_expires():
    clock = ManualClock()
    window = RollingWindow(10, clock=clock)
    window.add(1)
    clock.advance(5)
    window.add(5)
    window.clear()
    window.add(1)
    clock.advance(5)

    assert window.counts().total == 1


def test_a_resized_sketch_and_mean_forget_what_is_older():
    clock = ManualClock()
    sketch, mean = RollingQuantile(10, clock=clock), RollingMean(10, clock=clock)
    sketch.add(8.0)
    mean.add(8.0)
    clock.advance(5)
    sketch.resize(2)
    mean.resize(2)

    assert sketch.quantile(0.5) is None
    assert mean.mean() is None
