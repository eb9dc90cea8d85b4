"""How long calls are said to run."""

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.service_times import MAX_PROGRAMS, MEMORY_S, WINDOW_S, ServiceTimes


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
        times.add("triage", seconds)
    assert times.mean_s() == pytest.approx(3)


def test_with_none_served_lately_the_last_mean_is_known(times, clock) -> None:
    times.add("triage", 2)
    times.add("triage", 4)
    clock.advance(1000 * WINDOW_S)
    assert times.mean_s() == pytest.approx(3)


def test_the_first_call_after_a_pause_takes_the_old_means_place(times, clock) -> None:
    times.add("triage", 20)
    clock.advance(2 * WINDOW_S)
    times.add("triage", 1)
    assert times.mean_s() == pytest.approx(1)


def test_each_program_has_its_own(times) -> None:
    times.add("slow", 20)
    times.add("quick", 1)
    assert (times.own_s("slow"), times.own_s("quick")) == (20, 1)


def test_a_program_that_is_not_known_goes_by_all(times) -> None:
    assert times.own_s("new") == 0
    times.add("slow", 20)
    times.add("quick", 1)
    assert times.own_s("new") == pytest.approx(10.5)


def test_a_programs_own_outlives_its_window_and_is_forgotten_in_the_end(times, clock) -> None:
    times.add("slow", 20)
    clock.advance(MEMORY_S)
    times.add("quick", 1)
    assert times.own_s("slow") == 20
    clock.advance(1)
    assert times.own_s("slow") == times.mean_s() == pytest.approx(1)


def test_memory_is_bounded(times) -> None:
    for number in range(MAX_PROGRAMS + 5):
        times.add(f"{number}", number)
    assert len(times._own) == MAX_PROGRAMS
    assert times.own_s("4") == times.mean_s()
    assert times.own_s("5") == 5
