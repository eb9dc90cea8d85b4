"""The cache waits for nobody longer than its callers do, and what it does beside them is bounded and seen."""

import asyncio
import logging
from dataclasses import replace

import pytest
from deployment_fakes import call, failed, ok, run_all, settle
from test_cache_stage import TTL_S, Bench, FakeRedis

from serve_app.adapters.redis_store import RedisStats
from serve_app.core.deadline import passed_on_s
from serve_app.errors import DeadlineExceeded
from serve_app.messages import CacheStatus, Freshness, Options, Outcome, Priority

TICK_S = 0.02


def forever(_):
    return asyncio.Event().wait()


@pytest.mark.parametrize("freshness", [Freshness(), Freshness(no_store=True), Freshness(no_cache=True)])
async def test_a_call_that_nobody_answers_ends_at_its_deadline(freshness) -> None:
    bench = Bench(forever)
    result = await asyncio.wait_for(bench.ask(call(1, remaining_s=TICK_S, freshness=freshness)), 5)
    await settle()
    assert isinstance(result.error, DeadlineExceeded)
    assert bench.stage.cancelled == ["c1"]


async def test_a_refresh_goes_on_past_the_deadline_of_the_hit_that_started_it() -> None:
    gate = asyncio.Event()
    gate.set()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer, stale_while_revalidate_s=50)
    await bench.ask(call(1))
    gate.clear()
    bench.advance(TTL_S + 1)
    hasty = call(1, remaining_s=TICK_S, options=Options(priority=Priority.CRITICAL, model="large"))
    assert (await bench.ask(hasty)).cache is CacheStatus.STALE
    await asyncio.sleep(2 * TICK_S)
    refresh = bench.stage.calls[-1]
    assert refresh.remaining_s == pytest.approx(passed_on_s(bench.config.limits.default_deadline_s))
    assert refresh.options == Options(priority=Priority.SHEDDABLE, model="large")
    gate.set()
    await settle()
    assert (await bench.ask(hasty)).cache is CacheStatus.HIT
    assert (len(bench.stage.calls), bench.stage.cancelled) == (2, [])


async def test_a_refresh_that_nobody_answers_ends_in_its_own_time() -> None:
    answers = [ok, forever]
    bench = Bench(lambda asked: answers.pop(0)(asked), stale_while_revalidate_s=50)  # noqa: PLW0108 - popped at each call
    bench.cache._refresh_s = TICK_S
    await bench.ask(call(1))
    bench.advance(TTL_S + 1)
    assert (await bench.ask(call(1))).cache is CacheStatus.STALE
    async with asyncio.timeout(5):
        await asyncio.gather(*bench.cache.store._tasks)
    assert len(bench.cache._flights) == 0


async def test_while_a_refresh_runs_stale_hits_start_no_other() -> None:
    answers = [ok, forever]
    bench = Bench(lambda asked: answers.pop(0)(asked), stale_while_revalidate_s=50)  # noqa: PLW0108 - popped at each call
    await bench.ask(call(1))
    bench.advance(TTL_S + 1)
    for number in range(5):
        await bench.ask(call(1, id=f"hit{number}"))
        await settle()
    assert len(bench.cache.store._tasks) == 1
    await bench.cache.aclose()


async def test_a_refresh_that_fails_is_logged_and_the_answer_stays_stale(caplog) -> None:
    answers = [ok, lambda asked: failed(asked, Outcome.SERVER_ERROR)]
    bench = Bench(lambda asked: answers.pop(0)(asked), stale_while_revalidate_s=50)  # noqa: PLW0108 - popped at each call
    await bench.ask(call(1))
    bench.advance(TTL_S + 1)
    with caplog.at_level(logging.WARNING):
        await bench.ask(call(1))
        await settle()
    assert [record.message for record in caplog.records] == ["cache.refresh_failed"]


@pytest.mark.parametrize("remaining_s", [0.5, 0.04])
async def test_a_stale_answer_stands_in_before_the_deadline_for_a_model_that_says_nothing(remaining_s) -> None:
    answers = [ok, forever]
    bench = Bench(lambda asked: answers.pop(0)(asked), stale_if_error_s=500)  # noqa: PLW0108 - popped at each call
    await bench.ask(call(1))
    bench.advance(TTL_S + 1)
    async with asyncio.timeout(remaining_s * 0.9):
        result = await bench.ask(call(1, remaining_s=remaining_s))
    assert (result.error, result.cache) == (None, CacheStatus.STALE)


