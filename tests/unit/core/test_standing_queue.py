"""When a queue stands, and whom it still takes."""

import pytest

from serve_app.config import BatchingConfig, ModelConfig, Replicas
from serve_app.core.admission import Admission, Ticket
from serve_app.core.clock import ManualClock
from serve_app.core.expected_wait import MAX_RETRY_AFTER_S
from serve_app.core.permit import Refusal
from serve_app.core.scaling import Readings, replicas_wanted
from serve_app.core.standing_queue import (
    BEARABLE,
    ENOUGH,
    FEW,
    LATENCY_S,
    LEAST,
    MOST_S,
    OLD_RUNS,
    OLD_S,
    REASON,
    Patience,
    StandingQueue,
    patience_for,
)
from serve_app.messages import Priority

PATIENCE = Patience()


@pytest.fixture
def clock():
    return ManualClock(1000)


def answers(queue, clock, here_s, ran_s, *, joined=1000, count=100, every_s=0.01, priority=Priority.DEFAULT):
    """So many come and are answered, one after the other, while as many others stay."""
    queue.join()
    for _ in range(count):
        clock.advance(every_s)
        queue.join()
        queue.leave(priority, joined, here_s, ran_s)


def refusal(queue, priority=Priority.DEFAULT, remaining_s=60.0, patience=PATIENCE):
    return queue.refusal(priority, remaining_s, patience)


def models(**settings):
    return [ModelConfig(name="m", lm="openai/m", **settings)]


def test_a_queue_that_nobody_has_left_yet_takes_everybody(clock):
    queue = StandingQueue(clock=clock)
    queue.held = 1000
    assert refusal(queue, Priority.SHEDDABLE, 1) is None
    answers(queue, clock, 9.0, 0.1, count=LEAST - 1)
    assert refusal(queue, Priority.SHEDDABLE, 1) is None, "too little is known"


@pytest.mark.parametrize("priority", list(Priority))
def test_it_takes_as_many_as_are_answered_within_what_is_bearable(clock, priority):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2, joined=2000, priority=priority)
    bearable_s = BEARABLE[priority] * MOST_S + LATENCY_S
    queue.held = int(100 * (bearable_s + 0.2)) - 1
    assert refusal(queue, priority) is None
    queue.held += 2
    refused = refusal(queue, priority)
    assert refused is not None
    assert refused.reason == REASON


def test_it_says_when_there_will_be_room(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 10.0, 0.2)
    queue.held = 500
    refused = refusal(queue)
    assert refused is not None
    assert refused.retry_after_s == pytest.approx(5.0 - 0.2 - 1.1)
    queue.held = 1_000_000
    refused = refusal(queue)
    assert refused is not None
    assert refused.retry_after_s == MAX_RETRY_AFTER_S


def test_a_burst_that_is_worked_off_is_no_standing_queue(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 5.0, 0.2, count=80)
    answers(queue, clock, 0.3, 0.2, count=20)
    queue.held = 10_000
    assert refusal(queue, Priority.SHEDDABLE) is None, "some waited next to nothing"


def test_few_answers_without_a_wait_are_no_sign_of_room(clock):
    queue = StandingQueue(clock=clock)
    for _ in range(20):
        answers(queue, clock, 5.0, 0.2, count=24)
        answers(queue, clock, 0.2, 0.2, count=1)
    queue.held = 1000
    assert refusal(queue) is not None


def test_the_time_that_programs_run_is_no_wait(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 30.0, 30.0)
    queue.held = 3000
    assert refusal(queue) is None


def test_the_way_from_process_to_process_is_no_queue(clock):
    """Little time left and 0.06 s on the way: nothing that fewer calls would make shorter."""
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 0.26, 0.2, joined=10)
    queue.held = FEW + 8
    assert refusal(queue, Priority.DEFAULT, 0.3) is None


def test_a_wait_among_few_says_little_about_many(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 1.2, 0.2, joined=1)
    queue.held = FEW
    assert refusal(queue) is None, "1 s, as when there was one"
    queue.held = 2 * FEW
    assert refusal(queue) is not None


def test_batches_that_wait_make_calls_wait(clock):
    patience = patience_for(models(), BatchingConfig(batch_wait_timeout_s=1.0))
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 1.05, 0.0, joined=40)
    queue.held = 40
    assert refusal(queue, remaining_s=5, patience=patience) is None
    assert refusal(queue, remaining_s=5) is not None


