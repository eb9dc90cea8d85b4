"""A call never waits for its answer at the place of one that goes after it."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import app_config, call, link, ok, run_all, settle
from test_cache_refusals import REFUSED
from test_cache_stage import TTL_S, Bench
from test_model_replica import replica

from serve_app.deployments.cache import Cache
from serve_app.errors import DeadlineExceeded
from serve_app.messages import CacheStatus, Options, Priority, Result

CRITICAL, DEFAULT, SHEDDABLE = Priority


class Model:
    """Answers each priority when it is told to."""

    def __init__(self) -> None:
        self.gates = {priority: asyncio.Event() for priority in Priority}
        self.fails: set[Priority] = set()

    async def __call__(self, asked) -> Result:
        priority = asked.options.priority
        await self.gates[priority].wait()
        if priority in self.fails:
            return Result(asked.id, error=DeadlineExceeded("it waited for too long"))
        return ok(asked, text=priority)


class House(Bench):
    """A cache over that model, and callers who all ask the same."""

    def __init__(self, **cache) -> None:
        self.model = Model()
        super().__init__(self.model, **cache)

    async def asks(self, priority: Priority, name: str = "", **changes) -> asyncio.Task:
        asked = call(1, id=name or priority, options=Options(priority=priority), **changes)
        task = asyncio.create_task(self.ask(asked))
        await settle()
        return task

    @property
    def asked(self) -> list[str]:
        return [each.options.priority.value for each in self.stage.calls]


@pytest.mark.parametrize("faster", [SHEDDABLE, CRITICAL])
async def test_a_better_call_asks_by_itself_and_the_answer_that_comes_first_is_everybodys(faster) -> None:
    house = House()
    shed, vital = await house.asks(SHEDDABLE), await house.asks(CRITICAL)
    assert house.asked == ["sheddable", "critical"]
    house.model.gates[faster].set()
    results = await asyncio.wait_for(asyncio.gather(shed, vital), 5)
    assert [result.outputs for result in results] == [{"answer": faster}] * 2
    assert {result.id: result.cache for result in results} == {
        "sheddable": CacheStatus.MISS if faster is SHEDDABLE else CacheStatus.COALESCED,
        "critical": CacheStatus.MISS if faster is CRITICAL else CacheStatus.COALESCED,
    }
    await settle()
    assert house.stage.cancelled == [SHEDDABLE if faster is CRITICAL else CRITICAL], "nobody waits for it any more"
    assert (await house.ask(call(1))).cache is CacheStatus.HIT


async def test_a_herd_asks_once_for_each_better_priority() -> None:
    house = House()
    herd = [
        await house.asks(priority, f"{priority}-{turn}-{number}")
        for turn, priority in enumerate((SHEDDABLE, DEFAULT, CRITICAL, DEFAULT, SHEDDABLE))
        for number in range(10)
    ]
    assert house.asked == ["sheddable", "default", "critical"]
    house.model.gates[CRITICAL].set()
    results = await asyncio.wait_for(asyncio.gather(*herd), 5)
    assert {result.error for result in results} == {None}
    assert [result.cache for result in results].count(CacheStatus.MISS) == 1


async def test_a_worse_call_that_ends_without_an_answer_ends_alone_and_who_joined_it_gets_the_better_ones_answer() -> (
    None
):
    house = House()
    house.model.fails.add(SHEDDABLE)
    shed, joined = await house.asks(SHEDDABLE), await house.asks(SHEDDABLE, "joined")
    vital = await house.asks(CRITICAL)
    house.model.gates[SHEDDABLE].set()
    await settle()
    assert isinstance(shed.result().error, DeadlineExceeded)
    house.model.gates[CRITICAL].set()
    assert (await vital).cache is CacheStatus.MISS
    assert (await joined).cache is CacheStatus.COALESCED
    assert house.asked == ["sheddable", "critical"]


async def test_when_the_better_callers_leave_the_worse_ones_are_still_answered() -> None:
    house = House()
    shed, vital = await house.asks(SHEDDABLE), await house.asks(CRITICAL)
    vital.cancel()
    await settle()
    assert house.stage.cancelled == ["critical"]
    house.model.gates[SHEDDABLE].set()
    assert (await shed).error is None


async def test_a_call_that_may_not_ask_joins_a_worse_one_too() -> None:
    house = House()
    shed, vital = await house.asks(SHEDDABLE), await house.asks(CRITICAL, shed=REFUSED)
    house.model.gates[SHEDDABLE].set()
    assert [(await task).cache for task in (shed, vital)] == [CacheStatus.MISS, CacheStatus.COALESCED]


async def test_a_caller_does_not_wait_for_a_refresh_in_the_background_and_its_answer_ends_that() -> None:
    house = House(stale_while_revalidate_s=50)
    house.model.gates[DEFAULT].set()
    await house.ask(call(1))
    house.advance(TTL_S + 1)
    assert (await house.ask(call(1))).cache is CacheStatus.STALE
    await settle()
    house.advance(50)
    assert (await house.ask(call(1, id="late"))).cache is CacheStatus.MISS
    await settle()
    assert house.stage.cancelled == ["c1-refresh"]
    assert house.cache.store._tasks == set()


async def test_a_critical_call_overtakes_the_queue_in_which_a_sheddable_one_waits_with_the_same_question() -> None:
    turn, order = asyncio.Event(), []

    async def act(asked) -> None:
        order.append(asked.id)
        await turn.wait()
        turn.clear()

    model, made = replica(act, slots=1)[0], link()
    cache = Cache(app_config(), model, made._telemetry, made)
    bulk = [call(number, options=Options(priority=SHEDDABLE)) for number in range(5)]
    waiting = [asyncio.create_task(run_all(cache, each)) for each in bulk]
    await settle()
    vital = asyncio.create_task(run_all(cache, replace(bulk[4], id="vital", options=Options(priority=CRITICAL))))
    await settle()
    for task in (waiting[0], vital):
        turn.set()
        await asyncio.wait_for(task, 5)
        await settle()
    assert order[:2] == ["c0", "vital"]
    assert (await waiting[4])["c4"].cache is CacheStatus.COALESCED
    for task in waiting:
        task.cancel()
