"""What the ingress admits, stamps, counts and keeps; its callers over handles."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, app_config, failed, link, ok, programs, settle
from ray.exceptions import RayActorError

from serve_app.adapters.telemetry import Telemetry
from serve_app.config import BatchingConfig, LimitsConfig, Replicas
from serve_app.core import deadline
from serve_app.core.admission import FEW
from serve_app.core.clock import ManualClock
from serve_app.deployments.cache import Cache
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.lane import Lane
from serve_app.deployments.program_replicas import IngressDeployment
from serve_app.deployments.router import Router
from serve_app.errors import (
    BadOutput,
    ControlPlaneUnreachable,
    DeadlineExceeded,
    InvalidInputs,
    NoRoute,
    Overloaded,
    UnknownProgram,
    UpstreamError,
)
from serve_app.messages import Attempt, CacheStatus, Call, Freshness, Level, Outcome, Priority, Result, Usage

GOOD = {"question": "why?"}


class Bench:
    """An ingress over a fake stage."""

    def __init__(self, answer=ok, ingress=Ingress, clock=time.monotonic, **config) -> None:
        self.config = app_config(**config)
        self.unix = ManualClock(1_000_000.0)
        self.stage = FakeStage(answer)
        self.link = link()
        self.ingress = ingress(
            self.config,
            programs(self.config),
            self.stage,
            self.link._telemetry,
            self.link,
            clock=clock,
            unix_clock=self.unix,
        )

    async def ask(self, inputs=GOOD, **arguments) -> dict:
        return await self.ingress.predict("ask", inputs, **arguments)

    def counts(self, family: str, label: str) -> dict[str, float]:
        """Totals of a counter by one of its labels."""
        found: dict[str, float] = {}
        for metric in self.link._telemetry.samples():
            for name, labels, value in metric.samples if metric.name == family else ():
                if name.endswith("_total"):
                    found[dict(labels)[label]] = found.get(dict(labels)[label], 0) + value
        return found


async def test_a_python_caller_gets_what_http_gives() -> None:
    reply = await Bench().ask(request_id="mine")
    assert reply["outputs"] == {"answer": "fine"}
    assert reply["meta"]["request_id"] == "mine"
    (attempt,) = reply["meta"]["attempts"]
    assert (attempt["model"], attempt["outcome"], attempt["latency_s"]) == ("large", "ok", 0.01)
    assert reply["meta"]["usage"] == {"input_tokens": 10, "output_tokens": 5}


async def test_a_caller_without_a_request_id_is_given_one() -> None:
    bench = Bench()
    ids = [(await bench.ask())["meta"]["request_id"] for _ in range(2)]
    assert all(ids)
    assert ids[0] != ids[1]


async def test_calls_in_flight_have_ids_of_their_own_whatever_their_request_ids() -> None:
    bench = Bench()
    await asyncio.gather(*(bench.ask({"question": f"q{n}"}, request_id="same") for n in range(20)))
    assert len({asked.id for asked in bench.stage.calls}) == 20
    assert {asked.request_id for asked in bench.stage.calls} == {"same"}


async def test_the_deadline_is_the_callers_or_the_configured_one() -> None:
    bench = Bench(limits=LimitsConfig(default_deadline_s=7).model_dump())
    await bench.ask()
    await bench.ask({"question": "another"}, options={"deadline_s": 3})
    assert [asked.remaining_s for asked in bench.stage.calls] == pytest.approx([7, 3], abs=0.5)


async def test_the_deadline_holds_while_a_batch_is_being_collected() -> None:
    class Slow(Ingress):
        async def _collect(self, call):
            await asyncio.Event().wait()

    bench = Bench(ingress=Slow)
    async with asyncio.timeout(5):
        with pytest.raises(DeadlineExceeded):
            await bench.ask(options={"deadline_s": 0.02})
    assert bench.ingress._admission.held == 0
    assert bench.counts("dspy_requests", "status") == {"deadline_exceeded": 1}


async def test_a_504_says_what_was_tried(monkeypatch) -> None:
    """Each part behind the ingress gives up a moment before the one that asked it; here a long moment."""
    monkeypatch.setattr(deadline, "REPLY_SHARE", 0.2)
    monkeypatch.setattr(deadline, "MAX_REPLY_S", 1.0)

    async def hangs(asked):
        await asyncio.sleep(asked.remaining_s)
        attempts = (Attempt(asked.model, Outcome.TIMEOUT, asked.remaining_s, Usage(10, 0)),)
        return Result(asked.id, error=UpstreamError("late", outcome=Outcome.TIMEOUT), attempts=attempts)

    bench = Bench()
    router = Router(bench.config, dict.fromkeys(("large", "medium", "small"), FakeStage(hangs)), Telemetry(), link())
    bench.ingress.lane = Lane(Cache(bench.config, router, Telemetry(), link()))
    with pytest.raises(DeadlineExceeded) as raised:
        await bench.ask(options={"deadline_s": 1.0, "model": "small"})
    (attempt,) = raised.value.attempts
    assert (attempt.model, attempt.usage.input_tokens) == ("small", 10)


class Collected(Ingress):
    """An ingress whose batches form when the test says so."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self.forming = []

    async def _collect(self, call):
        handed_over = asyncio.get_running_loop().create_future()
        self.forming.append((call, handed_over))
        return await handed_over

    def send(self) -> None:
        calls, handed_over = zip(*self.forming, strict=True)
        self.forming = []
        for future, result in zip(handed_over, self.start_batch(calls), strict=True):
            if not future.done():
                future.set_result(result)


