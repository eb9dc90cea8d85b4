"""The work of a stage: a task for each call of a batch, and results that leave in chunks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from serve_app.adapters.json_log import about_call
from serve_app.adapters.tracing import join
from serve_app.deployments.call_context import is_left
from serve_app.deployments.stage import Answer, Chunks
from serve_app.errors import ClientClosed, ExecutionError, SwitchyardError
from serve_app.messages import Call, Result

log = logging.getLogger("switchyard.stage")

ACCEPT_WITHIN_S = 0.02
"""Seconds after which a replica says that it has a batch, if no result has said so by then."""


class _Outbox:
    """Results of one batch on their way out: put one by one, taken in chunks.

    Args:
        expected: how many there will be.
        is_remote: whether chunks leave the process, so that each costs a message; the first then waits for a result.
    """

    def __init__(self, expected: int, *, is_remote: bool) -> None:
        self._left = expected
        self._is_remote = is_remote
        self._ready: list[Result] = []
        self._wake = asyncio.Event()

    def put(self, result: Result) -> None:
        """Add a finished call."""
        self._ready.append(result)
        self._wake.set()

    async def chunks(self) -> Chunks:
        """Yield what is ready, until every expected result went out; the first chunk may be empty."""
        await self._until_ready(ACCEPT_WITHIN_S if self._is_remote else 0.0)
        while True:
            chunk, self._ready = tuple(self._ready), []
            self._left -= len(chunk)
            yield chunk
            if not self._left:
                return
            await self._until_ready(None)

    async def _until_ready(self, seconds: float | None) -> None:
        """Wait for a result, at most so long."""
        if self._ready or seconds == 0:
            return
        self._wake.clear()
        alarm = asyncio.get_running_loop().call_later(seconds, self._wake.set) if seconds else None
        try:
            await self._wake.wait()
        finally:
            if alarm is not None:
                alarm.cancel()


class CallTasks:
    """The calls that a stage is at work on: each has a task of its own, so that each can fail or be left alone.

    Args:
        is_remote: whether who asks is in another process.
    """

    def __init__(self, *, is_remote: bool = False) -> None:
        self._is_remote = is_remote
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self, calls: Sequence[Call], answer: Answer) -> Chunks:
        """Keep a stage's contract with one coroutine a call: whatever it raises becomes that call's result.

        Leaving the generator early cancels the calls that are not finished.
        """
        outbox = _Outbox(len(calls), is_remote=self._is_remote)
        tasks = [asyncio.create_task(_settle(call, answer, outbox)) for call in calls]
        for call, task in zip(calls, tasks, strict=True):
            self._tasks[call.id] = task
            task.add_done_callback(partial(self._ended, call.id, outbox))
        try:
            async for chunk in outbox.chunks():
                yield chunk
        finally:
            for task in tasks:
                task.cancel()

    def leave(self, ids: Sequence[str]) -> None:
        """Cancel the work for these calls; ids that are not at work are none of ours."""
        for call_id in ids:
            if task := self._tasks.get(call_id):
                task.cancel()

    def _ended(self, call_id: str, outbox: _Outbox, task: asyncio.Task[None]) -> None:
        if task.cancelled():  # perhaps before its first step
            outbox.put(Result(call_id, error=ClientClosed("nobody waits for this call any more")))
        if self._tasks.get(call_id) is task:
            del self._tasks[call_id]


def answer_each(calls: Sequence[Call], answer: Answer) -> Chunks:
    """``CallTasks.run`` for a stage whose calls nobody leaves one by one."""
    return CallTasks().run(calls, answer)


async def _settle(call: Call, answer: Answer, outbox: _Outbox) -> None:
    about_call(call.request_id)
    join(call.trace)
    try:
        outbox.put(await answer(call))
    except SwitchyardError as error:
        outbox.put(Result(call.id, error=error))
    except asyncio.CancelledError:
        if is_left():
            raise
        outbox.put(Result(call.id, error=ExecutionError("the work for this call was cancelled")))
    except Exception as error:  # a defect must not hang the caller; logged and answered
        log.exception("call.failed", extra={"request_id": call.request_id, "program": call.program})
        outbox.put(Result(call.id, error=ExecutionError(f"internal failure: {type(error).__name__}")))
