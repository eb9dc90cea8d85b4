"""A batch from the ingress to the provider: order, identity, duplicates, poison, leaving, expiry."""

import asyncio
from collections import Counter

import pytest
from deployment_fakes import app_config, link, programs, settle

from serve_app.adapters.dspy_program import Answer
from serve_app.deployments.cache import Cache
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.router import Router
from serve_app.errors import DeadlineExceeded, ProgramError, SwitchyardError


class Pool:
    def lm(self, model) -> str:
        return model.name


class Asked:
    """A program that counts what reaches its provider, waits for the test, and echoes the question."""

    version = "v1"
    reward = None

    def __init__(self, config) -> None:
        self.config = config
        self.provider: Counter[str] = Counter()
        self.cancelled: list[str] = []
        self.gate = asyncio.Event()

    def takes_batches(self, level) -> bool:
        return False

    async def run(self, call, lm) -> Answer:
        question = call.inputs["question"]
        self.provider[question] += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(question)
            raise
        if question == "poison":
            raise ProgramError("it raised")
        return Answer({"answer": f"to {question}"}, None)


class Chain:
    """Every stage in one process, as ``graphs.compact`` wires them; batches form when the test says so."""

    def __init__(self) -> None:
        self.config = app_config()
        self.program = Asked(self.config.programs[0])
        made = link()
        telemetry = made._telemetry
        replicas = {
            model.name: ModelReplica(model, {"ask": self.program}, Pool(), telemetry, made)
            for model in self.config.models
        }
        cache = Cache(self.config, Router(self.config, replicas, telemetry, made), telemetry, made)
        self.forming: list = []
        chain = self

        class Collecting(Ingress):
            async def _collect(self, call):
                handed_over = asyncio.get_running_loop().create_future()
                chain.forming.append((call, handed_over))
                return await handed_over

        self.ingress = Collecting(self.config, programs(self.config), cache, telemetry, made)

    def send(self) -> None:
        calls, handed_over = zip(*self.forming, strict=True)
        for future, answer in zip(handed_over, self.ingress.start_batch(calls), strict=True):
            if not future.done():
                future.set_result(answer)

    async def ask(self, question: str, deadline_s: float = 10) -> str:
        answer = await self.ingress.predict("ask", {"question": question}, {"deadline_s": deadline_s})
        return answer["outputs"]["answer"]


async def outcome(task) -> str:
    try:
        return await task
    except asyncio.CancelledError:
        return "cancelled"
    except SwitchyardError as error:
        return type(error).__name__


@pytest.mark.parametrize("leaves", ["before the batch goes out", "while it runs"])
async def test_a_mixed_batch_costs_no_call_too_many_and_everyone_gets_their_own_outcome(leaves) -> None:
    """32 calls: one poisoned, one question with eight duplicates, one cancelled, one expired, 20 others."""
    chain = Chain()
    questions = ["poison", *["twin"] * 9, "cancelled", *[f"q{n}" for n in range(20)]]
    tasks = [asyncio.create_task(chain.ask(question)) for question in questions]
    expired = asyncio.create_task(chain.ask("expired", deadline_s=0.01))
    await settle()
    await asyncio.sleep(0.02)
    leaver = tasks[questions.index("cancelled")]
    if leaves == "before the batch goes out":
        leaver.cancel()
    assert len(chain.forming) == 32
    chain.send()
    await settle()
    if leaves == "while it runs":
        assert chain.program.provider["cancelled"] == 1
        leaver.cancel()
        await settle()
        assert chain.program.cancelled == ["cancelled"]
    else:
        assert chain.program.provider["cancelled"] == 0
    chain.program.gate.set()
    outcomes = [await outcome(task) for task in tasks]
    wanted = {"poison": ProgramError.__name__, "cancelled": "cancelled"}
    assert outcomes == [wanted.get(question, f"to {question}") for question in questions]
    assert await outcome(expired) == DeadlineExceeded.__name__
    assert chain.program.provider["expired"] == 0
    assert chain.program.provider["twin"] == 1
    assert chain.program.provider.total() == 22 + (leaves == "while it runs")


async def test_who_leaves_a_shared_answer_takes_it_from_nobody() -> None:
    chain = Chain()
    leader, follower = (asyncio.create_task(chain.ask("twin")) for _ in range(2))
    await settle()
    chain.send()
    await settle()
    leader.cancel()
    await settle()
    assert chain.program.cancelled == []
    chain.program.gate.set()
    assert await follower == "to twin"


async def test_an_answer_that_everybody_left_is_given_up_at_the_provider() -> None:
    chain = Chain()
    twins = [asyncio.create_task(chain.ask("twin")) for _ in range(2)]
    other = asyncio.create_task(chain.ask("other"))
    await settle()
    chain.send()
    await settle()
    for twin in twins:
        twin.cancel()
    await settle()
    assert chain.program.cancelled == ["twin"]
    chain.program.gate.set()
    assert await other == "to other"
