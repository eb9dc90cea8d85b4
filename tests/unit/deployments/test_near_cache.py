"""What an ingress answers by itself, and what it has made anew before it ends."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import app_config, call, ok, settle

from serve_app.adapters.telemetry import Telemetry
from serve_app.core.clock import ManualClock
from serve_app.deployments.near_cache import NearCache
from serve_app.errors import NoRoute, Overloaded
from serve_app.messages import CacheStatus, Freshness, Level, Priority, Result

KEYS = ("f", "d", "m")


class Bench:
    """A near cache over a function, with a clock that a test moves and draws that it chooses."""

    def __init__(self, fetch=None, drawn=0.0, **cache) -> None:
        config = app_config()
        program = config.programs[0]
        program = program.model_copy(update={"cache": program.cache.model_copy(update=cache)})
        self.clock = ManualClock(1_000_000.0)
        self.drawn = drawn
        self.fetched = []
        self.fetch = fetch or ok
        config = config.model_copy(update={"programs": (program,)})
        self.near = NearCache(
            config, self._fetch, Telemetry(), clock=self.clock, unix_clock=self.clock, draw=lambda: self.drawn
        )

    async def _fetch(self, asked) -> Result:
        self.fetched.append(asked)
        made = self.fetch(asked)
        result = await made if asyncio.iscoroutine(made) else made
        self.near.keep(asked, result)
        return result


def at(level: Level, **changes):
    return call(1, level=level, key=KEYS[level.rank], level_keys=KEYS, **changes)


async def test_what_is_stale_is_left_to_those_farther_away() -> None:
    bench = Bench(stale_while_revalidate_s=50)
    bench.near.keep(call(1), ok(call(1)))
    assert bench.near.answer(call(1)).cache is CacheStatus.HIT
    bench.clock.advance(101)
    assert bench.near.answer(call(1)) is None


async def test_a_better_levels_answer_serves_a_worse_level_and_says_what_it_is() -> None:
    bench = Bench(stale_if_error_s=50)
    bench.near.keep(at(Level.FULL), ok(at(Level.FULL)))
    served = bench.near.answer(at(Level.MINIMAL))
    assert (served.level, served.cache, served.outputs) == (Level.FULL, CacheStatus.HIT, {"answer": "fine"})


async def test_a_worse_levels_answer_never_serves_a_better_level() -> None:
    bench = Bench(stale_if_error_s=50)
    bench.near.keep(at(Level.DEGRADED), ok(at(Level.DEGRADED)))
    assert bench.near.answer(at(Level.FULL)) is None
    assert bench.near.answer(at(Level.DEGRADED)) is not None


async def test_a_better_levels_hit_from_farther_away_is_kept_under_its_own_key() -> None:
    bench = Bench()
    hit = replace(ok(at(Level.FULL)), cache=CacheStatus.HIT, tier="redis", attempts=())
    bench.near.keep(at(Level.DEGRADED), hit)
    assert bench.near.answer(call(1, key="f")).level is Level.FULL
    assert bench.near.answer(call(1, key="d", level=Level.DEGRADED)) is None


async def test_a_hit_drawn_to_refresh_is_answered_at_once_and_one_newer_answer_is_fetched() -> None:
    gate = asyncio.Event()

    async def slow(asked):
        await gate.wait()
        return ok(asked, text="new")

    bench = Bench(slow)
    bench.near.keep(call(1), ok(call(1), text="old"))
    bench.clock.advance(99.995)  # the answer took 10 ms to make; 5 ms are left
    bench.drawn = 0.9
    for _ in range(5):
        assert bench.near.answer(call(1)).outputs == {"answer": "old"}
        await settle()
    (asked,) = bench.fetched
    assert asked.freshness == Freshness(max_age_s=pytest.approx(50, abs=0.1))
    assert (asked.key, asked.options.priority) == ("key1", Priority.SHEDDABLE)
    assert asked.id != call(1).id
    gate.set()
    await settle()
    served = bench.near.answer(call(1))
    assert (served.outputs, served.age_s) == ({"answer": "new"}, 0)


async def test_a_hit_that_is_not_drawn_or_has_long_to_go_asks_nobody() -> None:
    bench = Bench(drawn=0.999999)
    bench.near.keep(call(1), ok(call(1)))
    assert bench.near.answer(call(1)) is not None
    bench.clock.advance(99.995)
    bench.drawn = 0.0
    assert bench.near.answer(call(1)) is not None
    await settle()
    assert bench.fetched == []


@pytest.mark.parametrize("beta", [0, 1])
async def test_beta_zero_turns_early_refresh_off(beta) -> None:
    bench = Bench(drawn=0.9, early_refresh_beta=beta)
    bench.near.keep(call(1), ok(call(1)))
    bench.clock.advance(99.995)
    assert bench.near.answer(call(1)) is not None
    await settle()
    assert len(bench.fetched) == beta


@pytest.mark.parametrize("failure", [Overloaded("full", 1.0), NoRoute("down", 1.0)])
async def test_a_refresh_that_fails_leaves_the_old_answer_and_may_be_tried_again(failure, caplog) -> None:
    def fail(asked):
        if isinstance(failure, Overloaded):
            raise failure
        return Result(asked.id, error=failure)

    bench = Bench(fail, drawn=0.9)
    bench.near.keep(call(1), ok(call(1)))
    bench.clock.advance(99.995)
    for tries in (1, 2):
        assert bench.near.answer(call(1)).outputs == {"answer": "fine"}
        await settle()
        assert len(bench.fetched) == tries
    assert ("cache.refresh_failed" in caplog.text) is not isinstance(failure, Overloaded), "refusals are counted"


async def test_refreshes_end_with_the_cache() -> None:
    cancelled = []

    async def never(asked):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(asked.id)
            raise

    bench = Bench(never, drawn=0.9)
    bench.near.keep(call(1), ok(call(1)))
    bench.clock.advance(99.995)
    bench.near.answer(call(1))
    await settle()
    await bench.near.aclose()
    assert len(cancelled) == 1
