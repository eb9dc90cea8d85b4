"""A cluster in one thread: routers' gates, a control plane that may die, a network that delays and loses, a provider."""

from __future__ import annotations

import heapq
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from serve_app.core.breaker_messages import BreakerReply
from serve_app.core.clock import ManualClock
from serve_app.core.cluster_breaker import ClusterBreaker
from serve_app.core.lease_book import SILENCE_S
from serve_app.core.permit import Refusal
from serve_app.core.route_gate import RouteGate, RoutePermit
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

INTERVAL_S = 0.25
TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Answer:
    """What the provider does with one request."""

    outcome: Outcome = Outcome.OK
    latency_s: float = 0.05
    retry_after_s: float | None = None


OK, DOWN = Answer(), Answer(Outcome.SERVER_ERROR)
Provider = Callable[[float, str], Answer]


@dataclass(frozen=True)
class Request:
    """One that reached the provider."""

    at: float
    router: str
    permit: RoutePermit
    answer: Answer
    expires_at: float

    @property
    def is_leased(self) -> bool:
        return self.permit.issuer is None


@dataclass
class Network:
    """Seconds that each way of an exchange takes at most, the share that is lost each way, and how many in a row."""

    delay_s: float = 0.005
    loss: float = 0.0
    most_lost_in_a_row: float = math.inf


@dataclass
class SimRouter:
    name: str
    gate: RouteGate
    heard_at: float = 0.0
    returned_at: float = -1.0
    known_generation: int = 0
    lost_in_a_row: int = 0
    in_flight: dict[int, Request] = field(default_factory=dict)


