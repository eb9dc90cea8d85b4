"""One model's circuit breaker for the whole cluster, fed by what all routers report.

    state       event                                            next        what happens
    closed      all routers together reach a threshold, and      open        once every other router had its say
                more than half of its callers do so themselves
    closed      an outcome that opens at once                    open        whatever the others say
    open        a router wants to probe after the wait           half_open   it gets a lease
    half_open   a router wants to probe, leases to spare         half_open   it gets a lease, in turn
    half_open   ``half_open_probes`` leased probes succeed       closed
    half_open   a leased probe fails or is slow                  open        the wait doubles
    open,       a probe that a router made on its own, while     as above    counts like a leased one, if one could be
    half_open   the control plane was away                                   leased at the moment
    any         a router knows of a later generation             that state  learned: this control plane was born again
    any         ``isolate``, ``reset``                           open,       for everybody
                                                                 closed

The transitions, waits and generations are those of ``serve_app.core.circuit_breaker``; ``breaker_vote`` says when
routers agree and ``lease_book`` whose turn it is to probe. A router that is silent for ``SILENCE_S`` has no vote, and
for that long after its first report a new control plane takes none: every router is heard or gone by then. A router's
outcomes count once, and only in the generation in which its calls were admitted.

The waits are shortened by at least half of the jitter, so that with the exchange that brings a lease and the one that
tells of its end a recovered model is found within ``open_s`` of its recovery, as long as waits do not grow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from serve_app.core.breaker_messages import (
    BreakerReply,
    BreakerReport,
    BreakerSnapshot,
    ProbeResult,
    ReportBatch,
    snapshot_from_plain,
    snapshot_to_plain,
)
from serve_app.core.breaker_vote import total, why_open
from serve_app.core.circuit_breaker import CircuitBreaker
from serve_app.core.clock import Clock
from serve_app.core.lease_book import SILENCE_S, LeaseBook
from serve_app.core.outcomes import MEANINGS, BreakerEffect
from serve_app.core.permit import Permit
from serve_app.core.rolling_window import Counts, RollingWindow
from serve_app.messages import BreakerState
from serve_app.policy import BreakerPolicy
from serve_app.reports import ModelHealth

_RANK: Final = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class _EarlyJitter(Random):
    """Shortens every wait by at least half of what jitter may."""

    def __init__(self, source: Random) -> None:
        super().__init__()
        self._source = source

    def random(self) -> float:
        return (1 + self._source.random()) / 2


@dataclass(slots=True)
class _Router:
    """One router as the control plane knows it."""

    calls: RollingWindow
    heard_at: float
    sequence: int = 0
    batch: int = 0


class ClusterBreaker:
    """Decides for all routers whether a model may be asked. For one event loop.

    Args:
        policy: thresholds and times.
        clock: monotonic seconds.
        rng: source of jitter; a seeded one makes waits repeatable.
    """

    def __init__(self, policy: BreakerPolicy, *, clock: Clock, rng: Random | None = None) -> None:
        self._policy = policy
        self._clock = clock
        jitter = _EarlyJitter(rng or Random())  # noqa: S311 - spreads probes in time, guards nothing
        self._breaker = CircuitBreaker(policy, clock=clock, rng=jitter)
        self._leases = LeaseBook(self._breaker, clock=clock)
        self._routers: dict[str, _Router] = {}
        self._awaited: set[str] | None = None
        self._settled = self._breaker.generation

    @property
    def state(self) -> BreakerState:
        """The cluster's state. An open breaker whose wait is over becomes half-open with the next lease."""
        return self._breaker.state

    @property
    def generation(self) -> int:
        """Grows with every change of state, also over this process' restarts."""
        return self._breaker.generation

    def health(self) -> ModelHealth:
        """What everybody may know of the model; its calls are those of the present generation."""
        together = total(self._counts())
        return replace(self._breaker.health(), requests=together.total, failures=together.failures)

    def exchange(self, router: str, report: BreakerReport) -> BreakerReply:
        """Take a router's report and answer it, with a lease when it is the router's turn.

        Args:
            router: unique name of the router's replica.
            report: what it tells; one that was sent before the last one taken is answered, not counted.
        """
        known = self._routers.get(router)
        if known is None:
            known = self._routers[router] = _Router(self._new_window(), self._clock())
        if report.sequence <= known.sequence:
            return BreakerReply(report.sequence, self._breaker.snapshot())
        known.sequence, known.heard_at = report.sequence, self._clock()
        self._leave_silent()
        self._take(router, known, report)
        lease = self._leases.lease_for(router)
        self._settle()
        return BreakerReply(report.sequence, self._breaker.snapshot(), lease)

    def learn(self, known: BreakerSnapshot) -> bool:
        """Take what a router was told by an earlier life of this control plane; True when it was news.

        A later generation is always right. Of the same generation, the worse state is, as long as routers have yet to
        be heard: two lives of the control plane may each have given a generation its meaning.
        """
        mine = self._breaker.snapshot()
        last_lease = max(known.last_lease, mine.last_lease)
        if known.generation < mine.generation:
            return False
        if known.generation > mine.generation:
            self._breaker.restore(replace(known, last_lease=last_lease))
        elif not self._leases.is_learning:
            return False
        elif _badness(known) > _badness(mine):
            worse = replace(known, generation=known.generation + 1, leases=(), successes=0, last_lease=last_lease)
            self._breaker.restore(worse)
        elif known.state is mine.state:
            self._breaker.restore(_merged(mine, known))
        self._settle()
        return mine.generation < self._breaker.generation

    def isolate(self, reason: str) -> None:
        """Open for everybody and stay open, without probes, until ``reset``."""
        self._breaker.isolate(reason)
        self._settle()

    def reset(self) -> None:
        """Close for everybody, routers' own breakers included, and forget trips and cooling."""
        self._breaker.reset()
        self._settle()

    def reconfigure(self, policy: BreakerPolicy) -> None:
        """Go on under another policy, as ``CircuitBreaker.reconfigure`` does."""
        self._policy = policy
        self._breaker.reconfigure(policy)
        for router in self._routers.values():
            router.calls.resize(policy.window_s)
        self._settle()

    def snapshot(self) -> dict[str, Any]:
        """The state as a dict of JSON's own types, for a next life; times are remaining seconds."""
        return snapshot_to_plain(self._breaker.snapshot())

    def restore(self, data: object, age_s: float = 0.0) -> bool:
        """Go on where ``snapshot`` left off; False, and nothing done, when that is corrupt or older than this.

        Args:
            data: what ``snapshot`` returned.
            age_s: seconds since then.
        """
        snapshot = snapshot_from_plain(data)
        if snapshot is None or not self._breaker.restore(_bounded(snapshot.aged(age_s), self._policy)):
            return False
        self._settle()
        return True

    def _take(self, router: str, known: _Router, report: BreakerReport) -> None:
        """Learn everything that a report says, in an order in which nothing is lost."""
        self.learn(report.known)
        if report.batch.number > known.batch:
            known.batch = report.batch.number
            self._count(known, report.batch)
        self._leases.hear(router, report)
        self._leases.free_unclaimed()
        if report.known.generation == self._breaker.generation:  # else it may be what ``reset`` has just ended
            self._breaker.cool_down(report.cooling_s)
        self._judge(router)
        self._settle()

    def _count(self, router: _Router, batch: ReportBatch) -> None:
        """Take a batch's calls and probes."""
        for result in batch.probes:
            if result.lease:
                self._leases.end(result)
            else:
                self._take_own_probe(result)
        if batch.generation != self._breaker.generation or self._breaker.state is not BreakerState.CLOSED:
            return
        for outcome, count in batch.outcomes.items():
            effect = MEANINGS[outcome].breaker
            failed = effect in (BreakerEffect.FAILURE, BreakerEffect.OPEN)
            router.calls.add(count, count * failed, count * (effect is BreakerEffect.SLOW))
            if effect is BreakerEffect.OPEN:
                self._breaker.trip(outcome.value)

    def _take_own_probe(self, result: ProbeResult) -> None:
        """Count a probe that a router made without a lease as one that it was leased at this moment."""
        if result.generation != self._breaker.generation or self._breaker.state is BreakerState.CLOSED:
            return
        permit = self._breaker.acquire()
        if isinstance(permit, Permit):
            self._breaker.record(permit, result.outcome, 0.0, retry_after_s=0.0)

    def _judge(self, router: str) -> None:
        """Open when the routers agree, and each of the others reported since they first seemed to.

        Without the delay a router that fails fast would outvote those whose good calls are still on their way, and
        one that reports first to a new control plane those that it does not know of yet.
        """
        reason = why_open(self._counts(), self._policy) if self._breaker.state is BreakerState.CLOSED else ""
        if not reason or self._leases.is_learning:
            self._awaited = None
            return
        if self._awaited is None:
            self._awaited = set(self._routers)
        self._awaited = (self._awaited & self._routers.keys()) - {router}
        if not self._awaited:
            self._breaker.trip(reason)

    def _settle(self) -> None:
        """Begin anew after a change of state: what was counted before says nothing of it."""
        if self._settled != self._breaker.generation:
            self._settled = self._breaker.generation
            self._awaited = None
            for router in self._routers.values():
                router.calls.clear()

    def _leave_silent(self) -> None:
        gone = [name for name, router in self._routers.items() if self._clock() - router.heard_at > SILENCE_S]
        for name in gone:
            del self._routers[name]
            self._leases.depart(name)

    def _new_window(self) -> RollingWindow:
        return RollingWindow(self._policy.window_s, clock=self._clock)

    def _counts(self) -> list[Counts]:
        return [router.calls.counts() for router in self._routers.values()]


def _badness(snapshot: BreakerSnapshot) -> tuple[int, bool]:
    return _RANK[snapshot.state], snapshot.isolated


def _merged(mine: BreakerSnapshot, known: BreakerSnapshot) -> BreakerSnapshot:
    """One state, known to two: the wait that has gone on for longer, and every lease that either knows of."""
    return replace(
        mine,
        wait_s=min(mine.wait_s, known.wait_s),
        trips=max(mine.trips, known.trips),
        successes=max(mine.successes, known.successes),
        leases=tuple((dict(known.leases) | dict(mine.leases)).items()),
        last_lease=max(mine.last_lease, known.last_lease),
    )


def _bounded(snapshot: BreakerSnapshot, policy: BreakerPolicy) -> BreakerSnapshot:
    """A stored state that holds nothing up for longer than the policy could have."""
    leases = tuple((number, min(left_s, policy.probe_lease_s)) for number, left_s in snapshot.leases)
    return replace(snapshot, leases=leases, probation_s=min(snapshot.probation_s, policy.window_s))
