"""How long a refusal holds, and for whom."""

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.permit import Refusal
from serve_app.core.recent_refusals import MAX_HOLD_S, MAX_KINDS, RecentRefusals

BUSY = Refusal(0.4, "busy")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def refusals(clock: ManualClock) -> RecentRefusals:
    return RecentRefusals(clock=clock)


def test_nothing_is_refused_that_was_not_refused_before(refusals: RecentRefusals) -> None:
    assert refusals.find("ask", 2.0) is None
    refusals.note("ask", 2.0, BUSY)
    assert refusals.find("other", 2.0) is None


@pytest.mark.parametrize(("remaining_s", "holds_s"), [(0.5, 0.01), (2.0, 0.04), (60.0, MAX_HOLD_S)])
def test_a_refusal_holds_for_a_fiftieth_of_the_deadline_and_never_long(clock, refusals, remaining_s, holds_s) -> None:
    refusals.note("ask", remaining_s, BUSY)
    clock.advance(holds_s * 0.99)
    assert refusals.find("ask", remaining_s) == BUSY
    clock.advance(holds_s * 0.02)
    assert refusals.find("ask", remaining_s) is None


def test_who_has_more_time_asks_anew(refusals: RecentRefusals) -> None:
    refusals.note("ask", 2.0, BUSY)
    assert refusals.find("ask", 1.0) == BUSY
    assert refusals.find("ask", 2.01) == BUSY, "the time that a batch takes to form is no more time"
    assert refusals.find("ask", 2.1) is None


def test_it_says_whether_any_refusal_holds(clock, refusals: RecentRefusals) -> None:
    assert not refusals.holds
    refusals.note("ask", 2.0, BUSY)
    refusals.note("other", 0.5, BUSY)
    clock.advance(0.03)
    assert refusals.holds
    clock.advance(0.011)
    assert not refusals.holds


def test_callers_cannot_make_it_grow(refusals: RecentRefusals) -> None:
    for number in range(3 * MAX_KINDS):
        refusals.note(number, 2.0, BUSY)
    assert sum(refusals.find(number, 2.0) is not None for number in range(3 * MAX_KINDS)) <= MAX_KINDS
    assert refusals.find(3 * MAX_KINDS - 1, 2.0) == BUSY
