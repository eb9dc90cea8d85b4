"""When a loop is too late for a call."""

import pytest

from serve_app.core.admission import Admission, Ticket
from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import UNKNOWN_RETRY_AFTER_S
from serve_app.core.loop_lag import BEARABLE, TICKS, LoopLag
from serve_app.core.permit import Refusal
from serve_app.messages import Priority


def lagging(*late_s: float) -> LoopLag:
    lag = LoopLag()
    for each in late_s:
        lag.ticked(each)
    return lag


def test_nothing_is_known_at_first() -> None:
    assert lagging(*[9.0] * (TICKS - 1)).seconds == 0


def test_a_burst_that_is_worked_off_does_not_count() -> None:
    assert lagging(*[0.5] * (TICKS - 1), 0.001).seconds == 0.001


def test_a_standing_delay_counts_and_is_forgotten_with_the_first_timer_in_time() -> None:
    lag = lagging(0.04, 0.05, 0.03, 0.06, 0.05)
    assert lag.seconds == 0.03
    lag.ticked(0.0)
    assert lag.seconds == 0


def test_a_timer_is_never_early() -> None:
    assert lagging(*[-0.001] * TICKS).seconds == 0


@pytest.mark.parametrize("priority", list(Priority))
def test_each_priority_bears_its_share_of_its_time(priority: Priority) -> None:
    lag = lagging(*[0.1] * TICKS)
    enough_s = 0.1 / BEARABLE[priority]
    assert lag.refusal(priority, enough_s * 1.01) is None
    assert lag.refusal(priority, enough_s * 0.99) == Refusal(UNKNOWN_RETRY_AFTER_S, "busy_loop")


def test_sheddable_calls_go_first_and_critical_ones_last() -> None:
    assert BEARABLE[Priority.SHEDDABLE] < BEARABLE[Priority.DEFAULT] < BEARABLE[Priority.CRITICAL]


def test_a_busy_loop_takes_no_more_calls_until_it_has_caught_up() -> None:
    lag = lagging(*[0.1] * TICKS)
    admission = Admission(10, lag, clock=ManualClock(1000))
    assert admission.admit(Priority.DEFAULT, 2) == Refusal(UNKNOWN_RETRY_AFTER_S, "busy_loop")
    assert admission.held == 0
    lag.ticked(0.0)
    assert isinstance(admission.admit(Priority.DEFAULT, 2), Ticket)
