from __future__ import annotations

import pickle
from dataclasses import replace
from random import Random

import pytest

from serve_app.core.breaker_messages import BreakerReply, BreakerSnapshot, LeaseClaim, ProbeLease, ProbeResult
from serve_app.core.clock import ManualClock
from serve_app.core.permit import Permit, Refusal
from serve_app.core.route_gate import ALONE_S, LEASE_WAIT_S, WANT_S, RouteGate, RoutePermit
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

POLICY = BreakerPolicy(window_s=10, minimum_calls=5, open_s=10, max_open_s=40, probe_lease_s=20, slow_call_s=2)
CLOSED = BreakerSnapshot(BreakerState.CLOSED, 0)
OPEN = BreakerSnapshot(BreakerState.OPEN, 1, "calls failed", trips=1, wait_s=10)
HALF_OPEN = replace(OPEN, state=BreakerState.HALF_OPEN, generation=2, wait_s=0.0, leases=((1, 20.0),), last_lease=1)
CLOSED_AGAIN = BreakerSnapshot(BreakerState.CLOSED, 3, trips=1)
LEASE = ProbeLease(1, 2, use_within_s=2, expires_in_s=20)


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


@pytest.fixture
def clock():
    return ManualClock(1000)


@pytest.fixture
def gate(clock):
    return RouteGate(POLICY, clock=clock, rng=NoJitter())


def hear(gate, known, lease=None):
    """One exchange."""
    report = gate.report()
    gate.apply(BreakerReply(report.sequence, known, lease))
    return report


def admitted(gate) -> RoutePermit:
    permit = gate.admit()
    assert isinstance(permit, RoutePermit)
    return permit


def fail(gate, times=1, outcome=Outcome.SERVER_ERROR):
    for permit in [admitted(gate) for _ in range(times)]:
        gate.record(permit, outcome, 0.1)


class TestClusterClosed:
    def test_calls_are_admitted_by_the_own_breaker(self, gate):
        permit = admitted(gate)

        assert isinstance(permit, Permit)
        assert not permit.probe
        assert gate.refusal() is None
        assert gate.state is BreakerState.CLOSED

    def test_the_own_breaker_opens_at_once_without_the_control_plane(self, gate):
        fail(gate, 5)

        assert gate.admit() == Refusal(10, "open")
        assert gate.state is BreakerState.OPEN

    def test_its_own_probes_need_no_lease(self, gate, clock):
        fail(gate, 5)
        clock.advance(10)
        probe = admitted(gate)
        assert probe.probe
        assert gate.admit().reason == "half_open"
        gate.record(probe, Outcome.OK, 0.1)

        assert gate.state is BreakerState.CLOSED
        assert gate.report().batch.probes == ()

    def test_a_broken_path_stays_closed_off_while_the_cluster_is_closed(self, gate, clock):
        fail(gate, 5)
        for _ in range(30):
            hear(gate, CLOSED)
            clock.advance(0.25)

        assert gate.admit() == Refusal(2.5, "open")

    def test_outcomes_are_counted_for_the_report(self, gate):
        for outcome in (Outcome.OK, Outcome.OK, Outcome.TIMEOUT, Outcome.BAD_OUTPUT, Outcome.CONTENT_POLICY):
            gate.record(admitted(gate), outcome, 0.1)
        gate.record(admitted(gate), Outcome.OK, 2.0)
        gate.release(admitted(gate))

        batch = gate.report().batch
        assert batch.outcomes == {Outcome.OK: 2, Outcome.TIMEOUT: 1, Outcome.SLOW: 1}
        assert batch.generation == 0

    def test_calls_of_an_earlier_generation_are_not_reported(self, gate):
        permit = admitted(gate)
        gate.record(admitted(gate), Outcome.OK, 0.1)
        hear(gate, CLOSED)
        gate.record(admitted(gate), Outcome.OK, 0.1)
        report = gate.report()
        gate.record(admitted(gate), Outcome.TIMEOUT, 0.1)
        gate.apply(BreakerReply(report.sequence, OPEN))
        gate.record(permit, Outcome.OK, 0.1)

        batch = hear(gate, CLOSED_AGAIN).batch
        assert batch.generation == 1
        assert batch.outcomes == {}

    def test_calls_that_end_after_the_own_breaker_opened_still_count_for_the_cluster(self, gate):
        permits = [admitted(gate) for _ in range(8)]
        for permit in permits:
            gate.record(permit, Outcome.TIMEOUT, 1)

        assert gate.report().batch.outcomes == {Outcome.TIMEOUT: 8}


