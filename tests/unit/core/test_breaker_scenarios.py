"""Whole clusters under fault: what the provider sees, and when callers have their model back."""

from __future__ import annotations

import itertools

import pytest
from breaker_cluster import DOWN, OK, Answer, Cluster, Network, down_until
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.messages import BreakerState, Outcome
from serve_app.policy import BreakerPolicy

POLICY = BreakerPolicy()
QUICK = BreakerPolicy(open_s=5, max_open_s=20, probe_lease_s=10)
SEEDS = range(8)


def opened_at(cluster: Cluster) -> float:
    """When the cluster's breaker opened; runs until it does."""
    while cluster.state() is BreakerState.CLOSED:
        assert cluster.now < 100
        cluster.run(cluster.now + 0.01)
    return cluster.now


def everywhere_open(cluster: Cluster) -> float:
    """When every router refuses; runs until it does."""
    opened_at(cluster)
    cluster.run(cluster.now + 0.6)
    assert all(router.gate.refusal() is not None for router in cluster.routers.values())
    return cluster.now


@pytest.mark.parametrize("seed", SEEDS)
def test_a_dead_model_sees_only_probes_once_it_is_known_to_be_dead(seed):
    cluster = Cluster(QUICK, lambda now, router: DOWN, routers=2, seed=seed)
    cluster.watch_leases()
    for router in cluster.routers:
        cluster.traffic(router, 0.01, until=120)
    opened = everywhere_open(cluster)
    cluster.run(120)

    assert opened < 6.5
    later = cluster.asked(begin=opened)
    assert all(request.is_leased for request in later)
    assert 5 <= len(later) <= 10
    gaps = [second.at - first.at for first, second in itertools.pairwise(later)]
    assert min(gaps) >= QUICK.open_s * 0.9
    assert max(gaps) <= QUICK.max_open_s + 1


@pytest.mark.parametrize("seed", SEEDS)
def test_two_hundred_callers_on_two_routers_make_one_probe_and_a_hanging_one_is_followed_within_a_lease(seed):
    def provider(now, router):
        return DOWN if now < 3 else Answer(Outcome.TIMEOUT, latency_s=1000)

    cluster = Cluster(QUICK, provider, routers=2, seed=seed)
    cluster.watch_leases()
    for router in cluster.routers:
        cluster.traffic(router, 0.05, until=3)
    everywhere_open(cluster)
    for router in cluster.routers:
        for i in range(100):
            cluster.traffic(router, 0.1, begin=3 + i / 1000, until=60)
    cluster.run(60)

    probes = cluster.asked(begin=3)
    assert len(cluster.leased_in_flight()) == 1
    assert [request.is_leased for request in probes] == [True] * len(probes)
    gaps = [second.at - first.at for first, second in itertools.pairwise(probes)]
    assert len(gaps) >= 4
    assert all(QUICK.probe_lease_s - 0.6 <= gap <= QUICK.probe_lease_s + 0.6 for gap in gaps)
    assert {request.router for request in probes} == set(cluster.routers)


