"""A Python caller's way in: ``serve_app.connect()`` from a Ray job, another Serve application or a notebook."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any, Self

# Ray connects by itself when one of its calls finds no connection. At the end of a process a handle's background thread
# makes such a call after Ray has shut down, connects anew and never ends: connect() connects, and nothing else does.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

import dspy
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)

from serve_app.adapters.loop_thread import LoopThread
from serve_app.adapters.tracing import trace_headers
from serve_app.bulk.attempt import Retries, is_worth_retrying
from serve_app.bulk.pool import as_finished
from serve_app.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidInputs,
    NoRoute,
    Overloaded,
    SwitchyardError,
    UpstreamError,
)
from serve_app.messages import Outcome, Priority

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle


@dataclass(frozen=True)
class Predicted:
    """What became of one row of ``predict_many``: a ``prediction`` or an ``error``.

    Attributes:
        index: of the row among those given, from 0.
        inputs: the row.
        prediction: as ``predict`` gives it; ``None`` when the call failed.
        error: what ``predict`` would have raised; ``None`` when it did not fail.
    """

    index: int
    inputs: Mapping[str, Any]
    prediction: dspy.Prediction | None = None
    error: SwitchyardError | None = None

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed later."""
        error = self.error
        return error is not None and is_worth_retrying(error.status, [each.outcome for each in error.attempts])

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the application asks to wait; ``None`` when it does not say."""
        return self.error.retry_after_s if self.error else None


GRACE_S = 5.0
"""Seconds past ``deadline_s`` within which the application must say itself that the time is over."""


class Client:
    """Calls programs of a running application.

    Passed to a Ray task or actor it connects anew there, to the application of the same name.

    Args:
        handle: of the application's ingress.
        options: sent with every call; see ``with_options``.
    """

    def __init__(self, handle: DeploymentHandle[Any], options: dict[str, Any] | None = None) -> None:
        self._handle = handle
        self._options = options or {}

    def __reduce__(self) -> tuple[Callable[..., Client], tuple[str, dict[str, Any]]]:
        # Ray would pass the handle on without what connect() set up for it.
        return _reconnect, (self._handle.app_name, self._options)

    def with_options(self, **options: Any) -> Self:  # noqa: ANN401 - each option has a type of its own
        """A client that asks for more than the default with every call.

        Args:
            options: ``complexity``, ``budget_usd``, ``deadline_s``, ``priority``, ``model``, ``max_tokens``.
        """
        return type(self)(self._handle, self._options | options)

    def predict(self, program: str, /, **inputs: Any) -> dspy.Prediction:  # noqa: ANN401 - the program's own types
        """Call a program and wait for its answer; inside an event loop use ``apredict``.

        Inside an OpenTelemetry span the call becomes part of its trace.

        Returns:
            A prediction with the program's outputs, and ``meta``, as over HTTP: JSON values, not the program's own
            types, so an enum is text and a pydantic model a dict.

        Raises:
            SwitchyardError: one of the tree in ``serve_app.errors``.
        """
        _refuse_inside_loop()
        request_id = uuid.uuid4().hex
        with _in_our_words(request_id):
            response = self._send(program, inputs, request_id)
            try:
                return _prediction(response.result(timeout_s=self._patience_s()))
            except TimeoutError:
                response.cancel()
                raise

    async def apredict(self, program: str, /, **inputs: Any) -> dspy.Prediction:  # noqa: ANN401 - see predict
        """``predict`` for asynchronous callers."""
        request_id = uuid.uuid4().hex
        with _in_our_words(request_id):
            response = self._send(program, inputs, request_id)
            try:
                async with asyncio.timeout(self._patience_s()):
                    return _prediction(await response)
            except TimeoutError:
                response.cancel()
                raise

    def predict_many(
        self, program: str, rows: Iterable[Mapping[str, Any]], /, *, concurrency: int = 32, retry_for_s: float = 300.0
    ) -> Generator[Predicted, None, None]:
        """Call a program for each row of inputs; what becomes of each is yielded as it gets ready, in any order.

        The calls are made on a thread of their own, so this works inside an event loop, too; there it blocks. Whoever
        stops to iterate cancels what is in work.

        Args:
            program: name of the program.
            rows: inputs by name, read as they are needed.
            concurrency: calls in work at once.
            retry_for_s: seconds for which a call that is refused (429, 503) or never ran in its time is made again.

        Raises:
            ValueError: ``concurrency`` is below 1; at once, not when the first row is asked for.
        """
        return _blocking(self.apredict_many(program, rows, concurrency=concurrency, retry_for_s=retry_for_s))

    def apredict_many(
        self, program: str, rows: Iterable[Mapping[str, Any]], /, *, concurrency: int = 32, retry_for_s: float = 300.0
    ) -> AsyncGenerator[Predicted, None]:
        """``predict_many`` for asynchronous callers."""
        client = type(self)(self._handle, {"priority": Priority.SHEDDABLE.value} | self._options)
        retries = Retries(retry_for_s)

        async def ask(numbered: tuple[int, Mapping[str, Any]]) -> Predicted:
            return await retries.run(lambda: _predicted(client, program, *numbered))

        return as_finished(enumerate(rows), ask, concurrency)

    def _send(self, program: str, inputs: dict[str, Any], request_id: str) -> Any:  # noqa: ANN401 - Ray's response
        return self._handle.predict.remote(program, inputs, self._options, request_id, trace=dict(trace_headers()))

    def _patience_s(self) -> float | None:
        """Seconds to wait for an application that says nothing; ``None``, which is for ever, without a deadline.

        One that is no time, which the application refuses, is none to wait for either.
        """
        deadline_s = self._options.get("deadline_s")
        if isinstance(deadline_s, (int, float)) and 0 < deadline_s < TIMEOUT_MAX:
            return deadline_s + GRACE_S
        return None


def connect(application: str = "switchyard", *, address: str | None = None) -> Client:
    """A client of the application of that name.

    Args:
        application: its ``name`` in ``serve_config.yaml``; not a program's, nor a URL.
        address: of the Ray cluster, when this process is not connected to one; ``None`` takes ``RAY_ADDRESS``, or
            the cluster that runs on this machine.

    Raises:
        NoRoute: there is no cluster, or no such application on it; those that are there are named.
    """
    try:
        if not ray.is_initialized():
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.WARNING)
        handle = serve.get_app_handle(application)
        if not handle.is_initialized:  # Ray keeps handles: this one may have been connected before
            # In the fast mode of Ray Serve, which a job inherits from its cluster, a handle belongs by default to the
            # event loop that uses it first: it is of no use without one, and none when that one has ended.
            handle._init(_run_router_in_separate_loop=True)  # type: ignore[no-untyped-call] # noqa: SLF001 - no other way
        return Client(handle)
    except (ConnectionError, RayServeException) as error:
        why = str(error).rstrip(".") + _applications()
        raise NoRoute(f"cannot reach the application {application!r}: {why}") from error


def _applications() -> str:
    """``; there are 'a', 'b'``: the applications of the cluster, as far as it tells."""
    if not ray.is_initialized():
        return ""
    try:
        names = sorted(serve.status().applications)
    except (RayError, RayServeException):
        return ""
    return f"; there is {', '.join(map(repr, names))}" if names else "; there is none"


def _reconnect(application: str, options: dict[str, Any]) -> Client:
    return connect(application).with_options(**options)


def _prediction(reply: dict[str, Any]) -> dspy.Prediction:
    return dspy.Prediction(**reply["outputs"] | {"meta": reply["meta"]})


@contextmanager
def _in_our_words(request_id: str) -> Iterator[None]:
    try:
        yield
    except (RayError, RayServeException) as error:
        raise _translated(error, request_id) from None
    except TimeoutError:
        raise DeadlineExceeded("no answer within the deadline", request_id=request_id) from None


def _translated(error: RayError | RayServeException, request_id: str) -> SwitchyardError:
    """What was raised in the replica, without Ray's wrapping; what Ray itself raised, as the nearest of our own."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SwitchyardError):
        return cause if cause.request_id else cause.about(request_id, cause.attempts)
    match error:
        case BackPressureError():
            return Overloaded("too many calls are waiting", 1.0, (), request_id)
        case TaskCancelledError():
            return ClientClosed("the call was cancelled", request_id=request_id)
        case DeploymentUnavailableError():
            return NoRoute("the application is not able to answer", 1.0, (), request_id)
        case RayActorError() | ReplicaUnavailableError():
            text = "the replica that had the call is gone"
            return UpstreamError(text, 1.0, (), request_id, outcome=Outcome.UNREACHABLE)
        case _:
            return SwitchyardError(f"the call failed inside Ray: {type(error).__name__}", None, (), request_id)


