"""When refused callers are told to come back: callers that do as they are told, beside ones that are told the wait."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from serve_app.core.admission import Admission, Ticket
from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import MAX_RETRY_AFTER_S, expected_wait_s, too_late
from serve_app.core.permit import Refusal
from serve_app.core.retry_turns import RetryTurns
from serve_app.messages import Priority

DEFAULT, SHEDDABLE = Priority.DEFAULT, Priority.SHEDDABLE
SIMULATED_S = 120.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000)


def test_who_is_refused_together_comes_back_one_after_the_other(clock) -> None:
    turns = RetryTurns(clock=clock)
    assert [turns.next_s(DEFAULT, 0.1, 0.5) for _ in range(3)] == pytest.approx([0.5, 1.0, 1.5])
    clock.advance(1)
    assert turns.next_s(DEFAULT, 0.1, 0.5) == pytest.approx(1.0)


def test_nobody_is_told_less_than_would_do_alone(clock) -> None:
    turns = RetryTurns(clock=clock)
    assert [turns.next_s(DEFAULT, 5.0, 0.5) for _ in range(2)] == pytest.approx([5.0, 5.5])


def test_each_priority_has_its_own_turns(clock) -> None:
    turns = RetryTurns(clock=clock)
    for _ in range(10):
        turns.next_s(SHEDDABLE, 0.1, 0.5)
    assert turns.next_s(DEFAULT, 0.1, 0.5) == pytest.approx(0.5)


def test_no_turn_is_further_away_than_an_estimate_is_worth(clock) -> None:
    turns = RetryTurns(clock=clock)
    assert max(turns.next_s(DEFAULT, 0.1, 0.5) for _ in range(100)) == MAX_RETRY_AFTER_S


def test_where_the_pace_is_not_known_the_wait_is_all_there_is_to_tell(clock) -> None:
    turns = RetryTurns(clock=clock)
    turns.next_s(DEFAULT, 0.1, 20.0)
    assert turns.next_s(DEFAULT, 0.1, 0) == 0.1


def test_turns_end_with_the_queue(clock) -> None:
    turns = RetryTurns(clock=clock)
    turns.next_s(DEFAULT, 0.1, 20.0)
    turns.forget()
    assert turns.next_s(DEFAULT, 0.1, 0.5) == pytest.approx(0.5)


@dataclass
class Crowd:
    """Callers who ask again and again, and wait as long as they are told when they are refused."""

    callers: int
    slots: int
    service_s: float
    deadline_s: float
    think_s: float
    told_alone: bool = False
    clock: ManualClock = field(default_factory=ManualClock)
    refused: int = 0
    answered: int = 0

    def run(self) -> None:
        admission, draw = Admission(10_000, clock=self.clock), random.Random(7)
        waiting, running = deque[tuple[int, Ticket]](), dict[int, tuple[Ticket, float]]()
        ends = self.clock() + SIMULATED_S
        events = [(self.clock() + draw.random(), caller) for caller in range(self.callers)]
        heapq.heapify(events)

        def start() -> None:
            while waiting and len(running) < self.slots:
                caller, ticket = waiting.popleft()
                ran_s = self.service_s * draw.uniform(0.7, 1.3)
                running[caller] = ticket, ran_s
                heapq.heappush(events, (self.clock() + ran_s, caller))

        while events[0][0] < ends:
            at, caller = heapq.heappop(events)
            self.clock.advance(at - self.clock())
            if caller in running:
                ticket, ticket.ran_s = running.pop(caller)
                ticket.release()
                self.answered += 1
                again_s = draw.expovariate(1 / self.think_s)
            elif isinstance(ticket := self._door(admission, len(running) + len(waiting)), Refusal):
                self.refused += 1
                asked_s = ticket.retry_after_s
                told_s = asked_s if self.told_alone else admission.retry_after_s(DEFAULT, asked_s)
                again_s = told_s * draw.uniform(1, 1.25)
            else:
                waiting.append((caller, ticket))
                start()
                continue
            start()
            heapq.heappush(events, (self.clock() + again_s, caller))

    def _door(self, admission: Admission, held: int) -> Ticket | Refusal:
        wait_s = expected_wait_s(held, self.slots, self.service_s)
        late = too_late(DEFAULT, self.deadline_s, wait_s, self.service_s)
        return late or admission.admit(DEFAULT, self.deadline_s)

    @property
    def of_capacity(self) -> float:
        return self.answered / (SIMULATED_S * self.slots / self.service_s)


@pytest.mark.parametrize(
    ("callers", "slots", "service_s", "deadline_s", "think_s"),
    [(64, 4, 0.5, 2.0, 2.0), (300, 4, 0.5, 2.0, 5.0), (300, 16, 1.0, 5.0, 3.0), (500, 32, 0.5, 2.0, 2.0)],
)
def test_callers_who_do_as_they_are_told_are_refused_little_and_no_slot_stays_empty(
    callers, slots, service_s, deadline_s, think_s
) -> None:
    crowd = Crowd(callers, slots, service_s, deadline_s, think_s)
    crowd.run()
    assert crowd.of_capacity > 0.95
    assert crowd.refused < 3 * crowd.answered

    alone = Crowd(callers, slots, service_s, deadline_s, think_s, told_alone=True)
    alone.run()
    assert alone.refused > 10 * alone.answered, "a comparison that shows nothing"
