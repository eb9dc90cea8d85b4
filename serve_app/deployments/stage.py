"""A stage answers batches: the one interface that every part of the graph shows to the part before it.

``Cache``, ``Router`` and ``ModelReplica`` are stages. In one process a stage is the object itself; across
processes it is a ``HandleStage`` over a Ray Serve handle. Nobody can tell the difference.

The contract of ``run``: the first chunk is empty and says that the batch was accepted; then each call gets
exactly one ``Result``, in any order, in chunks as they finish. Failures of a call are results; only a failure
of the stage itself is raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from serve_app.errors import ExecutionError, Overloaded, SwitchyardError, UpstreamError
from serve_app.messages import Call, Outcome, Result

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("switchyard.stage")

Chunks = AsyncGenerator[Sequence[Result], None]
Deliver = Callable[[Result], None]


class Stage(Protocol):
    """Whatever answers batches of calls."""

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call exactly once; see the module's contract."""
        ...


class StageLost(UpstreamError):
    """The replica that had the batch is gone, or none took it in time."""


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


async def answer_each(calls: Sequence[Call], answer: Callable[[Call], Awaitable[Result]]) -> Chunks:
    """Keep a stage's contract with one coroutine a call: whatever it raises becomes that call's result.

    Leaving the generator early cancels the calls that are not finished.
    """
    outbox = _Outbox(len(calls))
    tasks = [asyncio.create_task(_settle(call, answer, outbox)) for call in calls]
    try:
        yield ()
        async for chunk in outbox.chunks():
            yield chunk
    finally:
        for task in tasks:
            task.cancel()


async def _settle(call: Call, answer: Callable[[Call], Awaitable[Result]], outbox: _Outbox) -> None:
    try:
        outbox.put(await answer(call))
    except SwitchyardError as error:
        outbox.put(Result(call.id, error=error))
    except asyncio.CancelledError:
        if _is_left():
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

    async def run(self, calls: Sequence[Call]) -> Chunks:
        """Pass the batch on.

        Raises:
            StageLost: no replica took it in time, or the one that did is gone.
            Overloaded: Ray's own bound on queued batches is reached.
        """
        stream: Any = self._handle.remote(list(calls))
        finished = False
        try:
            async with asyncio.timeout(self._accept_timeout_s):
                accepted = await anext(stream)
            yield accepted
            async for chunk in stream:
                yield chunk
            finished = True
        except TimeoutError as error:
            raise StageLost("no replica took the calls in time", outcome=Outcome.UNREACHABLE) from error
        except BackPressureError as error:
            finished = True
            raise Overloaded("too many calls are waiting", retry_after_s=1.0) from error
        except (RayError, DeploymentUnavailableError, StopAsyncIteration) as error:
            log.warning("stage.lost", extra={"deployment": self._handle.deployment_name, "why": type(error).__name__})
            raise StageLost("the replica that had the calls is gone", outcome=Outcome.UNREACHABLE) from error
        finally:
            if not finished:
                stream.cancel()


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
        log.exception("stage.failed", extra={"calls": len(calls)})
        error = StageLost(f"internal failure: {type(raised).__name__}", outcome=Outcome.UNREACHABLE)
    if waiting and resubmit and isinstance(error, StageLost):
        log.warning("stage.resubmitted", extra={"calls": len(waiting)})
        used_s = loop.time() - started
        again = [replace(call, remaining_s=call.remaining_s - used_s) for call in waiting.values()]
        await drive(stage, again, deliver)
        return
    for call_id in waiting:
        deliver(Result(call_id, error=error))


class Lane:
    """Turns single questions to a stage into batches: what is asked in one turn of the loop travels together."""

    def __init__(self, stage: Stage, *, resubmit: bool = False) -> None:
        self._stage = stage
        self._resubmit = resubmit
        self._next: list[tuple[Call, asyncio.Future[Result]]] = []
        self._drives: set[asyncio.Task[None]] = set()

    def ask(self, call: Call) -> asyncio.Future[Result]:
        """Send the call with the next batch; cancel the future to take no more interest in it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._next:
            loop.call_soon(self._flush)
        self._next.append((call, future))
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
        for future in futures.values():
            future.add_done_callback(lambda _: self._cancel_if_deserted(task, futures))

    @staticmethod
    def _cancel_if_deserted(task: asyncio.Task[None], futures: dict[str, asyncio.Future[Result]]) -> None:
        if futures and all(future.cancelled() for future in futures.values()):
            task.cancel()
