"""How long a call would wait for a slot, and when that is too long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.expected_wait import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    SHARES,
    expected_wait_s,
    refusal_at,
    room_for,
    too_late,
)
from serve_app.messages import PRIORITIES, Priority
from serve_app.reports import ModelLoad

BUSY = ModelLoad(slots=4, running=4, waiting=(2, 6, 12), service_s=2)


@pytest.mark.parametrize(
    ("ahead", "wait_s"),
    [(0, 0), (3, 0), (4, 0.5), (5, 1.0), (23, 10.0)],
)
def test_a_call_waits_for_as_many_departures_as_are_ahead_of_it(ahead, wait_s) -> None:
    assert expected_wait_s(ahead, slots=4, service_s=2) == wait_s


def test_without_slots_nothing_is_known_and_nothing_expected() -> None:
    assert expected_wait_s(100, slots=0, service_s=2) == 0


@pytest.mark.parametrize("priority", PRIORITIES)
def test_each_priority_spends_its_share_of_the_time_the_answer_leaves(priority) -> None:
    enough_s = 2 + 5 / SHARES[priority]
    assert too_late(priority, enough_s + 0.01, wait_s=5, run_s=2) is None
    refusal = too_late(priority, enough_s - 1, wait_s=5, run_s=2)
    assert refusal.reason == "deadline"
    assert refusal.retry_after_s == pytest.approx(SHARES[priority])


def test_a_free_slot_is_never_refused_however_short_the_time() -> None:
    assert too_late(Priority.SHEDDABLE, remaining_s=0.01, wait_s=0, run_s=100) is None


def test_a_call_whose_time_is_up_is_always_refused() -> None:
    assert too_late(Priority.CRITICAL, remaining_s=0, wait_s=0, run_s=0).reason == "deadline"


@pytest.mark.parametrize(
    ("priority", "wait_s"), [(Priority.CRITICAL, 1.5), (Priority.DEFAULT, 4.5), (Priority.SHEDDABLE, 10.5)]
)
def test_only_what_goes_before_a_call_makes_it_wait(priority, wait_s) -> None:
    enough_s = 2 + wait_s / SHARES[priority]
    assert refusal_at(BUSY, priority, enough_s + 0.01, sent=0) is None
    assert refusal_at(BUSY, priority, enough_s - 0.01, sent=0) is not None


def test_calls_sent_since_the_report_count_as_ahead() -> None:
    assert refusal_at(BUSY, Priority.CRITICAL, remaining_s=4, sent=0) is None
    assert refusal_at(BUSY, Priority.CRITICAL, remaining_s=4, sent=10) is not None


@pytest.mark.parametrize(("run_s", "enough_s"), [(0.0, 3.5), (0.1, 1.6), (2.0, 3.5), (50.0, 3.5)])
def test_a_quick_program_needs_less_of_its_deadline_and_a_slow_one_is_left_to_the_replica(run_s, enough_s) -> None:
    assert refusal_at(BUSY, Priority.CRITICAL, enough_s + 0.01, sent=0, run_s=run_s) is None
    assert refusal_at(BUSY, Priority.CRITICAL, enough_s - 0.01, sent=0, run_s=run_s) is not None


def test_an_unknown_load_refuses_nobody() -> None:
    assert refusal_at(ModelLoad(), Priority.SHEDDABLE, remaining_s=0.1, sent=1000) is None


@given(
    priority=st.sampled_from(PRIORITIES),
    remaining_s=st.floats(0.001, 1000),
    wait_s=st.floats(0, 1e6),
    run_s=st.floats(0, 1000),
)
def test_who_is_let_in_at_a_low_priority_is_let_in_at_a_better_one(priority, remaining_s, wait_s, run_s) -> None:
    refusal = too_late(priority, remaining_s, wait_s, run_s)
    if refusal is None:
        better = PRIORITIES[: PRIORITIES.index(priority)]
        assert all(too_late(each, remaining_s, wait_s, run_s) is None for each in better)
    else:
        assert MIN_RETRY_AFTER_S <= refusal.retry_after_s <= MAX_RETRY_AFTER_S


@pytest.mark.parametrize("priority", PRIORITIES)
def test_even_the_smallest_bound_has_room_for_one(priority) -> None:
    assert room_for(priority, 1) == 1