class TestCooling:
    def test_a_429_cools_at_once_and_is_reported(self, gate, clock):
        gate.record(admitted(gate), Outcome.RATE_LIMITED, 0.1, retry_after_s=5)
        assert gate.admit() == Refusal(5, "cooling")
        assert gate.state is BreakerState.CLOSED
        clock.advance(2)
        assert gate.report().cooling_s == 3
        assert gate.report().batch.outcomes == {}
        clock.advance(3)

        assert isinstance(gate.admit(), RoutePermit)

    def test_a_429_to_another_router_cools_here_too(self, gate, clock):
        hear(gate, replace(CLOSED, cooling_s=5))
        clock.advance(2)
        assert gate.admit() == gate.refusal() == Refusal(3, "cooling")
        assert gate.report().cooling_s == 0, "else routers would keep each other cool for ever"
        clock.advance(3)

        assert gate.refusal() is None

    def test_cooling_outlasts_the_news_that_the_cluster_is_closed(self, gate):
        gate.record(admitted(gate), Outcome.RATE_LIMITED, 0.1, retry_after_s=5)
        hear(gate, OPEN)
        assert gate.admit() == Refusal(10 + LEASE_WAIT_S, "open")
        hear(gate, CLOSED_AGAIN)

        assert gate.admit() == Refusal(5, "cooling")

    def test_an_operators_reset_ends_it(self, gate):
        gate.record(admitted(gate), Outcome.RATE_LIMITED, 0.1, retry_after_s=3600)
        hear(gate, BreakerSnapshot(BreakerState.CLOSED, 1))

        assert isinstance(gate.admit(), RoutePermit)
        assert gate.report().cooling_s == 0

    def test_a_cooling_model_is_not_probed(self, gate):
        hear(gate, replace(HALF_OPEN, cooling_s=5), LEASE)

        assert gate.admit() == Refusal(5, "cooling")

    @pytest.mark.parametrize("known", [HALF_OPEN, CLOSED])
    def test_a_429_without_a_time_cools_for_a_second(self, gate, known):
        hear(gate, known, LEASE if known is HALF_OPEN else None)
        gate.record(admitted(gate), Outcome.RATE_LIMITED, 0.1)

        assert gate.admit() == Refusal(1, "cooling")


class TestClusterOpen:
    def test_calls_are_refused_until_the_wait_is_over_and_want_a_lease(self, gate, clock):
        hear(gate, OPEN)
        assert hear(gate, OPEN).wanted_s is None
        clock.advance(2)
        assert gate.admit() == gate.refusal() == Refusal(8 + LEASE_WAIT_S, "open")
        clock.advance(1)

        assert gate.state is BreakerState.OPEN
        assert gate.report().wanted_s == 1
        assert gate.report().known.wait_s == 7

    def test_a_wait_that_is_over_does_not_admit_without_a_lease(self, gate, clock):
        for _ in range(60):
            hear(gate, OPEN.aged(10))
            clock.advance(0.25)
            assert gate.admit() == Refusal(LEASE_WAIT_S, "open")

    def test_looking_asks_for_no_lease(self, gate):
        hear(gate, OPEN)
        gate.refusal()

        assert gate.report().wanted_s is None

    def test_a_wish_fades(self, gate, clock):
        hear(gate, OPEN)
        gate.admit()
        clock.advance(WANT_S)
        assert gate.report().wanted_s == WANT_S
        clock.advance(1)

        assert gate.report().wanted_s is None

    def test_isolation_is_for_everybody_and_for_ever(self, gate, clock):
        hear(gate, replace(OPEN, isolated=True, reason="maintenance"))
        clock.advance(10_000)

        assert gate.admit() == gate.refusal() == Refusal(40, "isolated")
        assert gate.report().known.isolated


