"""What operators order: isolate, reset, pin, forget; and that it outlives the control plane that was told."""

import json

import pytest
from deployment_fakes import app_config

from serve_app.core.clock import ManualClock
from serve_app.core.permit import Refusal
from serve_app.core.route_gate import RouteGate, RoutePermit
from serve_app.deployments.control_plane import ControlPlane
from serve_app.errors import InvalidInputs
from serve_app.messages import Level
from serve_app.policy import BreakerPolicy
from serve_app.reports import Orders, Report


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def born(clock: ManualClock) -> ControlPlane:
    return ControlPlane(app_config(), clock=clock, unix_clock=lambda: 1_000_000 + clock())


@pytest.fixture
def plane(clock) -> ControlPlane:
    return born(clock)


class Replica:
    """A router's side of the exchange."""

    def __init__(self, clock: ManualClock, source: str = "Router-1") -> None:
        self.gate = RouteGate(BreakerPolicy(), clock=clock)
        self.source, self.snapshot = source, None

    async def exchange(self, plane: ControlPlane) -> None:
        known = {"level": self.snapshot.level, "orders": self.snapshot.orders} if self.snapshot else {}
        self.snapshot = await plane.exchange(
            Report(self.source, "Router", breakers={"large": self.gate.report()}, **known)
        )
        self.gate.apply(self.snapshot.breakers["large"])

    @property
    def asks(self) -> bool:
        return isinstance(self.gate.admit(), RoutePermit)


async def test_an_isolated_model_is_asked_by_nobody_until_it_is_reset(plane, clock) -> None:
    replica = Replica(clock)
    await replica.exchange(plane)
    shown = await plane.isolate("large", "the bill is under discussion")
    assert (shown["breaker"], shown["reason"], shown["healthy"]) == (
        "open",
        "isolated: the bill is under discussion",
        False,
    )
    await replica.exchange(plane)
    clock.advance(10_000)
    await replica.exchange(plane)
    assert isinstance(replica.gate.admit(), Refusal)
    assert (await plane.reset("large"))["breaker"] == "closed"
    await replica.exchange(plane)
    assert replica.asks


@pytest.mark.parametrize("order", [lambda plane: plane.isolate("lagre", "why"), lambda plane: plane.reset("lagre")])
async def test_a_model_that_does_not_exist_is_named(plane, order) -> None:
    with pytest.raises(InvalidInputs, match="no model is called 'lagre'"):
        await order(plane)


async def test_an_operators_pin_goes_before_the_policys_and_can_be_taken_back(plane) -> None:
    plane.reconfigure({"degradation": {"pin": "degraded"}})
    assert (await plane.pin(Level.MINIMAL))["level"] == "minimal"
    plane.reconfigure({"degradation": {"pin": "degraded", "dwell_s": 1}})
    assert (await plane.status())["level"]["level"] == "minimal"
    assert (await plane.pin(None))["level"] == "degraded"


async def test_forgetting_tells_every_replica_with_its_next_exchange(plane, clock) -> None:
    replica = Replica(clock)
    await replica.exchange(plane)
    before = replica.snapshot.version
    clock.advance(1)
    told = await plane.forget("ask")
    await replica.exchange(plane)
    assert replica.snapshot.orders.forgotten == told == {"ask": 1_000_000 + clock()}
    assert replica.snapshot.version > before
    with pytest.raises(InvalidInputs, match="no program is called 'aks'"):
        await plane.forget("aks")


async def test_forgetting_everything_names_every_program(plane) -> None:
    assert (await plane.forget(None)).keys() == {"ask"}


async def test_without_any_memory_the_replicas_teach_the_next_control_plane(plane, clock) -> None:
    replica = Replica(clock)
    await replica.exchange(plane)
    await plane.isolate("large", "testing")
    await plane.pin(Level.MINIMAL)
    forgotten = await plane.forget("ask")
    await replica.exchange(plane)
    clock.advance(3)
    reborn = born(clock)
    await replica.exchange(reborn)
    status = await reborn.status()
    assert status["models"]["large"]["breaker"] == "open"
    assert status["level"]["level"] == "minimal"
    assert replica.snapshot.orders.forgotten == forgotten
    assert not replica.asks


async def test_a_level_reached_by_readings_is_kept_over_a_restart_and_left_as_ever(plane, clock) -> None:
    plane.reconfigure({"degradation": {"dwell_s": 15}})
    replica = Replica(clock)
    await plane.exchange(Report("Ingress-1", "Ingress", calls=100, failed_calls=50))
    await replica.exchange(plane)
    reborn = born(clock)
    reborn.reconfigure({"degradation": {"dwell_s": 15}})
    await replica.exchange(reborn)
    assert replica.snapshot.level is Level.MINIMAL
    for _ in range(40):
        clock.advance(1)
        await replica.exchange(reborn)
    assert replica.snapshot.level is Level.FULL


async def test_a_replica_that_comes_late_does_not_bring_an_old_level_back(plane, clock) -> None:
    clock.advance(60)
    late = Report("Router-9", "Router", level=Level.MINIMAL)
    assert (await plane.exchange(late)).level is Level.FULL


async def test_what_was_written_down_is_there_again(plane, clock) -> None:
    await plane.isolate("large", "testing")
    await plane.pin(Level.DEGRADED)
    forgotten = await plane.forget(None)
    written = json.loads(json.dumps(plane.state()))
    clock.advance(100)
    reborn = born(clock)
    assert reborn.restore(written)
    status = await reborn.status()
    assert status["models"]["large"]["reason"] == "isolated: testing"
    assert status["models"]["small"]["breaker"] == "closed"
    assert status["level"]["level"] == "degraded"
    assert (await reborn.exchange(Report("Router-1", "Router"))).orders.forgotten == forgotten


@pytest.mark.parametrize("written", [None, [], {}, {"written_at": 1}, {"breakers": "x"}, "…", 7])
async def test_what_no_control_plane_wrote_is_not_believed(plane, written) -> None:
    assert plane.restore(written) is False
    assert (await plane.status())["level"]["level"] == "full"


async def test_a_strange_breaker_does_not_keep_the_others_from_coming_back(plane, clock) -> None:
    await plane.isolate("large", "testing")
    written = plane.state()
    written["breakers"]["medium"] = {"state": "ajar"}
    reborn = born(clock)
    assert reborn.restore(written)
    assert (await reborn.status())["models"]["large"]["breaker"] == "open"
    assert (await reborn.status())["models"]["medium"]["breaker"] == "closed"


async def test_only_what_is_worth_writing_down_sets_changed(plane, clock) -> None:
    replica = Replica(clock)
    await replica.exchange(plane)
    plane.changed.clear()
    for _ in range(5):
        clock.advance(1)
        await replica.exchange(plane)
    assert not plane.changed.is_set()
    await plane.isolate("large", "testing")
    assert plane.changed.is_set()


def test_of_two_orders_the_later_holds() -> None:
    early = Orders(Level.MINIMAL, 10.0, {"a": 5.0, "b": 1.0})
    late = Orders(None, 20.0, {"b": 2.0})
    assert early.merged(late) == late.merged(early) == Orders(None, 20.0, {"a": 5.0, "b": 2.0})