async def test_the_time_a_batch_took_to_form_is_no_longer_left() -> None:
    bench = Bench(ingress=Collected)
    asked = asyncio.create_task(bench.ask(options={"deadline_s": 5}))
    await asyncio.sleep(0.05)
    bench.ingress.send()
    await asked
    assert bench.stage.calls[0].remaining_s < 4.96


async def test_a_caller_who_leaves_at_the_moment_the_batch_is_handed_over_takes_the_work_along() -> None:
    bench = Bench(lambda _: asyncio.Event().wait(), ingress=Collected)
    leaver, stayer = (asyncio.create_task(bench.ask({"question": q})) for q in "ab")
    await settle()
    bench.ingress.send()
    leaver.cancel()
    await settle()
    left, stays = bench.stage.calls
    assert (left.inputs["question"], bench.stage.cancelled) == ("a", [left.id])
    stayer.cancel()
    await settle()
    assert bench.stage.cancelled == [left.id, stays.id]
    assert not bench.ingress._asked
    assert not bench.ingress._deadlines


async def test_a_caller_who_left_while_the_batch_formed_is_never_asked_for() -> None:
    bench = Bench(ingress=Collected)
    leaver, stayer = (asyncio.create_task(bench.ask({"question": q})) for q in "ab")
    await settle()
    leaver.cancel()
    await settle()
    bench.ingress.send()
    await stayer
    await settle()
    assert bench.stage.cancelled == [] or bench.stage.cancelled == [bench.stage.calls[0].id]
    assert not bench.ingress._asked


async def test_errors_name_the_call_and_what_was_tried() -> None:
    bench = Bench(lambda asked: failed(asked, Outcome.SERVER_ERROR))
    with pytest.raises(Exception, match="server_error") as raised:
        await bench.ask(request_id="mine")
    assert raised.value.request_id == "mine"
    assert [attempt.outcome for attempt in raised.value.attempts] == [Outcome.SERVER_ERROR]


@pytest.mark.parametrize(
    ("arguments", "error", "counted"),
    [
        ({"inputs": {}}, InvalidInputs, {"invalid_inputs": 1}),
        ({"options": {"deadline_s": 0}}, InvalidInputs, {"invalid_inputs": 1}),
        ({"options": {"priority": "vip"}}, InvalidInputs, {"invalid_inputs": 1}),
        ({"inputs": None}, InvalidInputs, {"invalid_inputs": 1}),
        ({"options": 5}, InvalidInputs, {"invalid_inputs": 1}),
        ({"options": [1]}, InvalidInputs, {"invalid_inputs": 1}),
    ],
)
async def test_what_does_not_fit_is_refused_and_counted_once(arguments, error, counted) -> None:
    bench = Bench()
    with pytest.raises(error):
        await bench.ask(**arguments)
    assert bench.counts("dspy_requests", "status") == counted
    assert bench.link._pending.calls == 0
    assert bench.stage.calls == []


