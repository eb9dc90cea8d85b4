"""Whether a program's calls stand in a queue that never empties, and which calls may still join it.

    wait      : time that a call was here, less the time that its program ran                     seconds
    expected  = calls here now * time here / calls that were here when it came - ran             Little's law
    standing  : nine of ten waits > bearable / 2      both by the last answers to calls
    too long  : median of expected > bearable         as good or better
    bearable  = floor + share * max(min(remaining, MOST_S), runs * ran)

A queue that stands makes every answer late and none more, for as long as the deadline allows, and what waits costs time
that answers could be made in. A burst that is worked off is none: then some calls wait next to nothing. While it
stands, how many calls the answered ones found here, and how long they stayed, says how long another one would wait,
wherever it does: for a model's slot, for this process or for the ones behind it; whoever goes before it, and whatever
becomes of those, has had its part in both. Each priority bears its share, and of a slow program some runs, so that
what waits for slots is more than autoscaling aims at.

Answers that nobody had to run a program for say nothing; where no model answers for a while, nothing is known and
every call is taken.

Sources: K. Nichols and V. Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012 (good queues and bad ones);
R. Ibrahim and W. Whitt, "Real-time delay estimation based on delay history", M&SOM 11(3), 2009 (who was served last
tells the next one's wait).
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from serve_app.config import BatchingConfig, ModelConfig
from serve_app.core.clock import Clock
from serve_app.core.expected_wait import refuse
from serve_app.core.permit import Refusal
from serve_app.core.retry_turns import RetryTurns
from serve_app.core.scaling import BURST
from serve_app.messages import PRIORITIES, Priority

WINDOW_S: Final = 1.0
"""Answers of so long ago count."""
ENOUGH: Final = 16
"""So many answers of a priority count though they are older."""
OLD_S: Final = 10.0
OLD_RUNS: Final = 8.0
"""Seconds, and runs of the program, after which no answer counts: the longer of the two."""
MOST: Final = 512
"""Most answers of a priority that count."""
LEAST: Final = 4
"""Answers of a priority that say something about it."""
READ_EVERY_S: Final = 0.02
FEW: Final = 32
"""Calls that are no queue."""
MOST_S: Final = 10.0
"""Most of a call's remaining time that counts."""
LATENCY_S: Final = 0.1
"""What a call may be on its way from process to process, while none waits for another; an estimate."""
BEARABLE: Final[Mapping[Priority, float]] = MappingProxyType(
    {Priority.SHEDDABLE: 0.05, Priority.DEFAULT: 0.1, Priority.CRITICAL: 0.5}
)
"""Wait that a call of each priority bears, as a share of the time it has left, or of some runs."""
REASON: Final = "standing_queue"


class Patience(NamedTuple):
    """What calls have to bear for the sake of how the application is set up.

    Attributes:
        floor_s: seconds that any call may wait: it does without a queue.
        runs: runs of its program, of which each priority bears its share.
    """

    floor_s: float = LATENCY_S
    runs: float = 0.0


def patience_for(models: Iterable[ModelConfig], batching: BatchingConfig) -> Patience:
    """For one application: batches may wait for more calls, and autoscaling has to see what it calls a burst.

    Of ``n`` calls that wait for a replica's slots the last one waits ``n / slots`` runs; the least patient have to be
    ``BURST`` targets of waiting calls for each replica.
    """
    runs = max(BURST * model.replicas.target_queue_depth / model.max_ongoing_requests for model in models)
    return Patience(LATENCY_S + batching.batch_wait_timeout_s, runs / min(BEARABLE.values()))


class _Answer(NamedTuple):
    at: float
    here_s: float
    ran_s: float
    joined: int

    def wait_s(self) -> float:
        return self.here_s - self.ran_s

    def expected_s(self, held: int) -> float:
        """Seconds that another call would wait when so many are here."""
        return held * self.here_s / max(self.joined, FEW) - self.ran_s


