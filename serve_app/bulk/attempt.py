"""What one call of one row comes to, and when it is made again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol, TypeVar

from serve_app.messages import Outcome as Attempted

RETRIED: Final = frozenset({429, 503})
"""Statuses after which asking again may help: refused, or no model could answer."""
TOO_LATE: Final = 504
FIRST_WAIT_S: Final = 0.5
MAX_WAIT_S: Final = 30.0
JITTER: Final = 0.25
UNREACHABLE: Final = "unreachable"


def is_worth_retrying(status: int, outcomes: Collection[object]) -> bool:
    """Whether a call that failed may succeed later.

    One whose time was over before any model ran it may: it waited in vain, and nothing was paid for it. One that models
    had at work would take as long again.

    Args:
        status: of the HTTP reply, or of the error.
        outcomes: of the call's attempts.
    """
    never_ran = bool(outcomes) and all(outcome == Attempted.REJECTED for outcome in outcomes)
    return status in RETRIED or (status == TOO_LATE and never_ran)


class Outcome(Protocol):
    """What a call came to, as far as making it again goes."""

    @property
    def is_retryable(self) -> bool:
        """Whether the same call may succeed later."""

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that the application asks to wait; ``None`` when it does not say."""


AnyOutcome = TypeVar("AnyOutcome", bound=Outcome)


@dataclass(frozen=True)
class Answer:
    """The program answered."""

    is_retryable: ClassVar[bool] = False
    retry_after_s: ClassVar[None] = None

    outputs: dict[str, Any]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """The call failed.

    Attributes:
        code: as in ``serve_app.errors``; ``unreachable`` when no application answered.
        detail: what is wrong, in a sentence.
        is_retryable: whether the same call may succeed later.
        retry_after_s: seconds that the application asks to wait; ``None`` when it does not say.
    """

    code: str
    detail: str
    is_retryable: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Retries:
    """How a call that was refused is made again, and for how long.

    A wait is what ``Retry-After`` says and up to a quarter more, so that callers refused together do not come back
    together; without it, half a second that doubles up to half a minute, each drawn between its half and its whole
    (equal jitter, https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Attributes:
        for_s: seconds after the first try within which another may begin.
    """

    for_s: float = 300.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    draw: Callable[[], float] = field(default=random.random)
    """A number from 0 to 1."""

    async def run(self, call: Callable[[], Awaitable[AnyOutcome]]) -> AnyOutcome:
        """The first outcome that is not to be retried, or the last there was time for."""
        give_up = self.clock() + self.for_s
        backoff_s = FIRST_WAIT_S
        while True:
            outcome = await call()
            if not outcome.is_retryable:
                return outcome
            wait_s = self._wait_s(outcome.retry_after_s, backoff_s)
            if self.clock() + wait_s > give_up:
                return outcome
            await self.sleep(wait_s)
            backoff_s = min(MAX_WAIT_S, 2 * backoff_s)

    def _wait_s(self, asked_s: float | None, backoff_s: float) -> float:
        if asked_s is not None:
            return asked_s * (1 + JITTER * self.draw())
        return backoff_s * (0.5 + 0.5 * self.draw())
