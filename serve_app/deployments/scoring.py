"""What a replica makes of its answers beside the calls: scores, and a record of them.

An answer is scored where it was made, once: what the caches hand out later was scored then. A reward runs after the
answer has gone out. Where a reward is configured, an answer that the program could not parse scores 0 at the same
share: a model that is excellent whenever it keeps the format is not an excellent model. An answer that the caller's own
``max_tokens`` cut off is nobody's to judge, and is told to nobody here: a provider says that it ended an answer at its
limit, and the caller's is less than the level's, the model's and the program's own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_app.adapters.call_record import CallRecord
from serve_app.adapters.dspy_program import Program
from serve_app.adapters.program_answer import Answer
from serve_app.adapters.reward_function import ABSTAINED, RewardFailed, RewardFunction
from serve_app.adapters.telemetry import Telemetry
from serve_app.core.clock import Clock
from serve_app.deployments.control_link import ControlLink
from serve_app.messages import Call
from serve_app.reports import MetricType, Origin

log = logging.getLogger("switchyard.scoring")

LOG_EVERY_S: Final = 60.0
"""Seconds for which a program's failing reward is not logged again for the same reason."""


class Scores:
    """Where a replica puts scores: into its metrics, and into its next report."""

    def __init__(self, telemetry: Telemetry, link: ControlLink) -> None:
        self._telemetry = telemetry
        self._link = link

    def add(self, origin: Origin, metric_type: MetricType, score: float) -> None:
        """Count a score in 0..1."""
        self._telemetry.scored(origin.program, metric_type, score)
        self._link.scores.add(origin, metric_type, score)


class Scoring:
    """Scores and records the answers of one model's replica.

    Args:
        model: its name.
        programs: by name.
        telemetry: this replica's metrics.
        link: the line to the control plane.
        draw: a number in 0..1 for each decision whether an answer is in the sample.
    """

    def __init__(
        self,
        model: str,
        programs: Mapping[str, Program],
        telemetry: Telemetry,
        link: ControlLink,
        *,
        draw: Callable[[], float] = random.random,
        clock: Clock = time.monotonic,
    ) -> None:
        self._model = model
        self._programs = programs
        self._telemetry = telemetry
        self._scores = Scores(telemetry, link)
        self._records = records_of(programs, telemetry, link)
        self._draw = draw
        self._clock = clock
        self._logged: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def answered(self, call: Call, answer: Answer) -> None:
        """Score an answer that is on its way out."""
        program = self._programs[call.program]
        scores: dict[str, float] = {}
        if answer.confidence is not None:
            scores[MetricType.CONFIDENCE] = answer.confidence
            self._scores.add(self._origin(call), MetricType.CONFIDENCE, answer.confidence)
        if program.reward is None:
            self._record(call, answer, scores)
        elif self._draw() < program.reward.share:
            task = asyncio.create_task(self._reward(program, program.reward, call, answer, scores))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def unparsable(self, call: Call) -> None:
        """Count an answer that the program could not parse."""
        self._telemetry.bad_output(call.program, self._model)
        reward = self._programs[call.program].reward
        if reward is not None and self._draw() < reward.share:
            self._scores.add(self._origin(call), MetricType.REWARD, 0.0)

    async def aclose(self) -> None:
        """Give up what is still being scored, and finish what is being written."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(record.aclose() for record in self._records.values()))

    async def _reward(
        self, program: Program, reward: RewardFunction, call: Call, answer: Answer, scores: dict[str, float]
    ) -> None:
        try:
            score = await reward.score(lambda: (program.python_inputs(call), answer.prediction))
        except RewardFailed as failure:
            self._failed(call, failure)
            return
        scores[MetricType.REWARD] = score
        self._scores.add(self._origin(call), MetricType.REWARD, score)
        self._record(call, answer, scores)

    def _failed(self, call: Call, failure: RewardFailed) -> None:
        self._telemetry.reward_failed(call.program, failure.reason)
        key, now = (call.program, failure.reason), self._clock()
        if failure.reason != ABSTAINED and now - self._logged.get(key, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged[key] = now
            fields = {"program": call.program, "reason": failure.reason, "kind": failure.kind}
            log.warning("reward.failed", extra={**fields, "request_id": call.request_id})

    def _record(self, call: Call, answer: Answer, scores: Mapping[str, float]) -> None:
        record = self._records.get(call.program)
        if record is not None and self._draw() < record.share:
            origin = self._origin(call)
            record.write(
                {
                    **ids(call.request_id, call.id, origin),
                    "inputs": call.inputs,
                    "outputs": answer.outputs,
                    "scores": dict(scores),
                }
            )

    def _origin(self, call: Call) -> Origin:
        return Origin(call.program, self._programs[call.program].version, self._model, call.level)


def records_of(programs: Mapping[str, Program], telemetry: Telemetry, link: ControlLink) -> dict[str, CallRecord]:
    """The records of the programs that keep one."""

    def lost(name: str) -> Callable[[str, int], None]:
        return lambda reason, lines: telemetry.record_lost(name, reason, lines)

    return {
        name: CallRecord(name, program.config.record, link.source, lost(name))
        for name, program in programs.items()
        if program.config.record is not None
    }


def ids(request_id: str, call_id: str, origin: Origin) -> dict[str, Any]:
    """What a line of a record says of the call it is about."""
    return {
        "request_id": request_id,
        "call_id": call_id,
        "program": origin.program,
        "version": origin.version,
        "model": origin.model,
        "level": origin.level.value,
    }
