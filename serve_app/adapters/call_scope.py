"""What the LM engine must know of the call it works for: its deadline, its token limit, where to count, its journal.

DSPy hands an engine nothing but the request, so the rest travels in a context variable. Tasks and
``contextvars.copy_context().run`` inherit it, so it holds across ``asyncio.gather`` and executors too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve_app.messages import Usage

if TYPE_CHECKING:
    from serve_app.adapters.call_journal import CallJournal


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
        is_cut_off: whether ``max_tokens`` ended an LM call's answer, where neither program nor model set less.
        journal: what this call has finished, for the next attempt; ``None`` keeps none.
    """

    deadline: float
    max_tokens: int | None = None
    usage: Usage = Usage()
    lm_calls: int = 0
    lm_answers: float = 0.0
    lm_s: float = 0.0
    is_cut_off: bool = False
    journal: CallJournal | None = None

    def remaining_s(self) -> float:
        """Seconds left; 0 when the deadline has passed."""
        return max(0.0, self.deadline - time.monotonic())

    def spend(self, input_tokens: int, output_tokens: int, seconds: float = 0.0) -> None:
        """Count the tokens of one answered LM call, and the seconds that it took."""
        self.usage += Usage(input_tokens, output_tokens)
        self.lm_answers += 1
        self.lm_s += seconds


_current: ContextVar[CallScope | None] = ContextVar("switchyard_call_scope", default=None)


@contextmanager
def call_scope(
    remaining_s: float, max_tokens: int | None = None, journal: CallJournal | None = None
) -> Iterator[CallScope]:
    """Run the body as one call with ``remaining_s`` seconds left; the journal is closed at its end."""
    scope = CallScope(time.monotonic() + remaining_s, max_tokens, journal=journal)
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)
        if journal is not None:
            journal.close()


def current_journal() -> CallJournal | None:
    """The journal of the call this code runs for; ``None`` when there is none."""
    scope = _current.get()
    return None if scope is None else scope.journal


def current_scope() -> CallScope | None:
    """The call this code runs for; ``None`` outside of any."""
    return _current.get()
