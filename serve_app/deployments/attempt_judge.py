"""How an attempt ended, as far as one router can tell: what the model did, and what is not its doing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from serve_app.config import ModelConfig
from serve_app.core.clock import Clock
from serve_app.core.deadline import MIN_USEFUL_S
from serve_app.core.outcomes import classify_timeout
from serve_app.core.recent_usage import RecentUsage
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.stage import StageAbsent, StageLost
from serve_app.messages import Outcome, Result

START_S: Final = 60.0
"""Seconds in which a replica starts, or fails to; a model that has none for longer is one that does not answer."""


class AttemptJudge:
    """Tells failures of a model from attempts that were cut short.

    Args:
        models: all there are, by name.
        recent: what answers have lately taken.
        link: the line to the control plane, whose snapshots say how many replicas there are.
        clock: monotonic seconds.
    """

    def __init__(
        self, models: Mapping[str, ModelConfig], recent: RecentUsage, link: ControlLink, *, clock: Clock
    ) -> None:
        self._models = models
        self._recent = recent
        self._link = link
        self._clock = clock
        self._without_replica: dict[str, float] = {}

    def usual_run_s(self, program: str, model: str) -> float:
        """Seconds that the program usually runs on the model: as seen, or with nothing seen, as configured."""
        return self._recent.usual_run_s(program, model) or self._models[model].latency_s

    def _least_s(self, program: str, model: str) -> float:
        """Seconds that an attempt must have had for its timeout to count.

        What is configured is no answer: a model that hangs from the start would never be left alone by callers with
        less time than that.
        """
        return self._recent.usual_run_s(program, model) or min(MIN_USEFUL_S, self._models[model].latency_s)

    def outcome(self, program: str, model: str, result: Result, *, took_s: float, given_s: float) -> Outcome:
        """How the attempt ended; a replica that was still to be started, or is gone, did not work on it.

        Args:
            program: that was to run.
            model: that was asked.
            result: what came back.
            took_s: seconds that it took.
            given_s: seconds that it was given.
        """
        is_starting = self.is_starting(model)
        if result.error is None:
            return Outcome.OK
        outcome = result.error.outcome
        if was_lost(result) or (is_starting and outcome is Outcome.TIMEOUT and not result.attempts):
            return Outcome.CUT_SHORT
        ran_s = result.attempts[-1].latency_s if result.attempts else took_s
        usual_s = self._least_s(program, model)
        return classify_timeout(outcome, ran_s=ran_s, took_s=took_s, given_s=given_s, usual_s=usual_s)

    def is_starting(self, model: str) -> bool:
        """Whether a model that may scale to zero has no replica, but has not been without one for too long."""
        load = self._link.snapshot.loads.get(model)
        if self._models[model].replicas.min or (load and load.replicas):
            self._without_replica.pop(model, None)
            return False
        return self._clock() - self._without_replica.setdefault(model, self._clock()) < START_S


def was_lost(result: Result) -> bool:
    """Whether the replica that had the call is gone, which says nothing of the model."""
    return isinstance(result.error, StageLost) and not isinstance(result.error, StageAbsent)
