"""Who is alone never waits, and nobody waits longer than a tenth of what the work takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.linger import MAX_LINGER_S, MIN_LINGER_S, SHARE, CallLinger, result_linger_s

SECONDS = st.floats(0, 100)


def lane(*round_trips_s: float) -> CallLinger:
    made = CallLinger()
    for each in round_trips_s:
        made.answered(each)
    return made


def test_the_first_call_goes_at_once() -> None:
    assert lane().seconds(0) == 0


@pytest.mark.parametrize("round_trip_s", [0.002, 0.03, 2.0])
def test_a_lone_caller_goes_at_once(round_trip_s) -> None:
    assert lane(round_trip_s).seconds(0) == 0


def test_among_many_a_call_waits_for_those_that_will_come() -> None:
    assert lane(0.03).seconds(32) == pytest.approx(0.003)


def test_where_fewer_than_one_is_expected_nobody_waits() -> None:
    """32 calls of 200 ms: one comes every 6.25 ms, and the wait would be 5 ms."""
    assert lane(0.2).seconds(32) == 0
    assert lane(0.2).seconds(40) == MAX_LINGER_S


def test_a_wait_below_what_event_loops_can_keep_is_none() -> None:
    assert lane(0.009).seconds(1000) == 0
    assert result_linger_s(0.009) == 0


def test_results_of_a_hit_do_not_wait_for_their_neighbours() -> None:
    assert result_linger_s(0.0005) == 0


def test_the_average_follows() -> None:
    made = lane(*[0.2] * 5, *[0.02] * 100)
    assert made.seconds(32) == pytest.approx(0.002, rel=0.01)


@given(SECONDS)
def test_results_wait_within_both_bounds(elapsed_s) -> None:
    wait_s = result_linger_s(elapsed_s)
    assert wait_s == 0 or MIN_LINGER_S <= wait_s <= min(MAX_LINGER_S, SHARE * elapsed_s)


@given(st.lists(SECONDS, min_size=1, max_size=20), st.integers(0, 10_000))
def test_calls_wait_within_both_bounds_and_only_for_company(round_trips_s, in_flight) -> None:
    wait_s = lane(*round_trips_s).seconds(in_flight)
    assert wait_s == 0 or MIN_LINGER_S <= wait_s <= MAX_LINGER_S
    assert wait_s == 0 or wait_s <= SHARE * max(round_trips_s) * (1 + 1e-9)
    assert wait_s == 0 or in_flight >= 1 / SHARE * (1 - 1e-9)
