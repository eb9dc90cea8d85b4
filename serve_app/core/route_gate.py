"""One model's gate in one router: its own circuit breaker under what the whole cluster has decided.

    cluster      control plane   who decides           a call is
    isolated     any             the operator          refused: isolated
    closed       any             the own breaker       admitted, refused, or a probe of the own breaker, without a lease
    open,        heard           the control plane     the probe, when this router holds a lease; else refused, and a
    half_open                                          lease is wanted
    open,        silent for      this router alone     refused until the known wait is over; then one probe at a time,
    half_open    ``ALONE_S``                           which closes the gate for this router or doubles the wait

    news                                    what happens
    a generation later than the known one   taken; leases and counted calls of the earlier one are void
    ... in which the cluster is closed      the own breaker closes too: recovery is at once everywhere. If it is this
                                            router's path that is broken, the own breaker opens again by itself
    ... by an operator's ``reset``          the route's cooling is over, too
    an earlier generation                   ignored; the next report teaches the control plane
    a 429                                   the route cools here at once, and everywhere with the next exchange

Calls admitted in one of the cluster's generations count for the cluster only in that one; the own breaker has
generations of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from serve_app.core.breaker_messages import BreakerReply, BreakerReport, BreakerSnapshot, ProbeResult
from serve_app.core.circuit_breaker import COOL_DOWN_S, CircuitBreaker
from serve_app.core.clock import Clock
from serve_app.core.lease_holder import LeaseHolder
from serve_app.core.outcomes import MEANINGS, BreakerEffect, classify_latency
from serve_app.core.permit import Permit, Refusal
from serve_app.core.report_outbox import ReportOutbox
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

ALONE_S: Final = 3.0
"""Seconds of silence after which a router no longer counts on the control plane; a lost exchange takes less."""
LEASE_WAIT_S: Final = 1.0
"""Seconds after which a lease is here: whoever comes back when the breaker's wait is over should find one."""
WANT_S: Final = 60.0
"""Seconds after which a refused call no longer asks for a lease."""

_RANK: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
_JUDGED: Final = {BreakerEffect.SUCCESS, BreakerEffect.FAILURE, BreakerEffect.SLOW, BreakerEffect.OPEN}


@dataclass(frozen=True, slots=True)
class RoutePermit(Permit):
    """A permit that knows which breaker gave it.

    Attributes:
        cluster_generation: the cluster's when it was given.
        issuer: the breaker to tell; ``None`` when the cluster leased it.
    """

    cluster_generation: int = 0
    issuer: CircuitBreaker | None = field(default=None, compare=False, repr=False)


