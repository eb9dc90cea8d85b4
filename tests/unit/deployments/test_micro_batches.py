"""Programs that batch: who travels together, and that one item's failure is its own."""

import asyncio
from dataclasses import replace

import dspy
import pytest
from deployment_fakes import app_config, call, link, run_all, settle

from serve_app.adapters.call_scope import CallScope, current_scope
from serve_app.adapters.dspy_program import load_program
from serve_app.core.outcomes import MEANINGS, NextRoute
from serve_app.deployments.model_replica import ModelReplica
from serve_app.errors import BadOutput, ConfigError, ProgramError, UpstreamError, UpstreamRefused
from serve_app.messages import Options, Outcome, Priority, Usage

POISON = {
    "filtered": (UpstreamRefused("no", outcome=Outcome.CONTENT_POLICY), Outcome.CONTENT_POLICY),
    "malformed": (UpstreamRefused("no", outcome=Outcome.BAD_REQUEST), Outcome.BAD_REQUEST),
    "endless": (UpstreamError("long", outcome=Outcome.CONTEXT_WINDOW), Outcome.CONTEXT_WINDOW),
    "unparsable": (BadOutput("what?"), Outcome.BAD_OUTPUT),
    "raising": (ValueError("no"), Outcome.PROGRAM_ERROR),
}
"""What fails a batch that it is in, and how."""