async def _predicted(client: Client, program: str, index: int, inputs: Mapping[str, Any]) -> Predicted:
    try:
        _must_be_inputs(inputs)
        return Predicted(index, inputs, await client.apredict(program, **inputs))
    except SwitchyardError as error:
        return Predicted(index, inputs, error=error)


def _must_be_inputs(row: Any) -> None:  # noqa: ANN401 - whatever the caller's iterable holds
    if not isinstance(row, Mapping):
        raise InvalidInputs(f"a row must be a mapping of inputs by name, not {type(row).__name__}")
    for name in row:
        if not isinstance(name, str):
            raise InvalidInputs(f"an input's name must be a string, not {type(name).__name__}")


def _blocking(stream: AsyncGenerator[Predicted, None]) -> Generator[Predicted, None, None]:
    """The stream for a caller that waits, on a loop of its own; the loop closes it as its last act.

    Waiting here until the stream is closed would never end where the process ends first, which stops the loop's thread.
    """
    with closing(LoopThread("switchyard-bulk")) as loop:
        while (predicted := loop.run(_next(stream))) is not None:
            yield predicted


async def _next(stream: AsyncGenerator[Predicted, None]) -> Predicted | None:
    return await anext(stream, None)


def _refuse_inside_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("predict() would block the running event loop; await apredict() instead")
