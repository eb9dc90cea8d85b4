"""Identical calls over several ``Cache`` replicas and one real Valkey: one model call, whoever fails, dies or leaves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, app_config, call, failed, link, ok, run_all, settle
from redis.asyncio import Redis

from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.redis_leases import Lease, Seen
from serve_app.adapters.redis_store import RedisStore, StoreKey
from serve_app.core.permit import Refusal
from serve_app.deployments.cache import Cache
from serve_app.deployments.shared_flight import SharedFlights, Turn
from serve_app.errors import DeadlineExceeded, Overloaded
from serve_app.messages import CacheStatus, Freshness, Options, Outcome, Priority, Result

LEASE = "{switchyard:ask:key1}:lease"


class Model:
    """Answers when it is told to; ``fails`` says how the next calls end."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.started = asyncio.Event()
        self.fails: list[bool] = []
        self.stages: list[FakeStage] = []

    async def __call__(self, asked) -> Result:
        self.started.set()
        await self.gate.wait()
        is_failure = self.fails.pop(0) if self.fails else False
        return failed(asked, Outcome.SERVER_ERROR) if is_failure else ok(asked)

    def stage(self) -> FakeStage:
        self.stages.append(FakeStage(self))
        return self.stages[-1]

    @property
    def calls(self) -> int:
        return sum(len(stage.calls) for stage in self.stages)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory="64mb") as running:
        yield running


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
async def replicas(server: EmbeddedRedis, client: Redis, model: Model) -> AsyncIterator[list[Cache]]:
    """Three replicas of the cache, as different processes would have them."""
    made = []
    for _ in range(3):
        own = link()
        cache = Cache(app_config(), model.stage(), own._telemetry, own)
        cache.store.redis = RedisStore(server.url, timeout_s=2.0)
        made.append(cache)
    yield made
    for cache in made:
        await cache.aclose()


def calls(count: int, **changes) -> list:
    return [replace(call(1, **changes), id=f"c{number}") for number in range(count)]


def asking(cache: Cache, *asked) -> asyncio.Task:
    return asyncio.create_task(run_all(cache, *asked))


async def until(condition, bound_s: float = 20.0) -> None:
    give_up = time.monotonic() + bound_s
    while not await condition():
        assert time.monotonic() < give_up, "it did not come about"
        await asyncio.sleep(0.01)


async def holds_lease(client: Redis) -> bool:
    return bool(await client.exists(LEASE))


async def follows(cache: Cache) -> bool:
    return bool(cache.store.elsewhere._followers)


async def test_a_herd_over_three_replicas_is_one_model_call(replicas, model, client) -> None:
    tasks = [asking(cache, *calls(100)) for cache in replicas]
    await model.started.wait()
    await until(lambda: all_follow(replicas))
    model.gate.set()
    answered = [result for task in tasks for result in (await task).values()]
    assert model.calls == 1
    assert len(answered) == 300
    assert {result.error for result in answered} == {None}
    statuses = [result.cache for result in answered]
    assert (statuses.count(CacheStatus.MISS), statuses.count(CacheStatus.COALESCED)) == (1, 299)
    assert sum(len(result.attempts) for result in answered) == 1
    await until(lambda: lease_is_gone(client))
    again = await run_all(replicas[1], call(1))
    assert (again["c1"].cache, again["c1"].tier) == (CacheStatus.HIT, "memory")


async def all_follow(replicas) -> bool:
    return sum([await follows(cache) for cache in replicas]) == len(replicas) - 1


async def lease_is_gone(client: Redis) -> bool:
    return not await holds_lease(client)


async def test_a_lone_miss_costs_one_round_trip_more(replicas, model, client) -> None:
    model.gate.set()
    await run_all(replicas[0], call(2))  # connects
    await until(lambda: is_idle(replicas[0]))
    await client.config_resetstat()
    model.gate.clear()
    asked = asking(replicas[0], call(1))
    await until(lambda: holds_lease(client))
    stats = await client.info("commandstats")
    assert stats["cmdstat_mget"]["calls"] == 1
    assert stats["cmdstat_set"]["calls"] == 1
    assert "cmdstat_eval" not in stats
    model.gate.set()
    await asked


