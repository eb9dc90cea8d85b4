from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.breaker_messages import (
    BreakerReport,
    BreakerSnapshot,
    LeaseClaim,
    ProbeResult,
    ReportBatch,
    snapshot_from_plain,
)
from serve_app.core.breaker_vote import why_open
from serve_app.core.clock import ManualClock
from serve_app.core.cluster_breaker import ClusterBreaker
from serve_app.core.lease_book import HOLD_S, SILENCE_S, USE_WITHIN_S
from serve_app.core.rolling_window import Counts
from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

POLICY = BreakerPolicy(window_s=30, minimum_calls=5, open_s=10, max_open_s=40, probe_lease_s=20)
WAIT_S = 9.5
"""``open_s`` less half of the jitter, with a source that returns 0."""
FAIL, GOOD = Outcome.SERVER_ERROR, Outcome.OK


class NoJitter(Random):
    def random(self) -> float:
        return 0.0


class Routers:
    """Routers that report whatever a test says, and remember what they were told."""

    def __init__(self, breaker: ClusterBreaker) -> None:
        self.breaker = breaker
        self.sequence: dict[str, int] = {}
        self.batch: dict[str, int] = {}
        self.known: dict[str, BreakerSnapshot] = {}

    def report(self, name, outcomes=None, *, probes=(), claims=(), wants=False, cooling_s=0.0, generation=None):
        self.sequence[name] = self.sequence.get(name, 0) + 1
        self.batch[name] = self.batch.get(name, 0) + 1
        known = self.known.get(name, BreakerSnapshot(BreakerState.CLOSED, 0))
        generation = known.generation if generation is None else generation
        batch = ReportBatch(self.batch[name], generation, outcomes or {}, tuple(probes))
        report = BreakerReport(self.sequence[name], batch, known, tuple(claims), cooling_s, 0.0 if wants else None)
        return self.send(name, report)

    def send(self, name, report):
        self.last = report
        reply = self.breaker.exchange(name, report)
        self.known[name] = reply.known
        return reply


@pytest.fixture
def clock():
    return ManualClock(1000)


@pytest.fixture
def breaker(clock):
    return ClusterBreaker(POLICY, clock=clock, rng=NoJitter())


@pytest.fixture
def routers(breaker, clock):
    """Two routers that were heard for long enough."""
    routers = Routers(breaker)
    for seconds in (0, SILENCE_S / 2, SILENCE_S / 2):
        clock.advance(seconds)
        routers.report("a")
        routers.report("b")
    return routers


def open_it(routers, clock):
    """Open, with the wait over."""
    routers.report("a", {Outcome.DENIED: 1})
    routers.report("b")
    clock.advance(WAIT_S)
    return routers.breaker


