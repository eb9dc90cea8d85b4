"""When a queue stands, and whom it still takes."""

import pytest

from serve_app.config import Replicas
from serve_app.core.admission import Admission, Ticket
from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import MAX_RETRY_AFTER_S
from serve_app.core.permit import Refusal
from serve_app.core.scaling import Readings, replicas_wanted
from serve_app.core.standing_queue import BEARABLE, FEW, LEAST, LEAST_OF_PRIORITY, MOST_S, REASON, StandingQueue
from serve_app.messages import Priority


@pytest.fixture
def clock():
    return ManualClock(1000)


def answers(queue, clock, here_s, ran_s, *, count=100, every_s=0.01, priority=Priority.DEFAULT):
    """So many come and are answered, one after the other, while as many others stay."""
    queue.join()
    for _ in range(count):
        clock.advance(every_s)
        queue.join()
        queue.leave(priority, here_s, ran_s)


def test_a_queue_that_nobody_has_left_yet_takes_everybody(clock):
    queue = StandingQueue(clock=clock)
    queue.held = 1000
    assert queue.refusal(Priority.SHEDDABLE, 1) is None
    answers(queue, clock, 9.0, 0.1, count=LEAST - 1)
    assert queue.refusal(Priority.SHEDDABLE, 1) is None, "too little is known"


@pytest.mark.parametrize("priority", list(Priority))
def test_it_takes_as_many_as_are_answered_within_what_is_bearable(clock, priority):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2, priority=priority)
    rate, bearable_s = 100, BEARABLE[priority] * MOST_S
    queue.held = int(rate * (bearable_s + 0.2)) - 1
    assert queue.refusal(priority, 60) is None
    queue.held += 3
    refusal = queue.refusal(priority, 60)
    assert refusal is not None
    assert refusal.reason == REASON


def test_it_says_when_there_will_be_room(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2)
    queue.held = 500
    refusal = queue.refusal(Priority.DEFAULT, 60)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(500 / 100 - 0.2 - 1.0, abs=0.1)
    queue.held = 1_000_000
    refusal = queue.refusal(Priority.DEFAULT, 60)
    assert refusal is not None
    assert refusal.retry_after_s == MAX_RETRY_AFTER_S


def test_a_burst_that_is_worked_off_is_no_standing_queue(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 5.0, 0.2, count=99)
    answers(queue, clock, 0.3, 0.2, count=1)
    queue.held = 10_000
    assert queue.refusal(Priority.SHEDDABLE, 60) is None, "one waited next to nothing"


def test_the_time_that_programs_run_is_no_wait(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 30.0, 30.0)
    queue.held = 3000
    assert queue.refusal(Priority.DEFAULT, 60) is None


def test_programs_that_run_for_long_may_wait_for_long(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 40.0, 5.0, every_s=0.1)
    queue.held = 190
    assert queue.refusal(Priority.DEFAULT, 60) is None, "14 s beside a run of 5"
    assert queue.refusal(Priority.SHEDDABLE, 60) is not None, "but not those that give way"
    queue.held = 210
    assert queue.refusal(Priority.DEFAULT, 60) is not None, "16 s"


def test_a_few_calls_are_no_queue(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 50.0, 0.2, every_s=5.0)
    queue.held = FEW - 1
    assert queue.refusal(Priority.SHEDDABLE, 60) is None
    queue.held = FEW
    assert queue.refusal(Priority.SHEDDABLE, 60) is not None


def test_a_flood_of_sheddable_calls_does_not_refuse_those_that_pass_it(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 3.0, 0.2, priority=Priority.SHEDDABLE)
    answers(queue, clock, 0.25, 0.2, count=LEAST_OF_PRIORITY, priority=Priority.CRITICAL)
    queue.held = 3000
    assert queue.refusal(Priority.SHEDDABLE, 60) is not None
    assert queue.refusal(Priority.CRITICAL, 60) is None
    assert queue.refusal(Priority.DEFAULT, 60) is None, "nobody knows how long those wait"


def test_where_better_calls_stand_worse_ones_do_not_join(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2, priority=Priority.DEFAULT)
    queue.held = 500
    assert queue.refusal(Priority.SHEDDABLE, 60) is not None
    assert queue.refusal(Priority.CRITICAL, 60) is None


