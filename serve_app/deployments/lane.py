"""``Lane``: the way to a stage, on which single questions become batches."""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from serve_app.adapters.tracing import current_trace
from serve_app.deployments.stage import Stage, drive
from serve_app.messages import Call, Result

MAX_BATCH = 64
"""Most calls of one batch between parts, where nobody says otherwise."""


class Lane:
    """Turns single questions to a stage into batches: what is asked in one turn of the loop travels together.

    Replicas are chosen a batch, whatever its size, so where several have few slots left a batch is divided.

    Args:
        stage: who answers.
        resubmit: ask once more for what a lost replica left unanswered.
        sent: told the size of each batch.
        max_batch_size: most calls of one batch; an attribute that may be changed at any time.

    Attributes:
        spread: batches that calls become which leave in one turn, if there are as many; may be changed at any time.
            Calls of programs that answer many at once stay together.
    """

    def __init__(
        self,
        stage: Stage,
        *,
        resubmit: bool = False,
        sent: Callable[[int], None] | None = None,
        max_batch_size: int = MAX_BATCH,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.spread = 1
        self._stage = stage
        self._resubmit = resubmit
        self._sent = sent
        self._next: list[tuple[Call, asyncio.Future[Result]]] = []
        self._drives: set[asyncio.Task[None]] = set()

    def ask(self, call: Call) -> asyncio.Future[Result]:
        """Send the call with the next batch, as part of the current trace; cancel the future to lose interest."""
        trace = current_trace() or call.trace
        return self._enqueue(call if trace == call.trace else replace(call, trace=trace))

    def ask_all(self, calls: Sequence[Call]) -> list[asyncio.Future[Result]]:
        """Send these calls with the next batch, each as part of its own trace."""
        return [self._enqueue(call) for call in calls]

    def _enqueue(self, call: Call) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._next.append((call, future))
        if len(self._next) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        return future

    def _flush(self) -> None:
        waiting, self._next = self._next, []
        waiting = [(call, future) for call, future in waiting if not future.done()]
        if self.spread == 1:
            self._send_all(waiting, self.max_batch_size)
            return
        apart = [each for each in waiting if not each[0].together]
        self._send_all([each for each in waiting if each[0].together], self.max_batch_size)
        self._send_all(apart, min(self.max_batch_size, math.ceil(len(apart) / self.spread)))

    def _send_all(self, waiting: list[tuple[Call, asyncio.Future[Result]]], size: int) -> None:
        for at in range(0, len(waiting), size or 1):
            self._send(waiting[at : at + size])

    def _send(self, batch: list[tuple[Call, asyncio.Future[Result]]]) -> None:
        futures = {call.id: future for call, future in batch}

        def deliver(result: Result) -> None:
            future = futures.pop(result.id)
            if not future.done():
                future.set_result(result)

        calls = [call for call, _ in batch]
        if self._sent:
            self._sent(len(calls))
        # A batch belongs to all of its callers: in a context of its own, Ray does not cancel it with the first of them.
        work = drive(self._stage, calls, deliver, resubmit=self._resubmit)
        task = asyncio.create_task(work, context=contextvars.Context())
        self._drives.add(task)
        task.add_done_callback(self._drives.discard)
        for call_id, future in futures.items():
            future.add_done_callback(partial(self._leave, call_id, task, futures))

    def _leave(
        self,
        call_id: str,
        task: asyncio.Task[None],
        futures: dict[str, asyncio.Future[Result]],
        done: asyncio.Future[Result],
    ) -> None:
        """Give up one call of a batch, and the whole batch with its last caller."""
        if not done.cancelled():
            return
        if all(future.cancelled() for future in futures.values()):
            task.cancel()
        elif call_id in futures:
            # A turn later: the batch may have been sent in this one, and the stage not know its calls yet.
            asyncio.get_running_loop().call_soon(self._stage.leave, [call_id])
