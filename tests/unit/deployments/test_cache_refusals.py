"""What the cache refuses by itself: what was refused a moment ago, or what the ingress has no room for."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from deployment_fakes import call, ok, settle
from test_cache_stage import TTL_S, Bench

from serve_app.core.permit import Refusal
from serve_app.errors import Overloaded, RateLimited
from serve_app.messages import Attempt, CacheStatus, Call, Outcome, Result


def no_room(asked: Call) -> Result:
    return Result(asked.id, error=Overloaded("every model of the route is too busy to answer in time", 0.4))


def asked(number: int, remaining_s: float = 2.0, text: str = "", **changes) -> Call:
    inputs = {"question": text or f"question {number}?"}
    return replace(call(number), inputs=inputs, remaining_s=remaining_s, **changes)


def shed(bench: Bench) -> Counter[str]:
    found: Counter[str] = Counter()
    for metric in bench.cache._telemetry.samples():
        for name, labels, value in metric.samples if metric.name == "dspy_shed" else ():
            if name.endswith("_total"):
                found[dict(labels)["reason"]] += int(value)
    return found


async def test_a_refusal_holds_for_a_moment_without_asking() -> None:
    bench = Bench(no_room)
    for number in range(5):
        refused = (await bench.ask(asked(number))).error
        assert type(refused) is Overloaded
        assert refused.retry_after_s == 0.4
    assert len(bench.stage.calls) == 1
    assert shed(bench) == {"busy": 4}, "the first one was counted by who refused it"
    bench.advance(0.041)
    await bench.ask(asked(9))
    assert len(bench.stage.calls) == 2, "then calls ask again"


async def test_a_herd_that_a_replica_has_no_room_for_asks_there_once() -> None:
    async def full(asked: Call) -> Result:
        await asyncio.sleep(0)
        return replace(no_room(asked), attempts=(Attempt("large", Outcome.REJECTED, 0.0),))

    bench = Bench(full)
    results = await asyncio.gather(
        *(bench.ask(replace(asked(number, text="the same?"), key="k")) for number in range(20))
    )
    assert {type(result.error) for result in results} == {Overloaded}
    assert len(bench.stage.calls) == 1


async def test_stored_answers_are_given_while_it_holds() -> None:
    bench = Bench(
        lambda asked: ok(asked) if asked.inputs["question"] == "known?" else no_room(asked), stale_if_error_s=50
    )
    known = replace(asked(1, text="known?"), key="known")
    assert (await bench.ask(known)).cache is CacheStatus.MISS
    bench.advance(TTL_S + 1)
    await bench.ask(asked(2))
    stale = await bench.ask(replace(known, id="again"))
    assert (stale.cache, stale.error) == (CacheStatus.STALE, None), "an error of ours, too, has its stand-in"


REFUSED = Refusal(1.5, "standing_queue")


async def test_what_the_ingress_has_no_room_for_is_answered_by_a_cache_or_not_at_all() -> None:
    bench = Bench(stale_while_revalidate_s=50)
    known = replace(asked(1), key="known")
    await bench.ask(known)
    hit = await bench.ask(replace(known, id="again", shed=REFUSED))
    assert (hit.cache, hit.error) == (CacheStatus.HIT, None)
    bench.advance(TTL_S + 1)
    stale = await bench.ask(replace(known, id="stale", shed=REFUSED))
    assert (stale.cache, stale.error) == (CacheStatus.STALE, None)
    refused = (await bench.ask(asked(2, shed=REFUSED))).error
    assert type(refused) is Overloaded
    assert refused.retry_after_s == 1.5
    assert shed(bench) == {"standing_queue": 1}
    assert len(bench.stage.calls) == 1, "nor is a model asked in the background"


async def test_what_the_ingress_has_no_room_for_joins_an_answer_that_is_being_made() -> None:
    go_on = asyncio.Event()

    async def wait(asked: Call):
        await go_on.wait()
        return ok(asked)

    bench = Bench(wait)
    leading = asyncio.create_task(bench.ask(replace(asked(1), key="same")))
    await settle()
    joining = asyncio.create_task(bench.ask(replace(asked(2), key="same", shed=REFUSED)))
    await settle()
    go_on.set()
    assert (await leading).cache is CacheStatus.MISS
    assert (await joining).cache is CacheStatus.COALESCED


def rounds(bench: Bench) -> Counter[str]:
    """Counts from now on how often calls lead or join, by key; a thousand times are too often."""
    counted, do = Counter(), bench.cache._flights.do

    def counting(key, *arguments, **options):
        counted[key] += 1
        assert counted[key] < 1000, "it goes in circles"
        return do(key, *arguments, **options)

    bench.cache._flights.do = counting
    return counted


@pytest.mark.parametrize("turns", range(1, 8))
@pytest.mark.parametrize("second", [REFUSED, None])
async def test_a_call_that_comes_close_behind_one_without_room_gets_an_end_of_its_own(turns, second) -> None:
    bench = Bench()
    counted = rounds(bench)
    first = asyncio.create_task(bench.ask(replace(asked(1), key="same", shed=REFUSED)))
    for _ in range(turns):
        await asyncio.sleep(0)
    result = await bench.ask(replace(asked(2), key="same", shed=second))
    assert type(result.error) is (Overloaded if second else type(None))
    assert type((await first).error) is Overloaded
    assert counted["same"] <= 3


async def test_a_call_that_joined_one_without_room_is_answered() -> None:
    bench = Bench()
    counted = rounds(bench)
    refused, answered = await asyncio.gather(
        bench.ask(replace(asked(1), key="same", shed=REFUSED)), bench.ask(replace(asked(2), key="same"))
    )
    assert isinstance(refused.error, Overloaded)
    assert answered.error is None
    assert counted["same"] == 3, "it joined, and then asked"


@pytest.mark.parametrize("why", ["shed", "recent"])
async def test_a_herd_without_room_is_refused_at_once_and_not_one_by_one(why) -> None:
    bench = Bench(no_room)
    counted = rounds(bench)
    herd = [replace(asked(number), key="same", shed=REFUSED if why == "shed" else None) for number in range(200)]
    results = await asyncio.gather(*(bench.ask(each) for each in herd))
    assert {type(result.error) for result in results} == {Overloaded}
    assert counted["same"] == 200, "each asked once"
    assert len(bench.stage.calls) == (why == "recent")


async def test_a_rate_limit_is_everybodys() -> None:
    bench = Bench(lambda asked: Result(asked.id, error=RateLimited("every model is cooling down", 3.0)))
    results = await asyncio.gather(*(bench.ask(replace(asked(number), key="same")) for number in range(50)))
    assert {(type(result.error), result.error.retry_after_s) for result in results} == {(RateLimited, 3.0)}
    assert len(bench.stage.calls) == 1


async def test_nothing_is_made_anew_in_the_background_while_a_refusal_holds(caplog) -> None:
    full = False
    bench = Bench(lambda asked: no_room(asked) if full else ok(asked), stale_while_revalidate_s=50)
    known = replace(asked(1), key="known")
    await bench.ask(known)
    bench.advance(TTL_S + 1)
    full = True
    for number in range(5):
        assert (await bench.ask(replace(known, id=f"stale{number}"))).cache is CacheStatus.STALE
        await settle()
    assert len(bench.stage.calls) == 2
    assert not caplog.records, "a refusal is counted, and no line a hit"
