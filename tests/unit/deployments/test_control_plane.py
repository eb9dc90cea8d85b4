"""What the control plane makes of reports: health, level, policy, one page of metrics."""

import json

import pytest
from deployment_fakes import app_config

from serve_app.adapters.telemetry import Telemetry
from serve_app.core.clock import ManualClock
from serve_app.core.route_gate import RouteGate
from serve_app.core.service_level import MIN_CALLS
from serve_app.deployments.control_plane import GATHER_S, REMEMBER_S, SILENCE_S, ControlPlane
from serve_app.errors import ConfigError, ControlPlaneUnreachable
from serve_app.messages import Level, Outcome
from serve_app.policy import BreakerPolicy
from serve_app.reports import Endpoint, MetricType, ModelLoad, Origin, OutcomeCount, Report, ScoreSum


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def plane(clock) -> ControlPlane:
    return ControlPlane(app_config(), clock=clock)


def router(source: str = "Router-1", **report) -> Report:
    return Report(source, "Router", **report)


async def test_health_is_the_sum_of_all_routers(plane) -> None:
    for source in ("Router-1", "Router-2"):
        counts = (OutcomeCount("large", Outcome.OK, 3, 0.3), OutcomeCount("large", Outcome.TIMEOUT, 1, 5.0))
        snapshot = await plane.exchange(router(source, outcomes=counts))
    assert (snapshot.models["large"].requests, snapshot.models["large"].failures) == (8, 2)
    assert snapshot.models["small"].requests == 0


async def test_what_is_not_the_models_fault_is_not_counted(plane) -> None:
    counts = tuple(
        OutcomeCount("large", outcome, 5, 1.0)
        for outcome in (Outcome.BAD_REQUEST, Outcome.BAD_OUTPUT, Outcome.RATE_LIMITED, Outcome.CANCELLED)
    )
    assert (await plane.exchange(router(outcomes=counts))).models["large"].requests == 0


async def test_the_version_grows_only_when_something_changed(plane) -> None:
    first = await plane.exchange(router())
    assert (await plane.exchange(router())).version == first.version
    plane.reconfigure({"routing": {"strategy": "quality"}})
    assert (await plane.exchange(router())).version > first.version


async def test_a_bad_policy_is_refused_and_the_old_one_stays(plane) -> None:
    plane.reconfigure({"routing": {"strategy": "quality"}})
    plane.reconfigure({"routing": {"stratgy": "cost"}})  # raising would have Ray end the replica
    assert (await plane.exchange(router())).policy.routing.strategy == "quality"
    (problem,) = (await plane.status())["policy_problems"]
    assert "routing.stratgy: unknown key; did you mean 'strategy'" in problem
    plane.reconfigure({"routing": {"strategy": "latency"}})
    assert (await plane.status())["policy_problems"] == []


async def test_a_bad_first_policy_does_not_start(plane) -> None:
    with pytest.raises(ConfigError, match=r"routing\.stratgy: unknown key; did you mean 'strategy'"):
        plane.reconfigure({"routing": {"stratgy": "cost"}})


async def test_a_pin_holds_a_level(plane) -> None:
    plane.reconfigure({"degradation": {"pin": "minimal"}})
    snapshot = await plane.exchange(router())
    assert (snapshot.level, snapshot.reason) == (Level.MINIMAL, "pinned")


async def test_failing_calls_lower_the_level_and_say_why(plane, clock) -> None:
    snapshot = await plane.exchange(Report("Ingress-1", "Ingress", calls=100, failed_calls=50))
    assert snapshot.level is Level.MINIMAL
    assert "error_rate" in snapshot.reason
    assert (await plane.status())["level"]["level"] == "minimal"
    page = (await plane.metrics()).decode()
    assert "dspy_degradation_level 2.0" in page
    assert 'dspy_degradation_cause{cause="error_rate"} 1.0' in page


@pytest.mark.parametrize("reading", ["latencies_s", "waits_s"])
async def test_a_few_slow_calls_of_one_program_leave_the_level_of_all(plane, reading) -> None:
    few = Report("Ingress-1", "Ingress", **{reading: (60.0,) * (MIN_CALLS - 1)})
    assert (await plane.exchange(few)).level is Level.FULL
    one_more = Report("Ingress-1", "Ingress", **{reading: (60.0,)})
    assert (await plane.exchange(one_more)).level is Level.DEGRADED