async def test_a_program_nobody_serves_is_counted_and_makes_no_label() -> None:
    bench = Bench()
    with pytest.raises(UnknownProgram, match="did you mean 'ask'"):
        await bench.ingress.predict("asks", GOOD)
    assert bench.counts("dspy_requests", "status") == {"unknown_program": 1}
    assert bench.counts("dspy_requests", "program") == {"none": 1}
    assert "asks" not in str(list(bench.link._telemetry.samples()))


async def test_a_defect_behind_the_stage_is_counted_as_ours_and_raised_as_one_of_ours() -> None:
    bench = Bench(lambda _: 1 / 0)
    with pytest.raises(Exception, match="ZeroDivisionError") as raised:
        await bench.ask()
    assert raised.value.code == "internal"
    assert bench.counts("dspy_requests", "status") == {"internal": 1}
    assert (bench.link._pending.calls, bench.link._pending.failed_calls) == (1, 1)


async def test_a_refusal_of_a_route_is_a_failure_and_a_refused_caller_is_not() -> None:
    bench = Bench(lambda asked: Result(asked.id, error=NoRoute("down", 1.0)))
    with pytest.raises(NoRoute):
        await bench.ask()
    assert (bench.link._pending.calls, bench.link._pending.failed_calls) == (1, 1)


@pytest.mark.parametrize(("outcome", "failures"), [(Outcome.TIMEOUT, 1), (Outcome.CUT_SHORT, 0)])
async def test_a_deadline_that_no_model_could_have_kept_is_no_failure_of_the_service(outcome, failures) -> None:
    def late(asked) -> Result:
        return Result(asked.id, error=DeadlineExceeded("late"), attempts=(Attempt("large", outcome, 0.3),))

    bench = Bench(late)
    with pytest.raises(DeadlineExceeded):
        await bench.ask()
    assert (bench.link._pending.calls, bench.link._pending.failed_calls) == (1, failures)


@pytest.mark.parametrize(
    ("error", "options", "cache_control", "failures"),
    [
        (DeadlineExceeded("not stored"), {}, "only-if-cached", 0),
        (DeadlineExceeded("late"), {"deadline_s": 0.01}, "", 0),
        (DeadlineExceeded("late"), {"deadline_s": 10}, "", 1),
        (BadOutput("cut off"), {"max_tokens": 1}, "", 0),
        (BadOutput("nonsense"), {}, "", 1),
        (NoRoute("down"), {"deadline_s": 0.01, "max_tokens": 1}, "", 1),
    ],
)
async def test_what_a_caller_brings_about_is_no_failure_of_the_service(error, options, cache_control, failures) -> None:
    bench = Bench(lambda asked: Result(asked.id, error=error))
    with pytest.raises(type(error)):
        await bench.ask(options=options, cache_control=cache_control)
    assert (bench.link._pending.calls, bench.link._pending.failed_calls) == (1, failures)


async def test_an_answer_that_was_cut_off_says_so_and_is_not_stored() -> None:
    bench = Bench(lambda asked: replace(ok(asked), is_truncated=asked.inputs["question"] == "long?"))
    for _ in range(2):
        meta = (await bench.ask({"question": "long?"}))["meta"]
        assert (meta["truncated"], meta["cache"]) == (True, "miss")
    assert "truncated" not in (await bench.ask({"question": "short?"}))["meta"]


async def test_past_the_bound_calls_are_refused_by_priority_before_any_work() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer, limits=LimitsConfig(max_queued_requests=10).model_dump())
    held = [asyncio.create_task(bench.ask({"question": f"q{n}"})) for n in range(9)]
    await settle()
    for priority in ("sheddable", "default"):
        with pytest.raises(Overloaded) as refused:
            await bench.ask({"question": "more"}, options={"priority": priority})
        assert refused.value.retry_after_s > 0
    held.append(asyncio.create_task(bench.ask({"question": "vital"}, options={"priority": "critical"})))
    await settle()
    assert len(bench.stage.calls) == 10
    assert bench.counts("dspy_shed", "priority") == {"sheddable": 1, "default": 1}
    gate.set()
    await asyncio.gather(*held)
    assert bench.ingress._admission.held == 0


