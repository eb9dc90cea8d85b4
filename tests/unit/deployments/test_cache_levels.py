"""Answers of one level of service to calls at another, and answers made anew before they end."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import call, failed, ok, run_all, settle
from test_cache_stage import TTL_S, Bench, FakeRedis

from serve_app.adapters.redis_store import StoreKey
from serve_app.errors import DeadlineExceeded
from serve_app.messages import CacheStatus, Freshness, Level, Outcome

KEYS = ("f", "d", "m")


def at(level: Level, number: int = 1, **changes):
    keys = tuple(f"{key}{number}" for key in KEYS)
    return call(number, level=level, key=keys[level.rank], level_keys=keys, **changes)


def down(asked):
    return failed(asked, Outcome.SERVER_ERROR)


async def test_a_full_answer_serves_a_degraded_call_from_memory() -> None:
    bench = Bench()
    await bench.ask(at(Level.FULL))
    served = await bench.ask(at(Level.MINIMAL))
    assert (served.cache, served.tier, served.level) == (CacheStatus.HIT, "memory", Level.FULL)
    assert len(bench.stage.calls) == 1


async def test_a_full_answer_serves_a_degraded_call_from_redis_in_one_read() -> None:
    bench, redis = Bench(), FakeRedis()
    bench.cache.store.redis = redis
    await bench.ask(at(Level.FULL))
    await settle()
    other = bench.another()
    other.store.redis = redis
    redis.reads.clear()
    served = await run_all(other, at(Level.DEGRADED), at(Level.DEGRADED, 2))
    assert (served["c1"].tier, served["c1"].level, served["c2"].level) == ("redis", Level.FULL, Level.DEGRADED)
    (read,) = redis.reads
    assert read == [StoreKey("ask", key) for key in ("f1", "d1", "m1", "f2", "d2", "m2")]


async def test_a_degraded_answer_does_not_serve_a_full_call() -> None:
    bench = Bench(stale_if_error_s=500)
    await bench.ask(at(Level.DEGRADED))
    served = await bench.ask(at(Level.FULL))
    assert (served.cache, served.level) == (CacheStatus.MISS, Level.FULL)
    assert (await bench.ask(at(Level.FULL))).cache is CacheStatus.HIT


@pytest.mark.parametrize("age_s", [0, TTL_S + 1])
async def test_a_degraded_answer_stands_in_for_an_error_where_stale_if_error_allows_it(age_s) -> None:
    bench = Bench(lambda asked: ok(asked) if asked.level is Level.DEGRADED else down(asked), stale_if_error_s=500)
    await bench.ask(at(Level.DEGRADED))
    bench.advance(age_s)
    served = await bench.ask(at(Level.FULL))
    assert (served.error, served.cache, served.level) == (None, CacheStatus.STALE, Level.DEGRADED)
    assert len(bench.stage.calls) == 2


async def test_and_where_it_does_not_the_error_is_told() -> None:
    bench = Bench(lambda asked: ok(asked) if asked.level is Level.DEGRADED else down(asked))
    await bench.ask(at(Level.DEGRADED))
    assert (await bench.ask(at(Level.FULL))).error is not None


async def test_a_stale_full_answer_is_made_anew_at_the_level_of_now() -> None:
    bench = Bench(stale_while_revalidate_s=50)
    await bench.ask(at(Level.FULL))
    bench.advance(TTL_S + 1)
    served = await bench.ask(at(Level.DEGRADED))
    assert (served.cache, served.level) == (CacheStatus.STALE, Level.FULL)
    await settle()
    served = await bench.ask(at(Level.DEGRADED))
    assert (served.cache, served.level) == (CacheStatus.HIT, Level.DEGRADED)
    assert len(bench.stage.calls) == 2


async def test_what_memory_has_only_stale_is_looked_up_in_redis_before_a_model_is_asked() -> None:
    bench, redis = Bench(stale_while_revalidate_s=50), FakeRedis()
    other = bench.another()
    bench.cache.store.redis = other.store.redis = redis
    await run_all(bench.cache, call(1))
    await settle()
    await run_all(other, call(1))
    bench.advance(TTL_S + 1)
    await run_all(bench.cache, call(1))  # the first replica has it made anew
    await settle()
    served = (await run_all(other, call(1)))["c1"]
    assert (served.cache, served.tier, served.age_s) == (CacheStatus.HIT, "redis", 0)
    assert len(bench.stage.calls) == 2


async def test_an_older_answer_in_redis_does_not_replace_a_newer_one_in_memory() -> None:
    bench, redis = Bench(stale_while_revalidate_s=500), FakeRedis()
    bench.cache.store.redis = redis
    await bench.ask(call(1))
    await settle()
    older = dict(redis.data)
    bench.advance(50)
    await bench.ask(call(1, freshness=Freshness(no_cache=True)))
    await settle()
    redis.data = older
    bench.advance(TTL_S + 1)
    assert (await bench.ask(call(1))).age_s == TTL_S + 1


async def test_a_hit_drawn_to_refresh_is_served_at_once_and_made_anew_once() -> None:
    gate = asyncio.Event()
    gate.set()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer)
    bench.cache._draw = lambda: 0.9
    await bench.ask(call(1))
    gate.clear()
    bench.advance(TTL_S - 0.005)  # it took 10 ms to make; 5 ms are left
    served = await run_all(bench.cache, *(call(1, id=f"h{n}") for n in range(5)))
    assert {result.cache for result in served.values()} == {CacheStatus.HIT}
    assert min(result.age_s for result in served.values()) == pytest.approx(TTL_S - 0.005)
    await settle()
    assert len(bench.stage.calls) == 2
    gate.set()
    await settle()
    assert (await bench.ask(call(1))).age_s == 0


async def test_who_wants_no_model_asked_has_none_asked_in_the_background_either() -> None:
    bench = Bench(stale_while_revalidate_s=50)
    bench.cache._draw = lambda: 0.9
    await bench.ask(call(1))
    for age_s, status in ((TTL_S - 0.005, CacheStatus.HIT), (0.1, CacheStatus.STALE)):
        bench.advance(age_s)
        for no_store in (False, True):
            wanted = Freshness(only_if_cached=True, no_store=no_store)
            assert (await bench.ask(call(1, freshness=wanted))).cache is status
            await settle()
    assert len(bench.stage.calls) == 1


async def test_a_request_for_a_younger_answer_takes_the_one_that_another_had_made() -> None:
    bench = Bench()
    await bench.ask(call(1))
    bench.advance(90)
    younger = Freshness(max_age_s=45)
    made = await bench.ask(call(1, freshness=younger))
    joined = await bench.ask(call(1, freshness=younger))
    assert (made.cache, made.forwarded, joined.cache) == (CacheStatus.MISS, "request", CacheStatus.HIT)
    assert len(bench.stage.calls) == 2


async def test_max_stale_is_served_and_refreshed_past_stale_while_revalidate() -> None:
    bench = Bench(stale_if_error_s=500)
    await bench.ask(call(1))
    bench.advance(TTL_S + 60)
    served = await bench.ask(call(1, freshness=Freshness(max_stale_s=100)))
    assert (served.cache, served.fresh_for_s) == (CacheStatus.STALE, -60)
    await settle()
    assert (await bench.ask(call(1))).cache is CacheStatus.HIT


async def test_what_was_asked_stored_and_shared_is_told() -> None:
    bench = Bench()
    made = await bench.ask(call(1))
    assert (made.forwarded, made.fresh_for_s, made.saved_cost_usd) == ("", TTL_S, 0)
    bench.advance(30)
    again = await bench.ask(call(1))
    assert (again.fresh_for_s, again.saved_s) == (TTL_S - 30, 0.01)
    bypassed = await bench.ask(call(1, freshness=Freshness(no_store=True)))
    assert (bypassed.cache, bypassed.fresh_for_s) == (CacheStatus.BYPASS, None)
    both = await run_all(bench.cache, call(2), replace(call(2), id="other"))
    assert sorted(result.saved_s for result in both.values()) == [0, 0.01]


async def test_a_stale_answer_of_its_own_level_still_stands_in_for_a_deadline() -> None:
    bench = Bench(lambda asked: replace(down(asked), error=DeadlineExceeded("late")), stale_if_error_s=500)
    bench.stage._answer, late = ok, bench.stage._answer
    await bench.ask(at(Level.FULL))
    bench.advance(TTL_S + 1)
    bench.stage._answer = late
    assert (await bench.ask(at(Level.FULL))).cache is CacheStatus.STALE