class TestClosed:
    def test_failures_of_all_routers_together_open_it(self, breaker, routers):
        routers.report("a", {FAIL: 3})
        routers.report("b", {FAIL: 3})
        reply = routers.report("a")

        assert reply.known.state is BreakerState.OPEN
        assert reply.known.wait_s == WAIT_S
        assert breaker.health().reason == "6 of 6 calls failed on 2 routers"
        assert breaker.generation == 1

    def test_slow_calls_of_all_routers_together_open_it(self, breaker, routers):
        routers.report("a", {Outcome.SLOW: 5, GOOD: 1})
        routers.report("b", {Outcome.SLOW: 5, GOOD: 1})
        routers.report("a")

        assert breaker.health().reason == "10 of 12 calls were slow on 2 routers"

    def test_one_router_of_two_does_not_open_it(self, breaker, routers):
        routers.report("b", {GOOD: 3})
        for _ in range(20):
            routers.report("a", {FAIL: 100})
            routers.report("b")

        assert breaker.state is BreakerState.CLOSED
        assert breaker.health().failures == 2000
        assert breaker.health().requests == 2003

    def test_one_unlucky_call_of_the_other_router_is_no_vote(self, breaker, routers):
        for _ in range(5):
            routers.report("a", {FAIL: 100})
            routers.report("b", {FAIL: 1} if breaker.health().failures == 100 else {})

        assert breaker.state is BreakerState.CLOSED

    def test_the_only_router_that_calls_the_model_is_enough(self, breaker, routers):
        routers.report("a", {FAIL: 5})
        assert breaker.state is BreakerState.CLOSED, "b has not had its say"
        routers.report("b")
        routers.report("a")

        assert breaker.state is BreakerState.OPEN

    def test_good_calls_that_were_on_their_way_keep_it_closed(self, breaker, routers):
        routers.report("a", {FAIL: 5})
        routers.report("b", {GOOD: 3})
        routers.report("a", {FAIL: 5})
        routers.report("b")

        assert breaker.state is BreakerState.CLOSED

    def test_a_new_control_plane_waits_until_every_router_is_heard_or_gone(self, breaker, clock):
        routers = Routers(breaker)
        routers.report("a", {FAIL: 50})
        clock.advance(SILENCE_S - 0.1)
        routers.report("a", {FAIL: 50})
        assert breaker.state is BreakerState.CLOSED
        clock.advance(0.1)
        routers.report("a", {FAIL: 1})

        assert breaker.state is BreakerState.OPEN

    def test_a_silent_router_has_no_vote(self, breaker, routers, clock):
        routers.report("b", {GOOD: 5})
        for _ in range(3):
            clock.advance(SILENCE_S / 2)
            routers.report("a", {FAIL: 50})

        assert breaker.state is BreakerState.OPEN

    def test_too_few_calls_are_not_judged(self, breaker, routers):
        routers.report("a", {FAIL: 4})
        routers.report("b")
        routers.report("a")

        assert breaker.state is BreakerState.CLOSED

    def test_a_denial_opens_at_once_whatever_the_vote(self, breaker, routers):
        routers.report("b", {GOOD: 1000})
        reply = routers.report("a", {Outcome.DENIED: 1})

        assert reply.known.state is BreakerState.OPEN
        assert breaker.health().reason == "denied"

    def test_a_report_that_is_sent_again_counts_once(self, breaker, routers):
        routers.report("a", {FAIL: 2})
        for _ in range(10):
            routers.send("a", replace(routers.last, sequence=routers.last.sequence + 1))
            routers.report("b")

        assert breaker.health().requests == 2

    def test_a_report_that_comes_after_a_later_one_says_nothing(self, breaker, routers):
        routers.report("a", {FAIL: 2})
        early = replace(routers.last, batch=replace(routers.last.batch, number=99), cooling_s=9)
        routers.report("a")
        routers.send("a", early)

        assert breaker.health().requests == 2
        assert breaker.health().retry_after_s == 0

    @pytest.mark.parametrize("outcome", [Outcome.BAD_OUTPUT, Outcome.BAD_REQUEST, Outcome.RATE_LIMITED])
    def test_other_outcomes_open_nothing(self, breaker, routers, outcome):
        for _ in range(3):
            routers.report("a", {outcome: 100})
            routers.report("b", {outcome: 100})

        assert breaker.generation == 0

    def test_cooling_reported_by_one_router_is_told_to_the_others(self, breaker, routers, clock):
        routers.report("a", cooling_s=5)
        clock.advance(1)

        assert routers.report("b").known.cooling_s == 4
        assert breaker.state is BreakerState.CLOSED
        assert breaker.health().retry_after_s == 4


