"""Who is there, and where: by what each replica said last, for as long as it goes on saying it."""

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.roster import SILENCE_S, Roster
from serve_app.reports import Endpoint, Report

HERE, THERE = Endpoint("10.0.0.1", 1, b"one"), Endpoint("10.0.0.2", 2, b"two")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def roster(clock) -> Roster:
    made = Roster(clock=clock)
    made.hear(Report("a", "Cache", endpoint=HERE))
    return made


def test_a_deployment_is_where_its_replicas_are(roster) -> None:
    roster.hear(Report("b", "Cache", endpoint=THERE))
    roster.hear(Report("c", "Router", endpoint=Endpoint("10.0.0.3", 3, b"three")))
    assert roster.endpoints_of("Cache") == (HERE, THERE)
    assert roster.endpoints_of("Model-large") == ()


def test_a_replica_that_started_anew_is_where_it_said_last(roster) -> None:
    roster.hear(Report("a", "Cache", endpoint=THERE))
    assert roster.endpoints_of("Cache") == (THERE,)


def test_a_replica_that_takes_no_calls_over_channels_is_nowhere(roster) -> None:
    roster.hear(Report("a", "Cache"))
    assert roster.endpoints_of("Cache") == ()
    assert roster.counts() == {"Cache": 1}


def test_a_replica_that_goes_is_nowhere(roster) -> None:
    roster.forget("a")
    assert roster.endpoints_of("Cache") == ()


def test_a_replica_that_is_silent_for_too_long_is_nowhere(roster, clock) -> None:
    clock.advance(SILENCE_S)
    assert roster.hear(Report("b", "Router")) == []
    assert roster.endpoints_of("Cache") == (HERE,)
    clock.advance(0.1)
    assert roster.hear(Report("b", "Router")) == ["a"]
    assert roster.endpoints_of("Cache") == ()
