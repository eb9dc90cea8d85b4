"""When a loop is too late for a call."""

import pytest

from serve_app.core.admission import FEW, Admission, Ticket
from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import UNKNOWN_RETRY_AFTER_S
from serve_app.core.loop_lag import BEARABLE, MOST_S, ORDINARY_S, TICK_S, LoopLag
from serve_app.core.permit import Refusal
from serve_app.messages import Priority


def lagging(*late_s: float) -> LoopLag:
    """After timers that were so late, one after the other."""
    lag, now = LoopLag(), 1000.0
    for each in late_s:
        due = now + TICK_S
        now = due + each
        lag.ticked(due, now)
    return lag


def test_nothing_is_late_at_first() -> None:
    assert LoopLag().seconds == 0


def test_a_burst_that_is_worked_off_does_not_count() -> None:
    assert lagging(0.0, 0.07).seconds == 0
    assert lagging(0.5, 0.5, 0.001).seconds == pytest.approx(0.001)


def test_a_standing_delay_counts_and_is_forgotten_with_the_first_timer_in_time() -> None:
    late = (0.02, 0.03, 0.02, 0.03, 0.02)
    assert lagging(*late).seconds == pytest.approx(0.02)
    assert lagging(*late, 0.0).seconds == 0


def test_one_stall_is_no_lag_however_long_and_two_are() -> None:
    assert lagging(0.0, 0.0, 0.3).seconds == 0
    assert lagging(0.0, 0.0, 0.3, 0.2).seconds == pytest.approx(0.2)


def test_a_timer_is_never_early() -> None:
    lag = LoopLag()
    lag.ticked(1000.0, 999.9)
    assert lag.seconds == 0


@pytest.mark.parametrize("priority", list(Priority))
def test_each_priority_bears_its_share_of_its_time(priority: Priority) -> None:
    lag = lagging(0.05, 0.05)
    enough_s = 0.05 / BEARABLE[priority]
    assert lag.refusal(priority, enough_s * 1.01) is None
    assert lag.refusal(priority, enough_s * 0.99) == Refusal(UNKNOWN_RETRY_AFTER_S, "busy_loop")


@pytest.mark.parametrize("priority", list(Priority))
def test_a_long_deadline_bears_no_more_than_ten_seconds_do(priority: Priority) -> None:
    assert lagging(*[BEARABLE[priority] * MOST_S * 0.99] * 2).refusal(priority, 600) is None
    assert lagging(*[BEARABLE[priority] * MOST_S * 1.01] * 2).refusal(priority, 600) is not None


@pytest.mark.parametrize("priority", list(Priority))
def test_an_ordinary_lag_refuses_nobody_however_short_the_deadline(priority: Priority) -> None:
    assert lagging(*[ORDINARY_S * 0.99] * 2).refusal(priority, 0.05) is None
    assert lagging(*[ORDINARY_S * 1.01] * 2).refusal(priority, 0.05) is not None


def test_sheddable_calls_go_first_and_critical_ones_last() -> None:
    assert BEARABLE[Priority.SHEDDABLE] < BEARABLE[Priority.DEFAULT] < BEARABLE[Priority.CRITICAL]


def test_a_busy_loop_takes_no_more_calls_until_it_has_caught_up() -> None:
    lag = lagging(0.1, 0.1)
    admission = Admission(100, lag, clock=ManualClock(1000))
    few = [admission.admit(Priority.SHEDDABLE, 2) for _ in range(FEW)]
    assert all(isinstance(admitted, Ticket) for admitted in few), "so few do not keep it busy"
    assert admission.admit(Priority.DEFAULT, 2) == Refusal(UNKNOWN_RETRY_AFTER_S, "busy_loop")
    assert admission.held == FEW
    lag.ticked(1000.3, 1000.3)
    assert isinstance(admission.admit(Priority.DEFAULT, 2), Ticket)
