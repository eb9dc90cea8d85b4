"""A circuit breaker for one model: leaves it alone when it fails, and lets it back carefully.

    state       event                                        next        what happens
    closed      acquire                                      closed      permit
    closed      failure or slow rate reaches its threshold   open        with ``minimum_calls`` in the window
    closed      an outcome that opens at once, ``trip``      open
    open        acquire within the wait                      open        refused: open
    open        acquire after the wait                       half_open   a probe is leased
    half_open   acquire, probes to spare                     half_open   a probe is leased
    half_open   acquire, none to spare                       half_open   refused: half_open
    half_open   ``half_open_probes`` successes               closed
    half_open   a probe fails or is slow, ``trip``           open        the wait doubles
    half_open   a probe is cancelled or says nothing new     half_open   its lease is free
    half_open   a lease expires                              half_open   its lease is free, its result comes too late
    any         ``isolate``                                  open        refused: isolated, until ``reset``
    any         ``reset``                                    closed      cooling and trips forgotten

The wait is ``open_s``, doubled with each trip in a row up to ``max_open_s``, then shortened by up to ``JITTER`` at
random so that breakers which opened together do not probe together. Trips are in a row until the breaker has been
closed for a whole window. Every change of state begins a new generation with an empty window; a result counts only in
the generation that admitted it. Beside the states, a model *cools* after a 429: it is refused, and the state stays.

Sources: M. Nygard, *Release It!* (the pattern); resilience4j (slow calls, minimum calls); sony/gobreaker (generations).
"""

from __future__ import annotations

from random import Random
from typing import Final

from serve_app.core.breaker_messages import BreakerSnapshot
from serve_app.core.clock import Clock
from serve_app.core.outcomes import MEANINGS, BreakerEffect, classify_latency
from serve_app.core.permit import Permit, Refusal
from serve_app.core.rolling_window import RollingWindow
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy
from serve_app.reports import ModelHealth

JITTER: Final = 0.1
"""Most share by which a wait is shortened."""
COOL_DOWN_S: Final = 1.0
"""Seconds a model cools after a 429 that names no time."""

_MAX_DOUBLINGS: Final = 32