async def test_a_near_hit_needs_no_place() -> None:
    gate = asyncio.Event()
    gate.set()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer, limits=LimitsConfig(max_queued_requests=1).model_dump())
    await bench.ask()
    gate.clear()
    held = asyncio.create_task(bench.ask({"question": "another"}))
    await settle()
    assert (await bench.ask())["meta"]["cache"] == "hit"
    gate.set()
    await held


async def test_an_answer_that_is_old_already_is_as_old_in_the_near_cache() -> None:
    def hit(asked):
        return Result(asked.id, {"answer": "x"}, model="large", cache=CacheStatus.HIT, tier="redis", age_s=30.0)

    bench = Bench(hit)
    await bench.ask()
    bench.unix.advance(10)
    call = bench.ingress._call("ask", GOOD, {}, "r", Freshness())
    near = bench.ingress.near.answer(call)
    assert (near.tier, near.age_s) == ("near", 40.0)


async def test_a_stale_answer_is_not_kept_near() -> None:
    def stale(asked):
        return Result(asked.id, {"answer": "x"}, model="large", cache=CacheStatus.STALE, tier="memory", age_s=130.0)

    bench = Bench(stale)
    await bench.ask()
    await bench.ask()
    assert len(bench.stage.calls) == 2


async def test_only_if_cached_and_no_store_reach_the_stage_as_they_were_said() -> None:
    bench = Bench()
    await bench.ask(cache_control="no-store")
    await bench.ask(cache_control="only-if-cached")
    assert [asked.freshness.no_store for asked in bench.stage.calls] == [True, False]
    assert [asked.freshness.only_if_cached for asked in bench.stage.calls] == [False, True]


async def test_a_hit_is_counted_under_the_model_that_made_the_answer() -> None:
    bench = Bench()
    await bench.ask()
    await bench.ask()
    assert bench.counts("dspy_requests", "model") == {"large": 2}
    assert bench.counts("dspy_cache_hits", "tier") == {"near": 1}


async def test_below_full_the_answer_says_what_holds_the_level() -> None:
    bench = Bench()
    assert "level_reason" not in (await bench.ingress.predict("ask", {"question": "one"}))["meta"]
    pinned(bench, Level.DEGRADED)
    bench.link.snapshot = replace(bench.link.snapshot, reason="cpu 0.93, threshold 0.8")
    meta = (await bench.ingress.predict("ask", {"question": "two"}))["meta"]
    assert (meta["level"], meta["level_reason"]) == ("degraded", "cpu 0.93, threshold 0.8")


def pinned(bench: Bench, level: Level) -> Bench:
    bench.link.snapshot = replace(bench.link.snapshot, level=level)
    return bench


async def test_a_full_answer_serves_the_same_call_under_pressure_and_a_degraded_one_not_the_call_after_it() -> None:
    bench = Bench()
    await bench.ask()
    under_pressure = await pinned(bench, Level.DEGRADED).ask()
    assert (under_pressure["meta"]["cache"], under_pressure["meta"]["level"]) == ("hit", "full")
    made = await bench.ask({"question": "another?"})
    assert (made["meta"]["cache"], made["meta"]["level"]) == ("miss", "degraded")
    again = await pinned(bench, Level.FULL).ask({"question": "another?"})
    assert (again["meta"]["cache"], again["meta"]["level"]) == ("miss", "full")


@pytest.mark.parametrize("batches", [True, False])
async def test_a_call_says_whether_its_program_answers_many_at_once(monkeypatch, batches) -> None:
    bench = Bench()
    known = bench.ingress.programs["ask"]
    monkeypatch.setattr(known, "takes_batches", lambda level: batches and level is Level.FULL)
    await bench.ask()
    assert [asked.together for asked in bench.stage.calls] == [batches]