class Cluster:
    def __init__(
        self,
        policy: BreakerPolicy,
        provider: Provider,
        *,
        routers: int = 2,
        seed: int = 0,
        network: Network | None = None,
    ) -> None:
        self.policy, self.provider, self.network = policy, provider, network or Network()
        self.random = Random(seed)
        self.clock = ManualClock(100.0)
        self.start = self.clock()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.requests: list[Request] = []
        self.refusals: list[tuple[float, str, Refusal]] = []
        self.watchers: list[Callable[[Request], None]] = []
        self.stored: str | None = None
        self.control: ClusterBreaker | None = self.new_control()
        self.routers = {name: self.new_router(name) for name in (f"router-{i}" for i in range(routers))}

    @property
    def now(self) -> float:
        return self.clock() - self.start

    def new_control(self) -> ClusterBreaker:
        self.life_offset = self.random.uniform(0, 1000)
        offset = self.life_offset
        return ClusterBreaker(self.policy, clock=lambda: self.clock() + offset, rng=Random(self.random.random()))

    def new_router(self, name: str) -> SimRouter:
        offset = self.random.uniform(0, 1000)
        gate = RouteGate(self.policy, clock=lambda: self.clock() + offset, rng=Random(self.random.random()))
        router = SimRouter(name, gate)
        self.after(self.random.uniform(0, INTERVAL_S), lambda: self.exchange(router))
        return router

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.clock() + seconds, next(self.order), do))

    def at(self, when: float, do: Callable[[], None]) -> None:
        self.after(when - self.now, do)

    def run(self, until: float) -> None:
        """Let everything happen that happens up to ``until`` seconds from the start."""
        while self.events and self.events[0][0] <= self.start + until:
            when, _, do = heapq.heappop(self.events)
            self.clock.advance(max(0.0, when - self.clock()))
            do()
        self.clock.advance(max(0.0, self.start + until - self.clock()))

    def traffic(self, router: str, every_s: float, *, until: float, begin: float = 0.0) -> None:
        """Calls of one router, evenly spaced."""

        def come() -> None:
            self.call(router)
            if self.now + every_s <= until:
                self.after(every_s, come)

        self.at(begin, come)

    def call(self, router: str) -> RoutePermit | Refusal:
        gate = self.routers[router].gate
        permit = gate.admit()
        if isinstance(permit, Refusal):
            self.refusals.append((self.now, router, permit))
            return permit
        answer = self.provider(self.now, router)
        request = Request(self.now, router, permit, answer, self.expiry(gate, permit))
        self.requests.append(request)
        self.routers[router].in_flight[id(request)] = request
        for watch in self.watchers:
            watch(request)
        self.after(answer.latency_s, lambda: self.end(request))
        return permit

    def expiry(self, gate: RouteGate, permit: RoutePermit) -> float:
        """When a leased probe's time is over, by its router's own reckoning."""
        begun = {lease.number: until for lease, until in gate._leases._begun.items()}
        return self.now + begun[permit.lease] - gate._clock() if permit.issuer is None else 0.0

    def end(self, request: Request) -> None:
        router, answer = self.routers[request.router], request.answer
        del router.in_flight[id(request)]
        router.gate.record(request.permit, answer.outcome, answer.latency_s, retry_after_s=answer.retry_after_s)

    def kill_control(self) -> None:
        if self.control is not None:
            self.stored = json.dumps(self.control.snapshot())
        self.control = None

    def revive_control(self, *, remembers: bool) -> None:
        self.control = self.new_control()
        if remembers and self.stored is not None:
            assert self.control.restore(json.loads(self.stored))

    def exchange(self, router: SimRouter) -> None:
        """One exchange, and the next after it has ended one way or the other."""
        report, control = router.gate.report(), self.control
        if control is None:
            self.after(INTERVAL_S, lambda: self.exchange(router))
            return
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = True
            self.after(INTERVAL_S, lambda: self.exchange(router))

        def time_out() -> None:
            if not is_over:
                router.lost_in_a_row += 1
                end()

        def arrive() -> None:
            if self.control is control:
                before = control.generation
                reply = control.exchange(router.name, report)
                assert control.generation >= max(before, report.known.generation), "the cluster's generation went back"
                if self.now - router.heard_at > SILENCE_S:
                    router.returned_at = self.now
                router.heard_at = self.now
                self.send(router, lambda: come_home(reply))

        def come_home(reply: BreakerReply) -> None:
            if not is_over:
                router.lost_in_a_row = 0
                router.gate.apply(reply)
                generation = router.gate._known.generation
                assert generation >= router.known_generation, "a router's generation went back"
                router.known_generation = generation
                end()

        self.after(TIMEOUT_S, time_out)
        self.send(router, arrive)

    def send(self, router: SimRouter, deliver: Callable[[], None]) -> None:
        may_be_lost = router.lost_in_a_row < self.network.most_lost_in_a_row
        if not (may_be_lost and self.random.random() < self.network.loss):
            self.after(self.random.uniform(0, self.network.delay_s), deliver)

    def leased_in_flight(self) -> list[Request]:
        """Leased probes that have not expired, of routers that the control plane hears."""
        return [
            request
            for router in self.routers.values()
            for request in router.in_flight.values()
            if request.is_leased
            and self.now < request.expires_at
            and request.at > router.returned_at
            and self.now - router.heard_at <= SILENCE_S
            # One of several probes that fails voids the leases of the others.
            and (self.policy.half_open_probes == 1 or self.is_of_present_generation(request))
        ]

    def is_of_present_generation(self, request: Request) -> bool:
        newest = max(router.known_generation for router in self.routers.values())
        return request.permit.cluster_generation >= newest

    def watch_leases(self) -> None:
        """Fail as soon as more leased probes are in flight than the policy has."""

        def check(_: Request) -> None:
            assert len(self.leased_in_flight()) <= self.policy.half_open_probes

        self.watchers.append(check)

    def state(self) -> BreakerState:
        assert self.control is not None
        return self.control.state

    def asked(self, begin: float = 0.0, end: float = 1e9, **attributes: Any) -> list[Request]:
        """Requests that reached the provider between two moments."""
        return [
            request
            for request in self.requests
            if begin <= request.at < end and all(getattr(request, name) == value for name, value in attributes.items())
        ]


def down_until(recovery: float, latency_s: float = 0.05) -> Provider:
    """A provider that fails at first and is well from then on."""
    return lambda now, router: Answer(Outcome.OK if now >= recovery else Outcome.SERVER_ERROR, latency_s)
