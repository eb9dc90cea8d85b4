"""Whether one ingress takes another call: how many it holds, how late its event loop runs, and when to ask again.

    full  : held >= share * max_queued
    again : (calls too many) * (how long a call is held) / held         Little's law

Each priority may fill its share, so under growing load sheddable calls are refused first and critical ones last, and
a critical call finds room that no other may take; ``serve_app.core.loop_lag`` does the same for the process' time, once
there are calls enough to be what takes it: a loop that is late with next to nothing to do waits for a core that other
processes have, and gets none sooner by refusing. How long a call would wait for a *model* is judged where the model is
known: by the router from what replicas report, and by the replica's own queue (``serve_app.core.expected_wait``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from typing import Final, Self

from serve_app.core.clock import Clock
from serve_app.core.expected_wait import refuse, room_for
from serve_app.core.loop_lag import LoopLag
from serve_app.core.permit import Refusal
from serve_app.core.rolling_window import RollingMean
from serve_app.core.standing_queue import Patience, StandingQueue
from serve_app.messages import Priority

HOLD_WINDOW_S: Final = 30.0
"""Seconds over which the time that calls are held is averaged."""
FEW: Final = 16
"""Calls held that cannot be what makes the loop late; an estimate (a few ms of CPU each)."""


class Ticket:
    """One admitted call's place; a context manager that gives it back once, whatever happens in the body.

    Attributes:
        shed: what the call has to be told unless a cache answers it or an answer to it is being made.
        ran_s: seconds that the call's program ran; ``None`` unless a model answered, and said so.
    """

    __slots__ = ("_admission", "_joined", "_priority", "_queue", "_since", "ran_s", "shed")

    def __init__(self, admission: Admission, queue: StandingQueue, priority: Priority, shed: Refusal | None) -> None:
        self._admission: Admission | None = admission
        self._queue = queue
        self._priority = priority
        self._since = admission.clock()
        self._joined = 0 if shed else queue.join()  # what is not going to run makes nobody wait
        self.shed = shed
        self.ran_s: float | None = None

    def release(self) -> None:
        """The call is gone, answered or not: its place is free."""
        admission, self._admission = self._admission, None
        if admission is not None:
            here_s = admission.clock() - self._since
            if not self.shed:
                self._queue.leave(self._priority, self._joined, here_s, self.ran_s)
            admission.left(here_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Admission:
    """A bound on the calls held at once, and on the lag of the loop that holds them. For one event loop.

    Attributes:
        clock: monotonic seconds.
        patience: how long calls may stand in a queue for the sake of the application.

    Args:
        max_queued: most calls held.
        lag: of the loop; without one it is never too late.
        clock: monotonic seconds.
    """

    def __init__(self, max_queued: int, lag: LoopLag | None = None, *, clock: Clock) -> None:
        self.clock = clock
        self.patience = Patience()
        self._max_queued = max_queued
        self._lag = lag or LoopLag()
        self._held = 0
        self._queues: defaultdict[Hashable, StandingQueue] = defaultdict(lambda: StandingQueue(clock=clock))
        self._times = RollingMean(HOLD_WINDOW_S, clock=clock)

    @property
    def held(self) -> int:
        """Calls admitted and not gone."""
        return self._held

    def admit(
        self, priority: Priority, remaining_s: float, kind: Hashable = None, *, may_be_known: bool = False
    ) -> Ticket | Refusal:
        """A place for one call, or why there is none.

        ``queue_full``, ``deadline`` when its time is up already, ``busy_loop`` when ``FEW`` are held and it would not
        be answered in time, ``standing_queue`` when too many of its kind wait already.

        Args:
            priority: of the call.
            remaining_s: seconds left of its deadline.
            kind: of few kinds the one whose calls wait for the same.
            may_be_known: whether its answer may be found behind the queue that stands; its ticket then has the refusal.
        """
        room = room_for(priority, self._max_queued)
        if self._held >= room:
            return refuse(self._seconds_for(self._held - room + 1), "queue_full")
        if remaining_s <= 0:
            return refuse(0, "deadline")
        if self._held >= FEW and (busy := self._lag.refusal(priority, remaining_s)):
            return busy
        queue = self._queues[kind]
        standing = queue.refusal(priority, remaining_s, self.patience)
        if standing and not may_be_known:
            return standing
        self._held += 1
        return Ticket(self, queue, priority, standing)

    def retry_after_s(self, priority: Priority, asked_s: float, kind: Hashable = None) -> float:
        """Seconds after which a refused call should be made again, when ``asked_s`` would do for it alone."""
        return self._queues[kind].retry_after_s(priority, asked_s)

    def _seconds_for(self, calls: int) -> float | None:
        """Seconds until that many calls are gone; ``None`` when nothing is known of how long they stay."""
        mean_s = self._times.mean()
        return None if mean_s is None else calls * mean_s / self._held

    def left(self, here_s: float) -> None:
        """A ticket is given back, after so many seconds."""
        self._held -= 1
        self._times.add(here_s)