@pytest.mark.parametrize(
    ("level", "stale_if_error_s", "count"),
    [(Level.FULL, 0, 0), (Level.DEGRADED, 0, 2), (Level.MINIMAL, 0, 3), (Level.FULL, 60, 3), (Level.DEGRADED, 60, 3)],
)
async def test_a_call_knows_the_keys_that_may_help_it_and_no_other(level, stale_if_error_s, count) -> None:
    bench = pinned(Bench(), level)
    known = bench.ingress.programs["ask"]
    known.config = known.config.model_copy(
        update={"cache": known.config.cache.model_copy(update={"stale_if_error_s": stale_if_error_s})}
    )
    made = bench.ingress._call("ask", GOOD, {}, "r", Freshness())
    assert len(made.level_keys) == len(set(made.level_keys)) == count
    assert made.key_at(level) == made.key
    assert made.key_at(Level.FULL) == Bench().ingress._call("ask", GOOD, {}, "r", Freshness()).key


async def test_a_hot_answer_is_made_anew_in_the_background_before_it_ends() -> None:
    bench = Bench()
    cache = bench.config.programs[0].cache.model_copy(update={"early_refresh_beta": 1e12})  # every draw is early enough
    program = bench.config.programs[0].model_copy(update={"cache": cache})
    bench = Bench(programs=[program.model_dump()])
    await bench.ask()
    bench.unix.advance(50)
    assert (await bench.ask())["meta"]["cache"] == "hit"
    await settle()
    assert [asked.freshness.max_age_s for asked in bench.stage.calls] == [None, 25]
    assert bench.ingress._admission.held == 0
    assert bench.ingress.near.answer(bench.ingress._call("ask", GOOD, {}, "r", Freshness())).age_s == 0
    await bench.ingress.near.aclose()


async def test_one_of_two_callers_in_a_batch_may_leave() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer)
    leaver, stayer = (asyncio.create_task(bench.ask({"question": q})) for q in "ab")
    await settle()
    leaver.cancel()
    await settle()
    gate.set()
    assert (await stayer)["outputs"] == {"answer": "fine"}
    assert bench.counts("dspy_requests", "status") == {"client_closed": 1, "success": 1}
    assert bench.ingress._admission.held == 0


async def test_status_has_the_same_shape_with_and_without_a_control_plane() -> None:
    bench = Bench()
    status = await bench.ingress.status()
    assert status["level"] == {"level": "full", "reason": ""}
    assert status["control_plane"] == "unreachable"


async def test_without_a_control_plane_the_page_has_this_replicas_gauges() -> None:
    page = (await Bench().ingress.metrics()).decode()
    (line,) = [line for line in page.splitlines() if line.startswith("dspy_memory_usage_mb{")]
    assert float(line.split()[-1]) > 1


async def test_the_handler_of_a_batch_returns_at_once_a_future_for_each_call_and_never_raises() -> None:
    """What ``@serve.batch`` needs of its handler: else batches pile up, or every caller fails with one."""

    class Broken:
        def run(self, _):
            raise RuntimeError("the stage is broken")

        def leave(self, _):
            pass

    bench = Bench()
    bench.ingress.lane = Lane(Broken())
    calls = [bench.ingress._call("ask", {"question": f"q{n}"}, {}, "r", Freshness()) for n in range(3)]
    with contextlib.ExitStack() as waiting:
        for each in calls:
            waiting.enter_context(bench.ingress._waiting_for(each))
        futures = bench.ingress.start_batch(calls)
        assert [future.done() for future in futures] == [False] * 3
        results = await asyncio.gather(*futures)
    assert [result.id for result in results] == [each.id for each in calls]
    assert all(result.error is not None for result in results)


