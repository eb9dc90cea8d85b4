from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.clock import ManualClock
from serve_app.core.retry_budget import WINDOW_S, RetryBudget
from serve_app.policy import RetryPolicy


def withdrawn(budget: RetryBudget, tries: int) -> int:
    return sum(budget.withdraw() for _ in range(tries))


def test_a_quiet_service_may_retry_at_its_floor():
    clock = ManualClock()
    budget = RetryBudget(RetryPolicy(budget_ratio=0, budget_floor_per_s=0.5), clock=clock)

    assert withdrawn(budget, 100) == 5
    clock.advance(WINDOW_S)
    assert withdrawn(budget, 100) == 5


@pytest.mark.parametrize("ratio", [0.0, 0.07, 0.1, 0.2, 0.29, 1.0])
def test_retries_are_the_ratio_of_calls_to_the_last_one(ratio):
    budget = RetryBudget(RetryPolicy(budget_ratio=ratio, budget_floor_per_s=0), clock=ManualClock())
    for _ in range(100):
        budget.deposit()

    assert withdrawn(budget, 1000) == round(100 * ratio)


def test_without_ratio_and_floor_nothing_is_retried():
    budget = RetryBudget(RetryPolicy(budget_ratio=0, budget_floor_per_s=0), clock=ManualClock())
    budget.deposit()

    assert budget.withdraw() is False


def test_calls_pay_for_retries_only_for_a_window():
    clock = ManualClock()
    budget = RetryBudget(RetryPolicy(budget_ratio=0.2, budget_floor_per_s=0), clock=clock)
    for _ in range(50):
        budget.deposit()
    assert budget.balance() == pytest.approx(10)

    clock.advance(WINDOW_S)
    assert budget.withdraw() is False


def test_a_refused_retry_costs_nothing():
    budget = RetryBudget(RetryPolicy(budget_ratio=0.5, budget_floor_per_s=0), clock=ManualClock())
    budget.deposit()
    assert withdrawn(budget, 20) == 0
    budget.deposit()

    assert withdrawn(budget, 20) == 1


def test_a_new_policy_keeps_what_was_counted():
    budget = RetryBudget(RetryPolicy(budget_ratio=0.1, budget_floor_per_s=0), clock=ManualClock())
    for _ in range(100):
        budget.deposit()
    assert withdrawn(budget, 100) == 10
    budget.reconfigure(RetryPolicy(budget_ratio=0.2, budget_floor_per_s=0))

    assert withdrawn(budget, 100) == 10


def test_a_dead_provider_sees_at_most_a_fifth_more_traffic_and_the_floor():
    clock = ManualClock()
    budget = RetryBudget(RetryPolicy(), clock=clock)
    calls = retries = 0
    for _ in range(6000):
        clock.advance(0.01)
        calls += 1
        budget.deposit()
        retries += withdrawn(budget, 2)

    assert retries <= 0.2 * calls + 60 + 10
    assert retries >= 0.2 * calls


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0, 4), st.integers(0, 20), st.integers(0, 20)), max_size=40),
    st.floats(0, 1),
    st.floats(0, 3),
)
def test_no_window_holds_more_retries_than_it_may(steps, ratio, floor):
    clock = ManualClock()
    budget = RetryBudget(RetryPolicy(budget_ratio=ratio, budget_floor_per_s=floor), clock=clock)
    calls: list[float] = []
    retries: list[float] = []
    for gap, deposits, tries in steps:
        clock.advance(gap)
        for _ in range(deposits):
            budget.deposit()
        calls += [clock()] * deposits
        for _ in range(tries):
            surely_counted = sum(clock() - at < WINDOW_S * 0.9 - 1e-6 for at in retries)
            maybe_counted = sum(clock() - at <= WINDOW_S + 1e-6 for at in calls)
            if budget.withdraw():
                retries.append(clock())
                assert surely_counted + 1 <= ratio * maybe_counted + floor * WINDOW_S + 1e-6
            else:
                assert budget.balance() < 1
    assert math.isfinite(budget.balance())