async def test_each_caller_of_one_answer_has_a_deadline_of_its_own() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer)
    patient = asyncio.create_task(bench.ask(call(1, remaining_s=30.0)))
    await settle()
    bench.clock.advance(30.0 - TICK_S)
    hasty = await asyncio.wait_for(bench.ask(call(1, id="hasty", remaining_s=TICK_S)), 5)
    assert isinstance(hasty.error, DeadlineExceeded)
    gate.set()
    assert (await patient).error is None
    assert len(bench.stage.calls) == 1


async def test_a_follower_asks_again_when_the_leader_ran_out_of_time() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        if len(bench.stage.calls) > 1:
            return ok(asked)
        await gate.wait()
        return ok(asked)

    bench = Bench(answer)
    results = await asyncio.wait_for(
        run_all(bench.cache, call(1, remaining_s=TICK_S), replace(call(1), id="c2", remaining_s=30.0)), 5
    )
    assert isinstance(results["c1"].error, DeadlineExceeded)
    assert (results["c2"].error, results["c2"].cache) == (None, CacheStatus.MISS)


async def test_when_all_who_wait_for_an_answer_have_left_it_is_cancelled() -> None:
    bench = Bench(forever)
    streams = [bench.cache.run([call(1, id=f"c{n}")]) for n in range(3)]
    for stream in streams:
        await anext(stream)
    await settle()
    for stream in streams[:2]:
        await stream.aclose()
    await settle()
    assert bench.stage.cancelled == []
    await streams[2].aclose()
    await settle()
    assert bench.stage.cancelled == ["c0"]
    assert len(bench.cache._flights) == 0


async def test_an_answer_never_waits_for_redis_to_take_it_and_answers_of_one_turn_travel_together() -> None:
    bench, redis = Bench(), FakeRedis()
    gate, writes = asyncio.Event(), []

    async def put_many(entries):
        writes.append(len(entries))
        await gate.wait()
        return len(entries)

    redis.put_many = put_many
    bench.cache.store.redis = redis
    results = await asyncio.wait_for(run_all(bench.cache, call(1), call(2), call(3)), 5)
    await settle()
    assert {result.error for result in results.values()} == {None}
    assert writes == [3]
    gate.set()
    await settle()


async def test_calls_that_use_nothing_stored_do_not_wait_for_redis() -> None:
    bench, redis = Bench(), FakeRedis()
    bench.cache.store.redis = redis
    strict = [Freshness(no_store=True), Freshness(no_cache=True)]
    await run_all(bench.cache, *(call(n, freshness=freshness) for n, freshness in enumerate(strict)))
    assert redis.reads == []


async def test_no_store_with_only_if_cached_still_reads() -> None:
    bench, redis = Bench(), FakeRedis()
    bench.cache.store.redis = redis
    result = await bench.ask(call(1, freshness=Freshness(no_store=True, only_if_cached=True)))
    assert result.error is not None
    assert len(redis.reads) == 1


async def test_what_fails_beside_the_calls_is_logged(caplog) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    bench = Bench()
    with caplog.at_level(logging.ERROR):
        bench.cache.store.spawn(fail())
        await settle()
    (record,) = caplog.records
    assert record.message == "cache.task_failed"
    assert record.exc_info is not None
    assert bench.cache.store._tasks == set()


async def test_closing_ends_what_runs_beside_the_calls_and_closes_redis() -> None:
    class Closing(FakeRedis):
        closed = 0

        async def aclose(self) -> None:
            self.closed += 1

        def stats(self) -> RedisStats:
            raise AssertionError("not asked")

    bench = Bench()
    bench.cache.store.redis = redis = Closing()
    bench.cache.store.spawn(asyncio.Event().wait())
    await bench.cache.aclose()
    assert redis.closed == 1
    assert bench.cache.store._tasks == set()


async def test_an_error_that_is_shared_costs_its_followers_nothing() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return failed(asked, Outcome.SERVER_ERROR)

    bench = Bench(answer)
    running = asyncio.create_task(run_all(bench.cache, call(1), replace(call(1), id="c2")))
    await settle()
    gate.set()
    results = await running
    assert {results["c1"].error.code, results["c2"].error.code} == {"no_route"}
    assert results["c2"].attempts == ()
    assert len(bench.stage.calls) == 1