class _Reading(NamedTuple):
    """What the last answers of one priority say.

    Attributes:
        is_fresh: whether the window has enough of them.
        wait_s: seconds that nine of ten waited, or more.
        teller: the answer that tells how long another call would wait: longer than half of them do.
        ran_s: seconds that programs ran, on average.
    """

    is_fresh: bool
    wait_s: float
    teller: _Answer
    ran_s: float


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
        self._answers = {priority: deque[_Answer](maxlen=MOST) for priority in PRIORITIES}
        self._readings: dict[Priority, _Reading] = {}
        self._here_s = 0.0
        self._turns = RetryTurns(clock=clock)
        self._read_at = float("-inf")

    def join(self) -> int:
        """Count one call more; how many are here now."""
        self.held += 1
        return self.held

    def leave(self, priority: Priority, joined: int, here_s: float, ran_s: float | None) -> None:
        """Count one call less, and learn from it. A queue that is empty stands no more.

        Args:
            priority: of the call.
            joined: what ``join`` said.
            here_s: seconds that it was here.
            ran_s: seconds of them that its program ran; ``None`` unless a model answered it, and said so.
        """
        self.held -= 1
        if not self.held:
            self._forget()
        elif ran_s is not None:
            self._answers[priority].append(_Answer(self._clock(), here_s, ran_s, joined))

    def retry_after_s(self, priority: Priority, asked_s: float) -> float:
        """Seconds after which a refused call should be made again, when ``asked_s`` would do for it alone."""
        self._read()
        return self._turns.next_s(priority, asked_s, self._here_s / max(1, self.held))

    def refusal(self, priority: Priority, remaining_s: float, patience: Patience) -> Refusal | None:
        """Why a call should not join; ``None`` when it may."""
        if self.held < FEW:
            return None
        readings = self._readings_for(priority)
        if not readings:
            return None
        ran_s = max(reading.ran_s for reading in readings)
        bearable_s = BEARABLE[priority] * max(min(remaining_s, MOST_S), patience.runs * ran_s)
        bearable_s += patience.floor_s
        if max(reading.wait_s for reading in readings) <= bearable_s / 2:
            return None
        expected_s = max(reading.teller.expected_s(self.held) for reading in readings)
        return refuse(expected_s - bearable_s, REASON) if expected_s > bearable_s else None

    def _readings_for(self, priority: Priority) -> list[_Reading]:
        """Those of the priority and of better ones, but for old ones of a better priority beside fresh ones.

        Who goes first waits no longer than who goes last.
        """
        known, readings, is_fresh = self._read(), list[_Reading](), False
        for each in reversed(PRIORITIES[: PRIORITIES.index(priority) + 1]):
            reading = known.get(each)
            if reading is not None and (reading.is_fresh or not is_fresh):
                readings.append(reading)
                is_fresh = reading.is_fresh
        return readings

    def _read(self) -> Mapping[Priority, _Reading]:
        now = self._clock()
        if now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            for answers in self._answers.values():
                _drop_old(answers, now)
            read = {priority: answers for priority, answers in self._answers.items() if len(answers) >= LEAST}
            self._readings = {priority: _reading(answers, self.held, now) for priority, answers in read.items()}
            here_s = [answer.here_s for answers in read.values() for answer in answers]
            self._here_s = statistics.fmean(here_s) if here_s else 0.0
        return self._readings

    def _forget(self) -> None:
        for answers in self._answers.values():
            answers.clear()
        self._readings, self._here_s = {}, 0.0
        self._turns.forget()


def _drop_old(answers: deque[_Answer], now: float) -> None:
    if not answers:
        return
    old_s = max(OLD_S, OLD_RUNS * statistics.median(answer.ran_s for answer in answers))
    while answers and ((age_s := now - answers[0].at) > old_s or (age_s > WINDOW_S and len(answers) > ENOUGH)):
        answers.popleft()


def _reading(answers: Sequence[_Answer], held: int, now: float) -> _Reading:
    is_fresh = now - answers[-LEAST].at <= WINDOW_S
    wait_s = sorted(answer.wait_s() for answer in answers)[len(answers) // 10]
    teller = sorted(answers, key=lambda answer: answer.expected_s(held))[len(answers) // 2]
    return _Reading(is_fresh, wait_s, teller, sum(answer.ran_s for answer in answers) / len(answers))