@pytest.mark.parametrize("outcome", [Outcome.BAD_REQUEST, Outcome.CONTEXT_WINDOW, Outcome.BAD_OUTPUT])
def test_what_is_not_the_providers_fault_never_trips(outcome):
    replies = iter([OK, Answer(outcome)] * 100_000)
    cluster = Cluster(POLICY, lambda now, router: next(replies), routers=2)
    for router in cluster.routers:
        cluster.traffic(router, 0.01, until=60)
    cluster.run(61)

    assert cluster.refusals == []
    assert cluster.control.generation == 0
    assert {router.gate.state for router in cluster.routers.values()} == {BreakerState.CLOSED}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_429_keeps_every_router_away_until_its_time_and_not_much_longer(seed):
    limited = Answer(Outcome.RATE_LIMITED, latency_s=0.01, retry_after_s=5)
    cluster = Cluster(POLICY, lambda now, router: limited if now < 5 else OK, routers=2, seed=seed)
    cluster.traffic("router-0", 0.01, begin=1, until=10)
    cluster.traffic("router-1", 0.01, begin=1.6, until=10)
    cluster.run(10)

    first = cluster.asked()[0]
    cooling_until = first.at + 0.01 + 5
    for router in cluster.routers:
        back = next(request.at for request in cluster.asked(begin=1.1) if request.router == router)
        assert cooling_until <= back <= cooling_until + 1
    assert len(cluster.asked(end=cooling_until)) <= 2
    assert cluster.control.generation == 0
    assert {refusal.reason for _, _, refusal in cluster.refusals} == {"cooling"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_reset_ends_a_long_cooling_in_every_router(seed):
    limited = Answer(Outcome.RATE_LIMITED, latency_s=0.01, retry_after_s=3600)
    cluster = Cluster(POLICY, lambda now, router: limited if now < 5 else OK, routers=3, seed=seed)
    for router in cluster.routers:
        cluster.traffic(router, 0.1, until=30)
    cluster.at(20, cluster.control.reset)
    cluster.run(31)

    assert not cluster.asked(begin=5, end=20)
    assert {request.router for request in cluster.asked(begin=20, end=21)} == set(cluster.routers)
    assert [refusal for at, _, refusal in cluster.refusals if at > 21] == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_model_opens_within_a_window(seed):
    policy = BreakerPolicy(slow_call_s=1, window_s=10)
    cluster = Cluster(policy, lambda now, router: Answer(latency_s=2 if now > 20 else 0.2), routers=2, seed=seed)
    for router in cluster.routers:
        cluster.traffic(router, 0.1, until=60)
    opened = opened_at(cluster)

    assert 22 < opened < 20 + 2 + policy.window_s
    assert "slow" in cluster.control.health().reason


@pytest.mark.parametrize("remembers", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_open_breaker_is_open_after_the_control_plane_died(seed, remembers):
    policy = BreakerPolicy(open_s=60, max_open_s=60)
    cluster = Cluster(policy, lambda now, router: DOWN, routers=2, seed=seed)
    for router in cluster.routers:
        cluster.traffic(router, 0.02, until=70)
    opened = everywhere_open(cluster)
    before = cluster.control.generation
    cluster.at(10, cluster.kill_control)
    cluster.at(18, lambda: cluster.revive_control(remembers=remembers))
    cluster.run(20)
    assert cluster.state() is BreakerState.OPEN
    assert cluster.control.generation == before
    cluster.run(50)
    assert cluster.asked(begin=opened, end=50) == []

    cluster.run(70)
    assert 0 < len(cluster.asked(begin=50)) <= 2, "the wait did not begin anew"


@pytest.mark.parametrize("seed", SEEDS)
def test_isolation_outlives_the_control_plane(seed):
    cluster = Cluster(QUICK, lambda now, router: OK, routers=2, seed=seed)
    for router in cluster.routers:
        cluster.traffic(router, 0.05, until=120)
    cluster.run(2)
    cluster.control.isolate("maintenance")
    cluster.run(3)
    cluster.kill_control()
    cluster.run(60)
    cluster.revive_control(remembers=False)
    cluster.run(100)
    assert cluster.asked(begin=3) == []
    assert cluster.control.health().reason == "maintenance"

    cluster.control.reset()
    cluster.run(101)
    assert len({request.router for request in cluster.asked(begin=100)}) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_one_router_with_a_broken_path_stands_alone(seed):
    def provider(now, router):
        return Answer(Outcome.UNREACHABLE, 0.001) if router == "router-0" and now < 60 else OK

    cluster = Cluster(QUICK, provider, routers=2, seed=seed)
    cluster.traffic("router-0", 0.01, until=100)
    cluster.traffic("router-1", 0.2, until=100)
    cluster.run(100)

    assert cluster.control.generation == 0
    assert {router for _, router, _ in cluster.refusals} == {"router-0"}
    own_probes = [request for request in cluster.asked(begin=2, end=60) if request.router == "router-0"]
    assert 3 <= len(own_probes) <= 9
    assert all(request.permit.probe and not request.is_leased for request in own_probes)
    back = next(request.at for request in cluster.asked(begin=60) if request.router == "router-0")
    assert back <= 60 + QUICK.max_open_s


@pytest.mark.parametrize("policy", [POLICY, QUICK], ids=["default", "quick"])
@pytest.mark.parametrize("seed", SEEDS)
def test_after_a_minute_of_nothing_the_first_good_answer_comes_within_one_wait(seed, policy):
    cluster = Cluster(policy, down_until(60), routers=2, seed=seed)
    cluster.watch_leases()
    for router in cluster.routers:
        cluster.traffic(router, 0.05, until=120)
    opened = everywhere_open(cluster)
    cluster.run(120)

    assert all(request.is_leased for request in cluster.asked(begin=opened, end=60))
    good = next(request for request in cluster.asked() if request.answer.outcome is Outcome.OK)
    assert good.at + good.answer.latency_s <= 60 + policy.max_open_s
    everyone = {request.router for request in cluster.asked(begin=good.at, end=good.at + 1.2)}
    assert everyone == set(cluster.routers), "recovery is at once everywhere"


def test_the_default_wait_does_not_grow_so_that_recovery_is_found_within_open_s():
    assert POLICY.open_s == POLICY.max_open_s == 30


@pytest.mark.parametrize("policy", [POLICY, QUICK], ids=["default", "quick"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_flapping_model_is_back_within_half_a_minute_of_each_recovery(seed, policy):
    def provider(now, router):
        return DOWN if now % 150 < 60 else OK

    cluster = Cluster(policy, provider, routers=2, seed=seed)
    cluster.traffic("router-0", 2.0, until=600)
    cluster.traffic("router-1", 2.0, begin=1.0, until=600)
    cluster.run(600)

    for flap in range(4):
        recovery = flap * 150 + 60
        assert cluster.asked(begin=recovery, end=recovery + 30), "not asked again in time"
        back = {request.router for request in cluster.asked(begin=recovery + 32, end=recovery + 90)}
        assert back == set(cluster.routers)


def test_a_router_with_a_call_in_ten_seconds_still_finds_its_model_again():
    cluster = Cluster(QUICK, down_until(30), routers=1)
    cluster.traffic("router-0", 0.1, until=2)
    everywhere_open(cluster)
    cluster.traffic("router-0", 10, begin=10, until=100)
    cluster.run(100)

    assert cluster.state() is BreakerState.CLOSED
    assert len(cluster.asked(begin=60)) == 5


def test_routers_find_a_recovered_model_without_a_control_plane():
    cluster = Cluster(QUICK, down_until(30), routers=2)
    for router in cluster.routers:
        cluster.traffic(router, 0.1, until=120)
    opened = everywhere_open(cluster)
    cluster.kill_control()
    cluster.run(30)
    for name in cluster.routers:
        probes = [request for request in cluster.asked(begin=opened, end=30) if request.router == name]
        assert 1 <= len(probes) <= 5
        assert all(request.permit.probe for request in probes)
    cluster.run(30 + QUICK.max_open_s + 1)
    assert {router.gate.state for router in cluster.routers.values()} == {BreakerState.CLOSED}

    cluster.revive_control(remembers=True)
    cluster.run(60)
    assert cluster.state() is BreakerState.CLOSED
    assert len(cluster.asked(begin=58, end=59)) >= 19


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    routers=st.integers(1, 4),
    probes=st.integers(1, 3),
    delay_s=st.sampled_from([0.001, 0.05, 0.4]),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    deaths=st.lists(st.tuples(st.floats(2, 60), st.floats(0.1, 15), st.booleans()), max_size=3),
    slow_probe_s=st.sampled_from([0.05, 3.0, 30.0]),
)
def test_whatever_is_lost_late_or_dead_an_open_breaker_lets_only_probes_pass(
    seed, routers, probes, delay_s, loss, deaths, slow_probe_s
):
    policy = BreakerPolicy(open_s=2, max_open_s=8, probe_lease_s=6, half_open_probes=probes, window_s=10)

    def provider(now, router):
        return DOWN if now < 10 else Answer(Outcome.TIMEOUT, slow_probe_s)

    cluster = Cluster(policy, provider, routers=routers, seed=seed, network=Network(delay_s, loss))
    cluster.watch_leases()
    for router in cluster.routers:
        cluster.traffic(router, 0.05, until=80)
    cluster.run(20)
    for at, for_s, remembers in sorted(deaths):
        cluster.at(20 + at, cluster.kill_control)
        cluster.at(20 + at + for_s, lambda remembers=remembers: cluster.revive_control(remembers=remembers))
    cluster.run(80)

    late = cluster.asked(begin=20)
    assert late
    assert all(request.permit.probe for request in late)
    for router in cluster.routers.values():
        by_itself = [request for request in late if request.permit.issuer not in (None, router.gate._own)]
        alone = [request.at for request in by_itself if request.router == router.name]
        assert all(second - first >= 1.8 for first, second in itertools.pairwise(alone))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    delay_s=st.sampled_from([0.001, 0.05, 0.2]),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    deaths=st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 10), st.booleans()), max_size=2),
    bad_every_s=st.sampled_from([0.03, 0.2, 1.0]),
    outcome=st.sampled_from([Outcome.UNREACHABLE, Outcome.TIMEOUT, Outcome.SLOW]),
)
def test_one_bad_router_of_two_never_opens_the_other(seed, delay_s, loss, deaths, bad_every_s, outcome):
    def provider(now, router):
        return Answer(outcome, 0.01) if router == "router-1" else OK

    # A router that loses more exchanges in a row than one is silent, and has no vote.
    cluster = Cluster(QUICK, provider, routers=2, seed=seed, network=Network(delay_s, loss, most_lost_in_a_row=1))
    cluster.traffic("router-0", 0.1, until=45)
    cluster.traffic("router-1", bad_every_s, until=45)
    for at, for_s, remembers in sorted(deaths):
        cluster.at(at, cluster.kill_control)
        cluster.at(at + for_s, lambda remembers=remembers: cluster.revive_control(remembers=remembers))
    cluster.run(45)

    assert cluster.control.generation == 0
    assert {router for _, router, _ in cluster.refusals} <= {"router-1"}


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    routers=st.integers(1, 4),
    delay_s=st.sampled_from([0.001, 0.05, 0.4]),
    loss=st.sampled_from([0.0, 0.05, 0.3]),
    death=st.none() | st.tuples(st.floats(0, 60), st.floats(0.1, 15), st.booleans()),
)
def test_a_recovered_model_is_always_found(seed, routers, delay_s, loss, death):
    policy = BreakerPolicy(open_s=2, max_open_s=8, probe_lease_s=6, half_open_probes=2, window_s=10)
    cluster = Cluster(policy, down_until(30), routers=routers, seed=seed, network=Network(delay_s, loss))
    cluster.watch_leases()
    for router in cluster.routers:
        cluster.traffic(router, 0.1, until=120)
    if death:
        at, for_s, remembers = death
        cluster.at(at, cluster.kill_control)
        cluster.at(at + for_s, lambda: cluster.revive_control(remembers=remembers))
    cluster.run(119)

    assert cluster.state() is BreakerState.CLOSED
    assert len(cluster.asked(begin=118)) >= routers * 9
