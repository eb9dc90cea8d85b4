"""What the LM engine must know of the call it works for: deadline, token limit, where to count, journal, trace.

DSPy hands an engine nothing but the request, so the rest travels as the program's LM does, in DSPy's settings: tasks,
``contextvars.copy_context().run``, ``dspy.Parallel`` and ``dspy.asyncify`` hand them on. A thread that a program starts
without any of these has neither.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import dspy

from serve_app.adapters.tracing import current_trace
from serve_app.messages import TraceContext, Usage

if TYPE_CHECKING:
    from serve_app.adapters.call_journal import CallJournal

T = TypeVar("T")

_SETTING: Final = "switchyard_call_scope"


@dataclass(slots=True)
class CallScope:
    """One call's run on one model.

    Attributes:
        deadline: reading of ``time.monotonic()`` at which the call is worth nothing any more.
        max_tokens: most output tokens of each LM call; ``None`` sets no bound of its own.
        usage: tokens spent so far, by failed LM calls as well.
        lm_calls: LM calls sent to the provider so far.
        lm_answers: LM calls that were answered; of a batch, this call's share of them.
        lm_s: seconds that they took, added up.
        asking: LM calls under way, or that were when the time was over: where there is none, it was not the model that
            took it.
        is_truncated: whether a token limit ended an LM call's answer, anybody's.
        is_cut_off: whether ``max_tokens`` did, where neither program nor model set less.
        journal: what this call has finished, for the next attempt; ``None`` keeps none.
        trace: what it is part of; the threads of ``dspy.Parallel`` have no context variables to tell them.
    """

    deadline: float
    max_tokens: int | None = None
    usage: Usage = Usage()
    lm_calls: int = 0
    lm_answers: float = 0.0
    lm_s: float = 0.0
    asking: int = 0
    is_truncated: bool = False
    is_cut_off: bool = False
    journal: CallJournal | None = None
    trace: TraceContext | None = None
    _held: dict[asyncio.Timeout, asyncio.AbstractEventLoop] = field(default_factory=dict, init=False, repr=False)

    def remaining_s(self) -> float:
        """Seconds left; 0 when the deadline has passed."""
        return max(0.0, self.deadline - time.monotonic())

    def spend(self, input_tokens: int, output_tokens: int, seconds: float = 0.0) -> None:
        """Count the tokens of one answered LM call, and the seconds that it took."""
        self.usage += Usage(input_tokens, output_tokens)
        self.lm_answers += 1
        self.lm_s += seconds

    async def hold(self, work: Awaitable[T]) -> T:
        """What ``work`` gives; it is cancelled when the call is given up, on whatever loop it runs.

        Raises:
            TimeoutError: the call was given up.
        """
        self.asking += 1
        async with asyncio.timeout(None) as limit:
            # It registers before it looks, and ``give_up`` writes before it looks, so one of them sees the other.
            self._held[limit] = asyncio.get_running_loop()
            if self.remaining_s() <= 0:
                self._end(limit)
            try:
                result = await work
            except (asyncio.CancelledError, TimeoutError):
                raise  # it was under way when the time was over, perhaps
            except BaseException:
                self.asking -= 1
                raise
            else:
                self.asking -= 1
                return result
            finally:
                self._held.pop(limit, None)

    def give_up(self) -> None:
        """Take away the time that is left, from any thread: what is held ends at once, no further LM call starts."""
        self.deadline = time.monotonic()
        for limit, loop in self._held.copy().items():
            with suppress(RuntimeError):  # the loop has closed meanwhile, and what it held has ended
                loop.call_soon_threadsafe(self._end, limit)

    def _end(self, limit: asyncio.Timeout) -> None:
        loop = self._held.pop(limit, None)
        if loop is not None:
            limit.reschedule(loop.time())


@contextmanager
def call_scope(
    remaining_s: float, max_tokens: int | None = None, journal: CallJournal | None = None
) -> Iterator[CallScope]:
    """Run the body as one call with ``remaining_s`` seconds left; the journal is closed at its end."""
    scope = CallScope(time.monotonic() + remaining_s, max_tokens, journal=journal, trace=current_trace())
    try:
        with dspy.context(**{_SETTING: scope}):
            yield scope
    finally:
        if journal is not None:
            journal.close()


def current_journal() -> CallJournal | None:
    """The journal of the call this code runs for; ``None`` when there is none."""
    scope = current_scope()
    return None if scope is None else scope.journal


def current_scope() -> CallScope | None:
    """The call this code runs for; ``None`` outside of any."""
    scope: CallScope | None = dspy.settings.get(_SETTING)
    return scope
