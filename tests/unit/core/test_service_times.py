"""How long calls are said to run."""

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.service_times import WINDOW_S, ServiceTimes


@pytest.fixture
def clock():
    return ManualClock(1000)


@pytest.fixture
def times(clock):
    return ServiceTimes(clock=clock)


def test_before_the_first_served_call_nothing_is_known(times) -> None:
    assert times.mean_s() == 0


def test_recent_calls_count_alike(times) -> None:
    for seconds in (1, 2, 6):
        times.add(seconds)
    assert times.mean_s() == pytest.approx(3)


def test_with_none_served_lately_the_last_mean_is_known(times, clock) -> None:
    times.add(2)
    times.add(4)
    clock.advance(1000 * WINDOW_S)
    assert times.mean_s() == pytest.approx(3)


def test_the_first_call_after_a_pause_takes_the_old_means_place(times, clock) -> None:
    times.add(20)
    clock.advance(2 * WINDOW_S)
    times.add(1)
    assert times.mean_s() == pytest.approx(1)
