"""The leases one router holds for one model: used once each, given back when not needed.

    a lease is   when                                                              then
    held         a reply brings it                                                 the next call takes it
    held         a reply brings it again                                           its time begins anew
    returned     a reply comes without it, or its time is over                     told to the control plane
    begun        a call takes it                                                   that call is the probe
    ended        the probe's result or its cancellation is known                   told to the control plane

A reply is about the moment its report was sent: a lease that was begun or returned since is not taken up again, and
its seconds count from then, so that this router thinks a lease over no later than the control plane does.
"""

from __future__ import annotations

from collections.abc import Iterable

from serve_app.core.breaker_messages import LeaseClaim, ProbeLease, ProbeResult
from serve_app.core.clock import Clock
from serve_app.core.report_outbox import ReportOutbox
from serve_app.messages import Outcome


class LeaseHolder:
    """Leases of one model, as one router knows them. For one event loop.

    Args:
        outbox: where results go.
        clock: monotonic seconds.
    """

    def __init__(self, outbox: ReportOutbox, *, clock: Clock) -> None:
        self._outbox = outbox
        self._clock = clock
        self._held: ProbeLease | None = None
        self._use_by = self._expires_at = 0.0
        self._begun: dict[ProbeLease, float] = {}
        self._spent = (0, 0)

    @property
    def is_usable(self) -> bool:
        """Whether a call may probe now."""
        return self._held is not None and self._clock() < self._use_by

    def receive(self, lease: ProbeLease | None, generation: int, reported_at: float) -> None:
        """Take what a reply says.

        Args:
            lease: what it brings; ``None`` takes back what has not begun.
            generation: the cluster's; leases of earlier ones are void.
            reported_at: when the report was sent that it answers.
        """
        if self._held is not None and self._held.generation != generation:
            self._held = None
        self._begun = {lease: until for lease, until in self._begun.items() if lease.generation == generation}
        if lease is None:
            self.give_back()
        elif (lease.generation, lease.number) > self._spent:
            self._held, self._use_by = lease, reported_at + lease.use_within_s
            self._expires_at = reported_at + lease.expires_in_s

    def take(self) -> ProbeLease | None:
        """The lease, for a call that is its probe; ``None`` when there is none to use."""
        lease = self._held if self.is_usable else None
        if lease is not None:
            self._spend(lease)
            self._begun[lease] = self._expires_at
        return lease

    def end(self, number: int, generation: int, outcome: Outcome) -> None:
        """Tell the control plane how a probe ended."""
        self._begun = {lease: until for lease, until in self._begun.items() if lease.number != number}
        self._outbox.result(ProbeResult(number, generation, outcome))

    def give_back(self) -> None:
        """Return a lease that has not begun."""
        if self._held is not None:
            self._outbox.result(ProbeResult(self._held.number, self._held.generation, Outcome.REJECTED))
            self._spend(self._held)

    def claims(self) -> Iterable[LeaseClaim]:
        """What the control plane has to know of: every lease whose end it has yet to hear."""
        now = self._clock()
        if self._held is not None and not self.is_usable:
            self.give_back()
        self._begun = {lease: until for lease, until in self._begun.items() if until > now}
        if self._held is not None:
            yield LeaseClaim(self._held.number, self._held.generation, has_begun=False)
        for lease in self._begun:
            yield LeaseClaim(lease.number, lease.generation, has_begun=True)
        for result in self._outbox.unheard:
            yield LeaseClaim(result.lease, result.generation, has_begun=True)

    def _spend(self, lease: ProbeLease) -> None:
        self._held = None
        self._spent = (lease.generation, lease.number)
