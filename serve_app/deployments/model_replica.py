"""``ModelReplica``: runs every program on one model, many calls at once on one event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

from serve_app.adapters.call_journal import CallJournal
from serve_app.adapters.call_scope import CallScope, call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.dspy_program import Program
from serve_app.adapters.program_runner import out_of_time
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import ModelConfig
from serve_app.core.clock import Clock
from serve_app.core.model_load import gauges_of
from serve_app.deployments.call_tasks import CallTasks
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.micro_batches import MicroBatches
from serve_app.deployments.scoring import Scoring
from serve_app.deployments.slots import Slots
from serve_app.deployments.stage import Chunks
from serve_app.deployments.turnstile import BUSY, Turnstile
from serve_app.errors import Overloaded, SwitchyardError, UpstreamError
from serve_app.messages import Attempt, BreakerState, Call, Outcome, Result
from serve_app.reports import ModelHealth, ModelLoad


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

    is_remote: ClassVar[bool] = False
    """Whether who asks is in another process."""

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
        self.slots = Slots(model, clock=clock)
        self._work = CallTasks(is_remote=self.is_remote)
        self._batches = MicroBatches(self._lm)
        self._starts = Turnstile()
        self._link = link
        link.versions = {name: program.version for name, program in programs.items()}
        self.scoring = Scoring(model.name, programs, telemetry, link)
        link.add_gauges(lambda: gauges_of(self.slots.queue))

    @property
    def load(self) -> ModelLoad | None:
        """Of all replicas of the model together, as last told."""
        return self._link.snapshot.loads.get(self._model.name)

    @property
    def is_held_back(self) -> bool:
        """Whether more replicas would not help: the model is down or cooling, or its provider sets the pace."""
        health = self._link.snapshot.models.get(self._model.name, ModelHealth())
        return health.state is BreakerState.OPEN or health.retry_after_s > 0 or self.slots.is_limited

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call, each as it is ready."""
        arrived = self._clock()
        return self._work.run(calls, lambda call: self._in_turn(call, arrived + call.remaining_s))

    def leave(self, ids: Sequence[str]) -> None:
        """Give up these calls, and what they asked of the provider."""
        self._work.leave(ids)

    async def _in_turn(self, call: Call, deadline: float) -> Result:
        asked = self._clock()
        try:
            self._must_have(call.program)
            async with self.slots.slot(call.program, call.options.priority, deadline) as place:
                self._link.waited(self._clock() - asked)
                result = await self.answer(call, deadline - self._clock())
                place.leave(served=result.error is None)
                return result
        except (Overloaded, UpstreamError) as error:
            attempt = Attempt(self._model.name, Outcome.REJECTED, 0.0)
            return Result(call.id, error=error, attempts=(attempt,), journal=call.journal)

    def _must_have(self, program: str) -> None:
        if program not in self._programs:  # while an application is replaced, replicas of both versions answer
            detail = f"this replica is of another version of the application, without {program!r}"
            raise UpstreamError(detail, outcome=Outcome.REJECTED)

    async def answer(self, call: Call, remaining_s: float) -> Result:
        """Run the call's program once, from where earlier attempts left off.

        A failure carries the journal of everything finished so far, by earlier attempts too.
        """
        program = self._programs[call.program]
        max_tokens, is_callers = _bound(call.options.max_tokens, program.config.levels.at(call.level).max_tokens)
        journal = CallJournal(call.journal) if program.config.resume else None
        started = self._clock()
        with call_scope(remaining_s, max_tokens, journal) as scope:
            try:
                if program.takes_batches(call.level):
                    answer = await self._batches.run(program, call, scope)
                else:
                    if self._link.cpu_in_use < BUSY:
                        await self._starts.passed()
                    answer = await program.run(call, self._lm)
            except asyncio.CancelledError:
                self._attempt(call, Outcome.CANCELLED, started, scope)  # what it spent until then was spent
                raise
            except SwitchyardError as raised:
                error = raised
                if error.outcome is Outcome.TIMEOUT and not scope.asking and not program.takes_batches(call.level):
                    error = out_of_time(Outcome.CUT_SHORT)  # by the program itself: its model was not even asked
                attempt = self._attempt(call, error.outcome, started, scope)
                steps = journal.finished() if journal else ()
                if error.outcome is Outcome.BAD_OUTPUT and not (is_callers and scope.is_cut_off):
                    self.scoring.unparsable(call)
                return Result(call.id, error=error, attempts=(attempt,), journal=steps)
        attempt = self._attempt(call, Outcome.OK, started, scope)
        if not (is_callers and scope.is_cut_off):
            self.scoring.answered(call, answer)
        return Result(
            call.id,
            answer.outputs,
            attempts=(attempt,),
            confidence=answer.confidence,
            is_other_version=bool(call.version) and call.version != program.version,
            is_truncated=scope.is_truncated,
        )

    def _attempt(self, call: Call, outcome: Outcome, started: float, scope: CallScope) -> Attempt:
        usage = scope.usage
        cost_usd = self._model.price.cost_usd(usage.input_tokens, usage.output_tokens)
        resumed = scope.journal.resumed if scope.journal else 0
        attempt = Attempt(self._model.name, outcome, self._clock() - started, usage, cost_usd, resumed)
        self._telemetry.attempt_finished(call.program, attempt)
        self.slots.learn(call.program, scope, outcome, attempt.latency_s)
        return attempt


def _bound(callers: int | None, levels: int | None) -> tuple[int | None, bool]:
    """Most output tokens of an LM call, and whether the caller alone says so."""
    if callers is not None and (levels is None or callers < levels):
        return callers, True
    return levels, False