async def is_idle(cache: Cache) -> bool:
    return not cache.store._unwritten and not cache.store._unreleased and not cache.store.elsewhere._held


async def test_when_the_leader_fails_one_follower_takes_over_at_once(replicas, model) -> None:
    model.fails = [True]
    first = asking(replicas[0], call(1))
    await model.started.wait()
    others = [asking(cache, *calls(20)) for cache in replicas[1:]]
    await until(lambda: all_follow(replicas))
    model.gate.set()
    assert (await first)["c1"].error is not None
    answered = [result for task in others for result in (await task).values()]
    assert {result.error for result in answered} == {None}
    assert model.calls == 2


async def test_when_the_leader_dies_its_lease_ends_and_one_follower_takes_over(replicas, model, client) -> None:
    first = asking(replicas[0], call(1))
    await model.started.wait()
    other = asking(replicas[1], *calls(20))
    await until(lambda: follows(replicas[1]))
    await replicas[0].store.redis.aclose()  # a process that was killed says nothing more
    replicas[0].store.redis = None
    await client.delete(LEASE)  # what its expiry does
    await until(lambda: asked(model, 2))
    model.gate.set()
    assert {result.error for result in (await other).values()} == {None}
    assert model.calls == 2
    await first


async def asked(model: Model, count: int) -> bool:
    return model.calls == count


async def test_a_lease_ends_by_itself_and_lasts_as_long_as_its_holder_works(replicas, model, client) -> None:
    first = asking(replicas[0], call(1))
    await until(lambda: holds_lease(client))
    assert 0 < await client.pttl(LEASE) <= 2000
    await client.pexpire(LEASE, 1000)
    await until(lambda: lasts_longer_than(client, 1200))
    model.gate.set()
    await first


async def lasts_longer_than(client: Redis, ms: int) -> bool:
    return await client.pttl(LEASE) > ms


async def test_a_follower_keeps_its_own_deadline(replicas, model) -> None:
    first = asking(replicas[0], call(1))
    await model.started.wait()
    hurried = (await run_all(replicas[1], call(1, remaining_s=0.2)))["c1"]
    assert isinstance(hurried.error, DeadlineExceeded)
    model.gate.set()
    assert (await first)["c1"].error is None
    assert model.calls == 1


