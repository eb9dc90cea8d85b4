"""How often a follower looks, and how many leaders it waits for."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.lease_wait import (
    LEASE_S,
    MAX_LEADERS,
    MAX_PAUSE_S,
    MIN_PAUSE_S,
    PAUSE_SHARE,
    RENEW_S,
    may_claim,
    pause_s,
)


@given(st.floats(0, 1e6))
def test_a_follower_looks_often_enough_to_lose_a_tenth_at_most_and_not_more_often_than_that(waited_s: float) -> None:
    pause = pause_s(waited_s)
    assert MIN_PAUSE_S <= pause <= MAX_PAUSE_S
    assert pause <= max(MIN_PAUSE_S, PAUSE_SHARE * waited_s)


def test_a_long_model_call_costs_a_follower_few_looks() -> None:
    waited_s, looks = 0.0, 0
    while waited_s < 10:
        waited_s += pause_s(waited_s)
        looks += 1
    assert looks < 80


def test_a_lease_outlives_two_lost_renewals() -> None:
    assert 3 * RENEW_S < LEASE_S


def test_after_two_leaders_without_an_answer_a_follower_goes_its_own_way() -> None:
    assert [may_claim(followed) for followed in range(4)] == [True, True, False, False]
    assert MAX_LEADERS == 2