async def test_a_busy_cpu_does_not_count_while_the_cluster_starts(plane, clock) -> None:
    busy = router(gauges={"node_cpu": 1.0})
    assert (await plane.exchange(busy)).level is Level.FULL
    for _ in range(100):
        clock.advance(0.5)
        snapshot = await plane.exchange(busy)
    assert snapshot.level is Level.DEGRADED
    assert "cpu" in snapshot.reason


async def test_status_shows_the_worst_breaker_queues_and_replicas(plane) -> None:
    gate = RouteGate(BreakerPolicy(), clock=ManualClock())
    gate.record(gate.admit(), Outcome.DENIED, 0.1)
    why = {"large": "the model's provider denied access (HTTP 401)"}
    snapshot = await plane.exchange(router("Router-1", breakers={"large": gate.report()}, denials=why))
    gate.apply(snapshot.breakers["large"])
    for source in ("a", "b"):
        await plane.exchange(Report(source, "Model-large", gauges={"queue_depth": 3.0}))
    status = await plane.status()
    assert status["models"]["large"]["breaker"] == "open"
    assert status["models"]["large"]["healthy"] is False
    assert status["models"]["large"]["reason"] == "denied: the model's provider denied access (HTTP 401)"
    assert status["queues"] == {"Model-large": 6.0}
    assert status["replicas"] == {"Model-large": 2, "Router": 1}


async def test_a_silent_replica_leaves_and_its_totals_stay(plane, clock) -> None:
    telemetry = Telemetry()
    telemetry.call_finished("ask", "large", "success", 0.1)
    telemetry.set_active(7)
    await plane.exchange(Report("Ingress-1", "Ingress", metrics=telemetry.samples()))
    clock.advance(SILENCE_S + 1)
    await plane.exchange(Report("Ingress-2", "Ingress", metrics=telemetry.samples()))
    page = (await plane.metrics()).decode()
    assert 'dspy_requests_total{model="large",program="ask",status="success"} 2.0' in page
    assert 'dspy_active_requests{replica="Ingress-2"} 7.0' in page
    assert "Ingress-1" not in page
    assert (await plane.status())["replicas"] == {"Ingress": 1}


async def test_totals_of_replicas_that_left_outlive_the_control_plane(plane, clock) -> None:
    left, stays = Telemetry(), Telemetry()
    left.call_finished("ask", "large", "success", 0.1)
    for _ in range(2):
        stays.call_finished("ask", "large", "success", 0.1)
    await plane.exchange(Report("Ingress-1", "Ingress", metrics=left.samples()))
    plane.changed.clear()
    clock.advance(SILENCE_S + 1)
    await plane.exchange(Report("Ingress-2", "Ingress", metrics=stays.samples()))
    assert plane.changed.is_set()
    again = ControlPlane(app_config(), clock=clock)
    await again.exchange(Report("Ingress-2", "Ingress", metrics=stays.samples()))
    assert again.restore(json.loads(json.dumps(plane.state())))
    again.recalled.set()
    clock.advance(GATHER_S)
    page = (await again.metrics()).decode()
    assert page.splitlines().count('dspy_requests_total{model="large",program="ask",status="success"} 3.0') == 1
    assert 'dspy_request_duration_seconds_count{model="large",program="ask"} 3.0' in page


async def test_totals_of_a_replica_that_said_that_it_goes_are_written_down_at_once(plane, clock) -> None:
    left = Telemetry()
    left.call_finished("ask", "large", "success", 0.1)
    left.set_active(7)
    await plane.exchange(Report("Ingress-1", "Ingress", metrics=left.samples()))
    plane.changed.clear()
    await plane.depart("Ingress-1")
    assert plane.changed.is_set()
    assert (await plane.status())["replicas"] == {}
    again = ControlPlane(app_config(), clock=clock)
    again.restore(json.loads(json.dumps(plane.state())))
    again.recalled.set()
    clock.advance(GATHER_S)
    for page in ((await plane.metrics()).decode(), (await again.metrics()).decode()):
        assert 'dspy_requests_total{model="large",program="ask",status="success"} 1.0' in page
        assert "Ingress-1" not in page