def test_batching_is_changed_on_the_running_replica() -> None:
    class Batching(Ingress):
        _batched = batched = IngressDeployment._batched
        set_batching = IngressDeployment.set_batching

    ingress, batched = Bench(ingress=Batching).ingress, Batching.batched
    ingress.set_batching(BatchingConfig(max_batch_size=7))
    assert ingress.lane.max_batch_size == 7
    assert (batched._get_max_batch_size(), batched._get_batch_wait_timeout_s()) == (7, 0)
    patience = ingress._admission.patience
    ingress.set_batching(BatchingConfig(max_batch_size=32, batch_wait_timeout_s=0.5))
    assert (batched._get_max_batch_size(), batched._get_batch_wait_timeout_s()) == (32, 0.5)
    assert ingress._admission.patience.floor_s == patience.floor_s + 0.5


async def test_a_scrape_fails_while_the_control_plane_is_away_rather_than_show_one_replicas_totals() -> None:
    class Gone:
        def __init__(self) -> None:
            self.metrics = self

        async def remote(self) -> bytes:
            raise RayActorError

    bench = Bench()
    await bench.ask()
    bench.ingress.link = ControlLink(Gone(), "Ingress", bench.link._telemetry)
    with pytest.raises(ControlPlaneUnreachable):
        await bench.ingress.metrics()


async def test_a_loop_that_runs_late_refuses_calls_and_takes_them_again_when_it_has_caught_up() -> None:
    bench = Bench()

    async def hold_up() -> None:
        while True:
            time.sleep(0.1)  # noqa: ASYNC251 - what keeps the loop from its timers
            await asyncio.sleep(0)

    async def until(is_so) -> None:
        async with asyncio.timeout(30):
            while not is_so():
                await asyncio.sleep(0.01)

    watching, holding = asyncio.create_task(bench.ingress.watch_loop()), asyncio.create_task(hold_up())
    try:
        await until(lambda: bench.ingress._lag.seconds > 0.05)
        lone = {"question": "alone?"}
        assert (await bench.ask(lone, options={"deadline_s": 2}))["outputs"] == {"answer": "fine"}, "it may wait"
        for _ in range(FEW):
            bench.ingress._admission.admit(Priority.CRITICAL, 50)
        with pytest.raises(Overloaded, match="busy_loop"):
            await bench.ask(options={"deadline_s": 2})
        assert bench.counts("dspy_shed", "reason") == {"busy_loop": 1}
        urgent = {"deadline_s": 50, "priority": "critical"}
        assert (await bench.ask(options=urgent))["outputs"] == {"answer": "fine"}, "it bears the lag"
        holding.cancel()
        await until(lambda: bench.ingress._lag.seconds < 0.01)
        assert (await bench.ask(options={"deadline_s": 2}))["outputs"] == {"answer": "fine"}
    finally:
        holding.cancel()
        watching.cancel()


async def test_a_queue_that_stands_takes_no_more_until_it_is_short_though_there_is_time() -> None:
    """One answer every 0.1 s for calls that have a minute: a second of waiting is enough."""
    turn, clock = asyncio.Lock(), ManualClock()

    async def one_by_one(asked: Call) -> Result:
        async with turn:
            await asyncio.sleep(0)
            clock.advance(0.1)
            return ok(asked)

    bench = Bench(one_by_one, clock=clock)
    burst = [asyncio.create_task(bench.ask({"question": f"{n}?"})) for n in range(100)]
    await asyncio.gather(*burst[:40])
    with pytest.raises(Overloaded, match="standing_queue") as refused:
        await bench.ask({"question": "one more?"})
    assert refused.value.retry_after_s == pytest.approx(60 * 0.1 - 1.5, abs=0.6)
    with pytest.raises(Overloaded, match="standing_queue") as next_one:
        await bench.ask({"question": "another?"})
    behind_s = next_one.value.retry_after_s - refused.value.retry_after_s
    assert behind_s == pytest.approx(0.1, abs=0.07), "there is one answer every 0.1 s"
    assert bench.counts("dspy_shed", "reason") == {"standing_queue": 2}
    assert (await bench.ask({"question": "0?"}))["meta"]["cache"] == "hit", "what is stored waits for nobody"
    await asyncio.gather(*burst)
    assert (await bench.ask({"question": "one more?"}))["outputs"] == {"answer": "fine"}


HEDGING = app_config().programs[0].model_dump(exclude_unset=True) | {"hedge_after_s": 2.0}


