"""What the cache answers itself, what it passes on, and what it keeps."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, app_config, call, failed, link, ok, run_all, settle

from serve_app.adapters.redis_store import RedisStats
from serve_app.core.clock import ManualClock
from serve_app.core.deadline import passed_on_s
from serve_app.deployments.cache import Cache
from serve_app.errors import DeadlineExceeded, Overloaded
from serve_app.messages import CacheStatus, Freshness, Level, Options, Outcome, Priority, Result

TTL_S = 100


class FakeRedis:
    """A dictionary with the store's interface."""

    leases = None

    def __init__(self) -> None:
        self.data: dict = {}
        self.reads: list[list] = []

    def generation(self, program) -> bytes | None:
        return None

    def stats(self):
        return RedisStats(is_up=True, hits=0, misses=0, writes=0, failures={})

    async def get_many(self, wanted):
        self.reads.append(list(wanted))
        return [self.data.get(where) for where in wanted]

    async def put_many(self, entries) -> int:
        for entry in entries:
            self.data[entry.where] = entry.data
        return len(entries)


class Bench:
    """A cache over a fake stage, with clocks that a test moves together."""

    def __init__(self, answer=ok, **cache) -> None:
        config = app_config()
        program = config.programs[0].model_copy(
            update={"cache": config.programs[0].cache.model_copy(update={"ttl_s": TTL_S} | cache)}
        )
        self.config = config.model_copy(update={"programs": (program,)})
        self.clock, self.unix = ManualClock(), ManualClock(1_000_000.0)
        self.stage = FakeStage(answer)
        self.cache = self.another()

    def another(self) -> Cache:
        """A second replica over the same stage."""
        made = link()
        return Cache(self.config, self.stage, made._telemetry, made, clock=self.clock, unix_clock=self.unix)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.unix.advance(seconds)

    async def ask(self, asked) -> Result:
        return (await run_all(self.cache, asked))[asked.id]


async def test_a_repeated_call_is_answered_from_memory_at_no_cost() -> None:
    bench = Bench()
    first = await bench.ask(call(1))
    bench.advance(30)
    again = await bench.ask(replace(call(1), id="other"))
    assert (first.cache, again.cache) == (CacheStatus.MISS, CacheStatus.HIT)
    assert (again.outputs, again.model, again.tier, again.age_s) == (first.outputs, "large", "memory", 30)
    assert (again.attempts, again.cost_usd) == ((), 0)
    assert len(bench.stage.calls) == 1


async def test_redis_answers_what_another_replica_made_with_one_read_a_batch() -> None:
    bench, redis = Bench(), FakeRedis()
    bench.cache.store.redis = redis
    await run_all(bench.cache, call(1), call(2))
    await settle()
    other = bench.another()
    other.store.redis = redis
    redis.reads.clear()
    results = await run_all(other, call(1), call(2), call(3))
    assert [results[f"c{n}"].tier for n in (1, 2, 3)] == ["redis", "redis", ""]
    assert [len(read) for read in redis.reads] == [3]
    assert (await run_all(other, call(1)))["c1"].tier == "memory"


async def test_bytes_that_are_no_answer_are_a_miss() -> None:
    bench, redis = Bench(), FakeRedis()
    bench.cache.store.redis = redis
    await run_all(bench.cache, call(1))
    await settle()
    redis.data = dict.fromkeys(redis.data, b"\x80\x04garbage")
    other = bench.another()
    other.store.redis = redis
    assert (await run_all(other, call(1)))["c1"].cache is CacheStatus.MISS


async def test_a_stale_answer_is_served_at_once_and_refreshed_once() -> None:
    bench = Bench(stale_while_revalidate_s=50)
    await bench.ask(call(1))
    bench.advance(TTL_S + 1)
    results = await run_all(bench.cache, call(1), replace(call(1), id="c2"))
    assert {result.cache for result in results.values()} == {CacheStatus.STALE}
    await settle()
    assert len(bench.stage.calls) == 2
    assert (await bench.ask(call(1))).cache is CacheStatus.HIT


async def test_a_stale_answer_stands_in_for_an_error() -> None:
    answers = [ok, lambda asked: failed(asked, Outcome.SERVER_ERROR)]
    bench = Bench(lambda asked: answers.pop(0)(asked), stale_if_error_s=500)  # noqa: PLW0108 - popped at each call
    await bench.ask(call(1))
    bench.advance(TTL_S + 1)
    result = await bench.ask(call(1))
    assert (result.error, result.cache, result.age_s) == (None, CacheStatus.STALE, TTL_S + 1)
    assert [attempt.outcome for attempt in result.attempts] == [Outcome.SERVER_ERROR], "it was asked, and paid for"


