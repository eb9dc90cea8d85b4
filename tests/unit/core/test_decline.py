"""A verdict on whether asking less has helped, from calls that began when less was asked."""

import pytest

from serve_app.core.decline import Decline


def halved(pace: float = 10.0, longest_s: float = 5.0) -> Decline:
    """Began with 64 calls at 100 s; half as many since 110 s."""
    decline = Decline(64, 64.0, enough=3)
    decline.saw(pace)
    decline.answered(pace, began_at=110 - longest_s, now=110, running=32, limit=32)
    assert decline.is_halved
    return decline


def answer(decline: Decline, pace: float, *, began_at: float, now: float) -> None:
    decline.answered(pace, began_at=began_at, now=now, running=32, limit=32)


@pytest.mark.parametrize(("running", "limit"), [(33, 32), (32, 33), (64, 20)])
def test_it_is_not_halved_while_more_than_half_run_or_may_run(running, limit) -> None:
    decline = Decline(64, 64.0, enough=3)
    decline.answered(1.0, began_at=100, now=110, running=running, limit=limit)
    assert not decline.is_halved


@pytest.mark.parametrize(("pace", "has_helped"), [(5.0, True), (7.4, True), (7.6, False), (10.0, False), (15.0, False)])
def test_it_has_helped_where_the_pace_is_much_better(pace, has_helped) -> None:
    decline = halved()
    for number in range(3):
        assert not decline.is_decided
        answer(decline, pace, began_at=111 + number, now=116 + number)
    assert decline.is_decided
    assert decline.has_helped is has_helped
    assert decline.pace == pytest.approx(pace)


def test_calls_that_began_before_say_nothing() -> None:
    decline = halved()
    for now in range(115, 130):
        answer(decline, 10.0, began_at=109.9, now=now)
    assert not decline.is_decided


def test_the_first_answers_are_the_short_ones_and_wait_for_the_long_ones() -> None:
    decline = halved(longest_s=30.0)
    for number in range(100):
        answer(decline, 10.0, began_at=111, now=112 + 0.1 * number)
    assert not decline.is_decided
    for number in range(3):
        answer(decline, 5.0, began_at=111, now=140 + number)
    assert decline.is_decided
    assert decline.has_helped


def test_the_pace_before_is_the_worst_average_while_a_queue_may_still_grow() -> None:
    decline = Decline(64, 64.0, enough=1)
    for pace in (1.0, 10.0, 10.0, 10.0, 10.0, 10.0, 8.0):
        decline.saw(pace)
    decline.answered(8.0, began_at=110, now=110, running=32, limit=32)
    decline.saw(100.0)  # once it is halved, that is no pace before
    answer(decline, 5.0, began_at=111, now=112)
    assert decline.has_helped
