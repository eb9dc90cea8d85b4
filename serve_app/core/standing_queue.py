"""Whether a program's calls stand in a queue that never empties, and which calls may still join it.

    wait      : time that a call was here, less the time that its program ran                 seconds
    standing  : the last answers of its priority, or of a better one, all waited > half of what is bearable
    expected  = held / rate - ran                                              Little's law; answers a second
    too long  : standing, and expected > bearable
    bearable  = share * max(min(remaining, MOST_S), RUNS * ran)

A queue that stands makes every answer late and none more, for as long as the deadline allows, and what waits costs time
that answers could be made in. A burst that is worked off is none: then some calls wait next to nothing. While it
stands, what models answer a second is taken for what can be answered, and says how long another call would be here,
wherever it waits: for a model's slot, for this process or for the ones behind it. Each priority bears its share: of a
slow program, three runs by default.

The estimate is too long where many of the calls that are held get no answer of a model made for them: they fail, join
others' or come out of a cache. One answer that waited for nothing, or does not say so (an attempt that was given up),
shows a queue that does not stand.

Source: K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012 (good queues and bad ones).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from serve_app.core.clock import Clock
from serve_app.core.expected_wait import refuse
from serve_app.core.permit import Refusal
from serve_app.messages import PRIORITIES, Priority

WINDOW_S: Final = 1.0
"""Answers of so long ago count."""
LEAST: Final = 16
"""So many answers count, however old, until nobody is here."""
LEAST_OF_PRIORITY: Final = 4
"""Answers of one priority among them that say something about it."""
READ_EVERY_S: Final = 0.02
FEW: Final = 32
"""Calls that are no queue."""
MOST_S: Final = 10.0
"""Most of a call's remaining time that counts."""
RUNS: Final = 30.0
"""Runs of the program that count as much: what waits for slots has to be more than autoscaling aims at."""
BEARABLE: Final[Mapping[Priority, float]] = MappingProxyType(
    {Priority.SHEDDABLE: 0.05, Priority.DEFAULT: 0.1, Priority.CRITICAL: 0.5}
)
"""Wait that a call of each priority bears, as a share of the time it has left, or of ``RUNS`` runs."""
REASON: Final = "standing_queue"


class _Answer(NamedTuple):
    at: float
    priority: Priority
    wait_s: float
    ran_s: float


class _Reading(NamedTuple):
    """What the last answers say."""

    at: float
    since: float
    answers: int
    ran_s: float
    least_wait_s: Mapping[Priority, float]


class StandingQueue:
    """One program's calls at one ingress.

    Attributes:
        held: calls that are here.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock) -> None:
        self.held = 0
        self._clock = clock
        self._answers: deque[_Answer] = deque()
        self._reading = _Reading(float("-inf"), 0.0, 0, 0.0, {})

    def join(self) -> None:
        """Count one call more."""
        self.held += 1

    def leave(self, priority: Priority, here_s: float, ran_s: float | None) -> None:
        """Count one call less, and learn from it. A queue that is empty stands no more.

        Args:
            priority: of the call.
            here_s: seconds that it was here.
            ran_s: seconds of them that its program ran; ``None`` unless a model answered it.
        """
        self.held -= 1
        if not self.held:
            self._answers.clear()
        elif ran_s is not None:
            self._learn(priority, here_s, ran_s)

    def _learn(self, priority: Priority, here_s: float, ran_s: float) -> None:
        now = self._clock()
        self._answers.append(_Answer(now, priority, max(0.0, here_s - ran_s), ran_s))
        while len(self._answers) > LEAST and self._answers[0].at <= now - WINDOW_S:
            self._answers.popleft()

    def refusal(self, priority: Priority, remaining_s: float) -> Refusal | None:
        """Why a call should not join; ``None`` when it may."""
        if self.held < FEW or len(self._answers) < LEAST:
            return None
        reading = self._read()
        bearable_s = BEARABLE[priority] * max(min(remaining_s, MOST_S), RUNS * reading.ran_s)
        at_least_as_good = PRIORITIES[: PRIORITIES.index(priority) + 1]
        if max(reading.least_wait_s.get(each, 0.0) for each in at_least_as_good) <= bearable_s / 2:
            return None
        expected_s = self.held * (self._clock() - reading.since) / reading.answers - reading.ran_s
        return refuse(expected_s - bearable_s, REASON) if expected_s > bearable_s else None

    def _read(self) -> _Reading:
        now = self._clock()
        if now - self._reading.at >= READ_EVERY_S:
            waits: dict[Priority, list[float]] = {}
            for answer in self._answers:
                waits.setdefault(answer.priority, []).append(answer.wait_s)
            least = {priority: min(each) for priority, each in waits.items() if len(each) >= LEAST_OF_PRIORITY}
            count, since = len(self._answers) - 1, self._answers[0].at
            ran_s = sum(answer.ran_s for answer in self._answers) / len(self._answers)
            self._reading = _Reading(now, since, count, ran_s, least)
        return self._reading