async def test_a_replica_that_was_only_silent_counts_once_also_after_the_control_plane_died(plane, clock) -> None:
    slow = Telemetry()
    slow.call_finished("ask", "large", "success", 0.1)
    report = Report("Ingress-1", "Ingress", metrics=slow.samples())
    await plane.exchange(report)
    clock.advance(SILENCE_S + 1)
    await plane.exchange(router())
    plane.changed.clear()  # it is written down as gone
    await plane.exchange(report)
    assert plane.changed.is_set()
    again = ControlPlane(app_config(), clock=clock)
    again.restore(json.loads(json.dumps(plane.state())))
    again.recalled.set()
    await again.exchange(report)
    clock.advance(GATHER_S)
    page = (await again.metrics()).decode()
    assert 'dspy_requests_total{model="large",program="ask",status="success"} 1.0' in page


async def test_a_control_plane_that_was_born_again_waits_for_everybodys_totals_before_it_shows_any(
    plane, clock
) -> None:
    await plane.exchange(router())
    assert await plane.metrics(), "in its first life there is nothing to wait for"
    again = ControlPlane(app_config(), clock=clock)
    again.recalled.set()
    await again.exchange(router(told=7))
    with pytest.raises(ControlPlaneUnreachable):
        await again.metrics()
    clock.advance(GATHER_S)
    assert await again.metrics()


async def test_totals_of_replicas_that_left_are_waited_for_too_but_not_for_ever(clock) -> None:
    again = ControlPlane(app_config(), clock=clock)
    await again.exchange(router(told=7))
    clock.advance(GATHER_S)  # and what is written down was not read yet
    with pytest.raises(ControlPlaneUnreachable):
        await again.metrics()
    clock.advance(REMEMBER_S - GATHER_S)
    assert await again.metrics()


async def test_what_is_remembered_alone_is_no_page_of_metrics(plane, clock) -> None:
    again = ControlPlane(app_config(), clock=clock)
    again.restore(plane.state())
    again.recalled.set()
    with pytest.raises(ControlPlaneUnreachable):  # before anybody's report
        await again.metrics()


async def test_the_page_has_what_only_the_control_plane_knows(plane) -> None:
    page = (await plane.metrics()).decode()
    assert "dspy_degradation_level 0.0" in page
    assert 'dspy_breaker_state{model="large"} 0.0' in page


def scored(source: str, mean: float) -> Report:
    score = ScoreSum(Origin("ask", "v1", "small", Level.FULL), MetricType.REWARD, 100.0, 100 * mean)
    return Report(source, "Model-small", versions={"ask": "v1"}, scores=(score,))


async def test_what_was_learned_is_published_only_when_the_policy_says_so(plane, clock) -> None:
    assert (await plane.exchange(scored("Model-small-1", 0.3))).quality == {}
    plane.reconfigure({"routing": {"learn_quality": True}})
    clock.advance(1)
    quality = (await plane.exchange(scored("Model-small-1", 0.3))).quality
    assert 0.3 < quality["ask", Level.FULL, "small"] < 0.4
    assert ("ask", Level.FULL, "large") not in quality


async def test_what_was_learned_is_shown_beside_the_prior_also_while_it_is_not_used(plane, clock) -> None:
    telemetry = Telemetry()
    telemetry.bad_output("ask", "large")
    await plane.exchange(scored("Model-small-1", 0.3))
    await plane.exchange(Report("Model-large-1", "Model-large", metrics=telemetry.samples()))
    status = (await plane.status())["quality"]
    small, large = (status["programs"]["ask"]["models"][name] for name in ("small", "large"))
    assert status["learning"] is False
    assert small["prior"] == 0.7
    assert 0.3 < small["learned"]["full"] < 0.4
    assert small["scores"] == [
        {"version": "v1", "level": "full", "metric_type": "reward", "mean": 0.3, "samples": 100.0}
    ]
    assert (large["bad_outputs"], large["learned"]["full"], large["scores"]) == (1, large["prior"], [])
    page = (await plane.metrics()).decode()
    mean = 'dspy_quality_mean{level="full",metric_type="reward",model="small",program="ask",version="'
    (line,) = [line for line in page.splitlines() if line.startswith(mean)]
    assert line.endswith("} 0.3")
    assert 'dspy_quality_prior{model="small"} 0.7' in page
    learned = page.split('dspy_quality_learned{level="full",model="small",program="ask"} ')[1]
    assert float(learned.split()[0]) == pytest.approx(0.38)  # (0.7 * 20 + 0.3 * (100 - 20)) / 100
    assert 'dspy_bad_output_total{model="large",program="ask"} 1.0' in page


