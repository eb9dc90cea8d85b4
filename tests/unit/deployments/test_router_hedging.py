"""A second attempt beside a slow one: only where the program says so, only when it takes long, only within the budget."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, app_config, call, failed, link, ok, run_all

from serve_app.deployments.router import Router
from serve_app.messages import Complexity, Options, Outcome, Result
from serve_app.policy import Policy, RetryPolicy
from serve_app.reports import ModelLoad, Snapshot

HARD = Options(complexity=Complexity.HIGH)


class Bench:
    """A router that hedges at once, over models of which each does what its entry says."""

    def __init__(self, hedge_after_s: float | None = 0.01, retry: RetryPolicy | None = None, **behaviour) -> None:
        config = app_config()
        hedging = config.programs[0].model_copy(update={"hedge_after_s": hedge_after_s})
        self.models = {
            name: FakeStage(behaviour.get(name, lambda asked: ok(asked, asked.model)))
            for name in ("large", "medium", "small")
        }
        self.link = link()
        retry = retry or RetryPolicy(budget_ratio=1, budget_floor_per_s=100)
        self.link.snapshot = Snapshot(1, Policy(retry=retry))
        config = config.model_copy(update={"programs": (hedging,)})
        self.router = Router(config, self.models, self.link._telemetry, self.link)

    async def ask(self, **changes) -> Result:
        asked = call(1, **({"options": HARD} | changes))
        return (await run_all(self.router, asked))[asked.id]

    def asked(self) -> dict[str, int]:
        return {name: len(stage.calls) for name, stage in self.models.items()}


async def hangs(asked) -> Result:
    await asyncio.Event().wait()
    return ok(asked, asked.model)


def attempts(result: Result) -> list[tuple[str, Outcome]]:
    return [(attempt.model, attempt.outcome) for attempt in result.attempts]


async def test_the_hedge_answers_and_the_slow_one_is_cancelled() -> None:
    bench = Bench(large=hangs)
    result = await bench.ask()
    assert result.model == "medium"
    assert attempts(result) == [("large", Outcome.CANCELLED), ("medium", Outcome.OK)], (
        "in the order in which they began"
    )
    assert bench.models["large"].cancelled == ["c1"]
    assert bench.link._pending.outcomes.keys() == {("medium", Outcome.OK)}, (
        "a cancelled attempt says nothing of its model"
    )


async def test_a_quick_answer_is_never_hedged() -> None:
    bench = Bench(hedge_after_s=5.0)
    assert attempts(await bench.ask()) == [("large", Outcome.OK)]
    assert bench.asked() == {"large": 1, "medium": 0, "small": 0}


async def test_a_program_that_does_not_ask_for_it_is_never_hedged() -> None:
    bench = Bench(hedge_after_s=None, large=hangs)
    result = await bench.ask(remaining_s=0.6)
    assert Outcome.CANCELLED not in {attempt.outcome for attempt in result.attempts}
    assert attempts(result)[0] == ("large", Outcome.TIMEOUT)


async def test_the_slow_one_may_still_win() -> None:
    release = asyncio.Event()

    async def slow(asked) -> Result:
        await release.wait()
        return ok(asked, asked.model)

    async def releases(asked) -> Result:
        release.set()
        return await hangs(asked)

    result = await Bench(large=slow, medium=releases).ask()
    assert result.model == "large"
    assert attempts(result) == [("large", Outcome.OK), ("medium", Outcome.CANCELLED)]


async def test_when_the_hedge_fails_the_slow_one_is_waited_for() -> None:
    release = asyncio.Event()

    async def slow(asked) -> Result:
        await release.wait()
        return ok(asked, asked.model)

    def fails(asked) -> Result:
        release.set()
        return failed(asked, Outcome.SERVER_ERROR)

    result = await Bench(large=slow, medium=fails).ask()
    assert attempts(result) == [("large", Outcome.OK), ("medium", Outcome.SERVER_ERROR)]
    assert result.cost_usd == pytest.approx(0.0015), "the failed hedge is paid for too"


async def test_when_both_fail_the_next_model_is_asked() -> None:
    release = asyncio.Event()

    async def slow(asked) -> Result:
        await release.wait()
        return failed(asked, Outcome.SERVER_ERROR)

    def fails(asked) -> Result:
        release.set()
        return failed(asked, Outcome.SERVER_ERROR)

    result = await Bench(large=slow, medium=fails).ask()
    assert result.model == "small"
    assert len(result.attempts) == 3


async def test_an_empty_budget_hedges_nothing() -> None:
    release = asyncio.Event()

    async def slow(asked) -> Result:
        asyncio.get_running_loop().call_later(0.05, release.set)
        await release.wait()
        return ok(asked, asked.model)

    bench = Bench(retry=RetryPolicy(budget_ratio=0, budget_floor_per_s=0), large=slow)
    assert attempts(await bench.ask()) == [("large", Outcome.OK)]
    assert bench.asked()["medium"] == 0


async def test_a_caller_who_leaves_takes_both_attempts_along() -> None:
    bench = Bench(large=hangs, medium=hangs)
    asking = asyncio.create_task(bench.ask())
    async with asyncio.timeout(5):
        while bench.asked()["medium"] == 0:
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(5):
        while not (bench.models["large"].cancelled and bench.models["medium"].cancelled):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("hedge_after_s", [0.01, None])
async def test_a_model_that_cannot_be_asked_beside_another_may_be_asked_after_it(hedge_after_s) -> None:
    release = asyncio.Event()

    async def fails(asked) -> Result:
        asyncio.get_running_loop().call_later(0.05, release.set)
        await release.wait()
        return failed(asked, Outcome.SERVER_ERROR)

    bench = Bench(hedge_after_s=hedge_after_s, large=fails)
    for model in ("medium", "small"):
        bench.router._gates[model]._own.cool_down(0.03)
    assert attempts(await bench.ask()) == [("large", Outcome.SERVER_ERROR), ("medium", Outcome.OK)]


async def test_a_hedge_that_finds_no_room_is_no_lost_call() -> None:
    release = asyncio.Event()

    async def slow(asked) -> Result:
        asyncio.get_running_loop().call_later(0.05, release.set)
        await release.wait()
        return ok(asked, asked.model)

    bench = Bench(large=slow)
    full = ModelLoad(slots=1, running=1, waiting=(0, 90, 0), service_s=1)
    bench.link.snapshot = replace(bench.link.snapshot, loads={"medium": full, "small": full})
    assert (await bench.ask()).model == "large"
    assert set(bench.link._read_gauges().values()) == {0}


async def test_a_model_that_is_always_outrun_after_a_long_time_is_slow() -> None:
    bench = Bench(large=hangs)
    policy = bench.link.snapshot.policy
    breaker = policy.breaker.model_copy(update={"slow_call_s": 0.005, "minimum_calls": 3})
    bench.link.snapshot = Snapshot(2, policy.model_copy(update={"breaker": breaker}))
    bench.router._reconfigure(bench.link.snapshot)
    for _ in range(3):
        assert (await bench.ask()).model == "medium"
    assert bench.router._gates["large"].refusal() is not None
