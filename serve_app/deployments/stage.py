"""A stage answers batches: the one interface that every part of the graph shows to the part before it.

``Cache``, ``Router`` and ``ModelReplica`` are stages. In one process a stage is the object itself; across
processes it is a ``HandleStage`` over a Ray Serve handle. Nobody can tell the difference.

The contract of ``run``: the first chunk is empty and says that the batch was accepted; then each call gets
exactly one ``Result``, in any order, in chunks as they finish. Failures of a call are results; only a failure
of the stage itself is raised. A call that nobody waits for any more is given up with ``leave``; its neighbours go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from serve_app.adapters.json_log import about_call
from serve_app.adapters.tracing import current_trace, join
from serve_app.errors import ClientClosed, ExecutionError, Overloaded, SwitchyardError, UpstreamError
from serve_app.messages import Call, Outcome, Result

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("switchyard.stage")

Chunks = AsyncGenerator[Sequence[Result], None]
Deliver = Callable[[Result], None]
Answer = Callable[[Call], Awaitable[Result]]

LEAVE_TIMEOUT_S = 2.0
"""Seconds that replicas have to hear which calls were left; one that does not hear it ends them at their deadline."""


class Stage(Protocol):
    """Whatever answers batches of calls."""

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call exactly once; see the module's contract."""
        ...

    def leave(self, ids: Sequence[str]) -> None:
        """Give up these calls where they are still at work; returns at once."""
        ...


class StageLost(UpstreamError):
    """The replica that had the batch is gone."""


class StageAbsent(StageLost):
    """No replica took the batch in time: asking again would wait as long."""


class _Outbox:
    """Results of one batch on their way out: put one by one, taken in chunks."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._ready: list[Result] = []
        self._wake = asyncio.Event()

    def put(self, result: Result) -> None:
        """Add a finished call."""
        self._ready.append(result)
        self._wake.set()

    async def chunks(self) -> Chunks:
        """Yield what is ready, until every expected result went out."""
        while self._left:
            await self._wake.wait()
            self._wake.clear()
            chunk, self._ready = self._ready, []
            self._left -= len(chunk)
            yield chunk


class CallTasks:
    """The calls that a stage is at work on: each has a task of its own, so that each can fail or be left alone."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self, calls: Sequence[Call], answer: Answer) -> Chunks:
        """Keep a stage's contract with one coroutine a call: whatever it raises becomes that call's result.

        Leaving the generator early cancels the calls that are not finished.
        """
        outbox = _Outbox(len(calls))
        tasks = [asyncio.create_task(_settle(call, answer, outbox)) for call in calls]
        for call, task in zip(calls, tasks, strict=True):
            self._tasks[call.id] = task
            task.add_done_callback(partial(self._ended, call.id))
        try:
            yield ()
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

    def _ended(self, call_id: str, task: asyncio.Task[None]) -> None:
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
        if _is_left():
            outbox.put(Result(call.id, error=ClientClosed("nobody waits for this call any more")))
            raise
        outbox.put(Result(call.id, error=ExecutionError("the work for this call was cancelled")))
    except Exception as error:  # a defect must not hang the caller; logged and answered
        log.exception("call.failed", extra={"request_id": call.request_id, "program": call.program})
        outbox.put(Result(call.id, error=ExecutionError(f"internal failure: {type(error).__name__}")))


