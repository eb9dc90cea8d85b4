from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.core.clock import ManualClock
from serve_app.core.degradation import Decision, DegradationController, Readings
from serve_app.messages import Level
from serve_app.policy import DegradationPolicy, Thresholds

CALM = Readings(memory=0.1, cpu=0.1, error_rate=0.0, p95_latency_s=0.1, queue_wait_s=0.0)


def controller(clock: ManualClock, **policy) -> DegradationController:
    defaults = {"dwell_s": 15, "window_s": 10, "exit_ratio": 0.8}
    return DegradationController(DegradationPolicy(**(defaults | policy)), clock=clock)


@pytest.fixture
def clock():
    return ManualClock(1000)


def run(subject: DegradationController, clock: ManualClock, readings: Readings, seconds: int) -> Decision:
    """The same readings once a second."""
    for _ in range(seconds):
        clock.advance(1)
        decision = subject.update(readings)
    return decision


def test_calm_readings_leave_it_at_full(clock):
    assert run(controller(clock), clock, CALM, 60) == Decision(Level.FULL, "", 60)


def test_unknown_readings_leave_it_at_full(clock):
    assert run(controller(clock), clock, Readings(), 60).level is Level.FULL


@pytest.mark.parametrize("level", [Level.DEGRADED, Level.MINIMAL])
@pytest.mark.parametrize(
    ("name", "threshold"),
    [("memory", 0.9), ("cpu", 0.8), ("error_rate", 0.1), ("p95_latency_s", 5.0), ("queue_wait_s", 2.0)],
)
def test_each_reading_enters_each_level_at_its_own_threshold(clock, level, name, threshold):
    nothing = Thresholds(cpu=None, p95_latency_s=None, queue_wait_s=None)
    subject = controller(
        clock, **({"degraded": nothing, "minimal": nothing} | {level.value: Thresholds(**{name: threshold})})
    )

    assert subject.update(Readings(**{name: threshold * 0.99})).level is Level.FULL
    clock.advance(20)
    decision = subject.update(Readings(**{name: threshold}))
    assert decision.level is level
    assert decision.reason == f"{name} {threshold:.3g}, threshold {threshold:g}"


def test_it_goes_straight_to_the_worst_level_entered(clock):
    assert controller(clock).update(Readings(cpu=0.9, error_rate=0.5)).level is Level.MINIMAL


def test_the_reason_is_the_reading_furthest_over_its_threshold(clock):
    decision = controller(clock).update(Readings(cpu=0.88, p95_latency_s=20, queue_wait_s=4))

    assert decision == Decision(Level.DEGRADED, "p95_latency_s 20, threshold 5", 0)


def test_it_returns_only_below_the_threshold_times_the_exit_ratio(clock):
    subject = controller(clock)
    subject.update(Readings(queue_wait_s=2.0))

    assert run(subject, clock, Readings(queue_wait_s=1.6), 60).level is Level.DEGRADED
    assert run(subject, clock, Readings(queue_wait_s=1.59), 1) == Decision(Level.FULL, "", 0)


def test_it_is_held_by_any_one_of_its_readings(clock):
    subject = controller(clock)
    subject.update(Readings(queue_wait_s=2.0))

    assert run(subject, clock, Readings(queue_wait_s=0, p95_latency_s=4.5), 60).level is Level.DEGRADED


def test_it_is_kept_for_the_dwell_even_if_all_is_well_again(clock):
    subject = controller(clock)
    subject.update(Readings(queue_wait_s=9))

    assert run(subject, clock, CALM, 14) == Decision(Level.DEGRADED, "queue_wait_s 9, threshold 2", 14)
    assert run(subject, clock, CALM, 1).level is Level.FULL


def test_it_gets_better_one_level_per_dwell(clock):
    subject = controller(clock)
    subject.update(Readings(error_rate=0.5))

    seen = [run(subject, clock, CALM, 1).level for _ in range(40)]
    assert seen == [Level.MINIMAL] * 14 + [Level.DEGRADED] * 15 + [Level.FULL] * 11


def test_the_level_between_says_why_it_is_held(clock):
    subject = controller(clock)
    subject.update(Readings(error_rate=0.5))
    assert run(subject, clock, CALM, 15).reason == "recovering"

    other = controller(clock)
    other.update(Readings(error_rate=0.5))
    assert run(other, clock, Readings(queue_wait_s=1.9), 15) == Decision(
        Level.DEGRADED, "queue_wait_s 1.9, threshold 2", 0
    )


def test_momentary_readings_are_averaged_over_the_window(clock):
    subject = controller(clock)
    run(subject, clock, Readings(cpu=0.5, memory=0.5), 10)
    assert run(subject, clock, Readings(cpu=1.0, memory=1.0), 2).level is Level.FULL
    decision = run(subject, clock, Readings(cpu=1.0, memory=0.5), 8)

    assert decision.level is Level.DEGRADED
    assert decision.reason.startswith("cpu")


def test_readings_that_stop_coming_hold_nothing(clock):
    subject = controller(clock)
    run(subject, clock, Readings(cpu=1.0, error_rate=0.5), 1)

    assert run(subject, clock, Readings(), 31).level is Level.FULL


@pytest.mark.parametrize("name", ["memory", "cpu", "error_rate", "p95_latency_s", "queue_wait_s"])
def test_a_reading_that_is_no_number_enters_nothing(clock, name):
    assert controller(clock).update(Readings(**{name: math.nan})).level is Level.FULL


