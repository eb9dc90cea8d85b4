"""Which router may probe a model: the cluster's leases, of which only one router holds each.

    a lease is      when                                                       then
    granted         a router wants one, it is its turn, the breaker has one    sent with this reply and each further one
    renewed         its router reports and has not begun                       its time begins anew
    taken back      another router has better use for it                       not sent again, and free when returned
    begun           its router says so                                         free with the result, or when it expires
    free            its result is in, it was never received, it expired,       the next router's turn
                    or its router fell silent before it said that it began

It is the turn of a router whose call was refused a moment ago before one whose callers may be gone, and then of the one
that was leased to longest ago. A router with few calls may sit on its lease for as long as nobody else wants one, and
for ``HOLD_S`` in any case. That time doubles whenever a lease is taken back, until the breaker changes its state: so
routers whose calls come more seldom than that do not take leases from each other for ever.

For ``SILENCE_S`` after its first report a new control plane grants nothing: a probe that its predecessor leased may be
in flight, and its router has yet to say so.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from serve_app.core.breaker_messages import BreakerReport, LeaseClaim, ProbeLease, ProbeResult
from serve_app.core.circuit_breaker import CircuitBreaker
from serve_app.core.clock import Clock
from serve_app.core.permit import Permit
from serve_app.messages import BreakerState

SILENCE_S: Final = 5.0
"""Seconds without a report after which a router is taken to be gone; two exchanges may be lost on the way."""
USE_WITHIN_S: Final = 2.0
"""Seconds a router has from its report to the beginning of its probe, unless the lease is renewed."""
HOLD_S: Final = 2.5
"""Seconds a router may at first keep a lease that another wants."""
FRESH_S: Final = 1.0
"""Seconds after which a refused call no longer says that another is about to come."""


@dataclass(slots=True)
class _Holder:
    """The router that a lease belongs to.

    Attributes:
        is_claimed: it is known to have received the lease.
        is_revoked: it is to give the lease back, if it has not begun.
    """

    router: str
    since: float
    is_claimed: bool = False
    has_begun: bool = False
    is_revoked: bool = False


class LeaseBook:
    """Hands out one breaker's probes to routers, in turn. For one event loop.

    Args:
        breaker: decides how many probes there are, and how long each lasts.
        clock: monotonic seconds.
    """

    def __init__(self, breaker: CircuitBreaker, *, clock: Clock) -> None:
        self._breaker = breaker
        self._clock = clock
        self._holders: dict[int, _Holder] = {}
        self._wanted_at: dict[str, float] = {}
        self._turns: dict[str, int] = {}
        self._last_turn = 0
        self._hold_s = HOLD_S
        self._generation = breaker.generation
        self._learning_until: float | None = None

    @property
    def is_learning(self) -> bool:
        """Whether routers may yet tell of leases that this control plane knows nothing of."""
        return self._learning_until is None or self._clock() < self._learning_until

    def hear(self, router: str, report: BreakerReport) -> None:
        """Take what a router says of its leases and its wishes; its results come first, with ``end``."""
        now = self._clock()
        if self._learning_until is None:
            self._learning_until = now + SILENCE_S
        self._wanted_at.pop(router, None)
        if report.wanted_s is not None:
            self._wanted_at[router] = now - report.wanted_s
        self._note_claims(router, report.claims)

    def end(self, result: ProbeResult) -> None:
        """Take a leased probe's result; one that comes too late says nothing."""
        permit = Permit(result.generation, probe=True, lease=result.lease)
        self._breaker.record(permit, result.outcome, 0.0, retry_after_s=0.0)

    def lease_for(self, router: str) -> ProbeLease | None:
        """The lease to send a router that has just been heard: a new one, its unused one again, or none."""
        for number, holder in self._held():
            if holder.router == router and not holder.has_begun:
                return self._renewed(number, holder)
        if self._breaker.state is BreakerState.CLOSED or self.is_learning or not self._is_turn_of(router):
            return None
        return self._granted(router)

    def depart(self, router: str) -> None:
        """Free what a silent router holds and has not begun; what it has begun is in flight until it expires."""
        self._wanted_at.pop(router, None)
        self._turns.pop(router, None)
        for number, holder in self._held():
            if holder.router == router and not holder.has_begun:
                self._free(number)

    def free_unclaimed(self) -> None:
        """Free the leases of an earlier life that no router has claimed."""
        if not self.is_learning:
            held = {number for number, _ in self._held()}
            for number, _ in self._breaker.snapshot().leases:
                if number not in held:
                    self._free(number)

    def _note_claims(self, router: str, claims: Collection[LeaseClaim]) -> None:
        now, generation = self._clock(), self._breaker.generation
        claimed = {claim.number: claim for claim in claims if claim.generation == generation}
        live = {number for number, _ in self._breaker.snapshot().leases}
        for number in claimed.keys() & live:
            holder = self._holders.setdefault(number, _Holder(router, now))
            holder.is_claimed = True
            holder.has_begun = holder.has_begun or claimed[number].has_begun
        for number, holder in self._held():
            if holder.router == router and number not in claimed and (holder.is_claimed or holder.is_revoked):
                self._free(number)

    def _renewed(self, number: int, holder: _Holder) -> ProbeLease | None:
        if not holder.is_revoked and self._is_wanted_elsewhere(holder):
            holder.is_revoked = True
            self._hold_s *= 2
        if holder.is_revoked or not self._breaker.renew(self._permit(number)):
            return None
        return self._lease(number)

    def _granted(self, router: str) -> ProbeLease | None:
        permit = self._breaker.acquire()
        if not isinstance(permit, Permit):
            return None
        self._last_turn += 1
        self._turns[router] = self._last_turn
        self._holders[permit.lease] = _Holder(router, self._clock())
        return self._lease(permit.lease)

    def _is_turn_of(self, router: str) -> bool:
        return router in self._wanted_at and min(self._wanted_at, key=lambda name: self._rank(name, router)) == router

    def _rank(self, name: str, asking: str) -> tuple[bool, int, bool]:
        """Least for the router whose turn it is; between equals, the one that asks goes first."""
        return not self._is_waiting(name), self._turns.get(name, 0), name != asking

    def _is_wanted_elsewhere(self, holder: _Holder) -> bool:
        """Whether another router has better use for a lease, after its holder had a fair chance."""
        if self._generation != self._breaker.generation:
            self._generation, self._hold_s = self._breaker.generation, HOLD_S
        if self._clock() - holder.since < self._hold_s:
            return False
        return any(name != holder.router and self._is_waiting(name) for name in self._wanted_at)

    def _is_waiting(self, router: str) -> bool:
        """Whether the router's next caller is likely to come at once."""
        return self._clock() - self._wanted_at.get(router, -math.inf) < FRESH_S

    def _held(self) -> Iterator[tuple[int, _Holder]]:
        """The leases that are still alive, each with its holder."""
        live = {number for number, _ in self._breaker.snapshot().leases}
        self._holders = {number: holder for number, holder in self._holders.items() if number in live}
        return iter(tuple(self._holders.items()))

    def _free(self, number: int) -> None:
        self._breaker.release(self._permit(number))
        self._holders.pop(number, None)

    def _lease(self, number: int) -> ProbeLease:
        left_s = dict(self._breaker.snapshot().leases)[number]
        return ProbeLease(number, self._breaker.generation, USE_WITHIN_S, left_s)

    def _permit(self, number: int) -> Permit:
        return Permit(self._breaker.generation, probe=True, lease=number)
