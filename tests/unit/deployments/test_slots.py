"""What the calls of one model's replica teach its slots."""

from deployment_fakes import app_config

from serve_app.adapters.call_scope import CallScope
from serve_app.core.clock import ManualClock
from serve_app.deployments.slots import Slots
from serve_app.messages import Outcome, Priority, Usage

SLOTS = 64


class Bench:
    """The slots of a model whose prior latency is one second."""

    def __init__(self) -> None:
        model = app_config().models[0].model_copy(update={"max_ongoing_requests": SLOTS, "latency_s": 1.0})
        self.clock = ManualClock(1000)
        self.slots = Slots(model, clock=self.clock)

    def run(self, times: int, seconds: float, output_tokens: int = 100, lm_answers: float = 1) -> int:
        """Fill the slots ``times`` times with calls that are answered; returns the fewest slots there were."""
        fewest = SLOTS
        for _ in range(times):
            places = [self.slots.queue.join(Priority.DEFAULT, 1000, lambda _: None) for _ in range(SLOTS)]
            self.clock.advance(seconds)
            for place in places:
                scope = CallScope(0.0, usage=Usage(100, output_tokens), lm_answers=lm_answers, lm_s=seconds)
                self.slots.learn(scope, Outcome.OK, seconds)
                place.leave(served=True)
                fewest = min(fewest, self.slots.queue.slots)
        return fewest


def test_programs_of_many_short_lm_calls_leave_a_healthy_provider_its_slots() -> None:
    bench = Bench()
    bench.run(20, seconds=0.3 + 2.0, output_tokens=200)
    assert bench.run(20, seconds=15 * (0.3 + 0.05), output_tokens=75, lm_answers=15) == SLOTS