class TestOpen:
    def test_no_lease_is_granted_before_the_wait_is_over(self, breaker, routers, clock):
        routers.report("a", {Outcome.DENIED: 1})
        clock.advance(WAIT_S - 0.1)
        assert routers.report("a", wants=True).lease is None
        assert breaker.state is BreakerState.OPEN
        clock.advance(0.1)

        assert routers.report("a", wants=True).lease is not None

    def test_late_outcomes_of_an_earlier_generation_say_nothing(self, routers, clock):
        breaker = open_it(routers, clock)
        before = breaker.snapshot()
        routers.report("a", {GOOD: 1000, Outcome.DENIED: 5}, generation=0)

        assert breaker.snapshot() == before
        assert breaker.health().requests == 0

    def test_the_wait_doubles_up_to_its_cap_with_each_failed_probe(self, routers, clock):
        breaker = open_it(routers, clock)
        waits = []
        for _ in range(4):
            lease = routers.report("a", wants=True).lease
            reply = routers.report("a", probes=[ProbeResult(lease.number, lease.generation, FAIL)])
            assert reply.known.state is BreakerState.OPEN
            waits.append(reply.known.wait_s)
            clock.advance(waits[-1])
            routers.report("b")

        assert waits == [19, 38, 38, 38]
        assert breaker.generation == 9

    def test_waits_leave_room_for_the_exchange(self):
        waits = set()
        for seed in range(50):
            breaker = ClusterBreaker(POLICY, clock=ManualClock(), rng=Random(seed))
            Routers(breaker).report("a", {Outcome.DENIED: 1})
            waits.add(breaker.health().retry_after_s)

        assert len(waits) > 40
        assert all(POLICY.open_s * 0.9 <= wait <= POLICY.open_s * 0.95 for wait in waits)

    def test_isolation_grants_nothing_and_is_taken_back_by_a_reset(self, breaker, routers, clock):
        breaker.isolate("maintenance")
        clock.advance(100)
        reply = routers.report("a", wants=True)
        assert reply.lease is None
        assert reply.known.isolated
        assert breaker.health().reason == "maintenance"

        breaker.reset()
        assert routers.report("a").known.state is BreakerState.CLOSED

    @pytest.mark.parametrize(("outcome", "state"), [(GOOD, BreakerState.CLOSED), (FAIL, BreakerState.OPEN)])
    def test_a_probe_that_a_router_made_alone_counts_like_a_leased_one(self, routers, clock, outcome, state):
        breaker = open_it(routers, clock)
        routers.report("a", probes=[ProbeResult(0, 1, outcome)])

        assert breaker.state is state
        assert breaker.generation == 3

    @pytest.mark.parametrize("generation", [0, 2])
    def test_a_probe_made_alone_in_another_generation_says_nothing(self, routers, clock, generation):
        breaker = open_it(routers, clock)
        routers.report("a", probes=[ProbeResult(0, generation, GOOD)])

        assert breaker.generation == 1

    def test_a_probe_made_alone_before_the_wait_is_over_says_nothing(self, breaker, routers):
        routers.report("a", {Outcome.DENIED: 1})
        routers.report("a", probes=[ProbeResult(0, 1, GOOD)])

        assert breaker.state is BreakerState.OPEN