async def forever(_: Call) -> None:
    await asyncio.Event().wait()


def said(asked: Call, *attempts: tuple[Outcome, float, float | None]) -> Result:
    """An answer after such attempts: how each ended, its latency, and how much of it was waiting."""
    made = tuple(Attempt("large", outcome, latency_s, waited_s=waited_s) for outcome, latency_s, waited_s in attempts)
    return replace(ok(asked), attempts=made)


async def stand(answer: Callable[[Call], Result], **config) -> Bench:
    """An ingress where one call is answered every 0.1 s, like that, and 60 wait."""
    turn, clock = asyncio.Lock(), ManualClock()

    async def one_by_one(asked: Call) -> Result:
        if asked.shed:
            return Result(asked.id, error=Overloaded("as it was told", asked.shed.retry_after_s))
        async with turn:
            await asyncio.sleep(0)
            clock.advance(0.1)
            return answer(asked)

    bench = Bench(one_by_one, clock=clock, **config)
    bench.burst = [asyncio.create_task(bench.ask({"question": f"{n}?"})) for n in range(100)]
    await asyncio.gather(*bench.burst[:40], return_exceptions=True)
    return bench


@pytest.mark.parametrize(
    ("answer", "stands"),
    [
        (ok, True),
        (lambda asked: said(asked, (Outcome.SLOW, 0.5, 0.1)), True),
        (lambda asked: said(asked, (Outcome.SERVER_ERROR, 0.01, 0.0), (Outcome.OK, 0.02, 0.0)), True),
        (lambda asked: said(asked, (Outcome.OK, 0.02, 0.0), (Outcome.CANCELLED, 9.0, None)), True),
        (lambda asked: said(asked, (Outcome.OK, 9.0, 0.0)), False),
        (lambda asked: said(asked, (Outcome.TIMEOUT, 0.1, None), (Outcome.OK, 0.02, 0.0)), False),
        (lambda asked: replace(ok(asked), cache=CacheStatus.COALESCED), False),
        (lambda asked: Result(asked.id, error=BadOutput("?"), attempts=ok(asked).attempts), False),
    ],
)
async def test_a_queue_stands_by_what_models_answered_and_how_long_they_ran(answer, stands) -> None:
    bench = await stand(answer)
    (*_, more) = await asyncio.gather(*bench.burst, bench.ask({"question": "one more?"}), return_exceptions=True)
    assert isinstance(more, Overloaded) is stands


@pytest.mark.parametrize(
    ("question", "config", "cache_control", "late_s", "goes_on"),
    [
        ("one more?", {}, "", 0.0, False),
        ("one more?", {"cache": {"redis_url": "redis://127.0.0.1:1/0"}}, "", 0.0, True),
        ("one more?", {"cache": {"redis_url": "redis://127.0.0.1:1/0"}}, "", 0.02, False),
        ("one more?", {"cache": {"redis_url": "redis://127.0.0.1:1/0"}}, "no-cache", 0.0, False),
        ("one more?", {}, "only-if-cached", 0.0, True),
        ("99?", {}, "", 0.0, True),
        ("99?", {}, "no-store", 0.0, False),
    ],
)
async def test_what_may_be_known_is_asked_of_the_cache_while_a_queue_stands(
    question, config, cache_control, late_s, goes_on
) -> None:
    bench = await stand(ok, **config)
    for _ in range(2):
        bench.ingress._lag.ticked(1000.0, 1000.0 + late_s)
    before = len(bench.stage.calls)
    with pytest.raises(Overloaded) as refused:
        await bench.ask({"question": question}, cache_control=cache_control)
    assert refused.value.retry_after_s == pytest.approx(60 * 0.1 - 1.5, abs=0.6)
    asked = [call for call in bench.stage.calls[before:] if call.shed]
    assert len(asked) == goes_on
    assert bench.counts("dspy_shed", "reason") == ({} if goes_on else {"standing_queue": 1}), "who refuses counts"
    assert bench.ingress._refusals.find(bench.stage.calls[0], 60) is None, "it says nothing about others"
    await asyncio.gather(*bench.burst)
    assert bench.ingress._keys_asked == {}


