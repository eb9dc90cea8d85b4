"""Run a DSPy module under a deadline: on the event loop when it is async, else in a thread of its own.

A thread cannot be stopped. A sync call is given up at its deadline, or when its caller leaves: the LM calls that it
has in flight are cancelled, and the next one that it begins raises, so that its thread ends soon. Until then the
thread counts as stuck.

No call waits for a thread, for it would hold its slot meanwhile, unseen by whoever looks at the model's queue. There
are two threads for each call that may run at once: its own, and that of a call before it which has not ended yet. Only
where programs hang by themselves are all of them held; further calls are then refused at once.

A program is stateless between calls. One whose ``forward`` assigns to attributes (``dspy.Refine`` and ``BestOfN``
do) runs as a copy of its own per call, so that what one call stores is never seen by another; what is slow to set
up belongs in ``__init__``.
"""

from __future__ import annotations

import asyncio
import contextvars
import dis
import inspect
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import dspy
from dspy.utils.callback import BaseCallback

from serve_app.adapters.call_scope import current_scope
from serve_app.adapters.program_errors import upstream_error
from serve_app.adapters.program_interface import entry_point, runs_async, takes_batches
from serve_app.errors import Overloaded, UpstreamError
from serve_app.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class ProgramThreads:
    """The threads of one program; each is started when a call needs one and none is idle.

    Args:
        max_calls: most calls that whoever asks runs at once.
        name: the program's.

    Attributes:
        stuck: threads still running a call that was given up.
        given_up: calls given up since the start.
    """

    def __init__(self, max_calls: int, name: str) -> None:
        self._max_threads = 2 * max_calls
        self._pool = ThreadPoolExecutor(self._max_threads, thread_name_prefix=f"program-{name}")
        self._running = 0
        self.stuck = 0
        self.given_up = 0

    async def run(self, function: Callable[[], object], remaining_s: float) -> object:
        """What ``function`` returns, run in a thread with the caller's context variables.

        Raises:
            Overloaded: every thread is held.
            UpstreamError: it was not done in ``remaining_s`` seconds (outcome ``timeout``).
        """
        if self._running + self.stuck >= self._max_threads:
            raise Overloaded("every thread of the program is held, most by calls that did not end", 1.0)
        running: Future[object] = self._pool.submit(contextvars.copy_context().run, function)
        self._running += 1
        try:
            return await _within(asyncio.wrap_future(running), remaining_s)
        finally:
            self._running -= 1
            if not running.done():
                self._give_up(running)

    def close(self) -> None:
        """Take no more calls; calls that run are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _give_up(self, running: Future[object]) -> None:
        scope = current_scope()
        if scope is not None:
            scope.give_up()
        self.stuck += 1
        self.given_up += 1
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: self._ended(loop))

    def _ended(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        self.stuck -= 1


class Runner:
    """One module, ready to be called with Python values."""

    def __init__(self, module: dspy.Module, threads: ProgramThreads) -> None:
        """Settle how ``module`` runs.

        Raises:
            ConfigError: it has no usable ``forward`` or ``aforward``.
        """
        entry_point(module)
        self._module = module
        self._threads = threads
        self.is_async = runs_async(module)
        self.takes_batches = takes_batches(module)
        self._copies = any(_assigns_attributes(part) for _, part in module.named_sub_modules(type_=dspy.Module))

    async def run(self, inputs: dict[str, Any], remaining_s: float) -> object:
        """The prediction for ``inputs``, inside the caller's ``dspy.context``.

        Raises:
            UpstreamError: with outcome ``timeout``, when ``remaining_s`` seconds pass.
            Exception: whatever the module raises.
        """
        module = self._module.deepcopy() if self._copies else self._module
        if not self.is_async:
            return await self._in_thread(module, inputs, remaining_s)
        return await _within(module.acall(**inputs), remaining_s)

    async def run_batch(self, inputs: list[dict[str, Any]], remaining_s: float) -> object:
        """What ``aforward_batch`` returns for many inputs at once; raises as ``run`` does."""
        module = self._module.deepcopy() if self._copies else self._module
        return await _within(module.aforward_batch(inputs), remaining_s)

    async def _in_thread(self, module: dspy.Module, inputs: dict[str, Any], remaining_s: float) -> object:
        failures = _LastFailure()
        with dspy.context(callbacks=[*dspy.settings.callbacks, failures]):
            prediction = await self._threads.run(partial(module, **inputs), remaining_s)
        if prediction is None and failures.last is not None:
            raise upstream_error(failures.last) from failures.last
        return prediction


class _LastFailure(BaseCallback):  # type: ignore[misc]  # DSPy is untyped
    """Remembers the model's last failure: ``Refine`` and ``BestOfN`` swallow all of them and return ``None``."""

    def __init__(self) -> None:
        self.last: dspy.LMError | None = None

    def on_lm_end(
        self,
        call_id: str,  # noqa: ARG002 - DSPy's interface
        outputs: dict[str, Any] | None,  # noqa: ARG002 - DSPy's interface
        exception: BaseException | None = None,
    ) -> None:
        """Keep the failure of the latest LM call; a later success forgets it."""
        self.last = exception if isinstance(exception, dspy.LMError) else None


async def _within(work: Awaitable[object], remaining_s: float) -> object:
    try:
        async with asyncio.timeout(remaining_s) as limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise out_of_time() from error
        raise


def out_of_time(outcome: Outcome = Outcome.TIMEOUT) -> UpstreamError:
    """The error of an attempt whose share of the deadline is used up; ``rejected`` when nothing ran."""
    done = "started" if outcome is Outcome.REJECTED else "done"
    return UpstreamError(f"the program was not {done} within its share of the deadline", outcome=outcome)


def _assigns_attributes(module: dspy.Module) -> bool:
    """Whether a call or a batch of calls stores into an attribute of anything."""
    functions = [getattr(type(module), name, None) for name in ("forward", "aforward", "aforward_batch")]
    codes = [inspect.unwrap(function).__code__ for function in functions if inspect.isfunction(function)]
    return any(step.opname == "STORE_ATTR" for code in codes for step in dis.get_instructions(code))