class TestHalfOpen:
    def test_a_router_that_wants_one_gets_the_only_lease(self, routers, clock):
        breaker = open_it(routers, clock)
        reply = routers.report("a", wants=True)

        assert reply.known.state is breaker.state is BreakerState.HALF_OPEN
        assert reply.lease.generation == breaker.generation == 2
        assert reply.lease.use_within_s == USE_WITHIN_S
        assert reply.lease.expires_in_s == POLICY.probe_lease_s
        assert routers.report("b", wants=True).lease is None

    def test_a_router_that_wants_none_gets_none(self, routers, clock):
        breaker = open_it(routers, clock)

        assert routers.report("a").lease is None
        assert breaker.state is BreakerState.OPEN

    def test_a_good_probe_closes_it(self, routers, clock):
        breaker = open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        reply = routers.report("a", probes=[ProbeResult(lease.number, lease.generation, GOOD)])

        assert reply.known.state is BreakerState.CLOSED
        assert breaker.health().reason == ""

    @pytest.mark.parametrize("outcome", [FAIL, Outcome.SLOW, Outcome.DENIED])
    def test_a_bad_probe_opens_it_again(self, routers, clock, outcome):
        breaker = open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        routers.report("a", probes=[ProbeResult(lease.number, lease.generation, outcome)])

        assert breaker.state is BreakerState.OPEN
        assert breaker.generation == 3

    @pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.REJECTED, Outcome.BAD_OUTPUT, Outcome.RATE_LIMITED])
    def test_a_probe_that_says_nothing_frees_its_lease_for_the_other_router(self, routers, clock, outcome):
        breaker = open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        assert routers.report("b", wants=True).lease is None
        reply = routers.report("a", probes=[ProbeResult(lease.number, lease.generation, outcome)], wants=True)

        assert reply.lease is None
        assert routers.report("b", wants=True).lease is not None
        assert breaker.generation == 2

    def test_leases_go_to_routers_in_turn(self, routers, clock):
        open_it(routers, clock)
        turns, held = [], {}
        for name in ("a", "b") * 8:
            probes = [ProbeResult(held.pop(name), 2, Outcome.CANCELLED)] if name in held else []
            lease = routers.report(name, probes=probes, wants=True).lease
            if lease:
                turns.append(name)
                held[name] = lease.number

        assert turns[:6] == ["a", "b", "a", "b", "a", "b"]

    def test_a_router_whose_callers_wait_goes_before_one_whose_callers_may_be_gone(self, routers, clock):
        open_it(routers, clock)
        lease = routers.report("b", wants=True).lease
        routers.report("a")
        routers.send("a", replace(routers.last, sequence=50, wanted_s=8.0))
        ended = ProbeResult(lease.number, 2, Outcome.CANCELLED)

        assert routers.report("b", probes=[ended], wants=True).lease is not None

    def test_a_lease_whose_reply_was_lost_is_sent_again(self, routers, clock):
        open_it(routers, clock)
        first = routers.report("a", wants=True).lease
        clock.advance(3)

        assert routers.report("a").lease == first

    def test_an_unused_lease_lasts_while_nobody_else_wants_it(self, routers, clock):
        breaker = open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        for _ in range(100):
            clock.advance(1)
            assert routers.report("a", claims=[LeaseClaim(lease.number, 2, has_begun=False)]).lease == lease
            routers.report("b")

        assert breaker.state is BreakerState.HALF_OPEN

    def test_an_unused_lease_goes_to_a_router_that_wants_it(self, routers, clock):
        open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        claim = LeaseClaim(lease.number, 2, has_begun=False)
        clock.advance(HOLD_S - 0.1)
        routers.report("b", wants=True)
        again = routers.report("a", claims=[claim]).lease
        assert again.number == lease.number, "its holder has not had its chance"
        clock.advance(0.1)
        assert routers.report("a", claims=[claim]).lease is None
        assert routers.report("b", wants=True).lease is None, "its holder has not returned it"
        routers.report("a", probes=[ProbeResult(lease.number, 2, Outcome.REJECTED)])

        assert routers.report("b", wants=True).lease is not None

    def test_routers_with_few_calls_keep_a_lease_longer_the_more_often_it_was_taken_back(self, routers, clock):
        open_it(routers, clock)
        number = routers.report("a", wants=True).lease.number
        holder, other = "a", "b"
        for hold_s in (HOLD_S, 2 * HOLD_S, 4 * HOLD_S):
            claim = LeaseClaim(number, 2, has_begun=False)
            for _ in range(int(hold_s / 0.5) - 1):
                clock.advance(0.5)
                routers.report(other, wants=True)
                assert routers.report(holder, claims=[claim]).lease is not None
            clock.advance(0.5)
            routers.report(other, wants=True)
            assert routers.report(holder, claims=[claim]).lease is None
            routers.report(holder, probes=[ProbeResult(number, 2, Outcome.REJECTED)])
            holder, other = other, holder
            number = routers.report(holder, wants=True).lease.number

    def test_a_lease_that_is_taken_back_but_was_never_received_is_free(self, routers, clock):
        open_it(routers, clock)
        routers.report("a", wants=True)
        clock.advance(HOLD_S)
        routers.report("b", wants=True)
        routers.report("a")
        routers.report("a")

        assert routers.report("b", wants=True).lease is not None

    def test_a_probe_in_flight_keeps_its_lease_until_it_expires(self, routers, clock):
        breaker = open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        claim = LeaseClaim(lease.number, 2, has_begun=True)
        for _ in range(19):
            clock.advance(1)
            assert routers.report("b", wants=True).lease is None
            assert routers.report("a", claims=[claim], wants=True).lease is None
        clock.advance(1)
        assert routers.report("b", wants=True).lease is not None

        routers.report("a", probes=[ProbeResult(lease.number, 2, GOOD)])
        assert breaker.state is BreakerState.HALF_OPEN, "its result came too late"

    def test_the_unused_lease_of_a_silent_router_is_free(self, routers, clock):
        open_it(routers, clock)
        routers.report("a", wants=True)
        clock.advance(SILENCE_S)
        assert routers.report("b", wants=True).lease is None
        clock.advance(0.1)

        assert routers.report("b", wants=True).lease is not None

    def test_the_probe_of_a_silent_router_is_awaited(self, routers, clock):
        open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        routers.report("a", claims=[LeaseClaim(lease.number, 2, has_begun=True)])
        clock.advance(SILENCE_S + 1)
        assert routers.report("b", wants=True).lease is None
        clock.advance(POLICY.probe_lease_s - SILENCE_S - 1)

        assert routers.report("b", wants=True).lease is not None

    def test_several_probes_need_as_many_successes(self, breaker, routers, clock):
        breaker.reconfigure(POLICY.model_copy(update={"half_open_probes": 2}))
        open_it(routers, clock)
        first, second = routers.report("a", wants=True).lease, routers.report("b", wants=True).lease
        assert routers.report("c", wants=True).lease is None
        routers.report("a", probes=[ProbeResult(first.number, 2, GOOD)])
        assert breaker.state is BreakerState.HALF_OPEN
        routers.report("b", probes=[ProbeResult(second.number, 2, GOOD)])

        assert breaker.state is BreakerState.CLOSED


