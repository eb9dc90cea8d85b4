"""What the calls of one model's replica teach its slots."""

import pytest
from deployment_fakes import app_config

from serve_app.adapters.call_scope import CallScope
from serve_app.core.clock import ManualClock
from serve_app.deployments.slots import FAIR_TIME, Slots
from serve_app.messages import Outcome, Priority, Usage

SLOTS = 64


class Bench:
    """The slots of a model whose prior latency is one second."""

    def __init__(self) -> None:
        model = app_config().models[0].model_copy(update={"max_ongoing_requests": SLOTS, "latency_s": 1.0})
        self.clock = ManualClock(1000)
        self.slots = Slots(model, clock=self.clock)

    def run(
        self, times: int, seconds: float, output_tokens: int = 100, lm_answers: float = 1, program: str = "ask"
    ) -> int:
        """Fill the slots ``times`` times with calls that are answered; returns the fewest slots there were."""
        fewest = SLOTS
        for _ in range(times):
            places = [self.slots.queue.join(Priority.DEFAULT, 1000, lambda _: None, program) for _ in range(SLOTS)]
            self.clock.advance(seconds)
            for place in places:
                scope = CallScope(0.0, usage=Usage(100, output_tokens), lm_answers=lm_answers, lm_s=seconds)
                self.slots.learn(program, scope, Outcome.OK, seconds)
                place.leave(served=True)
                fewest = min(fewest, self.slots.queue.slots)
        return fewest


def test_programs_of_many_short_lm_calls_leave_a_healthy_provider_its_slots() -> None:
    bench = Bench()
    bench.run(20, seconds=0.3 + 2.0, output_tokens=200)
    assert bench.run(20, seconds=15 * (0.3 + 0.05), output_tokens=75, lm_answers=15) == SLOTS


def hurried(bench: Bench, calls: int, seconds: float) -> None:
    """One call after the other whose deadline ends it after ``seconds``."""
    for _ in range(calls):
        place = bench.slots.queue.join(Priority.DEFAULT, 10, lambda _: None, "ask")
        bench.clock.advance(seconds)
        bench.slots.learn("ask", CallScope(0.0), Outcome.TIMEOUT, seconds)
        place.leave()
        bench.clock.advance(1)


def test_however_long_nothing_was_answered_a_hurried_call_says_nothing_of_the_provider() -> None:
    bench = Bench()
    bench.run(1, seconds=5)
    hurried(bench, 100, seconds=3)
    assert bench.slots.queue.slots == SLOTS
    assert not bench.slots.is_limited


@pytest.mark.parametrize(("seconds", "is_held_against_it"), [(FAIR_TIME - 0.1, False), (FAIR_TIME, True)])
def test_before_the_first_answer_the_prior_latency_tells_a_hurried_call_from_a_stuck_one(
    seconds, is_held_against_it
) -> None:
    bench = Bench()
    bench.slots.learn("ask", CallScope(0.0), Outcome.TIMEOUT, seconds)
    assert (bench.slots.queue.slots < SLOTS) is is_held_against_it


def test_a_call_that_hangs_for_twice_as_long_as_answers_took_is_held_against_the_provider() -> None:
    bench = Bench()
    bench.run(1, seconds=5)
    bench.clock.advance(1000)
    bench.slots.learn("ask", CallScope(0.0), Outcome.TIMEOUT, 10.0)
    assert bench.slots.queue.slots < SLOTS


def test_whether_a_call_hung_is_judged_by_its_own_programs_time() -> None:
    bench = Bench()
    bench.run(1, seconds=20, program="slow")
    bench.run(5, seconds=1, program="quick")
    bench.slots.learn("slow", CallScope(0.0), Outcome.TIMEOUT, 30)
    assert bench.slots.queue.slots == SLOTS
    bench.slots.learn("quick", CallScope(0.0), Outcome.TIMEOUT, 3)
    assert bench.slots.queue.slots < SLOTS
