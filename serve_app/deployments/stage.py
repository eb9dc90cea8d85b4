"""A stage answers batches: the one interface that every part of the graph shows to the part before it.

``Cache``, ``Router`` and ``ModelReplica`` are stages. In one process a stage is the object itself; across
processes it is a ``RemoteStage``, which has a ``HandleStage`` for when no connection is there. Nobody can tell the
difference.

The contract of ``run``: the first chunk says that the batch was accepted, and is empty unless results are there as
soon; each call gets exactly one ``Result``, in any order, in chunks as they finish. Failures of a call are results;
only a failure of the stage itself is raised. A call that nobody waits for any more is given up with ``leave``; its
neighbours go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from serve_app.deployments.call_context import is_left
from serve_app.errors import Overloaded, SwitchyardError, UpstreamError
from serve_app.messages import Call, Outcome, Result

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("switchyard.stage")

Chunks = AsyncGenerator[Sequence[Result], None]
Deliver = Callable[[Result], None]
Answer = Callable[[Call], Awaitable[Result]]

PICKLED: Final[dict[str, Any]] = {"request_serialization": "pickle", "response_serialization": "pickle"}
"""Options of a handle that calls over gRPC, as in throughput mode: every type here can be imported, so plain pickle
will do, at half of cloudpickle's work."""
LEAVE_TIMEOUT_S = 2.0
"""Seconds that replicas have to hear which calls were left; one that does not hear it ends them at their deadline."""
LEAVE_GAP_S = 0.03
"""Seconds after which the next such message goes though not every replica has heard the last one: 67 at most wait for
an answer at a time, as each does so for ``LEAVE_TIMEOUT_S``."""


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


class HandleStage:
    """A stage in another process.

    Args:
        handle: of a deployment whose ``run`` keeps the contract.
        accept_timeout_s: seconds within which a replica must take the batch; ``None`` waits until one is there.
    """

    def __init__(self, handle: DeploymentHandle[Any], *, accept_timeout_s: float | None = None) -> None:
        self._handle = handle.options(stream=True, method_name="run", **PICKLED)
        self._accept_timeout_s = accept_timeout_s
        self._offered: set[str] = set()
        self._taken: set[str] = set()
        self._left_early: set[str] = set()
        self._leaving: set[str] = set()
        self._telling: asyncio.Task[None] | None = None
        self._unheard: set[asyncio.Task[None]] = set()

    async def run(self, calls: Sequence[Call]) -> Chunks:
        """Pass the batch on.

        Raises:
            StageAbsent: no replica took it in time.
            StageLost: the one that did is gone.
            Overloaded: Ray's own bound on queued batches is reached.
        """
        ids = {call.id for call in calls}
        stream: Any = self._handle.remote(list(calls))
        finished = is_given_up = False
        self._offered |= ids
        try:
            async with asyncio.timeout(self._accept_timeout_s):
                accepted = await anext(stream)
            self._was_taken(ids)
            self._answered(accepted)
            yield accepted
            async for chunk in stream:
                self._answered(chunk)
                yield chunk
            finished = True
        except TimeoutError as error:
            raise StageAbsent("no replica took the calls in time", outcome=Outcome.UNREACHABLE) from error
        except BackPressureError as error:
            finished = True
            raise Overloaded("too many calls are waiting", retry_after_s=1.0) from error
        except (RayError, DeploymentUnavailableError, StopAsyncIteration) as error:
            log.warning("stage.lost", extra=self._lost(calls, error))
            raise StageLost("the replica that had the calls is gone", outcome=Outcome.UNREACHABLE) from error
        except (GeneratorExit, asyncio.CancelledError) as error:
            is_given_up = isinstance(error, GeneratorExit) or is_left()
            raise
        finally:
            # What only failed may be asked again under the same ids, so that nobody must be told to leave it.
            unanswered = (self._offered | self._taken) & ids if is_given_up else set()
            for known in (self._offered, self._taken, self._left_early):
                known.difference_update(ids)
            if not finished:
                stream.cancel()
                self._tell(unanswered)  # Ray's cancellation may end the stream here and leave the work there

    def leave(self, ids: Sequence[str]) -> None:
        """Tell the replicas; of calls that none has acknowledged they are told again once one has."""
        offered = self._offered.intersection(ids)
        self._left_early |= offered
        self._tell(offered | self._taken.intersection(ids))

    def _answered(self, chunk: Sequence[Result]) -> None:
        self._taken.difference_update(result.id for result in chunk)

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
        """A message for all that was left meanwhile, then the next; every replica hears it, and one knows the call.

        A replica that stalls keeps the next one from the others for ``LEAVE_GAP_S`` at most.
        """
        try:
            while self._leaving:
                ids, self._leaving = sorted(self._leaving), set()
                message = asyncio.create_task(self._broadcast(ids))
                self._unheard.add(message)
                message.add_done_callback(self._unheard.discard)
                await asyncio.wait({message}, timeout=LEAVE_GAP_S)
        finally:
            self._telling = None

    async def _broadcast(self, ids: list[str]) -> None:
        try:
            heard = self._handle.broadcast("leave_calls", ids)
            await heard.results_async(timeout_s=LEAVE_TIMEOUT_S, return_exceptions=True)
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("stage.leave_unheard", extra={"why": type(error).__name__})

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
        if is_left():
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