class TestLease:
    def test_its_holder_probes_once(self, gate):
        hear(gate, HALF_OPEN, LEASE)
        assert gate.refusal() is None
        probe = admitted(gate)

        assert probe.probe
        assert (probe.lease, probe.cluster_generation) == (1, 2)
        assert [gate.admit().reason for _ in range(200)] == ["half_open"] * 200
        assert gate.report().claims == (LeaseClaim(1, 2, has_begun=True),)

    @pytest.mark.parametrize(
        ("outcome", "latency_s", "told"),
        [
            (Outcome.OK, 0.1, Outcome.OK),
            (Outcome.OK, 2.0, Outcome.SLOW),
            (Outcome.TIMEOUT, 9.0, Outcome.TIMEOUT),
            (Outcome.BAD_OUTPUT, 0.1, Outcome.BAD_OUTPUT),
        ],
    )
    def test_its_result_is_reported_and_decided_upon_by_the_control_plane(self, gate, outcome, latency_s, told):
        hear(gate, HALF_OPEN, LEASE)
        gate.record(admitted(gate), outcome, latency_s)

        report = gate.report()
        assert report.batch.probes == (ProbeResult(1, 2, told),)
        assert report.batch.outcomes == {}
        assert gate.admit().reason == "half_open"

    def test_a_caller_that_goes_away_gives_it_back(self, gate):
        hear(gate, HALF_OPEN, LEASE)
        gate.release(admitted(gate))

        assert gate.report().batch.probes == (ProbeResult(1, 2, Outcome.CANCELLED),)

    def test_it_is_held_while_it_is_renewed(self, gate, clock):
        for _ in range(100):
            hear(gate, HALF_OPEN, LEASE)
            clock.advance(1)
        assert gate.report().claims == (LeaseClaim(1, 2, has_begun=False),)

        assert admitted(gate).lease == 1

    def test_it_is_not_used_after_its_time(self, gate, clock):
        report = gate.report()
        clock.advance(1.5)
        gate.apply(BreakerReply(report.sequence, HALF_OPEN, LEASE))
        clock.advance(0.4)
        assert gate.refusal() is None
        clock.advance(0.1)

        assert gate.admit() == Refusal(LEASE_WAIT_S, "half_open"), "its time counts from the report"
        assert gate.report().batch.probes == (ProbeResult(1, 2, Outcome.REJECTED),)

    def test_it_is_returned_when_it_is_taken_back(self, gate):
        hear(gate, HALF_OPEN, LEASE)
        hear(gate, HALF_OPEN)

        assert gate.admit().reason == "half_open"
        assert gate.report().batch.probes == (ProbeResult(1, 2, Outcome.REJECTED),)

    @pytest.mark.parametrize("ended", [False, True])
    def test_a_renewal_that_crosses_its_use_is_no_second_probe(self, gate, ended):
        hear(gate, HALF_OPEN, LEASE)
        report = gate.report()
        probe = admitted(gate)
        if ended:
            gate.record(probe, Outcome.BAD_OUTPUT, 0.1)
        gate.apply(BreakerReply(report.sequence, HALF_OPEN, LEASE))

        assert gate.admit().reason == "half_open"

    def test_a_probe_whose_result_is_not_yet_told_is_still_claimed(self, gate):
        gate.report()
        hear(gate, HALF_OPEN, LEASE)
        gate.report()
        gate.record(admitted(gate), Outcome.BAD_OUTPUT, 0.1)

        report = gate.report()
        assert report.batch.probes == (), "the batch under way is sent again as it was"
        assert report.claims == (LeaseClaim(1, 2, has_begun=True),)

    def test_a_hanging_probe_is_claimed_until_it_expires(self, gate, clock):
        hear(gate, HALF_OPEN, LEASE)
        probe = admitted(gate)
        clock.advance(19)
        assert gate.report().claims == (LeaseClaim(1, 2, has_begun=True),)
        clock.advance(1)
        assert gate.report().claims == ()
        gate.record(probe, Outcome.TIMEOUT, 20)

        assert gate.state is BreakerState.HALF_OPEN

    def test_it_is_void_in_a_later_generation(self, gate):
        hear(gate, HALF_OPEN, LEASE)
        hear(gate, replace(OPEN, generation=3))

        assert gate.admit() == Refusal(10 + LEASE_WAIT_S, "open")
        assert gate.report().claims == ()

    def test_a_later_lease_is_a_new_probe(self, gate):
        hear(gate, HALF_OPEN, LEASE)
        gate.release(admitted(gate))
        hear(gate, HALF_OPEN, ProbeLease(2, 2, 2, 20))

        assert admitted(gate).lease == 2

    @pytest.mark.parametrize("probes", [1, 3])
    def test_a_good_probe_of_another_router_opens_the_way_at_once(self, gate, probes):
        fail(gate, 5)
        hear(gate, OPEN)
        hear(gate, HALF_OPEN)
        assert gate.state is BreakerState.OPEN
        hear(gate, CLOSED_AGAIN)

        assert gate.state is BreakerState.CLOSED
        assert not admitted(gate).probe


