"""How many replicas a model should have."""

import math
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.clock import ManualClock
from serve_app.core.offered_calls import OfferedCalls
from serve_app.core.scaling import Readings, replicas_wanted


@pytest.mark.parametrize(
    ("waiting", "newest", "current", "wanted"),
    [
        (8, 8, 1, 1),  # at the target
        (9, 9, 1, 2),
        (17, 0, 2, 3),
        (0, 16, 1, 3),  # a burst: the mean does not know of it yet
        (2, 160, 2, 22),
        (1, 0, 3, 3),  # something waited lately
    ],
)
def test_calls_that_wait_ask_for_replicas(waiting, newest, current, wanted) -> None:
    assert replicas_wanted(Readings(waiting, newest), current, target=8) == wanted


@pytest.mark.parametrize(
    ("lost", "taken", "current", "wanted"),
    [
        (0.09, 1, 1, 1),
        (0.1, 1, 1, 2),
        (0.1, 4, 4, 4),
        (0.4, 4, 4, 5),
        (1.2, 1, 1, 3),
        (0.5, 1, 2, 2),  # the second one has just come, and those were refused before
    ],
)
def test_who_was_refused_asks_for_the_replicas_that_have_room_for_them(lost, taken, current, wanted) -> None:
    assert replicas_wanted(Readings(0, 0, 8 * current, 8 * current, taken, lost), current, target=8) == wanted


def test_of_what_asks_for_more_the_most_counts() -> None:
    assert replicas_wanted(Readings(17, 0, taken=2, lost=5), 2, target=8) == 7
    assert replicas_wanted(Readings(80, 0, taken=2, lost=1), 2, target=8) == 10


@pytest.mark.parametrize(("lost", "wanted"), [(0.01, 9), (1.0, 10)])
def test_none_goes_while_many_are_refused(lost, wanted) -> None:
    assert replicas_wanted(Readings(0, 0, 2, slots=80, taken=1, lost=lost), 10, target=8) == wanted


@pytest.mark.parametrize(("lost", "wanted"), [(0.01, 0), (0.2, 1)])
def test_the_last_one_goes_though_a_hasty_call_was_refused(lost, wanted) -> None:
    assert replicas_wanted(Readings(0, 0, 0, slots=8, lost=lost), 1, target=8, min_replicas=0) == wanted


@pytest.mark.parametrize(("need", "service_s"), [(2, 1.0), (5, 1.0), (10, 0.2), (20, 1.0), (3, 12.0), (4, 90.0)])
def test_refusals_ask_for_as_many_as_it_takes_and_hardly_more(need, service_s) -> None:
    """Replicas take five seconds to start."""
    clock, slots, current, target = ManualClock(), 8, 1, 1
    offered, starting, due = OfferedCalls(clock=clock), deque[tuple[int, int]](), [0.0, 0.0]
    for second in range(300):
        wanted_a_second, most = need * slots / service_s, current * slots / service_s
        due = [due[0] + min(wanted_a_second, most), due[1] + max(0.0, wanted_a_second - most)]
        while due[0] >= 1:
            offered.took()
            due[0] -= 1
        while due[1] >= 1:
            offered.lose()
            due[1] -= 1
        taken, lost = (calls / slots for calls in offered.running(service_s))
        wanted = replicas_wanted(Readings(0, 0, 1, slots * current, taken, lost), current, target=8)
        if wanted > target:
            target = wanted
            starting.append((second + 5, wanted))
        while starting and starting[0][0] <= second:
            current = starting.popleft()[1]
        clock.advance(1)
    assert need <= current <= math.ceil(1.3 * need)


@pytest.mark.parametrize(
    "readings",
    [
        Readings(500, 500, is_held_back=True),
        Readings(500, 0, is_held_back=True),
        Readings(0, 0, lost=9, is_held_back=True),
    ],
)
def test_where_more_would_not_help_there_are_no_more(readings) -> None:
    assert replicas_wanted(readings, 2, target=8) == 2


@pytest.mark.parametrize(("running", "wanted"), [(0, 3), (20, 3), (33, 3), (34, 4), (64, 4)])
def test_one_goes_when_the_others_have_room_for_what_runs(running, wanted) -> None:
    assert replicas_wanted(Readings(0, 0, running, slots=64), 4, target=8) == wanted


@pytest.mark.parametrize(("running", "least", "wanted"), [(0, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_the_last_one_goes_only_when_it_may_and_nothing_runs(running, least, wanted) -> None:
    assert replicas_wanted(Readings(0, 0, running, slots=64), 1, target=8, min_replicas=least) == wanted


@given(
    readings=st.builds(Readings, *[st.floats(0, 1e4)] * 6, st.booleans()),
    current=st.integers(1, 50),
)
def test_what_waits_never_costs_a_replica_and_one_goes_at_a_time(readings, current) -> None:
    wanted = replicas_wanted(readings, current, target=8, min_replicas=1)
    assert wanted >= max(1, current - 1)
    if readings.waiting or readings.newest_waiting:
        assert wanted >= current
    if readings.is_held_back:
        assert wanted <= current