class TestNextLife:
    def reborn(self, clock):
        return ClusterBreaker(POLICY, clock=ManualClock(clock() / 3), rng=NoJitter())

    def test_it_goes_on_from_json(self, routers, clock):
        breaker = open_it(routers, clock)
        stored = json.dumps(breaker.snapshot())
        reborn = self.reborn(clock)

        assert reborn.restore(json.loads(stored))
        assert reborn.snapshot() == breaker.snapshot()

    @pytest.mark.parametrize(
        "corrupt",
        [
            None,
            [],
            "open",
            {},
            {"state": "ajar", "generation": 1},
            {"state": "open", "generation": -1},
            {"state": "open", "generation": 3, "wait_s": float("nan")},
            {"state": "open", "generation": 3, "wait_s": float("inf")},
            {"state": "open", "generation": 3, "wait_s": -1},
            {"state": "closed", "generation": 3, "isolated": True},
            {"state": "open", "generation": 3, "leases": [[1, 5.0]], "last_lease": 1},
            {"state": "half_open", "generation": 3, "leases": [[2, 5.0]], "last_lease": 1},
            {"state": "half_open", "generation": 3, "leases": [[2]]},
        ],
    )
    def test_corrupt_memory_is_ignored(self, breaker, corrupt):
        before = breaker.snapshot()

        assert breaker.restore(corrupt) is False
        assert breaker.snapshot() == before

    @given(
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["state", "generation", "wait_s", "leases"]), x),
        )
    )
    def test_any_memory_is_a_state_or_ignored(self, data):
        breaker = ClusterBreaker(POLICY, clock=ManualClock())

        assert breaker.restore(data) is (snapshot_from_plain(data) is not None)

    def test_older_memory_is_ignored(self, breaker, routers):
        older = breaker.snapshot()
        routers.report("a", {Outcome.DENIED: 1})

        assert breaker.restore(older) is False
        assert breaker.state is BreakerState.OPEN

    def test_memory_cannot_hold_it_up_for_longer_than_the_policy(self, breaker, clock):
        leases = [[7, 1e9]]
        assert breaker.restore({"state": "half_open", "generation": 3, "leases": leases, "last_lease": 7})
        assert breaker.snapshot()["leases"] == [[7, POLICY.probe_lease_s]]

    def test_without_memory_routers_teach_it(self, routers, clock):
        breaker = open_it(routers, clock)
        routers.report("a")
        reborn = self.reborn(clock)
        routers.breaker = reborn
        reply = routers.report("a")

        assert reply.known.state is reborn.state is BreakerState.OPEN
        assert reborn.generation == breaker.generation
        assert reborn.health().reason == "denied"

    def test_it_leases_nothing_before_all_were_heard(self, routers, clock):
        open_it(routers, clock)
        routers.report("a")
        routers.known["a"] = routers.known["a"].aged(WAIT_S)
        routers.breaker = self.reborn(clock)

        assert routers.report("a", wants=True).lease is None

    def test_a_number_is_never_given_twice(self, routers, clock):
        breaker = open_it(routers, clock)
        routers.report("a", wants=True)
        breaker.learn(BreakerSnapshot(BreakerState.OPEN, 9))

        assert routers.report("a", wants=True).lease.number == 2

    def test_isolation_is_taught_too(self, breaker, routers, clock):
        breaker.isolate("maintenance")
        routers.report("a")
        routers.breaker = reborn = self.reborn(clock)
        routers.report("a")

        assert reborn.snapshot()["isolated"] is True

    def test_the_wait_that_routers_know_shortens_a_stored_one(self, breaker, routers, clock):
        routers.report("a", {Outcome.DENIED: 1})
        stored = breaker.snapshot()
        routers.breaker = reborn = self.reborn(clock)
        assert reborn.restore(stored)
        routers.known["a"] = routers.known["a"].aged(8)
        routers.report("a")

        assert reborn.snapshot()["wait_s"] == WAIT_S - 8

    def test_a_probe_in_flight_is_known_to_the_next_life_before_it_leases(self, routers, clock):
        open_it(routers, clock)
        lease = routers.report("a", wants=True).lease
        routers.breaker = reborn = ClusterBreaker(POLICY, clock=clock, rng=NoJitter())
        claim = LeaseClaim(lease.number, 2, has_begun=True)
        for _ in range(8):
            assert routers.report("b", wants=True).lease is None
            assert routers.report("a", claims=[claim], wants=True).lease is None
            clock.advance(1)
        routers.report("a", probes=[ProbeResult(lease.number, 2, GOOD)])

        assert reborn.state is BreakerState.CLOSED

    def test_a_lease_that_nobody_claims_is_free_once_all_were_heard(self, routers, clock):
        open_it(routers, clock)
        routers.report("a", wants=True)
        stored = routers.breaker.snapshot()
        routers.breaker = reborn = ClusterBreaker(POLICY, clock=clock, rng=NoJitter())
        assert reborn.restore(stored)
        routers.report("b", wants=True)
        clock.advance(SILENCE_S)
        reply = routers.report("b", wants=True)

        assert reply.lease.number == 2, "a number is never given twice"

    def test_of_two_meanings_of_a_generation_the_worse_holds(self, breaker):
        open_ = BreakerSnapshot(BreakerState.OPEN, 4, "calls failed", wait_s=5)
        assert breaker.learn(BreakerSnapshot(BreakerState.CLOSED, 4))
        assert breaker.learn(open_)

        assert breaker.state is BreakerState.OPEN
        assert breaker.generation == 5
        assert breaker.learn(open_) is False

    def test_a_stray_of_the_same_generation_is_not_believed_later(self, breaker, routers):
        assert breaker.learn(BreakerSnapshot(BreakerState.OPEN, 0, "stray")) is False

        assert breaker.state is BreakerState.CLOSED

    def test_a_later_generation_is_believed_at_any_time(self, breaker, routers):
        assert breaker.learn(BreakerSnapshot(BreakerState.OPEN, 9, "calls failed", wait_s=5))

        assert breaker.generation == 9
        assert breaker.health().retry_after_s == 5


