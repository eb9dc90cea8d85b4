"""One model's replica: slots, expiry, and what an attempt cost."""

import asyncio
import time
from dataclasses import replace

import pytest
from deployment_fakes import app_config, call, link, run_all, settle

from serve_app.adapters.call_scope import current_scope
from serve_app.adapters.dspy_program import Answer
from serve_app.core.clock import ManualClock
from serve_app.deployments.model_replica import ModelReplica
from serve_app.errors import BadOutput, ClientClosed, Overloaded, UpstreamError
from serve_app.messages import BreakerState, Options, Outcome, Priority
from serve_app.reports import ModelHealth


class FakePool:
    def lm(self, model) -> str:
        return model.name


class FakeProgram:
    """Spends tokens, then does what ``act`` does."""

    version = "v1"
    reward = None

    def __init__(self, config, act=None) -> None:
        self.config = config
        self._act = act
        self.running = self.most = 0
        self.limits: list = []

    def takes_batches(self, level) -> bool:
        return False

    async def run(self, asked, lm) -> Answer:
        scope = current_scope()
        scope.spend(1000, 500)
        self.limits.append(scope.max_tokens)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self._act:
                await self._act(asked)
        finally:
            self.running -= 1
        return Answer({"answer": lm}, 0.5)


def replica(act=None, slots: int = 4, clock=time.monotonic, **changes) -> tuple[ModelReplica, FakeProgram]:
    config = app_config()
    program = FakeProgram(config.programs[0], act)
    model = config.models[0].model_copy(update={"max_ongoing_requests": slots} | changes)
    made = link()
    return ModelReplica(model, {"ask": program}, FakePool(), made._telemetry, made, clock=clock), program


async def test_an_answer_says_what_it_took() -> None:
    made, _ = replica()
    result = (await run_all(made, call(1)))["c1"]
    assert (result.outputs, result.confidence) == ({"answer": "large"}, 0.5)
    (attempt,) = result.attempts
    assert (attempt.model, attempt.outcome, attempt.usage.output_tokens) == ("large", Outcome.OK, 500)
    assert attempt.cost_usd == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(UpstreamError("x", outcome=Outcome.TIMEOUT), Outcome.TIMEOUT), (BadOutput("x"), Outcome.BAD_OUTPUT)],
)
async def test_a_failed_attempt_costs_what_it_spent(error, outcome) -> None:
    async def act(_):
        current_scope().asking = 1
        raise error

    result = (await run_all(replica(act)[0], call(1)))["c1"]
    assert result.error is error
    assert result.attempts[0].outcome is outcome
    assert result.attempts[0].cost_usd == pytest.approx(0.005)


async def test_an_answer_that_a_token_limit_cut_off_says_so() -> None:
    async def act(_):
        current_scope().is_truncated = True

    assert (await run_all(replica(act)[0], call(1)))["c1"].is_truncated
    assert not (await run_all(replica()[0], call(1)))["c1"].is_truncated


async def test_time_that_the_program_took_by_itself_says_nothing_of_its_model() -> None:
    async def act(_):
        raise UpstreamError("x", outcome=Outcome.TIMEOUT)

    result = (await run_all(replica(act)[0], call(1)))["c1"]
    assert (result.error.outcome, result.attempts[0].outcome) == (Outcome.CUT_SHORT, Outcome.CUT_SHORT)


async def test_a_replica_of_a_version_without_the_program_says_so_and_runs_nothing() -> None:
    made, program = replica()
    result = (await run_all(made, call(1, program="new")))["c1"]
    assert "another version" in str(result.error)
    assert (result.error.outcome, result.error.status) == (Outcome.REJECTED, 503)
    assert program.most == 0


async def test_a_call_that_is_given_up_costs_what_it_spent_until_then() -> None:
    made, _ = replica(lambda _: asyncio.Event().wait())
    running = asyncio.create_task(run_all(made, call(1)))
    await settle()
    made.leave(["c1"])
    await settle()
    spent = {sample[0]: sample[2] for family in made._telemetry.samples() for sample in family.samples}
    assert spent["dspy_tokens_total"] > 0
    running.cancel()


async def test_no_more_calls_run_than_there_are_slots_and_the_rest_wait_here() -> None:
    gate = asyncio.Event()
    made, program = replica(lambda _: gate.wait(), slots=3)
    running = asyncio.create_task(run_all(made, *(call(n) for n in range(10))))
    await settle()
    assert (program.running, made.slots.queue.waiting) == (3, 7)
    gate.set()
    assert len(await running) == 10
    assert (program.most, made.slots.queue.waiting) == (3, 0)


@pytest.mark.parametrize(("asked_for", "is_other"), [("v1", False), ("v2", True), ("", False)])
async def test_an_answer_says_when_its_program_is_not_the_version_that_was_asked_for(asked_for, is_other) -> None:
    made, _ = replica()
    assert (await run_all(made, call(1, version=asked_for)))["c1"].is_other_version is is_other


async def test_expired_work_is_never_started() -> None:
    made, program = replica()
    result = (await run_all(made, call(1, remaining_s=0)))["c1"]
    assert result.attempts[0].outcome is Outcome.REJECTED
    assert program.limits == []