def test_less_time_left_bears_less(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.01)
    queue.held = 80
    assert queue.refusal(Priority.DEFAULT, 60) is None
    assert queue.refusal(Priority.DEFAULT, 2) is not None


def test_an_empty_queue_is_forgotten(clock):
    """Nothing for an hour, as before models are started again for the first call: old answers say nothing."""
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2)
    queue.leave(Priority.DEFAULT, 20.0, 0.2)
    assert queue.held == 0
    clock.advance(3600)
    queue.held = 500
    assert queue.refusal(Priority.SHEDDABLE, 60) is None


def test_it_is_forgotten_when_it_is_over(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2)
    queue.held = 500
    assert queue.refusal(Priority.DEFAULT, 60) is not None
    answers(queue, clock, 0.3, 0.2, count=LEAST_OF_PRIORITY)
    clock.advance(1)
    assert queue.refusal(Priority.DEFAULT, 60) is None


def test_what_nobody_leaves_any_more_grows(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2)
    queue.held = 90
    assert queue.refusal(Priority.DEFAULT, 60) is None
    clock.advance(5)
    assert queue.refusal(Priority.DEFAULT, 60) is not None, "90 calls and no answer for 5 s"


def test_a_simulated_overload_keeps_the_wait_and_the_goodput(clock):
    """A server that answers one call every 10 ms, at twice what it can do for a minute, then at half of it."""
    admission, waiting, waits, refused = Admission(2000, clock=clock), [], [], 0
    for tick in range(12_000):  # of 5 ms
        clock.advance(0.005)
        if tick < 8_000 or tick % 4 == 0:
            ticket = admission.admit(Priority.DEFAULT, 60, "ask")
            if isinstance(ticket, Ticket):
                waiting.append((clock(), ticket))
            else:
                refused += 1
        if tick % 2 == 0 and waiting:
            since, ticket = waiting.pop(0)
            waits.append(clock() - since)
            ticket.ran_s = 0.01
            ticket.release()
    assert len(waits) >= 4_000 + 1_000 - 20, "no answer fewer than without refusals"
    assert max(waits) < 2.5
    assert sorted(waits[1000:4000])[1500] == pytest.approx(1.0, abs=0.2)
    assert refused == pytest.approx(4_000, abs=200)
    assert waits[-1] < 0.1


def test_only_what_models_answered_counts(clock):
    admission = Admission(2000, clock=clock)
    for _ in range(200):
        ticket = admission.admit(Priority.DEFAULT, 60, "ask")
        assert isinstance(ticket, Ticket)
        clock.advance(0.01)
    for _ in range(LEAST + 1):
        ticket = admission.admit(Priority.DEFAULT, 60, "ask")
        assert isinstance(ticket, Ticket), "hits and failures say nothing of a queue"
        clock.advance(3)
        ticket.release()


def test_programs_have_queues_of_their_own(clock):
    admission = Admission(2000, clock=clock)
    held = [admission.admit(Priority.DEFAULT, 60, "slow") for _ in range(500)]
    for ticket in held[:100]:
        clock.advance(0.05)
        assert isinstance(ticket, Ticket)
        ticket.ran_s = 0.01
        ticket.release()
    assert isinstance(admission.admit(Priority.DEFAULT, 60, "slow"), Refusal)
    assert isinstance(admission.admit(Priority.DEFAULT, 60, "quick"), Ticket)


@pytest.mark.parametrize("ran_s", [0.25, 2.0, 10.0])
@pytest.mark.parametrize("slots", [4, 10, 64])
@pytest.mark.parametrize("replicas", [1, 2, 5, 20])
def test_what_may_wait_still_asks_for_more_replicas(clock, replicas, slots, ran_s):
    """A queue that was held too short for autoscaling to see would be refused for ever."""
    queue = StandingQueue(clock=clock)
    rate = replicas * slots / ran_s
    answers(queue, clock, 60.0 + ran_s, ran_s, every_s=1 / rate)
    queue.held = 0
    while queue.refusal(Priority.DEFAULT, 60) is None:
        queue.join()
    running = replicas * slots
    waiting = queue.held - running
    readings = Readings(waiting, waiting, running, running)
    assert replicas_wanted(readings, replicas, Replicas().target_queue_depth) > replicas
