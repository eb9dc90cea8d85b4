from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from serve_app.core.admission import (
    MAX_RETRY_AFTER_S,
    MIN_RETRY_AFTER_S,
    SHARES,
    STANDING_S,
    UNKNOWN_RETRY_AFTER_S,
    Admission,
    Ticket,
)
from serve_app.core.clock import ManualClock
from serve_app.core.permit import Refusal
from serve_app.messages import Priority


@pytest.fixture
def clock():
    return ManualClock(1000)


def fill(admission: Admission, priority: Priority, remaining_s: float = 1e9) -> list[Ticket]:
    tickets = []
    while isinstance(answer := admission.admit(priority, remaining_s), Ticket):
        tickets.append(answer)
    return tickets


def serve(admission: Admission, clock: ManualClock, service_s: float, concurrency: int) -> list[Ticket]:
    """Bring it to a known service time with ``concurrency`` calls running."""
    for _ in range(2):
        tickets = [admission.admit(Priority.CRITICAL, 1e9) for _ in range(concurrency)]
        for ticket in tickets:
            ticket.start()
        clock.advance(service_s)
        for ticket in tickets:
            ticket.finish()
    running = [admission.admit(Priority.CRITICAL, 1e9) for _ in range(concurrency)]
    for ticket in running:
        ticket.start()
    return running


def wait_for(admission: Admission, clock: ManualClock, waiting: int) -> None:
    """Let a queue of that many calls stand."""
    for _ in range(waiting):
        assert isinstance(admission.admit(Priority.CRITICAL, 1e9), Ticket)
    clock.advance(STANDING_S * 1.1)


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


def test_running_calls_take_room_until_they_are_gone(clock):
    admission = Admission(2, clock=clock)
    first, second = fill(admission, Priority.CRITICAL)
    first.start()
    assert (admission.waiting, admission.running) == (1, 1)
    assert isinstance(admission.admit(Priority.CRITICAL, 60), Refusal)
    first.finish()
    second.release()

    assert (admission.waiting, admission.running) == (0, 0)
    assert len(fill(admission, Priority.CRITICAL)) == 2


def test_a_ticket_gives_its_place_back_once(clock):
    admission = Admission(10, clock=clock)
    ticket, other = admission.admit(Priority.DEFAULT, 60), admission.admit(Priority.DEFAULT, 60)
    ticket.start()
    ticket.start()
    assert (admission.waiting, admission.running) == (1, 1)
    ticket.finish()
    ticket.finish()
    ticket.release()
    ticket.start()
    other.release()
    other.start()

    assert (admission.waiting, admission.running) == (0, 0)


def test_a_ticket_gives_its_place_back_when_the_body_raises(clock):
    admission = Admission(10, clock=clock)

    def serve_badly():
        with admission.admit(Priority.DEFAULT, 60) as ticket:
            ticket.start()
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        serve_badly()

    assert (admission.waiting, admission.running) == (0, 0)


def test_the_expected_wait_is_the_queue_over_the_rate_of_service(clock):
    admission = Admission(1000, clock=clock)
    serve(admission, clock, service_s=2, concurrency=4)
    wait_for(admission, clock, waiting=20)

    assert admission.expected_wait_s() == pytest.approx(20 * 2 / 4)


@pytest.mark.parametrize(
    ("priority", "enough_s"), [(Priority.SHEDDABLE, 20.1), (Priority.DEFAULT, 11.2), (Priority.CRITICAL, 10.1)]
)
def test_a_call_that_would_wait_too_long_for_its_deadline_is_refused(clock, priority, enough_s):
    admission = Admission(1000, clock=clock)
    serve(admission, clock, service_s=2, concurrency=4)
    wait_for(admission, clock, waiting=20)

    refusal = admission.admit(priority, enough_s - 1)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "deadline"
    assert refusal.retry_after_s == pytest.approx(10 - SHARES[priority] * (enough_s - 1))
    assert isinstance(admission.admit(priority, enough_s), Ticket)