def test_a_pin_holds_a_level_at_once_whatever_the_readings(clock):
    subject = controller(clock)
    subject.update(Readings(error_rate=0.9))
    subject.reconfigure(DegradationPolicy(pin=Level.DEGRADED))

    assert subject.update(Readings(error_rate=0.9)) == Decision(Level.DEGRADED, "pinned", 0)
    assert run(subject, clock, Readings(error_rate=0.9), 100) == Decision(Level.DEGRADED, "pinned", 100)


def test_a_pin_at_full_is_seen(clock):
    assert controller(clock, pin=Level.FULL).update(Readings(error_rate=0.9)) == Decision(Level.FULL, "pinned", 0)


def test_a_pin_taken_away_leaves_it_to_the_readings(clock):
    subject = controller(clock, pin=Level.MINIMAL)
    run(subject, clock, CALM, 60)
    subject.reconfigure(DegradationPolicy(dwell_s=15))
    assert subject.decision() == Decision(Level.MINIMAL, "was pinned", 60 - 1)

    assert run(subject, clock, CALM, 1).level is Level.DEGRADED
    assert run(subject, clock, CALM, 15).level is Level.FULL


def test_a_new_policy_applies_with_the_next_reading_and_keeps_the_level(clock):
    subject = controller(clock)
    subject.update(Readings(queue_wait_s=9))
    subject.reconfigure(DegradationPolicy(degraded=Thresholds(queue_wait_s=100), dwell_s=5))
    assert subject.decision().level is Level.DEGRADED

    assert run(subject, clock, Readings(queue_wait_s=9), 4).level is Level.DEGRADED
    assert run(subject, clock, Readings(queue_wait_s=9), 1).level is Level.FULL


def test_a_new_controller_goes_on_where_another_left_off(clock):
    subject = controller(clock)
    subject.restore(Decision(Level.MINIMAL, "memory 0.95, threshold 0.9", 10))

    assert run(subject, clock, CALM, 4) == Decision(Level.MINIMAL, "memory 0.95, threshold 0.9", 14)
    assert run(subject, clock, CALM, 1).level is Level.DEGRADED


loads = st.floats(0, 1)
any_readings = st.builds(
    Readings,
    memory=st.none() | loads,
    cpu=st.none() | loads,
    error_rate=st.none() | loads,
    p95_latency_s=st.none() | st.floats(0, 20),
    queue_wait_s=st.none() | st.floats(0, 20),
)


def transitions(subject: DegradationController, clock: ManualClock, readings, step_s: float) -> list[float]:
    """When the level changed."""
    at, level = [], Level.FULL
    for reading in readings:
        decision = subject.update(reading)
        if decision.level is not level:
            level = decision.level
            at.append(clock())
        clock.advance(step_s)
    return at


@settings(deadline=None, max_examples=60)
@given(st.lists(any_readings, max_size=150), st.sampled_from([0.25, 0.5, 1.0, 3.0]), st.integers(0, 30))
def test_any_readings_at_all_change_the_level_at_most_once_per_dwell(readings, step_s, dwell_s):
    clock = ManualClock()
    changes = transitions(controller(clock, dwell_s=dwell_s), clock, readings, step_s)

    assert all(b - a >= dwell_s for a, b in pairwise(changes))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 120),
    st.floats(0.1, 0.9),
    st.sampled_from(["cpu", "memory", "error_rate", "p95_latency_s", "queue_wait_s"]),
    st.sampled_from([5, 15, 60]),
)
def test_a_square_wave_changes_the_level_at_most_once_per_dwell_for_ten_minutes(period_s, duty, name, dwell_s):
    clock = ManualClock()
    high, low = Readings(**{name: 10.0}), Readings(**{name: 0.0})
    wave = [high if (t % period_s) < duty * period_s else low for t in range(600)]
    changes = transitions(controller(clock, dwell_s=dwell_s), clock, wave, 1)

    assert changes
    assert all(b - a >= dwell_s for a, b in pairwise(changes))


@settings(deadline=None, max_examples=40)
@given(st.lists(any_readings, max_size=60))
def test_it_is_always_back_at_full_after_calm_for_two_dwells_and_a_window(readings):
    clock = ManualClock()
    subject = controller(clock)
    transitions(subject, clock, readings, 1)

    assert run(subject, clock, CALM, 10 + 2 * 15 + 1).level is Level.FULL


@pytest.mark.parametrize("name", ["cpu", "memory"])
def test_a_new_window_applies_to_what_was_read(clock, name):
    subject = controller(clock, window_s=100, minimal=Thresholds(cpu=0.8, memory=0.8))
    run(subject, clock, Readings(**{name: 0.0}), 50)
    subject.reconfigure(DegradationPolicy(window_s=5, minimal=Thresholds(cpu=0.8, memory=0.8)))

    assert run(subject, clock, Readings(**{name: 1.0}), 6).level is Level.MINIMAL


def test_a_level_that_lasts_is_as_old_as_its_beginning(clock):
    subject = controller(clock)
    subject.update(Readings(queue_wait_s=9))

    assert run(subject, clock, Readings(queue_wait_s=20), 100) == Decision(
        Level.DEGRADED, "queue_wait_s 9, threshold 2", 100
    )
