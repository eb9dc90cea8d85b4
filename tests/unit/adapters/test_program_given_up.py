"""A sync program that nobody waits for any more: its LM calls end at once, no other starts, and its thread is free."""

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from lm_fault_server import FaultServer, reply, silence
from program_fakes import call, config

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.dspy_program import load_program
from serve_app.config import ModelConfig
from serve_app.errors import UpstreamError
from serve_app.messages import Outcome

LM_CALLS = 3


class Program(dspy.Module):
    def __init__(self):
        super().__init__()
        self.ask = dspy.Predict("question -> answer")


class Stubborn(Program):
    """Three LM calls in turn, whatever becomes of them."""

    def forward(self, question: str) -> dspy.Prediction:
        for _ in range(LM_CALLS):
            try:
                answer = self.ask(question=question)
            except dspy.LMError:
                answer = None
        return answer


class Refined(dspy.Refine):
    def __init__(self):
        super().__init__(dspy.Predict("question -> answer"), N=LM_CALLS, reward_fn=lambda *_: 0.5, threshold=1.0)


class BestOf(dspy.BestOfN):
    def __init__(self):
        super().__init__(dspy.Predict("question -> answer"), N=LM_CALLS, reward_fn=lambda *_: 0.5, threshold=1.0)


class Parallel(Program):
    """Twice three LM calls at once, in DSPy's threads."""

    def forward(self, question: str) -> dspy.Prediction:
        parallel = dspy.Parallel(num_threads=LM_CALLS, disable_progress_bar=True)
        example = dspy.Example(question=question).with_inputs("question")
        for _ in range(2):
            answers = parallel([(self.ask, example)] * LM_CALLS)
        return answers[0]


class OwnThreads(Program):
    """Twice three LM calls at once, in threads of its own."""

    def forward(self, question: str) -> dspy.Prediction:
        def ask(context):
            try:
                return context.run(self.ask, question=question)
            except dspy.LMError:
                return context.run(self.ask, question=question)

        with ThreadPoolExecutor() as threads:
            return next(iter(threads.map(ask, [contextvars.copy_context() for _ in range(LM_CALLS)])))


class OwnLoop(Program):
    """Twice three LM calls at once, on a loop of its own."""

    def forward(self, question: str) -> dspy.Prediction:
        async def ask():
            try:
                return await self.ask.acall(question=question)
            except dspy.LMError:
                return await self.ask.acall(question=question)

        async def all_at_once():
            return await asyncio.gather(*(ask() for _ in range(LM_CALLS)))

        return asyncio.run(all_at_once())[0]


AT_ONCE = {Stubborn: 1, Refined: 1, BestOf: 1, Parallel: LM_CALLS, OwnThreads: LM_CALLS, OwnLoop: LM_CALLS}


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server():
    async with FaultServer(answer=silence) as server:
        yield server


@pytest.fixture
async def lm(server):
    pool = LMPool()
    yield pool.lm(ModelConfig(name="small", lm="openai/small", api_base=server.url))
    await pool.aclose()


@pytest.fixture
def load():
    programs = []

    def load(kind):
        programs.append(load_program(config(f"{__name__}:{kind.__name__}")))
        return programs[-1]

    yield load
    for program in programs:
        program.close()


def begin(program, lm, remaining_s=60.0):
    async def run():
        with call_scope(remaining_s):
            return await program.run(call({"question": "?"}), lm)

    return asyncio.create_task(run())


async def no_thread_is_held(program):
    async with asyncio.timeout(5):
        while program.stuck_threads:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("kind", AT_ONCE, ids=lambda kind: kind.__name__)
async def test_the_lm_calls_of_a_caller_who_leaves_end_and_no_other_starts(server, lm, load, kind, capsys):
    program = load(kind)
    running = begin(program, lm)
    await server.until(lambda s: len(s.requests) == AT_ONCE[kind])
    running.cancel()
    await server.until(lambda s: s.open_now == 0, within_s=0.5)
    await no_thread_is_held(program)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(server.requests) == AT_ONCE[kind]
    capsys.readouterr()  # Refine and BestOfN print what they swallow


@pytest.mark.parametrize("kind", AT_ONCE, ids=lambda kind: kind.__name__)
async def test_at_the_deadline_the_lm_calls_end_and_no_other_starts(server, lm, load, kind, capsys):
    program = load(kind)
    with pytest.raises(UpstreamError) as caught:
        await begin(program, lm, remaining_s=0.5)
    assert caught.value.outcome is Outcome.TIMEOUT
    await server.until(lambda s: s.open_now == 0, within_s=0.5)
    await no_thread_is_held(program)
    assert len(server.requests) <= AT_ONCE[kind]
    capsys.readouterr()


async def test_callers_who_leave_together_hold_no_thread_and_the_next_one_is_answered(server, lm, load):
    program = load(Stubborn)
    running = [begin(program, lm) for _ in range(32)]
    await server.until(lambda s: len(s.requests) == 32)
    for caller in running:
        caller.cancel()
    server.answer = reply()
    assert (await asyncio.wait_for(begin(program, lm), 5)).outputs == {"answer": "Paris"}
    await no_thread_is_held(program)
    await server.until(lambda s: s.open_now <= 1, within_s=0.5)
    assert len(server.requests) == 32 + LM_CALLS
    await asyncio.gather(*running, return_exceptions=True)


async def test_a_neighbour_of_the_same_program_is_left_alone(server, lm, load):
    program = load(Stubborn)
    left, kept = begin(program, lm), begin(program, lm)
    await server.until(lambda s: len(s.requests) == 2)
    left.cancel()
    await server.until(lambda s: s.open_now == 1, within_s=0.5)
    await no_thread_is_held(program)
    assert not kept.done()
    kept.cancel()
    await asyncio.gather(left, kept, return_exceptions=True)
