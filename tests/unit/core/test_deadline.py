from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.deadline import (
    HEADROOM,
    MAX_REPLY_S,
    MAX_SHARE,
    MIN_USEFUL_S,
    attempt_timeout_s,
    is_worth_asking,
    passed_on_s,
)

remaining = st.floats(0, 1000)
attempts = st.integers(1, 10)
latencies = st.floats(0, 1000)


@settings(deadline=None, max_examples=200)
@given(remaining, attempts, latencies)
def test_an_attempt_never_outlives_the_deadline(remaining_s, attempts_left, latency_s):
    assert 0 <= attempt_timeout_s(remaining_s, attempts_left, latency_s) <= remaining_s


@settings(deadline=None, max_examples=100)
@given(remaining, latencies)
def test_the_last_attempt_gets_everything(remaining_s, latency_s):
    assert attempt_timeout_s(remaining_s, 1, latency_s) == remaining_s


@settings(deadline=None, max_examples=200)
@given(st.floats(2 * MIN_USEFUL_S, 1000), st.integers(2, 10), latencies)
def test_whoever_follows_keeps_a_quarter_and_a_useful_time(remaining_s, attempts_left, latency_s):
    timeout_s = attempt_timeout_s(remaining_s, attempts_left, latency_s)

    assert remaining_s - timeout_s >= max(MIN_USEFUL_S, (1 - MAX_SHARE) * remaining_s) - 1e-9


@settings(deadline=None, max_examples=200)
@given(remaining, attempts, latencies)
def test_an_attempt_gets_its_even_share_and_a_useful_time_at_least(remaining_s, attempts_left, latency_s):
    timeout_s = attempt_timeout_s(remaining_s, attempts_left, latency_s)

    assert timeout_s >= remaining_s / attempts_left - 1e-9
    assert timeout_s >= min(MIN_USEFUL_S, remaining_s)


@settings(deadline=None, max_examples=100)
@given(st.floats(2 * MIN_USEFUL_S, 1000), st.floats(2 * MIN_USEFUL_S, 1000), attempts, latencies)
def test_more_time_left_never_means_less_for_the_attempt(a_s, b_s, attempts_left, latency_s):
    shorter, longer = sorted((a_s, b_s))

    assert attempt_timeout_s(shorter, attempts_left, latency_s) <= attempt_timeout_s(longer, attempts_left, latency_s)


@pytest.mark.parametrize(
    ("remaining_s", "attempts_left", "latency_s", "timeout_s"),
    [
        (60, 3, 0, 20),
        (60, 3, 2, 20),
        (60, 3, 10, HEADROOM * 10),
        (60, 3, 40, MAX_SHARE * 60),
        (60, 2, 0, 30),
        (0.9, 5, 1, 0.9 - MIN_USEFUL_S),
        (0.5, 5, 0, MIN_USEFUL_S),
        (0.49, 5, 0, 0.49),
        (0.1, 5, 0, 0.1),
        (0, 3, 1, 0),
        (-1, 1, 1, 0),
        (7, 0, 1, 7),
    ],
)
def test_time_is_divided_as_written(remaining_s, attempts_left, latency_s, timeout_s):
    assert attempt_timeout_s(remaining_s, attempts_left, latency_s) == pytest.approx(timeout_s)


@pytest.mark.parametrize(
    ("remaining_s", "latency_s", "is_worth"),
    [(10, 30, True), (MIN_USEFUL_S, 30, True), (0.05, 30, False), (0.05, 0.05, True), (0.05, 0.06, False)],
)
def test_another_model_is_asked_with_time_for_an_answer(remaining_s, latency_s, is_worth):
    assert is_worth_asking(remaining_s, latency_s) is is_worth


def test_three_attempts_that_hang_all_fit_into_one_deadline():
    left = 60.0
    for attempts_left in (3, 2, 1):
        timeout_s = attempt_timeout_s(left, attempts_left)
        assert timeout_s == pytest.approx(20)
        left -= timeout_s
    assert left == pytest.approx(0)


@settings(deadline=None, max_examples=100)
@given(st.floats(0.001, 1000))
def test_who_passes_a_call_on_keeps_a_moment_for_the_answer(remaining_s):
    kept_s = remaining_s - passed_on_s(remaining_s)

    assert 0 < kept_s <= min(MAX_REPLY_S, 0.05 * remaining_s) + 1e-9


@pytest.mark.parametrize("remaining_s", [0.0, -1.0])
def test_a_call_whose_time_is_over_is_passed_on_as_such(remaining_s):
    assert passed_on_s(remaining_s) == remaining_s
