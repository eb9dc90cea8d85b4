"""When a refused row is asked again, and when no more."""

import pytest

from serve_app.bulk.attempt import Answer, Failure, Retries

REFUSED = Failure("shed", "too much", True, 2.0)
SILENT = Failure("unreachable", "nobody", True)
ANSWER = Answer({}, {})


class Caller:
    """Fails as it is told, then answers; its sleep moves its clock."""

    def __init__(self, *outcomes) -> None:
        self.outcomes = list(outcomes)
        self.now = 0.0
        self.waits: list[float] = []

    async def __call__(self):
        return self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    async def run(self, for_s: float = 300, draw: float = 0.0):
        return await Retries(for_s, lambda: self.now, self.sleep, lambda: draw).run(self)


async def test_an_answer_is_the_end() -> None:
    caller = Caller(ANSWER)
    assert await caller.run() is ANSWER
    assert caller.waits == []


async def test_a_failure_that_will_not_pass_is_the_end() -> None:
    caller = Caller(Failure("invalid_inputs", "no"), ANSWER)
    assert (await caller.run()).code == "invalid_inputs"


@pytest.mark.parametrize(("draw", "waited"), [(0.0, 2.0), (1.0, 2.5)])
async def test_retry_after_is_honoured_and_spread(draw, waited) -> None:
    caller = Caller(REFUSED, ANSWER)
    assert await caller.run(draw=draw) is ANSWER
    assert caller.waits == [waited]


async def test_without_retry_after_waits_double_up_to_half_a_minute() -> None:
    caller = Caller(*[SILENT] * 9, ANSWER)
    assert await caller.run(draw=1.0) is ANSWER
    assert caller.waits == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


async def test_the_last_failure_is_kept_when_the_time_is_over() -> None:
    caller = Caller(REFUSED)
    assert await caller.run(for_s=5) is REFUSED
    assert caller.waits == [2.0, 2.0]


async def test_no_time_means_one_try() -> None:
    caller = Caller(REFUSED)
    assert await caller.run(for_s=0) is REFUSED
    assert caller.waits == []