async def test_past_every_use_it_is_made_anew() -> None:
    bench = Bench(stale_while_revalidate_s=5, stale_if_error_s=5)
    await bench.ask(call(1))
    bench.advance(TTL_S + 6)
    assert (await bench.ask(call(1))).cache is CacheStatus.MISS


async def test_errors_are_not_kept() -> None:
    bench = Bench(lambda asked: failed(asked, Outcome.SERVER_ERROR))
    assert (await bench.ask(call(1))).error is not None
    assert (await bench.ask(call(1))).error is not None
    assert len(bench.stage.calls) == 2


@pytest.mark.parametrize(
    ("freshness", "status", "calls"),
    [
        (Freshness(no_store=True), CacheStatus.BYPASS, 2),
        (Freshness(no_cache=True), CacheStatus.MISS, 2),
        (Freshness(max_age_s=5), CacheStatus.MISS, 2),
        (Freshness(max_age_s=50), CacheStatus.HIT, 1),
        (Freshness(only_if_cached=True), CacheStatus.HIT, 1),
    ],
)
async def test_a_request_may_be_stricter(freshness, status, calls) -> None:
    bench = Bench()
    await bench.ask(call(1))
    bench.advance(10)
    assert (await bench.ask(call(1, freshness=freshness))).cache is status
    assert len(bench.stage.calls) == calls


async def test_only_if_cached_asks_no_model() -> None:
    bench = Bench()
    assert isinstance((await bench.ask(call(1, freshness=Freshness(only_if_cached=True)))).error, DeadlineExceeded)
    assert bench.stage.calls == []


async def test_what_was_not_to_be_stored_is_not() -> None:
    bench = Bench()
    await bench.ask(call(1, freshness=Freshness(no_store=True)))
    assert (await bench.ask(call(1))).cache is CacheStatus.MISS


async def test_an_answer_of_another_level_is_not_kept_under_this_one() -> None:
    bench = Bench(lambda asked: replace(ok(asked), level=Level.MINIMAL))
    await bench.ask(call(1))
    assert (await bench.ask(call(1))).cache is CacheStatus.MISS


async def test_identical_calls_in_flight_are_one_and_only_the_first_pays() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer)
    running = asyncio.create_task(run_all(bench.cache, *(replace(call(1), id=f"c{n}") for n in range(20))))
    await settle()
    gate.set()
    results = (await running).values()
    assert len(bench.stage.calls) == 1
    statuses = [result.cache for result in results]
    assert (statuses.count(CacheStatus.MISS), statuses.count(CacheStatus.COALESCED)) == (1, 19)
    assert sum(len(result.attempts) for result in results) == 1


async def test_a_follower_outlives_the_leaders_deadline() -> None:
    answers = [Result("c1", error=DeadlineExceeded("the leader's")), None]

    async def answer(asked):
        await settle(5)
        return answers.pop(0) or ok(asked)

    bench = Bench(answer)
    results = await run_all(bench.cache, call(1), replace(call(1), id="c2"))
    assert isinstance(results["c1"].error, DeadlineExceeded)
    assert results["c2"].error is None


async def test_the_time_already_used_is_taken_off() -> None:
    bench = Bench()
    chunks = bench.cache.run([call(1, remaining_s=10)])
    bench.clock.advance(4)
    async for _ in chunks:
        pass
    assert bench.stage.calls[0].remaining_s == pytest.approx(passed_on_s(6))


async def test_a_call_that_shares_with_one_that_is_shed_asks_again_by_itself() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        if asked.options.priority is Priority.SHEDDABLE:
            return Result(asked.id, error=Overloaded("busy", 1.0))
        return ok(asked)

    bench = Bench(answer)
    shed = asyncio.create_task(bench.ask(call(1, options=Options(priority=Priority.SHEDDABLE))))
    await settle()
    vital = asyncio.create_task(bench.ask(call(2, key="key1", options=Options(priority=Priority.CRITICAL))))
    await settle()
    gate.set()
    assert isinstance((await shed).error, Overloaded)
    assert (await vital).error is None
