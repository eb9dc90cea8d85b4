"""The slots of one model's replica on its event loop: who may run now, and what their calls teach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serve_app.adapters.call_scope import CallScope
from serve_app.config import ModelConfig
from serve_app.core.adaptive_limit import AdaptiveLimit
from serve_app.core.clock import Clock
from serve_app.core.permit import Refusal
from serve_app.core.slot_queue import Place, SlotQueue
from serve_app.errors import Overloaded, UpstreamError
from serve_app.messages import Outcome, Priority

FAIR_TIME = 2.0
"""Multiples of its program's usual time after which a timeout tells of the provider; before, of a deadline too near."""


class Slots:
    """Hands out slots in the order of ``SlotQueue``, and as many as ``AdaptiveLimit`` allows.

    Args:
        model: its bounds, and its prior latency.
        clock: monotonic seconds.
    """

    def __init__(self, model: ModelConfig, *, clock: Clock) -> None:
        self.queue = SlotQueue(model.max_ongoing_requests, model.max_queued_requests, clock=clock)
        self._limit = AdaptiveLimit(model.max_ongoing_requests, clock=clock) if model.adaptive_concurrency else None
        self._prior_s = model.latency_s
        self._clock = clock

    @property
    def is_limited(self) -> bool:
        """Whether the provider's pace, and not the configuration, bounds the calls that run."""
        return self._limit is not None and self._limit.is_limited

    @asynccontextmanager
    async def slot(self, program: str, priority: Priority, deadline: float) -> AsyncIterator[Place]:
        """Hold a slot for the body.

        Raises:
            Overloaded: no slot can be expected in time, or too many wait, or it came too late.
            UpstreamError: none came before the deadline (outcome ``rejected``).
        """
        turn: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        remaining_s = deadline - self._clock()
        if remaining_s <= 0:
            raise _no_time()
        place = self.queue.join(priority, remaining_s, lambda refusal: _tell(turn, refusal), program)
        if isinstance(place, Refusal):
            raise _too_busy(place)
        try:
            await _wait(turn, remaining_s)
            yield place
        finally:
            place.leave()

    def learn(self, program: str, scope: CallScope, outcome: Outcome, seconds: float) -> None:
        """Let an attempt that ended after ``seconds`` move the limit; to be called while it still holds its slot."""
        if self._limit is None or outcome is Outcome.CANCELLED:
            return
        usual_s = self.queue.run_s(program) or self._prior_s
        is_stuck = outcome is Outcome.TIMEOUT and seconds >= FAIR_TIME * usual_s
        if is_stuck or outcome is Outcome.RATE_LIMITED:
            self._limit.pushed_back(seconds)
        else:
            self._limit.answered(
                scope.lm_s,
                scope.usage.output_tokens,
                lm_calls=scope.lm_answers,
                running=self.queue.running,
                elapsed_s=seconds,
            )
        if self.queue.slots != self._limit.limit:
            self.queue.resize(self._limit.limit)


async def _wait(turn: asyncio.Future[Refusal | None], remaining_s: float) -> None:
    if not turn.done():
        await asyncio.wait({turn}, timeout=remaining_s)
    if not turn.done():
        raise _no_time()
    if refusal := turn.result():
        raise _too_busy(refusal)


def _tell(turn: asyncio.Future[Refusal | None], refusal: Refusal | None) -> None:
    if not turn.done():
        turn.set_result(refusal)


def _too_busy(refusal: Refusal) -> Overloaded:
    return Overloaded(f"the model is too busy: {refusal.reason}", refusal.retry_after_s)


def _no_time() -> UpstreamError:
    return UpstreamError("no time was left to ask the model", outcome=Outcome.REJECTED)
