"""Programs that batch: who travels together, and that one item's failure is its own."""

import asyncio
from dataclasses import replace

import dspy
import pytest
from deployment_fakes import app_config, call, link, run_all, settle

from serve_app.adapters.call_scope import CallScope, current_scope
from serve_app.adapters.dspy_program import load_program
from serve_app.deployments.model_replica import ModelReplica
from serve_app.errors import ConfigError, ProgramError, UpstreamError
from serve_app.messages import Options, Outcome, Priority, Usage


class Batching(dspy.Module):
    """Answers many questions at once; what it is asked is what the test reads."""

    batches: list[list[str]]
    gate: asyncio.Event
    cancelled: list[int]
    signature = dspy.Signature("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        raise AssertionError("a program that batches is never asked one by one")

    async def aforward_batch(self, inputs: list[dict]) -> list:
        questions = [each["question"] for each in inputs]
        self.batches.append(questions)
        current_scope().spend(10 * len(inputs) + 1, len(inputs), 1.0)
        current_scope().is_cut_off = True
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(len(inputs))
            raise
        if "all fail" in questions:
            raise UpstreamError("slow down", outcome=Outcome.RATE_LIMITED)
        if "short" in questions:
            return []
        return [ValueError("no") if q == "poison" else dspy.Prediction(answer=f"to {q}") for q in questions]


class NotAsync(dspy.Module):
    signature = dspy.Signature("question -> answer")

    def forward(self, question):
        return dspy.Prediction(answer=question)

    def aforward_batch(self, inputs):
        return [dspy.Prediction(answer="") for _ in inputs]


class Pool:
    def lm(self, model):
        return dspy.LM("openai/unused", api_key="none")


@pytest.fixture
def replica():
    Batching.batches, Batching.gate, Batching.cancelled = [], asyncio.Event(), []
    config = app_config()
    program = load_program(config.programs[0].model_copy(update={"program": f"{__name__}:Batching"}))
    made = link()
    model = config.models[0].model_copy(update={"max_ongoing_requests": 4})
    return ModelReplica(model, {"ask": program}, Pool(), made._telemetry, made)


def asking(*questions: str):
    return [call(n, inputs={"question": question}) for n, question in enumerate(questions)]


async def test_calls_with_slots_travel_together_and_the_next_batch_is_what_waited(replica) -> None:
    running = asyncio.create_task(run_all(replica, *asking(*"abcdefg")))
    await settle()
    assert Batching.batches == [list("abcd")]
    Batching.gate.set()
    results = await running
    assert Batching.batches == [list("abcd"), list("efg")]
    assert [results[f"c{n}"].outputs["answer"] for n in range(7)] == [f"to {q}" for q in "abcdefg"]


async def test_what_a_batch_spent_is_shared_out_to_the_last_token(replica) -> None:
    Batching.gate.set()
    results = await run_all(replica, *asking("a", "b", "c"))
    shares = [result.attempts[0].usage for result in results.values()]
    assert sum(shares, Usage()) == Usage(31, 3)
    assert max(share.input_tokens for share in shares) - min(share.input_tokens for share in shares) <= 1


async def test_each_call_is_charged_its_part_of_the_answers_that_made_the_batch(replica, monkeypatch) -> None:
    scopes = []
    monkeypatch.setattr(replica.slots, "learn", lambda *told: scopes.extend(told))
    Batching.gate.set()
    await run_all(replica, *asking("a", "b", "c", "d"))
    shares = [(each.lm_answers, each.lm_s) for each in scopes if isinstance(each, CallScope)]
    assert shares == [(0.25, 0.25)] * 4  # one LM call of one second made all four
    assert all(each.is_cut_off for each in scopes if isinstance(each, CallScope))


async def test_an_item_that_is_an_exception_fails_alone(replica) -> None:
    Batching.gate.set()
    results = await run_all(replica, *asking("a", "poison", "b"))
    assert isinstance(results["c1"].error, ProgramError)
    assert [results[f"c{n}"].error for n in (0, 2)] == [None, None]


async def test_inputs_that_do_not_fit_fail_alone(replica) -> None:
    Batching.gate.set()
    fits, misfit = asking("a", "b")
    results = await run_all(replica, fits, replace(misfit, inputs={"question": {}}))
    assert results["c0"].error is None
    assert results["c1"].error.code == "invalid_inputs"


@pytest.mark.parametrize(
    ("question", "outcome"), [("all fail", Outcome.RATE_LIMITED), ("short", Outcome.PROGRAM_ERROR)]
)
async def test_a_batch_that_fails_as_a_whole_fails_for_each(replica, question, outcome) -> None:
    Batching.gate.set()
    results = await run_all(replica, *asking("a", question))
    assert {result.attempts[0].outcome for result in results.values()} == {outcome}


async def test_other_token_limits_are_another_batch(replica) -> None:
    Batching.gate.set()
    free, limited = asking("a", "b")
    await run_all(replica, free, replace(limited, options=Options(max_tokens=5)))
    assert sorted(Batching.batches) == [["a"], ["b"]]


async def test_one_who_leaves_hurts_nobody_and_the_last_one_ends_the_work(replica) -> None:
    running = asyncio.create_task(run_all(replica, *asking("a", "b")))
    await settle()
    replica.leave(["c0"])
    await settle()
    assert Batching.cancelled == []
    replica.leave(["c1"])
    await settle()
    assert Batching.cancelled == [2]
    assert len(await running) == 2


async def test_each_item_keeps_its_own_deadline(replica) -> None:
    hurried, patient = asking("a", "b")
    running = asyncio.create_task(run_all(replica, replace(hurried, remaining_s=0.05), patient))
    await asyncio.sleep(0.1)
    Batching.gate.set()
    results = await running
    assert isinstance(results["c0"].error, UpstreamError)
    assert results["c0"].error.outcome is Outcome.TIMEOUT
    assert results["c1"].error is None


async def test_a_better_class_is_in_the_earlier_batch(replica) -> None:
    first = asyncio.create_task(run_all(replica, *asking(*"abcd")))
    await settle()
    ranked = [(q, Priority.SHEDDABLE) for q in "efgh"] + [("vital", Priority.CRITICAL)]
    late = [
        call(10 + n, inputs={"question": q}, options=Options(priority=priority))
        for n, (q, priority) in enumerate(ranked)
    ]
    second = asyncio.create_task(run_all(replica, *late))
    await settle()
    Batching.gate.set()
    await asyncio.gather(first, second)
    assert "vital" in Batching.batches[1]
    assert len(Batching.batches) == 3


def test_a_batch_function_that_is_not_async_is_refused_when_it_is_loaded() -> None:
    config = app_config().programs[0].model_copy(update={"program": f"{__name__}:NotAsync"})
    with pytest.raises(ConfigError, match="aforward_batch is not a coroutine function"):
        load_program(config)