def test_programs_that_run_for_long_may_wait_for_long(clock):
    patience = patience_for(models(max_ongoing_requests=8), BatchingConfig())
    assert patience.runs * BEARABLE[Priority.DEFAULT] == pytest.approx(4)
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 45.0, 5.0, joined=450)
    queue.held = 250
    assert refusal(queue, patience=patience) is None, "20 s beside a run of 5"
    assert refusal(queue, Priority.SHEDDABLE, patience=patience) is not None, "but not those that give way"
    queue.held = 252
    assert refusal(queue, patience=patience) is not None


def test_a_few_calls_are_no_queue(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 50.0, 0.2, joined=FEW, every_s=1.0)
    queue.held = FEW - 1
    assert refusal(queue, Priority.SHEDDABLE) is None
    queue.held = FEW
    assert refusal(queue, Priority.SHEDDABLE) is not None


def test_a_flood_of_sheddable_calls_does_not_refuse_those_that_pass_it(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 3.0, 0.2, priority=Priority.SHEDDABLE)
    answers(queue, clock, 0.25, 0.2, count=LEAST, priority=Priority.CRITICAL)
    queue.held = 3000
    assert refusal(queue, Priority.SHEDDABLE) is not None
    assert refusal(queue, Priority.CRITICAL) is None
    assert refusal(queue, Priority.DEFAULT) is None, "nobody knows how long those wait"


def test_where_better_calls_stand_worse_ones_do_not_join(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2, priority=Priority.DEFAULT)
    queue.held = 500
    assert refusal(queue, Priority.SHEDDABLE) is not None
    assert refusal(queue, Priority.CRITICAL) is None


def test_old_answers_to_better_calls_do_not_outvote_new_ones(clock):
    """Critical calls came and waited, then there were four times the replicas, and no more critical calls."""
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 12.5, 2.0, joined=400, count=11, priority=Priority.CRITICAL)
    queue.held = 256
    assert refusal(queue) is not None
    clock.advance(2)
    answers(queue, clock, 2.05, 2.0, joined=256)
    queue.held = 256
    assert refusal(queue) is None


def test_new_answers_to_better_calls_say_nothing_good_of_worse_ones(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2, count=ENOUGH)
    clock.advance(2)
    answers(queue, clock, 0.25, 0.2, priority=Priority.CRITICAL)
    queue.held = 500
    assert refusal(queue) is not None, "those who waited went last"


def test_less_time_left_bears_less(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 10.0, 0.0)
    queue.held = 80
    assert refusal(queue) is None
    assert refusal(queue, remaining_s=2) is not None


def test_an_empty_queue_is_forgotten(clock):
    """Nothing for a while, as before models are started again for the first call: old answers say nothing."""
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2)
    queue.held = 500
    assert refusal(queue) is not None
    queue.held = 1
    queue.leave(Priority.DEFAULT, 1000, 20.0, 0.2)
    assert queue.held == 0
    queue.held = 500
    assert refusal(queue, Priority.SHEDDABLE) is None


def test_it_is_forgotten_when_it_is_over(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 20.0, 0.2)
    queue.held = 500
    assert refusal(queue) is not None
    answers(queue, clock, 0.3, 0.2, count=ENOUGH // 4)
    clock.advance(1)
    assert refusal(queue) is None


@pytest.mark.parametrize("ran_s", [0.2, 10.0])
def test_where_no_model_answers_nothing_is_known(clock, ran_s):
    """As while a provider is down: those that are held fail one after the other."""
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 100.0 + ran_s, ran_s)
    queue.held = 1000
    clock.advance(max(OLD_S, OLD_RUNS * ran_s) - 0.5)
    assert refusal(queue) is not None
    clock.advance(2)
    for _ in range(100):
        queue.leave(Priority.DEFAULT, 1000, 30.0, None)
    assert refusal(queue) is None


def test_one_slow_answer_makes_no_others_count_for_longer(clock):
    queue = StandingQueue(clock=clock)
    answers(queue, clock, 80.0, 60.0, count=1)
    answers(queue, clock, 20.0, 0.2, count=ENOUGH - 1)
    queue.held = 500
    clock.advance(OLD_S - 1)
    assert refusal(queue) is not None
    clock.advance(2)
    assert refusal(queue) is None


def test_calls_that_join_others_are_no_longer_a_queue(clock):
    """Of six that are held one has an answer made, and the others get the same: 120 of them are gone in 0.8 s."""
    queue = StandingQueue(clock=clock)
    queue.join()
    for _ in range(100):
        clock.advance(0.04)
        for joins in (False, True, True, True, True, True):
            queue.join()
            queue.leave(Priority.DEFAULT, 120, 1.0, None if joins else 0.2)
    queue.held = 120
    assert refusal(queue) is None
    queue.held = 200
    assert refusal(queue) is not None