def replica(source: str, running: float, waiting: float, service_s: float) -> Report:
    """What a replica of model ``large`` with two slots reports."""
    queue = {"waiting_critical": 1.0, "waiting_default": waiting, "waiting_sheddable": 2.0}
    return Report(source, "Model-large", gauges={"slots": 2.0, "running": running, "service_s": service_s} | queue)


async def test_the_load_of_a_model_is_the_sum_of_its_replicas(plane) -> None:
    await plane.exchange(replica("a", running=2, waiting=3, service_s=1.0))
    snapshot = await plane.exchange(replica("b", running=1, waiting=0, service_s=3.0))
    assert snapshot.loads["large"] == ModelLoad(slots=4, running=3, waiting=(2, 3, 4), service_s=2.0, replicas=2)
    assert snapshot.loads["small"] == ModelLoad()


async def test_a_load_that_changes_is_no_new_version(plane) -> None:
    first = await plane.exchange(replica("a", running=0, waiting=0, service_s=0.0))
    assert (await plane.exchange(replica("a", running=2, waiting=9, service_s=1.0))).version == first.version


async def test_the_load_of_a_replica_that_fell_silent_is_forgotten(plane, clock) -> None:
    await plane.exchange(replica("a", running=2, waiting=3, service_s=1.0))
    clock.advance(SILENCE_S + 1)
    assert (await plane.exchange(router())).loads["large"] == ModelLoad()


KEY = b"what callers have to know"


def listening(source: str, port: int, deployment: str = "Model-large", **report) -> Report:
    """What a replica reports that takes calls over channels."""
    return Report(source, deployment, endpoint=Endpoint("10.0.0.1", port, KEY), **report)


async def endpoints(plane, *callees: str) -> dict[str, list[int]]:
    """Ports that a router is told which asks these deployments."""
    told = (await plane.exchange(router(callees=callees))).endpoints
    return {name: [endpoint.port for endpoint in found] for name, found in told.items()}


async def test_a_replica_is_told_where_those_are_whom_it_asks_and_nobody_else(plane) -> None:
    for report in (listening("a", 1), listening("b", 2), listening("c", 3, "Model-small"), listening("d", 4, "Cache")):
        assert (await plane.exchange(report)).endpoints == {}
    assert await endpoints(plane, "Model-large", "Model-medium") == {"Model-large": [1, 2], "Model-medium": []}
    (found, _) = (await plane.exchange(router(callees=("Model-large",)))).endpoints["Model-large"]
    assert found == Endpoint("10.0.0.1", 1, KEY)


async def test_a_replica_that_departed_or_fell_silent_is_nowhere_to_be_found(plane, clock) -> None:
    await plane.exchange(listening("a", 1))
    await plane.exchange(listening("b", 2))
    await plane.depart("a")
    assert await endpoints(plane, "Model-large") == {"Model-large": [2]}
    clock.advance(SILENCE_S + 1)
    assert await endpoints(plane, "Model-large") == {"Model-large": []}


async def test_a_replica_that_takes_no_more_calls_is_listed_no_more_though_it_still_reports(plane) -> None:
    await plane.exchange(listening("a", 1))
    await plane.exchange(Report("a", "Model-large"))
    assert await endpoints(plane, "Model-large") == {"Model-large": []}
    assert (await plane.status())["replicas"]["Model-large"] == 1


async def test_replicas_that_come_and_go_are_no_new_version(plane) -> None:
    first = await plane.exchange(router(callees=("Model-large",)))
    await plane.exchange(listening("a", 1))
    assert (await plane.exchange(router(callees=("Model-large",)))).version == first.version


async def test_the_key_of_a_replica_is_shown_to_nobody_but_its_callers(plane) -> None:
    await plane.exchange(listening("a", 1))
    await plane.exchange(router(callees=("Model-large",)))
    shown = (str(await plane.status()), (await plane.metrics()).decode(), str(plane.state()))
    for text in shown:
        assert KEY.decode() not in text
        assert "10.0.0.1" not in text