async def test_a_call_that_is_left_gives_its_slot_back() -> None:
    made, program = replica(lambda _: asyncio.Event().wait(), slots=1)
    chunks = made.run([call(1), call(2)])
    await anext(chunks)
    await settle()
    await chunks.aclose()
    await settle()
    assert (program.running, made.slots.queue.waiting, made.slots.queue.running) == (0, 0, 0)


async def test_a_left_call_gives_its_slot_to_the_next_and_hurts_no_neighbour() -> None:
    gates = {"c1": asyncio.Event(), "c2": asyncio.Event()}
    made, program = replica(lambda asked: gates[asked.id].wait(), slots=1)
    running = asyncio.create_task(run_all(made, call(1), call(2)))
    await settle()
    made.leave(["c1"])
    await settle()
    assert (program.running, made.slots.queue.waiting) == (1, 0)
    gates["c2"].set()
    results = await running
    assert isinstance(results["c1"].error, ClientClosed)
    assert results["c2"].error is None


async def test_a_better_call_overtakes_those_that_wait() -> None:
    gate, order = asyncio.Event(), []

    async def act(asked):
        order.append(asked.id)
        await gate.wait()

    made, _ = replica(act, slots=1)
    ranked = [(1, Priority.DEFAULT), (2, Priority.SHEDDABLE), (3, Priority.DEFAULT), (4, Priority.CRITICAL)]
    running = [
        asyncio.create_task(run_all(made, call(n, options=Options(priority=priority)))) for n, priority in ranked
    ]
    await settle()
    gate.set()
    await asyncio.gather(*running)
    assert order == ["c1", "c4", "c3", "c2"]


async def test_a_call_that_finds_no_slot_before_its_deadline_is_never_started() -> None:
    made, program = replica(lambda _: asyncio.Event().wait(), slots=1)
    holder = asyncio.create_task(run_all(made, call(1)))
    await settle()
    result = (await run_all(made, call(2, remaining_s=0.02)))["c2"]
    assert (result.attempts[0].outcome, result.error.outcome) == (Outcome.REJECTED, Outcome.REJECTED)
    assert len(program.limits) == 1
    assert made.slots.queue.waiting == 0
    holder.cancel()


async def test_past_the_bound_of_the_queue_calls_are_refused_at_once() -> None:
    made, program = replica(lambda _: asyncio.Event().wait(), slots=1, max_queued_requests=10)
    flood = Options(priority=Priority.SHEDDABLE)
    chunks = made.run([call(n, options=flood) for n in range(20)])
    assert await anext(chunks) == ()
    refused = await anext(chunks)
    assert len(refused) == 20 - 1 - 5
    assert all(isinstance(result.error, Overloaded) and result.error.retry_after_s > 0 for result in refused)
    assert program.running == 1
    await chunks.aclose()


async def test_a_provider_that_answers_429_is_given_fewer_calls_at_once() -> None:
    async def act(_):
        raise UpstreamError("slow down", outcome=Outcome.RATE_LIMITED)

    clock = ManualClock(1000)
    made, _ = replica(act, slots=10, clock=clock)
    assert not made.is_held_back
    await run_all(made, call(1))
    assert made.slots.queue.slots == 8
    assert not made.is_held_back  # a small dip is noise
    for _ in range(2):
        clock.advance(1)
        await run_all(made, call(1))
    assert made.is_held_back


async def test_a_fixed_concurrency_stays_what_it_is() -> None:
    async def act(_):
        raise UpstreamError("slow down", outcome=Outcome.RATE_LIMITED)

    made, _ = replica(act, slots=10, adaptive_concurrency=False)
    await run_all(made, call(1))
    assert (made.slots.queue.slots, made.is_held_back) == (10, False)


async def test_a_replica_whose_models_breaker_is_open_is_held_back() -> None:
    made, _ = replica()
    health = ModelHealth(state=BreakerState.OPEN)
    made._link.snapshot = replace(made._link.snapshot, models={"large": health})
    assert made.is_held_back


async def test_the_callers_token_limit_reaches_the_engine() -> None:
    made, program = replica()
    await run_all(made, replace(call(1), options=Options(max_tokens=7)), call(2))
    assert sorted(program.limits, key=str) == [7, None]


async def begun_together(calls: int, *, cpu_in_use: float) -> list[int]:
    """How many others had begun when each call's program had its second turn of the loop."""
    begun, seen = [], []

    async def act(asked) -> None:
        begun.append(asked.id)
        await asyncio.sleep(0)
        seen.append(len(begun))

    made, _ = replica(act, slots=calls)
    made._link.cpu_in_use = cpu_in_use
    await run_all(made, *(call(number) for number in range(calls)))
    return seen


async def test_programs_of_a_batch_begin_one_after_the_other() -> None:
    """So that the first one's request is sent before the last one's prompt is written."""
    assert (await begun_together(8, cpu_in_use=0.2))[0] <= 2


async def test_on_a_busy_machine_they_begin_together() -> None:
    assert await begun_together(8, cpu_in_use=0.9) == [8] * 8