@pytest.mark.parametrize("wave", [16, 64, 400])
def test_answers_that_come_in_waves_tell_the_same(clock, wave):
    """A cold start sets all slots going at once, and micro-batches do so for ever."""
    queue = StandingQueue(clock=clock)
    for _ in range(3):
        clock.advance(8)
        answers(queue, clock, 40.0, 8.0, joined=5 * wave, count=wave, every_s=0)
    queue.held = 3 * wave
    assert refusal(queue, patience=Patience(0.0, 26.0)) is None, "16 s beside the run, and 20.8 are bearable"
    queue.held = 4 * wave
    assert refusal(queue, patience=Patience(0.0, 26.0)) is not None


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
    assert sorted(waits[1000:4000])[1500] == pytest.approx(1.1, abs=0.2)
    assert refused == pytest.approx(4_000, abs=200)
    assert waits[-1] < 0.1


def standing(clock, kind="ask"):
    """An admission of whose calls of that kind 500 wait, at 20 answers a second."""
    admission = Admission(2000, clock=clock)
    held = [admission.admit(Priority.DEFAULT, 60, kind) for _ in range(600)]
    for ticket in held[:100]:
        clock.advance(0.05)
        assert isinstance(ticket, Ticket)
        ticket.ran_s = 0.01
        ticket.release()
    return admission


def test_only_what_models_answered_counts(clock):
    admission = Admission(2000, clock=clock)
    for _ in range(200):
        ticket = admission.admit(Priority.DEFAULT, 60, "ask")
        assert isinstance(ticket, Ticket)
        clock.advance(0.01)
    for _ in range(2 * ENOUGH):
        ticket = admission.admit(Priority.DEFAULT, 60, "ask")
        assert isinstance(ticket, Ticket), "hits and failures say nothing of a queue"
        clock.advance(3)
        ticket.release()


def test_kinds_have_queues_of_their_own(clock):
    admission = standing(clock, "slow")
    assert isinstance(admission.admit(Priority.DEFAULT, 60, "slow"), Refusal)
    assert isinstance(admission.admit(Priority.DEFAULT, 60, "quick"), Ticket)


def test_what_may_be_known_goes_on_with_its_refusal(clock):
    admission = standing(clock)
    refused = admission.admit(Priority.DEFAULT, 60, "ask")
    ticket = admission.admit(Priority.DEFAULT, 60, "ask", may_be_known=True)
    assert isinstance(ticket, Ticket)
    assert ticket.shed == refused
    other = admission.admit(Priority.DEFAULT, 60, "other", may_be_known=True)
    assert isinstance(other, Ticket)
    assert other.shed is None


def test_what_goes_on_with_its_refusal_is_no_part_of_the_queue(clock):
    """It never takes a slot: counted, a herd that waits for one answer would have everybody else refused."""
    admission = standing(clock)
    before = admission.admit(Priority.DEFAULT, 60, "ask")
    herd = [admission.admit(Priority.DEFAULT, 60, "ask", may_be_known=True) for _ in range(1000)]
    assert admission.held == 1500, "though it is held"
    clock.advance(0.1)
    assert admission.admit(Priority.DEFAULT, 60, "ask") == before
    for ticket in herd:
        assert isinstance(ticket, Ticket)
        ticket.ran_s = 0.01
        ticket.release()
    assert admission.held == 500
    clock.advance(0.1)
    assert admission.admit(Priority.DEFAULT, 60, "ask") == before


@pytest.mark.parametrize("ran_s", [0.25, 2.0, 10.0])
@pytest.mark.parametrize("target", [1, 8, 20])
@pytest.mark.parametrize("slots", [1, 2, 10, 64])
@pytest.mark.parametrize("replicas", [1, 2, 20])
@pytest.mark.parametrize("priority", list(Priority))
def test_what_may_wait_still_asks_for_more_replicas(clock, priority, replicas, slots, target, ran_s):
    """A queue that was held too short for autoscaling to see would be refused for ever."""
    depth = Replicas(target_queue_depth=target)
    patience = patience_for(models(max_ongoing_requests=slots, replicas=depth), BatchingConfig())
    queue = StandingQueue(clock=clock)
    running, rate = replicas * slots, replicas * slots / ran_s
    joined = 1000 * running
    answers(queue, clock, joined / rate, ran_s, joined=joined, every_s=1 / rate, priority=priority)
    queue.held = 0
    while queue.refusal(priority, 60, patience) is None:
        queue.held += 1 + queue.held // 100
        assert queue.held < joined
    waiting = queue.held - running
    readings = Readings(waiting, waiting, running, running)
    assert replicas_wanted(readings, replicas, target) > replicas