class CircuitBreaker:
    """Says whether a model may be asked, and learns from what came of it. For one event loop.

    Args:
        policy: thresholds and times.
        clock: monotonic seconds.
        rng: source of jitter; a seeded one makes waits repeatable.
    """

    def __init__(self, policy: BreakerPolicy, *, clock: Clock, rng: Random | None = None) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng or Random()  # noqa: S311 - spreads probes in time, guards nothing
        self._window = RollingWindow(policy.window_s, clock=clock)
        self._state = BreakerState.CLOSED
        self._generation = 0
        self._reason = ""
        self._isolated = False
        self._trips = 0
        self._wait_until = self._cooling_until = self._probation_until = clock()
        self._leases: dict[int, float] = {}
        self._last_lease = 0
        self._successes = 0

    @property
    def state(self) -> BreakerState:
        """The state. An open breaker whose wait is over becomes half-open when it is next asked."""
        return self._state

    @property
    def generation(self) -> int:
        """Grows with every change of state."""
        return self._generation

    @property
    def cooling_s(self) -> float:
        """Seconds until a cooling model may be asked; 0 when it is not cooling."""
        return max(0.0, self._cooling_until - self._clock())

    def health(self) -> ModelHealth:
        """What everybody may know of the model."""
        refusal, counts = self.refusal(), self._window.counts()
        retry_after_s = refusal.retry_after_s if refusal else 0.0
        return ModelHealth(
            self._state, self._generation, retry_after_s, self._reason, requests=counts.total, failures=counts.failures
        )

    def refusal(self) -> Refusal | None:
        """What ``acquire`` would refuse with at this moment: ``None`` when it would admit. Changes nothing."""
        now = self._clock()
        cooling_s = self._cooling_until - now
        if self._isolated:
            return Refusal(self._policy.max_open_s, "isolated")
        if self._state is BreakerState.OPEN and now < self._wait_until:
            return Refusal(max(self._wait_until - now, cooling_s), "open")
        if cooling_s > 0:
            return Refusal(cooling_s, "cooling")
        if self._state is BreakerState.HALF_OPEN:
            leases = self._live_leases()
            if len(leases) + self._successes >= self._policy.half_open_probes:
                return Refusal(min(leases.values()) - now, "half_open")
        return None

    def acquire(self) -> Permit | Refusal:
        """Leave to ask the model once, or why not: ``open``, ``half_open``, ``isolated`` or ``cooling``."""
        refusal = self.refusal()
        if refusal:
            return refusal
        if self._state is BreakerState.CLOSED:
            return Permit(self._generation)
        if self._state is BreakerState.OPEN:
            self._transition(BreakerState.HALF_OPEN, self._reason)
        self._last_lease += 1
        self._leases = self._live_leases() | {self._last_lease: self._clock() + self._policy.probe_lease_s}
        return Permit(self._generation, probe=True, lease=self._last_lease)

    def record(self, permit: Permit, outcome: Outcome, latency_s: float, *, retry_after_s: float | None = None) -> bool:
        """Learn how an admitted call ended; once for each permit.

        Args:
            permit: what ``acquire`` gave.
            outcome: how the call ended.
            latency_s: seconds it took; an answer of ``slow_call_s`` or more counts as slow.
            retry_after_s: what a 429 asked for; its cooling holds whatever the permit's generation.

        Returns:
            False when the result came too late to say anything about the present state.
        """
        outcome = classify_latency(outcome, latency_s, self._policy.slow_call_s)
        effect = MEANINGS[outcome].breaker
        if effect is BreakerEffect.COOL_DOWN:
            self.cool_down(COOL_DOWN_S if retry_after_s is None else retry_after_s)
        if not self.release(permit):
            return False
        if effect is BreakerEffect.OPEN:
            self.trip(outcome.value)
        elif effect in (BreakerEffect.SUCCESS, BreakerEffect.FAILURE, BreakerEffect.SLOW):
            failed, slow = effect is BreakerEffect.FAILURE, effect is BreakerEffect.SLOW
            if permit.probe:
                self._judge_probe(outcome, healthy=not (failed or slow))
            else:
                self._window.add(1, int(failed), int(slow), latency_s)
                self._judge_window()
        return True

    def release(self, permit: Permit) -> bool:
        """Give a permit back with nothing learned; False when its time was over already."""
        if permit.generation != self._generation:
            return False
        if not permit.probe:
            return True
        self._leases = self._live_leases()
        return self._leases.pop(permit.lease, None) is not None

    def renew(self, permit: Permit) -> bool:
        """Begin a probe's lease anew, for a probe that has yet to begin; False when its time was over already."""
        if not (permit.probe and self.release(permit)):
            return False
        self._leases[permit.lease] = self._clock() + self._policy.probe_lease_s
        return True

    def observe(self, *, successes: int = 0, failures: int = 0, slow: int = 0, generation: int | None = None) -> None:
        """Count calls that others made without a permit; each call is one of the three.

        Args:
            successes: good calls.
            failures: failed calls.
            slow: answered, but slow calls.
            generation: the one they were made in; if it is not the present one, they say nothing. ``None``: present.
        """
        if self._state is BreakerState.CLOSED and generation in (None, self._generation):
            self._window.add(successes + failures + slow, failures, slow)
            self._judge_window()

    def cool_down(self, seconds: float) -> None:
        """Admit nobody for that long, whatever the state; a shorter time than the present one changes nothing."""
        self._cooling_until = max(self._cooling_until, self._clock() + seconds)

    def trip(self, reason: str) -> None:
        """Open at once; an open breaker stays as it is."""
        if self._state is not BreakerState.OPEN:
            now = self._clock()
            in_a_row = self._state is BreakerState.HALF_OPEN or now < self._probation_until
            self._trips = self._trips + 1 if in_a_row else 1
            self._transition(BreakerState.OPEN, reason)
            self._wait_until = now + self._longest_wait_s() * (1 - JITTER * self._rng.random())

    def isolate(self, reason: str) -> None:
        """Open and stay open, without probes, until ``reset``."""
        self._transition(BreakerState.OPEN, reason)
        self._isolated = True

    def reset(self) -> None:
        """Close, and forget trips and cooling."""
        self._transition(BreakerState.CLOSED)
        self._trips = 0
        self._cooling_until = self._probation_until = self._clock()

    def reconfigure(self, policy: BreakerPolicy) -> None:
        """Go on under another policy: the state stays, and what is being waited for lasts no longer than it says."""
        now, self._policy = self._clock(), policy
        self._window.resize(policy.window_s)
        self._wait_until = min(self._wait_until, now + self._longest_wait_s())
        self._leases = {lease: min(until, now + policy.probe_lease_s) for lease, until in self._live_leases().items()}
        self._close_if_proven()

    def snapshot(self) -> BreakerSnapshot:
        """Everything but the window's counts."""
        now = self._clock()
        return BreakerSnapshot(
            state=self._state,
            generation=self._generation,
            reason=self._reason,
            isolated=self._isolated,
            trips=self._trips,
            wait_s=max(0.0, self._wait_until - now),
            cooling_s=self.cooling_s,
            probation_s=max(0.0, self._probation_until - now),
            successes=self._successes,
            leases=tuple((lease, until - now) for lease, until in self._live_leases().items()),
            last_lease=self._last_lease,
        )

    def restore(self, snapshot: BreakerSnapshot) -> bool:
        """Go on where a snapshot left off, its permits included; False when this breaker is newer than it.

        The time between the two is not known and counts as none: an open breaker stays open a little longer.
        """
        if snapshot.generation < self._generation:
            return False
        now = self._clock()
        self._transition(BreakerState(snapshot.state), snapshot.reason, generation=snapshot.generation)
        self._isolated, self._trips = snapshot.isolated, snapshot.trips
        self._wait_until = now + min(snapshot.wait_s, self._policy.max_open_s)
        self._cooling_until = now + snapshot.cooling_s
        self._probation_until = now + snapshot.probation_s
        self._successes, self._last_lease = snapshot.successes, snapshot.last_lease
        self._leases = {lease: now + left_s for lease, left_s in snapshot.leases}
        self._close_if_proven()
        return True

    def _judge_window(self) -> None:
        counts, policy = self._window.counts(), self._policy
        if counts.total < policy.minimum_calls:
            return
        if counts.failure_rate >= policy.failure_rate_threshold:
            self.trip(f"{counts.failures} of {counts.total} calls failed")
        elif counts.slow_rate >= policy.slow_call_rate_threshold:
            self.trip(f"{counts.slow} of {counts.total} calls were slow")

    def _judge_probe(self, outcome: Outcome, *, healthy: bool) -> None:
        if healthy:
            self._successes += 1
            self._close_if_proven()
        else:
            self.trip(f"probe: {outcome}")

    def _close_if_proven(self) -> None:
        if self._state is BreakerState.HALF_OPEN and self._successes >= self._policy.half_open_probes:
            self._transition(BreakerState.CLOSED)
            self._probation_until = self._clock() + self._policy.window_s

    def _transition(self, state: BreakerState, reason: str = "", *, generation: int | None = None) -> None:
        self._state = state
        self._generation = self._generation + 1 if generation is None else generation
        self._reason = reason
        self._isolated = False
        self._successes = 0
        self._leases = {}
        self._window.clear()

    def _longest_wait_s(self) -> float:
        doublings = min(max(self._trips - 1, 0), _MAX_DOUBLINGS)
        return min(self._policy.open_s * 2.0**doublings, self._policy.max_open_s)

    def _live_leases(self) -> dict[int, float]:
        now = self._clock()
        return {lease: until for lease, until in self._leases.items() if until > now}
