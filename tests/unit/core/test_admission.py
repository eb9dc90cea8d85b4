"""How many calls one ingress holds, and whom it refuses."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from serve_app.core.admission import Admission, Ticket
from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    UNKNOWN_RETRY_AFTER_S,
    room_for,
)
from serve_app.core.permit import Refusal
from serve_app.messages import Priority


@pytest.fixture
def clock():
    return ManualClock(1000)


def fill(admission: Admission, priority: Priority) -> list[Ticket]:
    tickets = []
    while isinstance(answer := admission.admit(priority, 60), Ticket):
        tickets.append(answer)
    return tickets


@pytest.mark.parametrize(
    ("priority", "room"), [(Priority.SHEDDABLE, 50), (Priority.DEFAULT, 90), (Priority.CRITICAL, 100)]
)
def test_each_priority_may_fill_its_share(clock, priority, room):
    admission = Admission(100, clock=clock)

    assert len(fill(admission, priority)) == room
    assert admission.admit(priority, 60) == Refusal(UNKNOWN_RETRY_AFTER_S, "queue_full")


def test_sheddable_is_refused_first_and_critical_last(clock):
    admission = Admission(100, clock=clock)
    fill(admission, Priority.SHEDDABLE)
    assert isinstance(admission.admit(Priority.DEFAULT, 60), Ticket)
    fill(admission, Priority.DEFAULT)
    assert isinstance(admission.admit(Priority.SHEDDABLE, 60), Refusal)

    assert len(fill(admission, Priority.CRITICAL)) == 10


@pytest.mark.parametrize("priority", list(Priority))
def test_even_the_smallest_bound_has_room_for_one(clock, priority):
    assert len(fill(Admission(1, clock=clock), priority)) == 1


def test_a_place_is_free_again_when_its_call_is_gone(clock):
    admission = Admission(2, clock=clock)
    first, _ = fill(admission, Priority.CRITICAL)
    first.release()
    first.release()

    assert admission.held == 1
    assert len(fill(admission, Priority.CRITICAL)) == 1


def test_a_ticket_gives_its_place_back_when_the_body_raises(clock):
    admission = Admission(10, clock=clock)

    def serve_badly():
        with admission.admit(Priority.DEFAULT, 60):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        serve_badly()

    assert admission.held == 0


@pytest.mark.parametrize("remaining_s", [0, -1])
def test_an_expired_call_is_never_admitted(clock, remaining_s):
    assert Admission(10, clock=clock).admit(Priority.CRITICAL, remaining_s) == Refusal(MIN_RETRY_AFTER_S, "deadline")


def test_a_refusal_says_when_a_place_should_be_free(clock):
    admission = Admission(10, clock=clock)
    for ticket in fill(admission, Priority.CRITICAL):
        clock.advance(0.2)
        ticket.release()
    fill(admission, Priority.CRITICAL)

    mean_s = sum(0.2 * n for n in range(1, 11)) / 10
    critical, sheddable = (admission.admit(each, 60) for each in (Priority.CRITICAL, Priority.SHEDDABLE))
    assert critical.retry_after_s == pytest.approx(mean_s / 10)
    assert sheddable.retry_after_s == pytest.approx(6 * mean_s / 10)


def test_a_refusal_never_asks_for_more_patience_than_an_estimate_is_worth(clock):
    admission = Admission(1, clock=clock)
    (ticket,) = fill(admission, Priority.CRITICAL)
    clock.advance(500)
    ticket.release()
    fill(admission, Priority.CRITICAL)

    assert admission.admit(Priority.CRITICAL, 60) == Refusal(MAX_RETRY_AFTER_S, "queue_full")


class AdmissionMachine(RuleBasedStateMachine):
    """However tickets are used, places are counted exactly and never beyond the bound."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.clock = ManualClock()
        self.admission = Admission(12, clock=self.clock)
        self.held: set[Ticket] = set()

    @rule(target=tickets, priority=st.sampled_from(Priority), remaining_s=st.floats(-1, 10), may_be_known=st.booleans())
    def a_call_comes(self, priority, remaining_s, may_be_known):
        room = room_for(priority, 12)
        answer = self.admission.admit(priority, remaining_s, may_be_known=may_be_known)
        if isinstance(answer, Refusal):
            assert MIN_RETRY_AFTER_S <= answer.retry_after_s <= MAX_RETRY_AFTER_S
            assert answer.reason == ("queue_full" if len(self.held) >= room else "deadline")
            return multiple()
        assert remaining_s > 0
        assert len(self.held) < room
        self.held.add(answer)
        return answer

    @rule(ticket=tickets)
    def it_goes(self, ticket):
        ticket.release()
        self.held.discard(ticket)

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def places_are_counted_exactly(self):
        assert self.admission.held == len(self.held)


AdmissionMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestAdmissionPlaces = AdmissionMachine.TestCase