class RouteGate:
    """Says at once whether this router may ask the model. For one event loop.

    Every exchange sends ``report()``, and hands what comes back to ``apply`` even when it says nothing new.

    Args:
        policy: thresholds and times.
        clock: monotonic seconds.
        rng: source of jitter; a seeded one makes waits repeatable.
    """

    def __init__(self, policy: BreakerPolicy, *, clock: Clock, rng: Random | None = None) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng or Random()  # noqa: S311 - spreads probes in time, guards nothing
        self._own = CircuitBreaker(policy, clock=clock, rng=self._rng)
        self._alone: CircuitBreaker | None = None
        self._outbox = ReportOutbox()
        self._leases = LeaseHolder(self._outbox, clock=clock)
        self._known = BreakerSnapshot(BreakerState.CLOSED, 0)
        self._known_at = self._heard_at = self._reported_at = clock()
        self._wanted_at: float | None = None
        self._sequence = 0

    @property
    def state(self) -> BreakerState:
        """The worse of the own breaker's and the cluster's; once alone, of what this router found out since."""
        cluster = self._alone.state if self._alone else self._known.state
        return max(self._own.state, cluster, key=_RANK.__getitem__)

    def admit(self) -> RoutePermit | Refusal:
        """Leave to ask the model once, or why not: ``open``, ``half_open``, ``isolated`` or ``cooling``."""
        refusal = self.refusal()
        if refusal:
            if self._known.state is not BreakerState.CLOSED:
                self._wanted_at = self._clock()
            return refusal
        generation, decider = self._known.generation, self._decider()
        if decider is None:
            lease = self._leases.take()
            if lease is None:
                return Refusal(LEASE_WAIT_S, self._known.state.value)
            return RoutePermit(lease.generation, True, lease.number, generation)
        permit = decider.acquire()
        if isinstance(permit, Refusal):
            return permit
        return RoutePermit(permit.generation, permit.probe, permit.lease, generation, decider)

    def refusal(self) -> Refusal | None:
        """What ``admit`` would refuse with at this moment: ``None`` when it would admit. Changes nothing."""
        if self._known.isolated:
            return Refusal(self._policy.max_open_s, "isolated")
        cooling_s = max(self._own.cooling_s, self._left_s(self._known.cooling_s))
        decider = self._decider()
        refusal = self._without_lease() if decider is None else decider.refusal()
        if refusal is not None and refusal.reason == "open":
            return replace(refusal, retry_after_s=max(refusal.retry_after_s, cooling_s))
        return Refusal(cooling_s, "cooling") if cooling_s > 0 else refusal

    def record(
        self, permit: RoutePermit, outcome: Outcome, latency_s: float, *, retry_after_s: float | None = None
    ) -> None:
        """Learn how an admitted call ended, and keep it for the next report; once for each permit.

        Args:
            permit: what ``admit`` gave.
            outcome: how the call ended.
            latency_s: seconds it took; an answer of ``slow_call_s`` or more counts as slow.
            retry_after_s: what a 429 asked for.
        """
        outcome = classify_latency(outcome, latency_s, self._policy.slow_call_s)
        effect = MEANINGS[outcome].breaker
        if effect is BreakerEffect.COOL_DOWN:
            self._own.cool_down(COOL_DOWN_S if retry_after_s is None else retry_after_s)
        if permit.issuer is None:
            self._leases.end(permit.lease, permit.cluster_generation, outcome)
            return
        permit.issuer.record(permit, outcome, latency_s, retry_after_s=retry_after_s)
        if effect not in _JUDGED:
            return
        if permit.issuer is not self._own:
            self._note_probe_alone(permit, outcome)
        elif permit.cluster_generation == self._known.generation:
            self._outbox.count(outcome)

    def release(self, permit: RoutePermit) -> None:
        """Give a permit back with nothing learned."""
        if permit.issuer is None:
            self._leases.end(permit.lease, permit.cluster_generation, Outcome.CANCELLED)
        else:
            permit.issuer.release(permit)

    def report(self) -> BreakerReport:
        """What to send now; whatever was seen is sent again until ``apply`` gets the reply to a report."""
        now = self._clock()
        self._sequence += 1
        self._reported_at = now
        wanted_s = None if self._wanted_at is None or now - self._wanted_at > WANT_S else now - self._wanted_at
        claims = tuple(self._leases.claims())
        return BreakerReport(
            self._sequence, self._outbox.batch(), self._now_known(), claims, self._own.cooling_s, wanted_s
        )

    def apply(self, reply: BreakerReply) -> None:
        """Take the reply to the last report; one to an earlier report is ignored."""
        if reply.sequence != self._sequence:
            return
        self._outbox.arrived()
        self._heard_at = self._clock()
        self._alone = None
        if reply.known.generation < self._known.generation:
            return
        is_new = reply.known.generation > self._known.generation
        self._known, self._known_at = reply.known, self._heard_at
        self._leases.receive(reply.lease, reply.known.generation, self._reported_at)
        if is_new:
            self._outbox.begin(reply.known.generation)
            if reply.known.state is BreakerState.CLOSED:
                self._wanted_at = None
                self._close_own(is_reset=not reply.known.trips)

    def reconfigure(self, policy: BreakerPolicy) -> None:
        """Go on under another policy: the state stays."""
        self._policy = policy
        self._own.reconfigure(policy)
        if self._alone:
            self._alone.reconfigure(_one_probe(policy))

    def _decider(self) -> CircuitBreaker | None:
        """The breaker that decides; ``None`` while it is the control plane."""
        if self._known.state is BreakerState.CLOSED:
            return self._own
        if self._alone is None and self._clock() - self._heard_at > ALONE_S:
            self._alone = self._on_its_own()
        if self._alone is not None and self._alone.state is BreakerState.CLOSED:
            return self._own
        return self._alone

    def _on_its_own(self) -> CircuitBreaker:
        """A breaker that goes on where the cluster's was last known to be; probes of others are not its business."""
        breaker = CircuitBreaker(_one_probe(self._policy), clock=self._clock, rng=self._rng)
        breaker.restore(replace(self._now_known(), state=BreakerState.OPEN))
        return breaker

    def _without_lease(self) -> Refusal | None:
        if self._leases.is_usable:
            return None
        return Refusal(self._left_s(self._known.wait_s) + LEASE_WAIT_S, self._known.state.value)

    def _note_probe_alone(self, permit: RoutePermit, outcome: Outcome) -> None:
        self._outbox.result(ProbeResult(0, permit.cluster_generation, outcome))
        if permit.issuer is self._alone and self._alone is not None and self._alone.state is BreakerState.CLOSED:
            self._close_own()

    def _close_own(self, *, is_reset: bool = False) -> None:
        """Close the own breaker; a model that cools goes on cooling, unless an operator gave it a fresh start."""
        cooling_s = 0.0 if is_reset else self._own.cooling_s
        self._own.reset()
        self._own.cool_down(cooling_s)

    def _now_known(self) -> BreakerSnapshot:
        return self._known.aged(self._clock() - self._known_at)

    def _left_s(self, seconds: float) -> float:
        """What is left of a time that the cluster's last known state gave."""
        return max(0.0, seconds - (self._clock() - self._known_at))


def _one_probe(policy: BreakerPolicy) -> BreakerPolicy:
    return policy.model_copy(update={"half_open_probes": 1})
