"""Stand-ins for what surrounds a deployment, and values to call it with."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from serve_app.adapters.dspy_program import load_program
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.deployments.call_tasks import CallTasks
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.stage import PICKLED
from serve_app.errors import UpstreamError
from serve_app.messages import Attempt, Call, Outcome, Result, Usage

SIGNATURE = "question -> answer"


def app_config(**changes: Any) -> AppConfig:
    """One program ``ask`` over models ``large`` (dear), ``medium`` and ``small`` (cheap, small window)."""
    models = [
        {"name": "large", "quality": 0.95, "price": {"output_usd_per_1m_tokens": 10}, "context_window": 64_000},
        {"name": "medium", "quality": 0.85, "price": {"output_usd_per_1m_tokens": 1}, "context_window": 128_000},
        {"name": "small", "quality": 0.7, "price": {"output_usd_per_1m_tokens": 0.1}, "context_window": 8_000},
    ]
    document = {
        "programs": [
            {
                "name": "ask",
                "program": SIGNATURE,
                "levels": {"full": {"models": ["large", "medium", "small"]}},
                "cache": {"ttl_s": 100},
            }
        ],
        "models": [model | {"lm": f"openai/{model['name']}", "latency_s": 0.1} for model in models],
        "default_model": "medium",
        "cache": {"redis_url": None},
    }
    return AppConfig.model_validate(document | changes)


def programs(config: AppConfig) -> dict:
    return {program.name: load_program(program) for program in config.programs}


def link() -> ControlLink:
    return ControlLink(None, "Test", Telemetry())


def call(number: int = 0, **changes: Any) -> Call:
    made = Call(f"c{number}", f"r{number}", "ask", {"question": f"q{number}"}, remaining_s=10.0, key=f"key{number}")
    return replace(made, **changes)


def ok(asked: Call, model: str = "large", text: str = "fine") -> Result:
    attempt = Attempt(model, Outcome.OK, 0.01, Usage(10, 5), 0.001, waited_s=0.0)
    return Result(asked.id, {"answer": text}, model=model, level=asked.level, attempts=(attempt,), usage=attempt.usage)


def failed(asked: Call, outcome: Outcome, **changes: Any) -> Result:
    attempt = Attempt(asked.model, outcome, 0.01, Usage(10, 0), 0.0005)
    return Result(asked.id, error=UpstreamError(str(outcome), outcome=outcome, **changes), attempts=(attempt,))


class FakeStage:
    """Answers with what ``answer`` makes of a call, and remembers batches and calls.

    ``answer`` may be a coroutine function, so a test decides when a call is done.
    """

    def __init__(self, answer: Callable[[Call], Any] = ok) -> None:
        self.batches: list[list[Call]] = []
        self.cancelled: list[str] = []
        self._answer = answer
        self._work = CallTasks()

    @property
    def calls(self) -> list[Call]:
        return [asked for batch in self.batches for asked in batch]

    def run(self, calls):
        self.batches.append(list(calls))

        async def answer(asked: Call) -> Result:
            try:
                made = self._answer(asked)
                return await made if asyncio.iscoroutine(made) else made
            except asyncio.CancelledError:
                self.cancelled.append(asked.id)
                raise

        return self._work.run(calls, answer)

    def leave(self, ids):
        self._work.leave(ids)


async def run_all(stage: Any, *calls: Call) -> dict[str, Result]:
    """Everything a stage answers, by call; fails when one is answered twice."""
    results: dict[str, Result] = {}
    async for chunk in stage.run(calls):
        for result in chunk:
            assert result.id not in results
            results[result.id] = result
    return results


async def settle(turns: int = 20) -> None:
    """Let everything that can go on go on."""
    for _ in range(turns):
        await asyncio.sleep(0)


class FakeStream:
    """What a streaming handle returns: items in turn, raising those that are exceptions; ``"silence"`` never comes."""

    def __init__(self, items) -> None:
        self._items = list(items)
        self.is_cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._items:
            raise StopAsyncIteration
        item = self._items.pop(0)
        if item == "silence":
            await asyncio.Event().wait()
        if isinstance(item, BaseException):
            raise item
        return item

    def cancel(self) -> None:
        self.is_cancelled = True


class FakeHandle:
    """A handle of a deployment whose stream holds ``items``."""

    deployment_name = "Model-x"

    def __init__(self, *items) -> None:
        self.stream = FakeStream(items)

    def options(self, **options):
        assert options == {"stream": True, "method_name": "run"} | PICKLED
        return self

    def remote(self, calls):
        assert isinstance(calls, list)
        return self.stream