def _is_left() -> bool:
    """Whether the running task itself is being cancelled; else a ``CancelledError`` only tells of something else's end.

    Ray raises one out of a stream whose work was cancelled in the replica.
    """
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class HandleStage:
    """A stage in another process.

    Args:
        handle: of a deployment whose ``run`` keeps the contract.
        accept_timeout_s: seconds within which a replica must take the batch; ``None`` waits until one is there.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, accept_timeout_s: float | None = None) -> None:
        self._handle = handle.options(stream=True, method_name="run")
        self._accept_timeout_s = accept_timeout_s
        self._offered: set[str] = set()
        self._taken: set[str] = set()
        self._left_early: set[str] = set()
        self._leaving: set[str] = set()
        self._telling: asyncio.Task[None] | None = None

    async def run(self, calls: Sequence[Call]) -> Chunks:
        """Pass the batch on.

        Raises:
            StageAbsent: no replica took it in time.
            StageLost: the one that did is gone.
            Overloaded: Ray's own bound on queued batches is reached.
        """
        ids = {call.id for call in calls}
        stream: Any = self._handle.remote(list(calls))
        finished = False
        self._offered |= ids
        try:
            async with asyncio.timeout(self._accept_timeout_s):
                accepted = await anext(stream)
            self._was_taken(ids)
            yield accepted
            async for chunk in stream:
                self._taken.difference_update(result.id for result in chunk)
                yield chunk
            finished = True
        except TimeoutError as error:
            raise StageAbsent("no replica took the calls in time", outcome=Outcome.UNREACHABLE) from error
        except BackPressureError as error:
            finished = True
            raise Overloaded("too many calls are waiting", retry_after_s=1.0) from error
        except (RayError, DeploymentUnavailableError, StopAsyncIteration) as error:
            self._taken -= ids  # they may be asked again under the same ids
            log.warning("stage.lost", extra=self._lost(calls, error))
            raise StageLost("the replica that had the calls is gone", outcome=Outcome.UNREACHABLE) from error
        finally:
            unanswered = self._taken & ids
            for known in (self._offered, self._taken, self._left_early):
                known.difference_update(ids)
            if not finished:
                stream.cancel()
                self._tell(unanswered)  # Ray's cancellation may end the stream here and leave the work there

    def leave(self, ids: Sequence[str]) -> None:
        """Tell the replicas; a batch that no replica has taken yet is told about when one has."""
        self._left_early |= self._offered.intersection(ids)
        self._tell(self._taken.intersection(ids))

    def _was_taken(self, ids: set[str]) -> None:
        self._offered -= ids
        self._taken |= ids
        self._tell(self._left_early & ids)

    def _tell(self, ids: set[str]) -> None:
        self._leaving |= ids
        self._taken -= ids
        if self._telling is None and self._leaving:
            self._telling = asyncio.create_task(self._tell_replicas(), context=contextvars.Context())

    async def _tell_replicas(self) -> None:
        """One message at a time for all that was left meanwhile; every replica hears it, and one knows the call."""
        try:
            while self._leaving:
                ids, self._leaving = sorted(self._leaving), set()
                heard = self._handle.broadcast("leave_calls", ids)
                await heard.results_async(timeout_s=LEAVE_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("stage.leave_unheard", extra={"why": type(error).__name__})
        finally:
            self._telling = None

    def _lost(self, calls: Sequence[Call], error: BaseException) -> dict[str, Any]:
        why = type(error).__name__
        return {"deployment": self._handle.deployment_name, "why": why, "request_ids": _request_ids(calls)}


async def drive(stage: Stage, calls: Sequence[Call], deliver: Deliver, *, resubmit: bool = False) -> None:
    """Run a batch and deliver exactly one result a call, whatever becomes of the stage.

    Args:
        stage: who answers.
        calls: what to answer; their ids differ.
        deliver: called once for each call.
        resubmit: ask once more for what a lost replica left unanswered.
    """
    loop = asyncio.get_running_loop()
    waiting, started = {call.id: call for call in calls}, loop.time()
    error: SwitchyardError = StageLost("the stage left calls unanswered", outcome=Outcome.UNREACHABLE)
    try:
        async with contextlib.aclosing(stage.run(calls)) as chunks:
            async for chunk in chunks:
                for result in chunk:
                    if waiting.pop(result.id, None):
                        deliver(result)
    except SwitchyardError as raised:
        error = raised
    except asyncio.CancelledError:
        if _is_left():
            raise
        error = StageLost("the replica that had the calls gave them up", outcome=Outcome.UNREACHABLE)
    except Exception as raised:  # a defect of the stage must not hang its callers; logged and answered as lost
        log.exception("stage.failed", extra={"request_ids": _request_ids(calls)})
        error = StageLost(f"internal failure: {type(raised).__name__}", outcome=Outcome.UNREACHABLE)
    if waiting and resubmit and isinstance(error, StageLost):
        log.warning("stage.resubmitted", extra={"request_ids": _request_ids(waiting.values())})
        used_s = loop.time() - started
        again = [replace(call, remaining_s=call.remaining_s - used_s) for call in waiting.values()]
        await drive(stage, again, deliver)
        return
    for call_id in waiting:
        deliver(Result(call_id, error=error))


def _request_ids(calls: Iterable[Call]) -> list[str]:
    return [call.request_id for call in calls]


class Lane:
    """Turns single questions to a stage into batches: what is asked in one turn of the loop travels together."""

    def __init__(self, stage: Stage, *, resubmit: bool = False) -> None:
        self._stage = stage
        self._resubmit = resubmit
        self._next: list[tuple[Call, asyncio.Future[Result]]] = []
        self._drives: set[asyncio.Task[None]] = set()

    def ask(self, call: Call) -> asyncio.Future[Result]:
        """Send the call with the next batch, as part of the current trace; cancel the future to lose interest."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._next:
            loop.call_soon(self._flush)
        trace = current_trace() or call.trace
        self._next.append((call if trace == call.trace else replace(call, trace=trace), future))
        return future

    def ask_all(self, calls: Sequence[Call]) -> list[asyncio.Future[Result]]:
        """Send these calls as one batch now."""
        loop = asyncio.get_running_loop()
        batch = [(call, loop.create_future()) for call in calls]
        self._send(batch)
        return [future for _, future in batch]

    def _flush(self) -> None:
        batch, self._next = self._next, []
        self._send([(call, future) for call, future in batch if not future.done()])

    def _send(self, batch: list[tuple[Call, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        futures = {call.id: future for call, future in batch}

        def deliver(result: Result) -> None:
            future = futures.pop(result.id)
            if not future.done():
                future.set_result(result)

        calls = [call for call, _ in batch]
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
            self._stage.leave([call_id])