def test_calls_that_arrive_together_are_not_taken_for_a_queue(clock):
    admission = Admission(1000, clock=clock)
    serve(admission, clock, service_s=2, concurrency=1)

    assert all(isinstance(admission.admit(Priority.SHEDDABLE, 1), Ticket) for _ in range(100))


def test_nothing_is_refused_for_its_wait_before_a_service_time_is_known(clock):
    admission = Admission(1000, clock=clock)
    wait_for(admission, clock, waiting=100)

    assert admission.expected_wait_s() == 0
    assert isinstance(admission.admit(Priority.DEFAULT, 0.5), Ticket)


@pytest.mark.parametrize("remaining_s", [0, -1])
def test_an_expired_call_is_never_admitted(clock, remaining_s):
    assert Admission(10, clock=clock).admit(Priority.CRITICAL, remaining_s) == Refusal(MIN_RETRY_AFTER_S, "deadline")


def test_a_full_queue_says_when_a_place_should_be_free(clock):
    admission = Admission(10, clock=clock)
    serve(admission, clock, service_s=2, concurrency=4)
    fill(admission, Priority.CRITICAL)

    assert admission.admit(Priority.CRITICAL, 60) == Refusal(0.5, "queue_full")
    assert admission.admit(Priority.SHEDDABLE, 60) == Refusal(3.0, "queue_full")


def test_a_refusal_never_asks_for_more_patience_than_an_estimate_is_worth(clock):
    admission = Admission(10, clock=clock)
    serve(admission, clock, service_s=500, concurrency=1)
    fill(admission, Priority.CRITICAL)

    assert admission.admit(Priority.CRITICAL, 60) == Refusal(MAX_RETRY_AFTER_S, "queue_full")


def test_calls_that_were_not_served_teach_no_service_time(clock):
    admission = Admission(1000, clock=clock)
    serve(admission, clock, service_s=2, concurrency=4)
    cancelled = admission.admit(Priority.CRITICAL, 60)
    cancelled.start()
    clock.advance(29)
    cancelled.release()
    wait_for(admission, clock, waiting=4)

    assert admission.expected_wait_s() == pytest.approx(2)


class AdmissionMachine(RuleBasedStateMachine):
    """However tickets are used, places are counted exactly and never beyond the bound."""

    tickets = Bundle("tickets")

    def __init__(self):
        super().__init__()
        self.clock = ManualClock()
        self.admission = Admission(12, clock=self.clock)
        self.waiting: set[Ticket] = set()
        self.running: set[Ticket] = set()

    @rule(target=tickets, priority=st.sampled_from(Priority), remaining_s=st.floats(-1, 10))
    def a_call_comes(self, priority, remaining_s):
        held = len(self.waiting) + len(self.running)
        answer = self.admission.admit(priority, remaining_s)
        if isinstance(answer, Refusal):
            assert MIN_RETRY_AFTER_S <= answer.retry_after_s <= MAX_RETRY_AFTER_S
            assert answer.reason == ("queue_full" if held >= int(12 * SHARES[priority]) else "deadline")
            return multiple()
        assert remaining_s > 0
        assert held < 12 * SHARES[priority]
        self.waiting.add(answer)
        return answer

    @rule(ticket=tickets)
    def it_starts(self, ticket):
        ticket.start()
        if ticket in self.waiting:
            self.waiting.remove(ticket)
            self.running.add(ticket)

    @rule(ticket=tickets, served=st.booleans())
    def it_ends(self, ticket, served):
        ticket.finish() if served else ticket.release()
        self.waiting.discard(ticket)
        self.running.discard(ticket)

    @rule(ticket=consumes(tickets))
    def it_is_forgotten_after_its_end(self, ticket):
        with ticket:
            pass
        self.waiting.discard(ticket)
        self.running.discard(ticket)

    @rule(seconds=st.floats(0, 5))
    def time_passes(self, seconds):
        self.clock.advance(seconds)

    @invariant()
    def places_are_counted_exactly(self):
        assert self.admission.waiting == len(self.waiting)
        assert self.admission.running == len(self.running)
        assert self.admission.expected_wait_s() >= 0


AdmissionMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
TestAdmissionPlaces = AdmissionMachine.TestCase
