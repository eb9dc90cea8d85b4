"""What an operator forgets is gone everywhere: near caches, memory, the shared level, and answers still being made."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, app_config, call, link, ok, programs, run_all, settle

from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.redis_store import RedisStore
from serve_app.core.clock import ManualClock
from serve_app.deployments.cache import Cache
from serve_app.deployments.ingress import Ingress
from serve_app.messages import CacheStatus
from serve_app.reports import Orders

INPUTS = {"question": "What is the capital of France?"}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory="64mb") as running:
        yield running


class House:
    """An ingress over a cache over a fake stage, with one line to the control plane, as graph compact has it."""

    def __init__(self, redis: str | None, namespace: str, answer=ok, **config) -> None:
        self.config = app_config(**config)
        self.link = link()
        self.clock = ManualClock(100.0)
        self.stage = FakeStage(answer)
        telemetry = self.link._telemetry
        self.cache = Cache(self.config, self.stage, telemetry, self.link, clock=self.clock)
        if redis:
            self.cache.store.redis = RedisStore(redis, timeout_s=2.0, namespace=namespace)
        self.ingress = Ingress(self.config, programs(self.config), self.cache, telemetry, self.link, clock=self.clock)
        self.hear({})

    def hear(self, forgotten: dict[str, float]) -> None:
        """What the control plane says next."""
        known = self.link.snapshot
        self.link.snapshot = replace(known, version=known.version + 1, orders=Orders(forgotten=forgotten))
        for listener in self.link._listeners:
            listener(self.link.snapshot)
        self.clock.advance(0.001)

    async def ask(self) -> CacheStatus:
        reply = await self.ingress.predict("ask", INPUTS)
        self.clock.advance(0.001)
        return CacheStatus(reply["meta"]["cache"])

    async def written(self) -> None:
        """Wait until the shared level has what was made."""
        give_up = time.monotonic() + 10
        while self.cache.store._unwritten or self.cache.store._tasks:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)


@pytest.fixture
async def houses(server: EmbeddedRedis, request) -> AsyncIterator[list[House]]:
    made = [House(server.url, request.node.name) for _ in range(2)]
    yield made
    for house in made:
        await house.cache.aclose()


async def test_near_caches_memories_and_the_shared_level_drop_the_program(houses) -> None:
    one, other = houses
    assert await one.ask() is CacheStatus.MISS
    await one.written()
    assert [await one.ask(), await other.ask(), await other.ask()] == [CacheStatus.HIT] * 3
    one.hear({"ask": 1.0})
    await one.written()
    other.hear({"ask": 1.0})
    await other.written()
    assert await other.ask() is CacheStatus.MISS
    assert len(other.stage.calls) == 1
    await other.written()
    assert await one.ask() is CacheStatus.HIT


async def test_the_shared_level_answers_nobody_once_the_first_replica_has_heard(houses) -> None:
    one, late = houses
    await one.ask()
    await one.written()
    one.hear({"ask": 1.0})
    await one.written()
    assert await late.ask() is CacheStatus.MISS


async def test_another_program_is_not_touched(houses) -> None:
    one = houses[0]
    await one.ask()
    one.hear({"research": 1.0})
    assert await one.ask() is CacheStatus.HIT


async def test_an_answer_begun_before_is_given_to_who_waits_and_kept_by_nobody(server, request) -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    house = House(server.url, request.node.name, answer)
    old = asyncio.create_task(house.ask())
    await until_asked(house, 1)
    house.hear({"ask": 1.0})
    new = asyncio.create_task(house.ask())
    await until_asked(house, 2)  # nobody joins what was begun before
    gate.set()
    assert {await old, await new} == {CacheStatus.MISS}
    await house.written()
    house.hear({"ask": 2.0})
    await house.written()
    gate.clear()
    begun = asyncio.create_task(house.ask())
    await until_asked(house, 3)
    house.hear({"ask": 3.0})
    gate.set()
    assert await begun is CacheStatus.MISS
    await house.written()
    assert await house.ask() is CacheStatus.MISS
    assert await house.ask() is CacheStatus.HIT
    await house.cache.aclose()


async def until_asked(house: House, count: int) -> None:
    give_up = time.monotonic() + 10
    while len(house.stage.calls) < count:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.001)


async def test_a_late_replica_cannot_store_what_it_began_before_another_one_heard(server, request) -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    first, late = House(server.url, request.node.name), House(server.url, request.node.name, answer)
    await first.ask()  # the program has a generation
    await first.written()
    first.hear({"ask": 1.0})
    await first.written()
    begun = asyncio.create_task(late.ask())
    await until_asked(late, 1)
    first.hear({"ask": 2.0})
    await first.written()
    await run_all(late.cache, call(7, inputs={}, freshness=replace(call().freshness, only_if_cached=True)))  # learns
    gate.set()
    await begun
    await late.written()
    assert await first.ask() is CacheStatus.MISS
    for house in (first, late):
        await house.cache.aclose()


async def test_a_near_cache_keeps_no_answer_that_a_late_cache_replica_gave(server) -> None:
    house = House(None, "")
    await house.ask()
    entry_age = 5.0
    house.hear({"ask": 1.0})

    asked = call(1)
    kept = replace(ok(asked), cache=CacheStatus.HIT, age_s=entry_age)
    house.ingress.near.keep(asked, kept, house.clock())
    assert house.ingress.near._store.get("key1") is None
    house.ingress.near.keep(asked, replace(kept, cache=CacheStatus.COALESCED, age_s=0.0), house.clock())
    assert house.ingress.near._store.get("key1") is None
    house.ingress.near.keep(asked, replace(kept, age_s=0.0), house.clock())
    assert house.ingress.near._store.get("key1") is not None


async def test_a_new_version_of_a_program_never_gets_the_answers_of_the_old_one(server, request) -> None:
    old = House(server.url, request.node.name)
    assert await old.ask() is CacheStatus.MISS
    await old.written()
    changed = [dict(old.config.programs[0].model_dump(), program="question -> answer, reason")]
    new = House(server.url, request.node.name, programs=changed)
    assert await new.ask() is CacheStatus.MISS
    same = House(server.url, request.node.name)
    assert await same.ask() is CacheStatus.HIT
    for house in (old, new, same):
        await house.cache.aclose()


async def test_a_replica_that_has_just_begun_does_not_forget_again_what_was_forgotten_before(server, request) -> None:
    old = House(server.url, request.node.name)
    await old.ask()
    await old.written()
    begun = House(server.url, request.node.name)
    begun.cache.store._forgotten._orders = None
    begun.hear({"ask": 1.0})
    await settle()
    await begun.written()
    assert await begun.ask() is CacheStatus.HIT
    for house in (old, begun):
        await house.cache.aclose()
