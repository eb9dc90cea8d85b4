"""How many replicas a model should have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    ("lost", "running", "current", "wanted"),
    [
        (0.05, 8, 1, 1),
        (0.1, 8, 1, 2),
        (0.1, 32, 4, 4),
        (0.4, 32, 4, 5),
        (1.2, 8, 1, 3),
        (0.5, 8, 2, 2),  # the second one has just come, and those were refused before
    ],
)
def test_who_was_refused_asks_for_the_replicas_that_have_room_for_them(lost, running, current, wanted) -> None:
    readings = Readings(0, 0, running, slots=8 * current, lost=lost)
    assert replicas_wanted(readings, current, target=8) == wanted


def test_of_what_asks_for_more_the_most_counts() -> None:
    full = {"running": 16, "slots": 16}
    assert replicas_wanted(Readings(17, 0, **full, lost=5), 2, target=8) == 7
    assert replicas_wanted(Readings(80, 0, **full, lost=1), 2, target=8) == 10


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
    readings=st.builds(Readings, *[st.floats(0, 1e4)] * 5, st.booleans()),
    current=st.integers(1, 50),
)
def test_what_waits_never_costs_a_replica_and_one_goes_at_a_time(readings, current) -> None:
    wanted = replicas_wanted(readings, current, target=8, min_replicas=1)
    assert wanted >= max(1, current - 1)
    if readings.waiting or readings.newest_waiting or readings.lost:
        assert wanted >= current
    if readings.is_held_back:
        assert wanted <= current