class Batching(dspy.Module):
    """Answers many questions at once; what it is asked is what the test reads."""

    batches: list[list[str]]
    gate: asyncio.Event
    cancelled: list[int]
    running: list[int]
    at_once: list[int]
    signature = dspy.Signature("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        raise AssertionError("a program that batches is never asked one by one")

    async def aforward_batch(self, inputs: list[dict]) -> list:
        questions = [each["question"] for each in inputs]
        self.batches.append(questions)
        current_scope().spend(10 * len(inputs) + 1, len(inputs), 1.0)
        self.running.append(len(inputs))
        self.at_once.append(sum(self.running))
        current_scope().is_cut_off = True
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(len(inputs))
            raise
        finally:
            self.running.remove(len(inputs))
        for question in questions:
            if question in POISON:
                raise POISON[question][0]
            if question.startswith("down: "):
                raise UpstreamError("down", outcome=Outcome(question.removeprefix("down: ")))
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
    return replica_with(4)


def replica_with(slots: int) -> ModelReplica:
    Batching.batches, Batching.gate, Batching.cancelled = [], asyncio.Event(), []
    Batching.running, Batching.at_once = [], []
    config = app_config()
    program = load_program(config.programs[0].model_copy(update={"program": f"{__name__}:Batching"}))
    made = link()
    model = config.models[0].model_copy(update={"max_ongoing_requests": slots})
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


@pytest.mark.parametrize("question", POISON)
async def test_one_who_breaks_the_batch_fails_alone(replica, question) -> None:
    Batching.gate.set()
    results = await run_all(replica, *asking("a", question, "b", "c"))
    assert [results[f"c{n}"].outputs["answer"] for n in (0, 2, 3)] == ["to a", "to b", "to c"]
    (attempt,) = results["c1"].attempts
    assert results["c1"].error.outcome is attempt.outcome is POISON[question][1]


async def test_each_who_breaks_the_batch_fails_in_its_own_way() -> None:
    replica = replica_with(16)
    Batching.gate.set()
    questions = [*"abcde", *POISON, *"fgh", "short"]
    results = await run_all(replica, *asking(*questions))
    outcomes = [results[f"c{n}"].attempts[0].outcome for n in range(len(questions))]
    own = {question: outcome for question, (_, outcome) in POISON.items()} | {"short": Outcome.PROGRAM_ERROR}
    assert outcomes == [own.get(question, Outcome.OK) for question in questions]


async def test_one_in_many_who_breaks_the_batch_costs_few_runs() -> None:
    replica = replica_with(32)
    Batching.gate.set()
    results = await run_all(replica, *asking(*[f"q{n}" for n in range(31)], "filtered"))
    assert [result.id for result in results.values() if result.error] == ["c31"]
    assert len(Batching.batches) == 11


@pytest.mark.parametrize("outcome", [o for o in Outcome if MEANINGS[o].next_route is NextRoute.ANY])
async def test_a_provider_that_fails_a_batch_fails_each_of_it_and_is_asked_once(replica, outcome) -> None:
    Batching.gate.set()
    results = await run_all(replica, *asking("a", f"down: {outcome}"))
    assert {result.attempts[0].outcome for result in results.values()} == {outcome}
    assert len(Batching.batches) == 1


async def test_what_a_batch_spent_before_it_failed_is_shared_out_too(replica) -> None:
    Batching.gate.set()
    results = await run_all(replica, *asking("a", "filtered", "b"))
    shares = [result.attempts[0].usage for result in results.values()]
    assert Batching.batches == [["a", "filtered", "b"], ["a"], ["filtered"], ["b"]]
    assert sum(shares, Usage()) == Usage(31 + 3 * 11, 3 + 3)
    assert max(share.input_tokens for share in shares) - min(share.input_tokens for share in shares) <= 1


async def test_what_one_who_left_would_have_paid_is_paid_by_the_others(replica) -> None:
    running = asyncio.create_task(run_all(replica, *asking("a", "b", "c")))
    await settle()
    replica.leave(["c0"])
    await settle()
    Batching.gate.set()
    results = await running
    assert sum((results[f"c{n}"].attempts[0].usage for n in (1, 2)), Usage()) == Usage(31, 3)


async def test_parts_run_in_the_slots_that_the_batch_holds_and_give_them_back(replica) -> None:
    running = asyncio.create_task(run_all(replica, *asking("a", "filtered", "b", "c", *"defg")))
    await settle()
    Batching.gate.set()
    results = await running
    assert max(Batching.at_once) == 4
    assert replica.slots.queue.running == 0
    assert [result.id for result in results.values() if result.error] == ["c1"]


async def test_one_who_left_is_not_run_again_and_may_have_been_the_one_who_broke_it(replica) -> None:
    running = asyncio.create_task(run_all(replica, *asking("a", "filtered")))
    await settle()
    replica.leave(["c1"])
    await settle()
    Batching.gate.set()
    results = await running
    assert Batching.batches == [["a", "filtered"], ["a"]]
    assert results["c0"].outputs == {"answer": "to a"}


async def test_a_part_that_everybody_left_ends_and_the_others_go_on() -> None:
    replica = replica_with(8)
    running = asyncio.create_task(run_all(replica, *asking(*"abcdefg", "filtered")))
    await settle()
    Batching.gate.set()
    Batching.gate = asyncio.Event()
    await settle()
    assert len(Batching.batches) == 5
    replica.leave(["c0", "c1", "c2"])
    await settle()
    assert Batching.cancelled == [2]
    Batching.gate.set()
    results = await running
    assert [n for n in range(8) if results[f"c{n}"].error] == [0, 1, 2, 7]


async def test_one_whose_time_is_over_is_not_run_again(replica) -> None:
    hurried, patient, poisoned = asking("a", "b", "filtered")
    running = asyncio.create_task(run_all(replica, replace(hurried, remaining_s=0.05), patient, poisoned))
    await asyncio.sleep(0.1)
    Batching.gate.set()
    results = await running
    assert Batching.batches == [["a", "b", "filtered"], ["b"], ["filtered"]]
    assert results["c0"].error.outcome is Outcome.TIMEOUT
    assert results["c1"].outputs == {"answer": "to b"}


async def test_that_no_time_was_left_for_another_run_says_nothing_of_the_model(replica) -> None:
    running = asyncio.create_task(
        run_all(replica, *(replace(each, remaining_s=0.1) for each in asking("a", "filtered")))
    )
    await settle()
    Batching.gate.set()
    Batching.gate = asyncio.Event()
    results = await asyncio.wait_for(running, 5)
    assert len(Batching.batches) == 3
    assert {result.attempts[0].outcome for result in results.values()} == {Outcome.CUT_SHORT}


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