async def test_attempts_that_may_have_run_beside_each_other_do_not_hide_a_queue() -> None:
    """The first one failed after the second had begun: their times may not be added up. Nor is anything learned."""
    both = ((Outcome.SERVER_ERROR, 5.0, 0.0), (Outcome.OK, 4.0, 0.0))
    answered: Counter[str] = Counter()

    def answer(asked: Call) -> Result:
        answered["calls"] += 1
        return said(asked, *both) if answered["calls"] % 4 == 0 else ok(asked)

    bench = await stand(answer, programs=[HEDGING])
    (*_, more) = await asyncio.gather(*bench.burst, bench.ask({"question": "one more?"}), return_exceptions=True)
    assert isinstance(more, Overloaded)


async def test_a_call_that_looks_for_no_stored_answer_is_none_to_wait_for() -> None:
    bench = Bench(forever)
    asking = [
        asyncio.create_task(bench.ask({"question": f"{directive}?"}, cache_control=directive))
        for directive in ("no-cache", "no-store", "max-age=9")
    ]
    await settle()
    assert sum(bool(key) for key in bench.ingress._keys_asked) == 1
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    assert not bench.ingress._keys_asked


async def test_a_refusal_counts_for_calls_with_as_much_time_as_was_left() -> None:
    clock = ManualClock(1000.0)

    async def late(asked: Call) -> Result:
        clock.advance(55)
        return Result(asked.id, error=Overloaded("every model of the route is too busy", 0.4))

    bench = Bench(late, clock=clock)
    with pytest.raises(Overloaded):
        await bench.ask(options={"deadline_s": 60})
    (asked,) = bench.stage.calls
    assert bench.ingress._refusals.find(asked, 5.0) is not None
    assert bench.ingress._refusals.find(asked, 6.0) is None


SHARED = {"redis_url": "redis://127.0.0.1:1/0"}


@pytest.mark.parametrize(
    ("late_s", "config", "cache_control", "asked"),
    [
        (0.0, {}, "", 1),
        (0.0, {"cache": SHARED}, "", 3),
        (0.0, {"cache": SHARED}, "no-store", 1),
        (0.0, {}, "max-stale=60", 3),
        (0.02, {"cache": SHARED}, "", 1),
    ],
)
async def test_a_refusal_holds_at_the_door_unless_a_cache_may_answer_and_there_is_time_to_ask_it(
    late_s, config, cache_control, asked
) -> None:
    bench = Bench(lambda call: Result(call.id, error=Overloaded("every model of the route is too busy", 0.4)), **config)
    bench.ingress._clock = bench.ingress._refusals._clock = bench.ingress._admission._clock = ManualClock(1000.0)
    for _ in range(2):
        bench.ingress._lag.ticked(1000.0, 1000.0 + late_s)
    for question in ("one?", "two?", "three?"):
        with pytest.raises(Overloaded) as refused:
            await bench.ask({"question": question}, options={"deadline_s": 10}, cache_control=cache_control)
        assert refused.value.retry_after_s == 0.4
    assert len(bench.stage.calls) == asked
    assert bench.counts("dspy_shed", "reason").get("busy", 0) == 3 - asked
    assert bench.ingress._admission.held == 0


async def test_a_refused_call_that_would_not_look_for_an_answer_refuses_none_that_would() -> None:
    bench = Bench(lambda call: Result(call.id, error=Overloaded("too busy", 0.4)), cache=SHARED)
    for cache_control in ("no-store", ""):
        with pytest.raises(Overloaded):
            await bench.ask(options={"deadline_s": 60}, cache_control=cache_control)
    assert len(bench.stage.calls) == 2


async def test_with_several_ingresses_another_one_may_have_had_the_answer_made() -> None:
    bench = Bench(lambda call: Result(call.id, error=Overloaded("too busy", 0.4)))
    bench.ingress.config = bench.config.model_copy(update={"ingress": Replicas(min=1, max=2)})
    for _ in range(2):
        with pytest.raises(Overloaded):
            await bench.ask(options={"deadline_s": 60})
    assert len(bench.stage.calls) == 2