class Leases:
    """Grants every claim once ``gate`` is open, and knows what is out."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.out: list[Lease] = []

    async def claim(self, wanted, _) -> list[Seen]:
        await self.gate.wait()
        self.out += wanted
        return [Seen(is_ours=True, is_leased=True, answer=None) for _ in wanted]

    async def release(self, held) -> None:
        for lease in held:
            self.out.remove(lease)

    async def renew(self, held, _) -> None:
        pass


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_leaves_while_the_reply_to_its_claim_arrives_leaves_no_lease_behind(turns: int) -> None:
    leases, work = Leases(), []
    flights = SharedFlights(lambda: leases, lambda coroutine: work.append(asyncio.create_task(coroutine)))
    claiming = asyncio.create_task(flights.turn(StoreKey("ask", "key1"), lambda _: None, Priority.DEFAULT))
    await settle()
    leases.gate.set()
    await settle(turns)
    claiming.cancel()
    (turn,) = await asyncio.gather(claiming, return_exceptions=True)
    await settle()
    assert leases.out == ([turn.lease] if isinstance(turn, Turn) else [])
    for task in work:
        task.cancel()


async def test_a_leader_whose_callers_all_left_hands_over(replicas, model, client) -> None:
    first = asking(replicas[0], call(1))
    await until(lambda: holds_lease(client))
    other = asking(replicas[1], call(1))
    await until(lambda: follows(replicas[1]))
    first.cancel()
    await until(lambda: asked(model, 2))
    model.gate.set()
    assert (await other)["c1"].cache is CacheStatus.MISS


async def test_answers_that_may_not_be_stored_do_not_put_replicas_in_a_queue(replicas, model, client) -> None:
    """The third replica would otherwise wait for two model calls in a row, and a hundredth for ninety-nine."""
    model.fails = [True, True]
    tasks = [asking(replicas[0], call(1))]
    await until(lambda: holds_lease(client))
    tasks += [asking(cache, call(1)) for cache in replicas[1:]]
    await until(lambda: all_follow(replicas))
    model.gate.set()
    errors = [(await task)["c1"].error for task in tasks]
    assert errors.count(None) == 1
    assert model.calls == 3


async def test_without_a_store_each_replica_asks_once(replicas, model) -> None:
    for cache in replicas:
        cache.store.redis, store = None, cache.store.redis
        await store.aclose()
    tasks = [asking(cache, *calls(50)) for cache in replicas]
    await model.started.wait()
    model.gate.set()
    assert {result.error for task in tasks for result in (await task).values()} == {None}
    assert model.calls == len(replicas)


async def test_a_store_that_goes_away_while_replicas_follow_sends_each_its_own_way(model) -> None:
    with EmbeddedRedis(max_memory="16mb") as mortal:
        made = []
        for _ in range(2):
            own = link()
            cache = Cache(app_config(), model.stage(), own._telemetry, own)
            cache.store.redis = RedisStore(mortal.url, timeout_s=2.0)
            made.append(cache)
        first = asking(made[0], call(1))
        await model.started.wait()
        other = asking(made[1], *calls(20))
        await until(lambda: follows(made[1]))
    await until(lambda: asked(model, 2))
    model.gate.set()
    assert (await first)["c1"].error is None
    assert {result.error for result in (await other).values()} == {None}
    for cache in made:
        await cache.aclose()


async def test_a_refusal_of_leases_costs_no_call(replicas, model, client) -> None:
    model.gate.set()
    await client.rpush(LEASE, "not ours")
    assert (await run_all(replicas[0], call(1)))["c1"].error is None
    limit = await client.config_get("maxmemory", "maxmemory-policy")
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", "1")
    try:
        assert (await run_all(replicas[0], call(2)))["c2"].error is None
        assert replicas[0].store.redis.stats().failures["oom"] >= 1
    finally:
        await client.config_set("maxmemory", limit["maxmemory"])
        await client.config_set("maxmemory-policy", limit["maxmemory-policy"])


async def test_what_was_made_between_the_look_and_the_claim_is_not_made_again(replicas, model) -> None:
    model.gate.set()
    await run_all(replicas[0], call(1))
    await until(lambda: is_idle(replicas[0]))
    newer = replicas[1]._newer(call(1), None)
    turn = await replicas[1].store.elsewhere.turn(StoreKey("ask", "key1"), newer, Priority.DEFAULT)
    assert turn.answer is not None
    assert turn.lease is None


async def test_a_caller_with_max_age_gets_no_answer_older_than_that_from_another_replica(replicas, model) -> None:
    model.gate.set()
    await run_all(replicas[0], call(1))
    await until(lambda: is_idle(replicas[0]))
    replicas[1]._unix_clock = lambda: time.time() + 50
    result = (await run_all(replicas[1], call(1, freshness=Freshness(max_age_s=10))))["c1"]
    assert result.cache is CacheStatus.MISS
    assert model.calls == 2


SHEDDABLE, CRITICAL = Options(priority=Priority.SHEDDABLE), Options(priority=Priority.CRITICAL)


async def test_a_better_call_does_not_follow_a_worse_one_of_another_replica(replicas, model, client) -> None:
    shed = asking(replicas[0], call(1, options=SHEDDABLE))
    await until(lambda: holds_lease(client))
    vital = asking(replicas[1], *calls(20, options=CRITICAL))
    await until(lambda: asked(model, 2))
    model.gate.set()
    assert {result.error for result in (await vital).values()} == {None}
    assert (await shed)["c1"].error is None
    assert model.calls == 2


async def test_a_worse_call_follows_a_better_one_of_another_replica(replicas, model, client) -> None:
    vital = asking(replicas[0], call(1, options=CRITICAL))
    await until(lambda: holds_lease(client))
    shed = asking(replicas[1], call(1, options=SHEDDABLE))
    await until(lambda: follows(replicas[1]))
    await asyncio.sleep(0.05)
    model.gate.set()
    assert [(await task)["c1"].cache for task in (vital, shed)] == [CacheStatus.MISS, CacheStatus.COALESCED]
    assert model.calls == 1


@pytest.mark.parametrize("changes", [{"options": CRITICAL}, {"options": SHEDDABLE, "remaining_s": 5.0}])
async def test_a_call_does_not_wait_for_the_lease_of_the_flight_beside_its_own(
    changes, replicas, model, client
) -> None:
    patient = asking(replicas[0], call(1, options=SHEDDABLE))
    await until(lambda: holds_lease(client))
    beside = asking(replicas[0], call(1, id="beside", **changes))
    await until(lambda: asked(model, 2), 4)
    model.gate.set()
    assert {(await patient)["c1"].error, (await beside)["beside"].error} == {None}


async def test_a_cache_without_peers_takes_no_lease(replicas, model, client) -> None:
    replicas[0].store.has_peers = False
    running = asking(replicas[0], *calls(5))
    await model.started.wait()
    assert await client.exists(LEASE) == 0
    model.gate.set()
    assert {result.error for result in (await running).values()} == {None}
    assert model.calls == 1


REFUSED = Refusal(1.5, "standing_queue")


async def test_a_call_without_room_takes_no_lease_and_makes_nobody_wait(replicas, model, client) -> None:
    await run_all(replicas[0], call(2, shed=REFUSED))  # connects
    await client.config_resetstat()
    refused = (await run_all(replicas[0], call(1, shed=REFUSED)))["c1"]
    assert type(refused.error) is Overloaded
    stats = await client.info("commandstats")
    assert "cmdstat_set" not in stats
    assert "cmdstat_eval" not in stats
    assert model.calls == 0


async def test_a_call_without_room_gets_what_another_replica_is_making(replicas, model, client) -> None:
    first = asking(replicas[0], call(1))
    await until(lambda: holds_lease(client))
    other = asking(replicas[1], call(1, shed=REFUSED))
    await until(lambda: follows(replicas[1]))
    model.gate.set()
    assert (await first)["c1"].cache is CacheStatus.MISS
    assert (await other)["c1"].cache is CacheStatus.COALESCED
    assert model.calls == 1


async def test_a_call_without_room_is_refused_when_what_it_waited_for_fails(replicas, model, client) -> None:
    model.fails = [True]
    first = asking(replicas[0], call(1))
    await until(lambda: holds_lease(client))
    other = asking(replicas[1], call(1, shed=REFUSED))
    await until(lambda: follows(replicas[1]))
    model.gate.set()
    assert (await first)["c1"].error is not None
    assert type((await other)["c1"].error) is Overloaded
    assert model.calls == 1


async def test_a_call_that_was_refused_asks_without_a_lease_no_later_either(replicas, model, client) -> None:
    """A refusal holds for milliseconds, the look at what others make for longer."""
    model.fails = [True]
    first = asking(replicas[0], call(1))
    await until(lambda: holds_lease(client))
    busy = Result("c0", error=Overloaded("every model of the route is too busy", 0.4))
    replicas[1]._refusals.note(call(1), 20.0, busy)
    other = asking(replicas[1], call(1))
    await until(lambda: follows(replicas[1]))
    await asyncio.sleep(0.06)
    assert replicas[1]._refusals.find(call(1), 1.0) is None
    model.gate.set()
    assert (await first)["c1"].error is not None
    assert type((await other)["c1"].error) is Overloaded
    assert model.calls == 1
