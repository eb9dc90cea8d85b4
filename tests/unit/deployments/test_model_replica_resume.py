"""A replica goes on from the journal of the attempts before it, and hands on its own."""

import asyncio
import pickle
from dataclasses import replace
from typing import TypedDict

import dspy
import pytest
from deployment_fakes import app_config, call, link, run_all
from dspy import lm15

from serve_app.adapters.dspy_engine import AsyncEngine, Engine
from serve_app.adapters.dspy_program import load_program
from serve_app.adapters.loop_thread import LoopThread
from serve_app.deployments.http_problems import attempts_json
from serve_app.deployments.model_replica import ModelReplica
from serve_app.messages import Outcome, Step, StepKind

RUNS: list[str] = []


def note(word: str) -> str:
    """Take a note."""
    RUNS.append(word)
    return f"note of {word}"


class Texts(TypedDict):
    texts: list[str]


class FiveSteps(dspy.Module):
    """Five bare LM calls, and a tool after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.note = dspy.Tool(note)

    async def aforward(self, question: str) -> Texts:
        texts = [(await dspy.settings.lm.acall(question))[0]]
        texts.append(await self.note.acall(word=texts[0]))
        for _ in range(4):
            texts.append((await dspy.settings.lm.acall(texts[-1]))[0])
        return {"texts": texts}


class Provider:
    """A model that is down from its ``dies_at``-th request on."""

    def __init__(self, name: str, dies_at: int = 100) -> None:
        self.model = name
        self.dies_at = dies_at
        self.asked = 0

    async def complete(self, request: lm15.Request) -> lm15.Response:
        self.asked = number = self.asked + 1
        await asyncio.sleep(0)
        if number >= self.dies_at:
            raise lm15.ServerError("down", status=500)
        text = lm15.Message.assistant(f"{self.model} {number}")
        return lm15.Response("r", self.model, text, "stop", lm15.Usage(10, 5))

    def stream(self, request: lm15.Request):
        raise NotImplementedError

    def tokens(self, usage: lm15.Usage) -> tuple[int, int]:
        return usage.input_tokens, usage.output_tokens

    def lm(self, model) -> dspy.LM:
        engine = AsyncEngine(self)
        name = f"openai/{self.model}"
        blocking = Engine(engine, LoopThread("unused"), self.model, dspy.LM(name))
        return dspy.LM(name, engine=blocking, async_engine=engine, cache=False, num_retries=0)


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


def replica(provider: Provider, *, resume: bool = True) -> ModelReplica:
    config = app_config()
    wanted = {"program": "test_model_replica_resume:FiveSteps", "resume": resume}
    program = load_program(config.programs[0].model_copy(update=wanted))
    model = next(model for model in config.models if model.name == provider.model)
    made = link()
    return ModelReplica(model, {"ask": program}, provider, made._telemetry, made)


async def one(made: ModelReplica, asked):
    return (await run_all(made, asked))[asked.id]


async def test_the_next_replica_resumes_three_steps_asks_none_again_and_runs_the_tool_once() -> None:
    failed = await one(replica(Provider("large", dies_at=4)), call(1))
    assert failed.attempts[0].outcome is Outcome.SERVER_ERROR
    assert [step.kind for step in failed.journal].count(StepKind.LM) == 3
    small = Provider("small")
    # Between the two lie three processes: replica, router, replica.
    answered = await one(replica(small), replace(call(1), journal=pickle.loads(pickle.dumps(failed.journal))))
    assert answered.outputs == {"texts": ["large 1", "note of large 1", "large 2", "large 3", "small 1", "small 2"]}
    assert (answered.attempts[0].resumed, small.asked, RUNS) == (3, 2, ["large 1"])


async def test_only_what_the_model_itself_was_asked_is_paid() -> None:
    failed = await one(replica(Provider("large", dies_at=4)), call(1))
    answered = await one(replica(Provider("small")), replace(call(1), journal=failed.journal))
    assert (failed.attempts[0].usage.output_tokens, answered.attempts[0].usage.output_tokens) == (15, 10)


async def test_an_answer_carries_no_journal() -> None:
    assert (await one(replica(Provider("large")), call(1))).journal == ()


async def test_work_that_was_not_started_hands_the_journal_on() -> None:
    journal = (Step(StepKind.LM, "f", 0, "r"),)
    late = await one(replica(Provider("large")), replace(call(1), remaining_s=0.0, journal=journal))
    assert (late.attempts[0].outcome, late.journal) == (Outcome.REJECTED, journal)


async def test_without_resume_nothing_is_recorded_and_nothing_taken_over() -> None:
    failed = await one(replica(Provider("large", dies_at=4), resume=False), call(1))
    assert failed.journal == ()
    recorded = await one(replica(Provider("large", dies_at=4)), call(1))
    small = Provider("small")
    answered = await one(replica(small, resume=False), replace(call(1), journal=recorded.journal))
    assert (answered.attempts[0].resumed, small.asked) == (0, 5)


async def test_calls_at_once_keep_their_journals_apart() -> None:
    provider = Provider("large", dies_at=26)
    results = await run_all(replica(provider), *(call(number) for number in range(10)))
    failed = [result for result in results.values() if result.error]
    assert len(failed) == 10
    prints = [step.fingerprint for result in failed for step in result.journal if step.kind is StepKind.LM]
    assert len(prints) == 25
    assert len(set(prints)) == 25


async def test_attempts_show_how_many_steps_were_resumed() -> None:
    failed = await one(replica(Provider("large", dies_at=4)), call(1))
    answered = await one(replica(Provider("small")), replace(call(1), journal=failed.journal))
    assert [row["resumed"] for row in attempts_json(failed.attempts + answered.attempts)] == [0, 3]