class TestPolicy:
    def test_thresholds_change_while_it_runs(self, breaker, routers):
        routers.report("a", {FAIL: 2, GOOD: 3})
        routers.report("b", {FAIL: 2, GOOD: 3})
        breaker.reconfigure(POLICY.model_copy(update={"failure_rate_threshold": 0.3}))
        for name in ("a", "b", "a"):
            routers.report(name)

        assert breaker.state is BreakerState.OPEN

    def test_a_shorter_window_forgets_what_is_past_it(self, breaker, routers, clock):
        routers.report("a", {GOOD: 3})
        clock.advance(4)
        breaker.reconfigure(POLICY.model_copy(update={"window_s": 3}))

        assert breaker.health().requests == 0

    def test_a_shorter_wait_applies_to_the_one_at_hand(self, breaker, routers):
        routers.report("a", {Outcome.DENIED: 1})
        breaker.reconfigure(BreakerPolicy(open_s=2))

        assert breaker.health().retry_after_s == 2


@pytest.mark.parametrize(
    ("routers", "opens"),
    [
        ([], False),
        ([Counts(5, 5)], True),
        ([Counts(4, 4)], False),
        ([Counts(5, 2)], False),
        ([Counts(5, 5), Counts(0, 0)], True),
        ([Counts(5, 5), Counts(5, 0)], False),
        ([Counts(500, 500), Counts(1, 1)], False),
        ([Counts(3, 3), Counts(3, 3)], True),
        ([Counts(5, 5), Counts(5, 5), Counts(5, 0)], True),
        ([Counts(5, 5), Counts(5, 5), Counts(5, 0), Counts(5, 0)], False),
        ([Counts(5, 5), Counts(5, 5), Counts(90, 0)], False),
        ([Counts(1, 1)] * 10, True),
        ([Counts(10, 0, 8), Counts(10, 0, 9)], True),
        ([Counts(10, 0, 10), Counts(10, 0, 7)], False),
        ([Counts(10, 4, 4), Counts(10, 4, 4)], False),
    ],
)
def test_routers_agree_or_they_do_not(routers, opens):
    assert bool(why_open(routers, POLICY)) is opens
