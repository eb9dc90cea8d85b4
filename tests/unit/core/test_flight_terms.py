"""Whom a call waits for, and whose failure is also its own."""

import pytest

from serve_app.core.flight_terms import Terms
from serve_app.errors import (
    BadOutput,
    CircuitOpen,
    DeadlineExceeded,
    NoRoute,
    Overloaded,
    ProgramError,
    RateLimited,
    UpstreamError,
    UpstreamRefused,
)
from serve_app.messages import PRIORITIES, Priority


def terms(time_s: float, asked_at: float = 100.0, priority: Priority = Priority.DEFAULT) -> Terms:
    return Terms(priority, asked_at, asked_at + time_s)


@pytest.mark.parametrize("led", PRIORITIES)
@pytest.mark.parametrize("asking", PRIORITIES)
def test_a_call_waits_for_its_own_priority_or_a_better_one(led, asking) -> None:
    is_as_good = PRIORITIES.index(led) <= PRIORITIES.index(asking)
    assert terms(60, priority=asking).may_join(terms(60, priority=led)) is is_as_good


@pytest.mark.parametrize(
    ("led_s", "ago_s", "time_s", "joins"),
    [
        (60, 0, 60, True),
        (60, 5, 60, True),
        (60, 59, 60, True),
        (60, 0, 40, True),
        (60, 0, 39, False),
        (15, 0, 3, False),
        (15, 11, 3, True),  # it has a fallback under way, or it has none
        (1.9, 0, 30, True),
    ],
)
def test_a_call_waits_for_no_flight_that_may_take_much_longer_than_it_can_wait(led_s, ago_s, time_s, joins) -> None:
    assert terms(time_s, 100.0).may_join(terms(led_s, 100.0 - ago_s)) is joins


@pytest.mark.parametrize(("led_s", "joins"), [(60, True), (40, True), (39, False), (1.9, False)])
def test_a_call_that_a_flight_has_failed_joins_none_with_much_less_time(led_s, joins) -> None:
    assert terms(60).may_join(terms(led_s), again=True) is joins


@pytest.mark.parametrize("led_s", [1, 60, 600])
@pytest.mark.parametrize("error", [DeadlineExceeded("late"), Overloaded("busy")])
def test_want_of_time_or_room_is_the_leaders_own(error, led_s) -> None:
    assert terms(30).asks_after(error, terms(led_s))


@pytest.mark.parametrize(
    ("led_s", "priority", "asks"),
    [(30, Priority.DEFAULT, False), (30, Priority.CRITICAL, True), (19, Priority.DEFAULT, True)],
)
def test_a_replicas_refusal_is_everybodys_who_would_not_fare_better(led_s, priority, asks) -> None:
    assert terms(30, priority=priority).asks_after(Overloaded("full"), terms(led_s), was_tried=True) is asks


@pytest.mark.parametrize(("led_s", "asks"), [(1.9, True), (19, True), (20, False), (60, False)])
@pytest.mark.parametrize("error", [NoRoute("x"), CircuitOpen("x"), UpstreamError("x"), BadOutput("x")])
def test_a_failure_that_may_pass_is_the_leaders_own_when_it_had_much_less_time(error, led_s, asks) -> None:
    assert terms(30).asks_after(error, terms(led_s)) is asks


@pytest.mark.parametrize("led_s", [1, 60])
@pytest.mark.parametrize("error", [ProgramError("x"), UpstreamRefused("x"), RateLimited("x")])
def test_a_failure_that_time_does_not_mend_is_everybodys(error, led_s) -> None:
    assert not terms(30).asks_after(error, terms(led_s))
