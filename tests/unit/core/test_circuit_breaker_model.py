"""The breaker against a model that keeps every event in a list and looks everything up by brute force."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from serve_app.core.circuit_breaker import CircuitBreaker
from serve_app.core.clock import ManualClock
from serve_app.core.permit import Permit, Refusal
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

FAILURES = (Outcome.SERVER_ERROR, Outcome.TIMEOUT, Outcome.UNREACHABLE, Outcome.MALFORMED)
SLOW_CALL_S = 2.0


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


policies = st.builds(
    BreakerPolicy,
    failure_rate_threshold=st.sampled_from([0.3, 0.5, 1.0]),
    slow_call_rate_threshold=st.sampled_from([0.5, 0.8]),
    slow_call_s=st.just(SLOW_CALL_S),
    minimum_calls=st.integers(1, 5),
    window_s=st.just(10.0),
    open_s=st.sampled_from([2.0, 4.0]),
    max_open_s=st.sampled_from([10.0, 16.0]),
    half_open_probes=st.integers(1, 3),
    probe_lease_s=st.sampled_from([3.0, 6.0]),
)


@dataclass
class Model:
    policy: BreakerPolicy
    now: float = 0.0
    state: str = "closed"
    generation: int = 0
    calls: list[tuple[float, str]] = field(default_factory=list)
    probes: dict[int, float] = field(default_factory=dict)
    good_probes: int = 0
    isolated: bool = False
    trips: int = 0
    open_until: float = 0.0
    cool_until: float = 0.0
    probation_until: float = 0.0

    def enter(self, state: str) -> None:
        self.state, self.generation, self.calls, self.probes, self.good_probes = state, self.generation + 1, [], {}, 0
        self.isolated = False

    def wait(self) -> float:
        wait = self.policy.open_s
        for _ in range(self.trips - 1):
            wait *= 2
        return min(wait, self.policy.max_open_s)

    def open(self) -> None:
        if self.state == "open":
            return
        self.trips = self.trips + 1 if self.state == "half_open" or self.now < self.probation_until else 1
        self.enter("open")
        self.open_until = self.now + self.wait()

    def close_when_proven(self) -> None:
        if self.state == "half_open" and self.good_probes >= self.policy.half_open_probes:
            self.enter("closed")
            self.probation_until = self.now + self.policy.window_s

    def in_flight(self) -> list[float]:
        return [until for until in self.probes.values() if until > self.now]

    def refuses(self) -> tuple[str, float] | None:
        if self.isolated:
            return "isolated", self.policy.max_open_s
        if self.state == "open" and self.now < self.open_until:
            return "open", max(self.open_until, self.cool_until) - self.now
        if self.now < self.cool_until:
            return "cooling", self.cool_until - self.now
        if self.state == "half_open" and len(self.in_flight()) + self.good_probes >= self.policy.half_open_probes:
            return "half_open", min(self.in_flight()) - self.now
        return None

    def judge(self) -> None:
        # A window of 10 s has slices of 1 s: the slice of this moment and the nine before it count.
        recent = [kind for at, kind in self.calls if int(at) > int(self.now) - 10]
        if self.state != "closed" or len(recent) < self.policy.minimum_calls:
            return
        failed, slow = recent.count("failure") / len(recent), recent.count("slow") / len(recent)
        if failed >= self.policy.failure_rate_threshold or slow >= self.policy.slow_call_rate_threshold:
            self.open()

    def record(self, permit: Permit, outcome: Outcome, latency_s: float) -> bool:
        if outcome is Outcome.RATE_LIMITED:
            self.cool_until = max(self.cool_until, self.now + 5)
        if permit.generation != self.generation:
            return False
        if permit.probe and self.probes.pop(permit.lease, self.now) <= self.now:
            return False
        if outcome is Outcome.DENIED:
            self.open()
        elif outcome in (*FAILURES, Outcome.OK):
            kind = "failure" if outcome in FAILURES else "slow" if latency_s >= SLOW_CALL_S else "success"
            self.count(permit, kind)
        return True

    def count(self, permit: Permit, kind: str) -> None:
        if not permit.probe:
            self.calls.append((self.now, kind))
            self.judge()
        elif kind == "success":
            self.good_probes += 1
            self.close_when_proven()
        else:
            self.open()


class BreakerMachine(RuleBasedStateMachine):
    permits = Bundle("permits")

    @initialize(policy=policies)
    def start(self, policy):
        self.clock = ManualClock()
        self.breaker = CircuitBreaker(policy, clock=self.clock, rng=NoJitter())
        self.model = Model(policy)

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 10.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        self.model.now += seconds

    @rule(target=permits, callers=st.integers(1, 6))
    def callers_come(self, callers):
        admitted = []
        for _ in range(callers):
            refused, answer = self.model.refuses(), self.breaker.acquire()
            assert isinstance(answer, Refusal) is (refused is not None)
            if isinstance(answer, Permit):
                self.admit(answer)
                admitted.append(answer)
        return multiple(*admitted)

    def admit(self, permit):
        if self.model.state == "open":
            self.model.enter("half_open")
        assert permit.probe is (self.model.state == "half_open")
        if permit.probe:
            self.model.probes[permit.lease] = self.model.now + self.model.policy.probe_lease_s

    @rule(permit=consumes(permits), outcome=st.sampled_from(Outcome), latency_s=st.sampled_from([0.1, 1.0, 2.0, 5.0]))
    def a_call_ends(self, permit, outcome, latency_s):
        outcome = Outcome.OK if outcome is Outcome.SLOW else outcome
        counted = self.breaker.record(permit, outcome, latency_s, retry_after_s=5)
        assert counted is self.model.record(permit, outcome, latency_s)

    @rule(permit=consumes(permits), ok=st.booleans())
    def a_plain_call_ends(self, permit, ok):
        self.a_call_ends(permit, Outcome.OK if ok else Outcome.SERVER_ERROR, 0.1)

    @rule(permit=consumes(permits))
    def a_caller_goes_away(self, permit):
        assert self.breaker.release(permit) is self.model.record(permit, Outcome.CANCELLED, 0)

    @rule(successes=st.integers(0, 4), failures=st.integers(0, 4), slow=st.integers(0, 4), late=st.booleans())
    def others_report(self, successes, failures, slow, late):
        generation = self.model.generation - 1 if late else self.model.generation
        self.breaker.observe(successes=successes, failures=failures, slow=slow, generation=generation)
        if not late and self.model.state == "closed":
            for kind, count in (("success", successes), ("failure", failures), ("slow", slow)):
                self.model.calls += [(self.model.now, kind)] * count
            self.model.judge()

    @rule()
    def it_is_tripped(self):
        self.breaker.trip("model")
        self.model.open()

    @rule()
    def it_is_isolated(self):
        self.breaker.isolate("model")
        self.model.enter("open")
        self.model.isolated = True

    @rule()
    def it_is_reset(self):
        self.breaker.reset()
        self.model.enter("closed")
        self.model.trips = 0
        self.model.cool_until = self.model.probation_until = self.model.now

    @rule(policy=policies)
    def the_policy_changes(self, policy):
        self.breaker.reconfigure(policy)
        model = self.model
        model.policy = policy
        model.open_until = min(model.open_until, model.now + model.wait())
        model.probes = {
            k: min(until, model.now + policy.probe_lease_s) for k, until in model.probes.items() if until > model.now
        }
        model.close_when_proven()

    @rule(clock_s=st.floats(0, 1000))
    def its_process_dies(self, clock_s):
        """Its next life has another clock and no counts, and is the same otherwise."""
        before, snapshot = self.breaker, self.breaker.snapshot()
        reborn = CircuitBreaker(self.model.policy, clock=self.clock, rng=NoJitter())
        assert reborn.restore(snapshot)
        elsewhere = CircuitBreaker(self.model.policy, clock=ManualClock(int(clock_s)), rng=NoJitter())
        assert elsewhere.restore(snapshot)
        assert reborn.snapshot() == elsewhere.snapshot() == snapshot
        assert reborn.refusal() == before.refusal()
        self.breaker = reborn
        self.model.calls = []

    @invariant()
    def it_agrees_with_the_model(self):
        if not hasattr(self, "model"):
            return
        assert self.breaker.state == self.model.state
        assert self.breaker.generation == self.model.generation
        refusal = self.breaker.refusal()
        assert ((refusal.reason, refusal.retry_after_s) if refusal else None) == self.model.refuses()

    @invariant()
    def it_holds_its_bounds(self):
        if not hasattr(self, "model"):
            return
        snapshot, policy = self.breaker.snapshot(), self.model.policy
        if snapshot.state is not BreakerState.HALF_OPEN:
            assert not snapshot.leases
        assert snapshot.wait_s <= policy.max_open_s
        assert all(0 < left_s <= policy.probe_lease_s for _, left_s in snapshot.leases)
        assert self.breaker.health().failures <= self.breaker.health().requests


BreakerMachine.TestCase.settings = settings(deadline=None, max_examples=120, stateful_step_count=40)
TestBreakerAgainstModel = BreakerMachine.TestCase