class TestNews:
    def test_an_older_generation_is_ignored(self, gate):
        hear(gate, OPEN)
        hear(gate, CLOSED)

        assert gate.admit() == Refusal(10 + LEASE_WAIT_S, "open")
        assert gate.report().known.generation == 1

    def test_a_reply_to_an_earlier_report_is_ignored(self, gate):
        early = gate.report()
        hear(gate, OPEN)
        gate.apply(BreakerReply(early.sequence, CLOSED_AGAIN))

        assert gate.admit().reason == "open"

    def test_an_operators_reset_closes_own_breakers_too(self, gate):
        fail(gate, 5)
        hear(gate, replace(CLOSED, generation=1))

        assert gate.refusal() is None

    def test_what_was_not_acknowledged_is_sent_again_and_the_rest_after_it(self, gate):
        gate.record(admitted(gate), Outcome.OK, 0.1)
        first = gate.report()
        gate.record(admitted(gate), Outcome.TIMEOUT, 0.1)
        second = gate.report()

        assert second.batch == first.batch
        assert second.sequence > first.sequence
        gate.apply(BreakerReply(second.sequence, CLOSED))
        third = gate.report()
        assert third.batch.number == first.batch.number + 1
        assert third.batch.outcomes == {Outcome.TIMEOUT: 1}

    def test_messages_cross_processes(self, gate):
        fail(gate)
        report = hear(gate, HALF_OPEN, LEASE)

        assert pickle.loads(pickle.dumps(report)) == report
        assert pickle.loads(pickle.dumps(LEASE)) == LEASE


