"""Which level of service the readings ask for, without ever flapping.

    at level            moves to                     when
    full, degraded      the worst level entered      some reading >= that level's threshold
    minimal, degraded   the next better level        every reading < this level's threshold * ``exit_ratio``
    any                 ``pin``                      as long as it is set; at once

A change, for better or worse, comes at the earliest ``dwell_s`` after the one before, so there is at most one in any
``dwell_s``, however the readings swing; only an operator's pin goes first. Worse is reached in one step, better
level by level. A threshold that is null and a reading that is unknown neither enter nor hold a level.

Memory and CPU are momentary readings: their mean over ``window_s`` is judged. Error rate, latency and queue wait are
figures of a window already, and are judged as they come.

Source: hysteresis with a dwell time, as in the Schmitt trigger and in supervisory switching control (Morse, 1996).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.rolling_window import RollingMean
from serve_app.messages import Level
from serve_app.policy import DegradationPolicy, Thresholds

_RECOVERING: Final = "recovering"
_WAS_PINNED: Final = "was pinned"


@dataclass(frozen=True, slots=True)
class Readings:
    """How the service is doing; ``None`` is unknown.

    Attributes:
        memory: of the fullest node at this moment, 0..1.
        cpu: of the busiest node at this moment, 0..1.
        error_rate: share of recent calls that failed, 0..1.
        p95_latency_s: 95th percentile of recent answer times, seconds.
        queue_wait_s: 95th percentile of recent waits for a model slot, seconds.
    """

    memory: float | None = None
    cpu: float | None = None
    error_rate: float | None = None
    p95_latency_s: float | None = None
    queue_wait_s: float | None = None


_CAUSES: Final = frozenset({*Readings.__dataclass_fields__, "pinned"})


@dataclass(frozen=True, slots=True)
class Decision:
    """The level of service.

    Attributes:
        level: what programs are at the moment.
        reason: what led to it; empty at ``full``, unless an operator pins it there.
        since_s: seconds it has been so.
    """

    level: Level
    reason: str
    since_s: float

    @property
    def cause(self) -> str:
        """The reason as one of a few words, for a metric's label: a reading's name, ``pinned`` or ``other``."""
        word = self.reason.partition(" ")[0]
        return word if word in _CAUSES else "other"


class DegradationController:
    """Turns readings into a level.

    Args:
        policy: thresholds and times.
        clock: monotonic seconds.
    """

    def __init__(self, policy: DegradationPolicy, *, clock: Clock) -> None:
        self._policy = policy
        self._clock = clock
        self._memory = RollingMean(policy.window_s, clock=clock)
        self._cpu = RollingMean(policy.window_s, clock=clock)
        self._level = Level.FULL
        self._reason = ""
        self._since = clock()
        self._may_change_at = self._since

    def update(self, readings: Readings) -> Decision:
        """Take one set of readings and say which level holds now."""
        judged = self._smooth(readings)
        if self._policy.pin is not None:
            self._pin(self._policy.pin)
        elif self._clock() >= self._may_change_at:
            self._follow(judged)
        return self.decision()

    def decision(self) -> Decision:
        """The level that holds, with no new readings."""
        reason = "pinned" if self._policy.pin is self._level else self._reason
        return Decision(self._level, reason, self._clock() - self._since)

    def reconfigure(self, policy: DegradationPolicy) -> None:
        """Judge by another policy from the next reading on; the level and its age stay."""
        self._policy = policy
        self._memory.resize(policy.window_s)
        self._cpu.resize(policy.window_s)
        self._may_change_at = min(self._may_change_at, self._since + policy.dwell_s)

    def restore(self, decision: Decision) -> None:
        """Go on where a controller of another process left off."""
        self._transition(decision.level, decision.reason)
        self._since -= decision.since_s
        self._may_change_at -= decision.since_s

    def _smooth(self, readings: Readings) -> Readings:
        for window, reading in ((self._memory, readings.memory), (self._cpu, readings.cpu)):
            if reading is not None:
                window.add(reading)
        return replace(readings, memory=self._memory.mean(), cpu=self._cpu.mean())

    def _pin(self, level: Level) -> None:
        if level is not self._level:
            self._transition(level, "" if level is Level.FULL else _WAS_PINNED)

    def _follow(self, readings: Readings) -> None:
        for level in (Level.MINIMAL, Level.DEGRADED):
            cause = _cause(readings, self._thresholds(level), ratio=1)
            if cause and level.rank > self._level.rank:
                self._transition(level, cause)
                return
        if self._level is not Level.FULL and not _cause(
            readings, self._thresholds(self._level), ratio=self._policy.exit_ratio
        ):
            better = list(Level)[self._level.rank - 1]
            self._transition(better, "" if better is Level.FULL else self._holding(better, readings))

    def _holding(self, level: Level, readings: Readings) -> str:
        return _cause(readings, self._thresholds(level), ratio=self._policy.exit_ratio) or _RECOVERING

    def _thresholds(self, level: Level) -> Thresholds:
        return self._policy.minimal if level is Level.MINIMAL else self._policy.degraded

    def _transition(self, level: Level, reason: str) -> None:
        self._level = level
        self._reason = reason
        self._since = self._clock()
        self._may_change_at = self._since + self._policy.dwell_s


def _cause(readings: Readings, thresholds: Thresholds, *, ratio: float) -> str:
    """The reading that is furthest over its threshold times ``ratio``, in words; empty when none reaches it."""
    worst, words = 0.0, ""
    for name, reading in asdict(readings).items():
        threshold: float | None = getattr(thresholds, name)
        if reading is None or threshold is None or not reading >= threshold * ratio:
            continue
        excess = reading / threshold if threshold else float("inf")
        if not words or excess > worst:
            worst, words = excess, f"{name} {reading:.3g}, threshold {threshold:g}"
    return words
