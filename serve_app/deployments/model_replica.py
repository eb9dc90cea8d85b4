"""``ModelReplica``: runs every program on one model, many calls at once on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from serve_app.adapters.call_journal import CallJournal
from serve_app.adapters.call_scope import CallScope, call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.dspy_program import Program
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import ModelConfig
from serve_app.core.clock import Clock
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.scoring import Scoring
from serve_app.deployments.stage import Chunks, answer_each
from serve_app.errors import SwitchyardError, UpstreamError
from serve_app.messages import Attempt, Call, Outcome, Result


class ModelReplica:
    """A stage that answers calls with one model.

    Args:
        model: the model; ``max_ongoing_requests`` bounds the calls that run at once, the rest wait here.
        programs: by name.
        pool: where the model's connections come from.
        telemetry: this replica's metrics.
        link: the line to the control plane.

    Attributes:
        scoring: what becomes of its answers beside the calls.
    """

    def __init__(
        self,
        model: ModelConfig,
        programs: Mapping[str, Program],
        pool: LMPool,
        telemetry: Telemetry,
        link: ControlLink,
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._model = model
        self._programs = programs
        self._lm = pool.lm(model)
        self._telemetry = telemetry
        self._clock = clock
        self._slots = asyncio.Semaphore(model.max_ongoing_requests)
        self._running = 0
        self._waiting = 0
        self._link = link
        link.versions = {name: program.version for name, program in programs.items()}
        self.scoring = Scoring(model.name, programs, telemetry, link)
        link.add_gauges(lambda: {"running": self._running, "queue_depth": self._waiting})

    @property
    def queue_depth(self) -> int:
        """Calls waiting for a slot: what autoscaling looks at."""
        return self._waiting

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call, each as it is ready."""
        arrived = self._clock()

        async def answer(call: Call) -> Result:
            async with self._slot():
                return await self.answer(call, call.remaining_s - (self._clock() - arrived))

        return answer_each(calls, answer)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        asked = self._clock()
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._link.waited(self._clock() - asked)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._slots.release()

    async def answer(self, call: Call, remaining_s: float) -> Result:
        """Run the call's program once, from where earlier attempts left off; expired work is never started.

        A failure carries the journal of everything finished so far, by earlier attempts too.
        """
        if remaining_s <= 0:
            late = UpstreamError("no time was left to ask the model", outcome=Outcome.REJECTED)
            attempt = Attempt(self._model.name, Outcome.REJECTED, 0.0)
            return Result(call.id, error=late, attempts=(attempt,), journal=call.journal)
        program = self._programs[call.program]
        limits = [n for n in (call.options.max_tokens, program.config.levels.at(call.level).max_tokens) if n]
        journal = CallJournal(call.journal) if program.config.resume else None
        started = self._clock()
        with call_scope(remaining_s, min(limits, default=None), journal) as scope:
            try:
                answer = await program.run(call, self._lm)
            except SwitchyardError as error:
                attempt = self._attempt(call, error.outcome, started, scope)
                steps = journal.finished() if journal else ()
                if error.outcome is Outcome.BAD_OUTPUT:
                    self.scoring.unparsable(call)
                return Result(call.id, error=error, attempts=(attempt,), journal=steps)
        attempt = self._attempt(call, Outcome.OK, started, scope)
        self.scoring.answered(call, answer)
        return Result(call.id, answer.outputs, attempts=(attempt,), confidence=answer.confidence)

    def _attempt(self, call: Call, outcome: Outcome, started: float, scope: CallScope) -> Attempt:
        usage = scope.usage
        cost_usd = self._model.price.cost_usd(usage.input_tokens, usage.output_tokens)
        resumed = scope.journal.resumed if scope.journal else 0
        attempt = Attempt(self._model.name, outcome, self._clock() - started, usage, cost_usd, resumed)
        self._telemetry.attempt_finished(call.program, attempt)
        return attempt