class TestControlPlaneAway:
    def away(self, gate, clock, known=OPEN):
        hear(gate, known)
        clock.advance(ALONE_S + 0.1)

    def test_a_closed_cluster_leaves_the_decision_to_the_own_breaker(self, gate, clock):
        self.away(gate, clock, CLOSED)
        fail(gate, 5)

        assert gate.admit() == Refusal(10, "open")

    def test_the_known_wait_is_kept(self, gate, clock):
        self.away(gate, clock)
        refusal = gate.admit()

        assert refusal.reason == "open"
        assert refusal.retry_after_s == pytest.approx(10 - ALONE_S - 0.1)

    def test_then_it_probes_one_at_a_time_however_many_the_policy_has(self, clock):
        gate = RouteGate(POLICY.model_copy(update={"half_open_probes": 3}), clock=clock, rng=NoJitter())
        self.away(gate, clock)
        clock.advance(10)
        assert admitted(gate).probe

        assert {gate.admit().reason for _ in range(200)} == {"half_open"}

    def test_a_good_probe_opens_the_way_and_is_told_later(self, gate, clock):
        fail(gate, 5)
        self.away(gate, clock)
        clock.advance(10)
        gate.record(admitted(gate), Outcome.OK, 0.1)

        assert gate.state is BreakerState.CLOSED
        assert not admitted(gate).probe
        gate.apply(BreakerReply(gate.report().sequence, OPEN.aged(10)))
        assert gate.state is BreakerState.OPEN, "the control plane decides again"

    def test_the_last_probe_made_alone_is_reported(self, gate, clock):
        self.away(gate, clock)
        for _ in range(3):
            clock.advance(40)
            gate.record(admitted(gate), Outcome.TIMEOUT, 0.1)
        clock.advance(40)
        gate.record(admitted(gate), Outcome.OK, 0.1)

        assert gate.report().batch.probes == (ProbeResult(0, 1, Outcome.OK),)

    def test_a_bad_probe_doubles_the_wait(self, gate, clock):
        self.away(gate, clock)
        clock.advance(10)
        gate.record(admitted(gate), Outcome.SERVER_ERROR, 0.1)

        assert gate.admit().retry_after_s == pytest.approx(20)

    @pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.BAD_OUTPUT])
    def test_a_probe_that_says_nothing_is_followed_by_another_and_not_reported(self, gate, clock, outcome):
        self.away(gate, clock)
        clock.advance(10)
        gate.record(admitted(gate), outcome, 0.1)
        gate.release(admitted(gate))

        assert admitted(gate).probe
        assert gate.report().batch.probes == ()

    def test_a_probe_of_another_router_is_not_waited_for(self, gate, clock):
        self.away(gate, clock, HALF_OPEN)

        assert admitted(gate).probe

    def test_isolation_stays(self, gate, clock):
        self.away(gate, clock, replace(OPEN, isolated=True))
        clock.advance(1000)

        assert gate.admit().reason == "isolated"

    def test_a_probe_that_ends_after_the_control_plane_is_back_is_told_too(self, gate, clock):
        self.away(gate, clock)
        clock.advance(10)
        probe = admitted(gate)
        hear(gate, OPEN.aged(10))
        gate.record(probe, Outcome.OK, 0.1)

        assert gate.report().batch.probes == (ProbeResult(0, 1, Outcome.OK),)
        assert gate.state is BreakerState.OPEN

    def test_a_429_to_a_probe_made_alone_cools(self, gate, clock):
        self.away(gate, clock)
        clock.advance(10)
        gate.record(admitted(gate), Outcome.RATE_LIMITED, 0.1, retry_after_s=7)

        assert gate.admit() == Refusal(7, "cooling")
        assert gate.report().cooling_s == 7


class TestPolicy:
    def test_thresholds_change_while_it_runs(self, gate):
        gate.reconfigure(POLICY.model_copy(update={"minimum_calls": 2, "slow_call_s": 0.05}))
        permits = [admitted(gate), admitted(gate)]
        for permit in permits:
            gate.record(permit, Outcome.OK, 0.1)

        assert gate.state is BreakerState.OPEN
        assert gate.report().batch.outcomes == {Outcome.SLOW: 2}

    def test_a_shorter_wait_applies_to_a_router_alone_too(self, gate, clock):
        hear(gate, replace(OPEN, wait_s=30, trips=3))
        clock.advance(ALONE_S + 0.1)
        assert gate.admit().retry_after_s > 20
        gate.reconfigure(BreakerPolicy(open_s=1, max_open_s=2))

        assert gate.admit() == Refusal(2, "open")
