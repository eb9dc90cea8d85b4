"""Whether a call may still join the work at hand, and, when not, when to ask again.

    held   = waiting + running
    full   : held >= share * max_queued
    wait   = waiting * service / running           Little's law; 0 while no queue stands
    late   : wait > share * remaining

Each priority may use its ``SHARES`` of both bounds, so under growing load sheddable calls are refused first and
critical ones last, and a critical call finds room that no other may take. A queue *stands* when its oldest call has
waited for ``STANDING_S``: calls that arrive together and start at once are a batch, and say nothing about waiting.

Sources: J. Little, "A Proof for the Queuing Formula L = λW", 1961; Nichols and Jacobson, "Controlling Queue Delay",
2012 (the standing queue); "Handling Overload" in Google's *Site Reliability Engineering* (criticality).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Self

from serve_app.core.clock import Clock
from serve_app.core.permit import Refusal
from serve_app.core.rolling_window import RollingMean
from serve_app.messages import Priority

SHARES: Final[Mapping[Priority, float]] = MappingProxyType(
    {Priority.SHEDDABLE: 0.5, Priority.DEFAULT: 0.9, Priority.CRITICAL: 1.0}
)
"""Share of the room, and of its own remaining time in waiting, that a call of each priority may use."""
STANDING_S: Final = 0.05
"""Seconds the oldest waiting call must have waited before any wait is expected."""
SERVICE_WINDOW_S: Final = 30.0
"""Seconds over which service times are averaged, up to the last call that was served."""
MIN_RETRY_AFTER_S: Final = 0.1
"""Least that a refusal asks for."""
MAX_RETRY_AFTER_S: Final = 30.0
"""Most that a refusal asks for: an estimate is not worth more."""
UNKNOWN_RETRY_AFTER_S: Final = 1.0
"""What a refusal asks for before any service time is known."""


class Ticket:
    """One admitted call's place: waiting, then running, then gone. Safe to give back more than once.

    As a context manager it is given back at the end of the body, whatever happens.
    """

    __slots__ = ("_admission", "_started_at")

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        self._started_at: float | None = None

    def start(self) -> None:
        """The call got a slot; it waits no longer."""
        if self._admission is not None and self._started_at is None:
            self._started_at = self._admission._started(self)  # noqa: SLF001 - two halves of one thing

    def finish(self) -> None:
        """The call was served: its place is free, and its service time is known if it had started."""
        self._leave(served=True)

    def release(self) -> None:
        """The call ended without being served (cancelled, expired): its place is free, nothing is learned."""
        self._leave(served=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _leave(self, *, served: bool) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._left(self, self._started_at, served=served)  # noqa: SLF001 - two halves of one thing


class Admission:
    """A bound on the calls held at once, and on the wait they are let in for. For one event loop.

    Args:
        max_queued: most calls held, waiting and running together.
        clock: monotonic seconds.
    """

    def __init__(self, max_queued: int, *, clock: Clock) -> None:
        self._max_queued = max_queued
        self._clock = clock
        self._waiting: OrderedDict[Ticket, float] = OrderedDict()
        self._running = 0
        self._service = RollingMean(SERVICE_WINDOW_S, clock=clock)
        self._service_s: float | None = None

    @property
    def waiting(self) -> int:
        """Calls admitted and not started."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Calls started and not gone."""
        return self._running

    def admit(self, priority: Priority, remaining_s: float) -> Ticket | Refusal:
        """A place for one call, or why there is none: ``queue_full`` or ``deadline``.

        Args:
            priority: whose shares count.
            remaining_s: seconds left of the call's deadline.
        """
        share, held = SHARES[priority], self.waiting + self._running
        room = max(1, int(share * self._max_queued))
        if held >= room:
            return self._refuse(self._seconds_for(held - room + 1), "queue_full")
        wait_s, patience_s = self.expected_wait_s(), share * max(0.0, remaining_s)
        if wait_s > patience_s or remaining_s <= 0:
            return self._refuse(wait_s - patience_s, "deadline")
        ticket = Ticket(self)
        self._waiting[ticket] = self._clock()
        return ticket

    def expected_wait_s(self) -> float:
        """Seconds a call admitted now would wait for a slot; 0 while no queue stands or nothing is known."""
        oldest = next(iter(self._waiting.values()), None)
        if oldest is None or self._clock() - oldest < STANDING_S:
            return 0.0
        return self._seconds_for(self.waiting) or 0.0

    def _seconds_for(self, calls: int) -> float | None:
        """Seconds until that many calls are done; ``None`` when nothing is known of service times."""
        return None if self._service_s is None else calls * self._service_s / max(1, self._running)

    def _refuse(self, seconds: float | None, reason: str) -> Refusal:
        wanted_s = UNKNOWN_RETRY_AFTER_S if seconds is None else seconds
        return Refusal(min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wanted_s)), reason)

    def _started(self, ticket: Ticket) -> float:
        del self._waiting[ticket]
        self._running += 1
        return self._clock()

    def _left(self, ticket: Ticket, started_at: float | None, *, served: bool) -> None:
        if started_at is None:
            del self._waiting[ticket]
            return
        self._running -= 1
        if served:
            self._service.add(self._clock() - started_at)
            self._service_s = self._service.mean()
