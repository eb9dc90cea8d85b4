"""Who runs next in one model's replica: a bounded number of slots, and an ordered, bounded queue before them.

    a call comes                       it
    a slot is free                     starts
    its expected wait is too long *    is refused: deadline           (``serve_app.core.expected_wait``)
    ``max_waiting`` is reached *       takes the place of the last call of the worst class below its own, which is
                                       refused: queue_full; where there is none, it is itself
    otherwise                          waits

    * each priority has its share of both bounds

    a slot comes free                  the best class goes first, in the order of arrival
    a class was passed over
    ``PATIENCE`` times in a row        it goes next, once: nobody starves
    a call that waited has less time
    left than its program usually runs it is dropped and never started: its answer would come too late

How soon slots come free, the calls of all programs tell; how long a call runs, those of its own program
(``serve_app.core.service_times``).

For one event loop. Source of the shares and of early refusal: see ``serve_app.core.expected_wait``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.expected_wait import expected_wait_s, refuse, room_for, too_late
from serve_app.core.offered_calls import OfferedCalls
from serve_app.core.permit import Refusal
from serve_app.core.service_times import ServiceTimes
from serve_app.messages import PRIORITIES, Priority

PATIENCE: Final[Mapping[Priority, int]] = MappingProxyType(
    {Priority.CRITICAL: 0, Priority.DEFAULT: 9, Priority.SHEDDABLE: 19}
)
"""Slots that better classes may take in a row while one of this class waits: it gets one in ten, or one in twenty."""

OnTurn = Callable[[Refusal | None], None]
"""Told once: ``None`` when the call has its slot, or why it never will."""


class Place:
    """One call's place: waiting, then running, then gone. Give it back with ``leave``, more than once if need be."""

    __slots__ = ("_on_turn", "_queue", "_started_at", "expires_at", "priority", "program", "waited")

    def __init__(self, queue: SlotQueue, priority: Priority, expires_at: float, on_turn: OnTurn, program: str) -> None:
        self.priority = priority
        self.program = program
        self.expires_at = expires_at
        self.waited = False
        self._queue: SlotQueue | None = queue
        self._on_turn = on_turn
        self._started_at: float | None = None

    def leave(self, *, served: bool = False) -> None:
        """The call is over; ``served`` says that its time tells how long calls take."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue._left(self, self._started_at, served=served)  # noqa: SLF001 - two halves of one thing

    def _start(self, now: float) -> None:
        self._started_at = now
        self._on_turn(None)

    def _drop(self, refusal: Refusal) -> None:
        self._queue = None
        self._on_turn(refusal)


class SlotQueue:
    """Slots, and the calls before them.

    Args:
        slots: calls that run at once; may be changed.
        max_waiting: most calls that wait.
        clock: monotonic seconds.

    Attributes:
        running: calls that hold a slot.
        offered: calls that got a slot, and those that were refused or waited in vain.
    """

    def __init__(self, slots: int, max_waiting: int, *, clock: Clock) -> None:
        self._slots = slots
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting: dict[Priority, OrderedDict[Place, None]] = {each: OrderedDict() for each in PRIORITIES}
        self._passed = dict.fromkeys(PRIORITIES, 0)
        self._service = ServiceTimes(clock=clock)
        self.running = 0
        self.offered = OfferedCalls(clock=clock)

    @property
    def slots(self) -> int:
        """Calls that run at once."""
        return self._slots

    @property
    def waiting(self) -> int:
        """Calls that wait."""
        return sum(self.waiting_by_priority())

    @property
    def service_s(self) -> float:
        """Mean seconds of a served call, of the last ones if there was none lately; 0 before the first."""
        return self._service.mean_s()

    def run_s(self, program: str) -> float:
        """Mean seconds of a served call of this program; of one that is not known, ``service_s``."""
        return self._service.own_s(program)

    def waiting_by_priority(self) -> tuple[int, ...]:
        """Calls that wait, best class first."""
        return tuple(len(self._waiting[each]) for each in PRIORITIES)

    def resize(self, slots: int) -> None:
        """Change how many calls run at once; those that run go on."""
        self._slots = slots
        self._advance()

    def join(self, priority: Priority, remaining_s: float, on_turn: OnTurn, program: str = "") -> Place | Refusal:
        """A place for one call, which may have started when this returns; or why there is none.

        Args:
            priority: whose turn and whose share of the queue it has.
            remaining_s: seconds left of its deadline.
            on_turn: told once.
            program: whose calls tell how long it will run; those that name none are alike.
        """
        if refusal := self._refusal(priority, remaining_s, program):
            self.offered.lose()
            return refusal
        place = Place(self, priority, self._clock() + remaining_s, on_turn, program)
        self._waiting[priority][place] = None
        self._advance()
        place.waited = True
        return place

    def _refusal(self, priority: Priority, remaining_s: float, program: str) -> Refusal | None:
        service_s = self.service_s
        before = sum(len(self._waiting[each]) for each in PRIORITIES[: PRIORITIES.index(priority) + 1])
        wait_s = expected_wait_s(self.running + before, self._slots, service_s)
        if late := too_late(priority, remaining_s, wait_s, self.run_s(program)):
            return late
        waiting, room = self.waiting, room_for(priority, self._max_waiting)
        if waiting < room:
            return None
        full = refuse((waiting - room + 1) * service_s / self._slots if service_s else None, "queue_full")
        return None if waiting == room and self._makes_room(priority, full) else full

    def _makes_room(self, priority: Priority, full: Refusal) -> bool:
        """Drop the last call of the worst class below ``priority``; False where none waits."""
        for worse in reversed(PRIORITIES[PRIORITIES.index(priority) + 1 :]):
            if self._waiting[worse]:
                place, _ = self._waiting[worse].popitem()
                place._drop(full)  # noqa: SLF001 - two halves of one thing
                self.offered.lose()
                return True
        return False

    def _advance(self) -> None:
        """Start as many calls as there are free slots."""
        now = self._clock()
        while self.running < self._slots and (place := self._take()):
            if place.expires_at <= now or (place.waited and place.expires_at < now + self.run_s(place.program)):
                place._drop(refuse(0, "deadline"))  # noqa: SLF001 - two halves of one thing
                self.offered.lose()
                continue
            self._note_turn(place.priority)
            self.running += 1
            self.offered.took()
            place._start(now)  # noqa: SLF001 - two halves of one thing

    def _take(self) -> Place | None:
        waiting = [each for each in PRIORITIES if self._waiting[each]]
        if not waiting:
            return None
        overdue = [each for each in waiting[1:] if self._passed[each] >= PATIENCE[each]]
        return self._waiting[(overdue or waiting)[0]].popitem(last=False)[0]

    def _note_turn(self, priority: Priority) -> None:
        for each in PRIORITIES[PRIORITIES.index(priority) + 1 :]:
            self._passed[each] = self._passed[each] + 1 if self._waiting[each] else 0
        self._passed[priority] = 0

    def _left(self, place: Place, started_at: float | None, *, served: bool) -> None:
        if started_at is None:
            del self._waiting[place.priority][place]
            return
        self.running -= 1
        if served:
            self._service.add(place.program, self._clock() - started_at)
        self._advance()
