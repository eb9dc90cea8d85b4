"""A replica's line to the control plane: nothing is lost while it is away, and the last snapshot holds."""

import asyncio

import pytest
from ray.exceptions import RayActorError

from serve_app.adapters.telemetry import Telemetry
from serve_app.core.breaker_messages import BreakerReply, BreakerSnapshot
from serve_app.deployments import control_link
from serve_app.deployments.control_link import ControlLink
from serve_app.messages import Attempt, BreakerState, Level, Outcome
from serve_app.policy import Policy
from serve_app.reports import AnsweredCall, Endpoint, Origin, Snapshot


class Goodbyes:
    """Takes who goes."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def remote(self, source: str) -> None:
        self.heard.append(source)


class FakeControl:
    """Answers ``exchange`` with what is in ``replies``, in order; exceptions are raised."""

    def __init__(self, *replies) -> None:
        self.replies = list(replies)
        self.reports: list = []
        self.exchange = self
        self.depart = Goodbyes()

    async def remote(self, report):
        self.reports.append(report)
        reply = self.replies.pop(0) if self.replies else await asyncio.Event().wait()
        if isinstance(reply, Exception):
            raise reply
        return reply


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_link, "EXCHANGE_INTERVAL_S", 0)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def test_a_snapshot_arrives_and_listeners_hear_of_it_once() -> None:
    snapshot = Snapshot(3, Policy())
    control = FakeControl(snapshot, snapshot)
    link = ControlLink(control, "Router", Telemetry())
    heard: list[Snapshot] = []
    link.on_snapshot(heard.append)
    assert not link.is_ready
    link.start()
    await until(lambda: len(control.reports) == 3)
    link.stop()
    assert link.is_ready
    assert heard == [snapshot]


async def test_what_could_not_be_reported_is_reported_later() -> None:
    control = FakeControl(RayActorError(), RayActorError(), Snapshot(1, Policy()))
    link = ControlLink(control, "Router", Telemetry())
    link.attempt_finished(Attempt("large", Outcome.OK, 0.5))
    link.call_finished(0.5, failed=True)
    link.start()
    await until(lambda: len(control.reports) == 2)
    link.attempt_finished(Attempt("large", Outcome.OK, 0.25))
    await until(lambda: len(control.reports) == 4)
    link.stop()
    sent = control.reports[2]
    assert [(count.count, count.total_latency_s) for count in sent.outcomes] == [(2, 0.75)]
    assert (sent.calls, sent.failed_calls, sent.latencies_s) == (1, 1, (0.5,))
    assert control.reports[3].outcomes == ()


def settled(state: BreakerState) -> Snapshot:
    """A snapshot whose one breaker is in that state."""
    return Snapshot(1, Policy(), breakers={"large": BreakerReply(1, BreakerSnapshot(state, 1))})


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order: ``interval`` for each that the link waits."""
    happened: list[str] = []
    sleep = asyncio.sleep

    async def interval(seconds: float) -> None:
        if seconds == control_link.EXCHANGE_INTERVAL_S:
            happened.append("interval")
        await sleep(0)

    monkeypatch.setattr(control_link, "EXCHANGE_INTERVAL_S", 0.25)
    monkeypatch.setattr(control_link.asyncio, "sleep", interval)
    return happened


async def waited(link: ControlLink, turns: list[str], reply: Snapshot | Exception, then=lambda: None) -> int:
    """Intervals between the exchange that ``reply`` answers and the next, after ``then`` in the first interval."""
    control: FakeControl = link._handle  # type: ignore[assignment]
    control.replies = [reply]
    link.start()
    await until(lambda: turns)
    then()
    await until(lambda: len(control.reports) == 2)
    link.stop()
    return len(turns)


async def test_a_replica_with_nothing_to_say_exchanges_less_often(turns) -> None:
    link = ControlLink(FakeControl(), "Cache", Telemetry())
    link.add_gauges(lambda: {"queue_depth": 1.0})
    assert await waited(link, turns, settled(BreakerState.CLOSED)) == control_link.QUIET_INTERVALS


@pytest.mark.parametrize("state", [BreakerState.OPEN, BreakerState.HALF_OPEN])
async def test_a_router_with_a_breaker_that_is_not_closed_exchanges_at_once(turns, state) -> None:
    assert await waited(ControlLink(FakeControl(), "Router", Telemetry()), turns, settled(state)) == 1


async def test_a_replica_without_a_control_plane_looks_for_it_at_once(turns) -> None:
    assert await waited(ControlLink(FakeControl(), "Router", Telemetry()), turns, RayActorError()) == 1


@pytest.mark.parametrize(
    "happens",
    [
        lambda link: link.attempt_finished(Attempt("large", Outcome.OK, 0.5)),
        lambda link: link.call_finished(0.5, failed=False),
        lambda link: link.call_answered(AnsweredCall("r1", "c1", Origin("triage", "v1", "small", Level.FULL))),
        lambda link: link.waited(0.1),
        lambda link: link.denied("large", "no key"),
        lambda link: link.add_gauges(lambda: {"queue_depth": 1.0}),
    ],
    ids=["attempt", "call", "answer", "wait", "denial", "gauge"],
)
async def test_a_replica_with_news_tells_them_at_once(turns, happens) -> None:
    link = ControlLink(FakeControl(), "Router", Telemetry())
    assert await waited(link, turns, settled(BreakerState.CLOSED), lambda: happens(link)) <= 2


@pytest.mark.parametrize("error", [RayActorError(), AttributeError("as of a reply that another version pickled")])
async def test_while_the_control_plane_is_away_the_last_snapshot_holds(error) -> None:
    snapshot = Snapshot(3, Policy())
    control = FakeControl(snapshot, error)
    link = ControlLink(control, "Router", Telemetry())
    link.start()
    await until(lambda: len(control.reports) == 3)
    assert link.snapshot == snapshot
    assert link.is_ready
    assert not link.is_connected
    link.stop()


@pytest.mark.parametrize("deployment", ["Router", "Cache", "Model:large"])
async def test_every_replica_reports_its_memory(deployment) -> None:
    link = ControlLink(FakeControl(), deployment, Telemetry())
    link.start()
    await until(lambda: link._handle.reports)
    link.stop()
    (report,) = link._handle.reports
    (memory,) = [family for family in report.metrics if family.name == "dspy_memory_usage_mb"]
    ((_, _, mebibytes),) = memory.samples
    assert mebibytes > 1


async def test_samples_are_bounded() -> None:
    link = ControlLink(FakeControl(), "Router", Telemetry())
    for _ in range(10_000):
        link.waited(0.1)
        link.call_finished(0.1, failed=False)
    link.start()
    await until(lambda: link._handle.reports)
    link.stop()
    (report,) = link._handle.reports
    assert (report.calls, len(report.latencies_s), len(report.waits_s)) == (10_000, 500, 500)


async def test_a_replica_that_ends_reports_once_more() -> None:
    control = FakeControl(Snapshot(1, Policy()))
    link = ControlLink(control, "Ingress", Telemetry())
    link.start()
    await until(lambda: len(control.reports) == 2)  # the second is never answered
    link.call_finished(0.5, failed=False)
    control.replies.append(Snapshot(1, Policy()))
    await link.aclose()
    assert [report.calls for report in control.reports] == [0, 0, 1]
    assert control.depart.heard == [link.source]


async def test_the_last_report_waits_for_no_control_plane_that_is_gone(monkeypatch) -> None:
    monkeypatch.setattr(control_link, "LAST_REPORT_S", 0)
    control = FakeControl()
    link = ControlLink(control, "Ingress", Telemetry())
    await link.aclose()
    assert control.reports == []
    link.start()
    await until(lambda: control.reports)
    await asyncio.wait_for(link.aclose(), 5)
    control.replies.append(RayActorError())
    link.start()
    await asyncio.wait_for(link.aclose(), 5)


async def test_a_replica_that_could_not_report_says_no_goodbye() -> None:
    control = FakeControl(Snapshot(1, Policy()))
    link = ControlLink(control, "Ingress", Telemetry())
    link.start()
    await until(lambda: len(control.reports) == 2)
    control.replies.append(AttributeError("as of a reply that another version pickled"))
    await link.aclose()
    assert (len(control.reports), control.depart.heard) == (3, [])


@pytest.mark.parametrize(("cores", "in_use"), [(0.2, 0.625), (0.7, 0.7), (1.3, 1.0)])
async def test_what_is_in_use_of_the_machine_or_of_its_own_core_is_known_here_too(
    monkeypatch: pytest.MonkeyPatch, cores: float, in_use: float
) -> None:
    monkeypatch.setattr(control_link, "node_cpu", lambda: 0.625)
    monkeypatch.setattr(control_link, "process_cpu", lambda: cores)
    control = FakeControl(Snapshot(1, Policy()))
    link = ControlLink(control, "Model-small", Telemetry())
    assert link.cpu_in_use == 0
    link.start()
    await until(lambda: control.reports)
    link.stop()
    assert link.cpu_in_use == in_use
    assert control.reports[0].gauges["node_cpu"] == 0.625


async def test_where_a_replica_takes_calls_and_whom_it_asks_are_in_its_reports_until_it_goes() -> None:
    control = FakeControl(Snapshot(1, Policy()))
    link = ControlLink(control, "Router", Telemetry())
    link.endpoint = endpoint = Endpoint("10.0.0.1", 4000, b"key")
    link.follow("Model-large", lambda _: None)
    link.follow("Model-small", lambda _: None)
    link.start()
    await until(lambda: len(control.reports) == 2)  # the second is never answered
    link.endpoint = None
    control.replies.append(Snapshot(1, Policy()))
    await link.aclose()
    assert [report.endpoint for report in control.reports] == [endpoint, endpoint, None]
    assert {report.callees for report in control.reports} == {("Model-large", "Model-small")}


async def test_who_follows_a_deployment_is_told_where_its_replicas_are_at_every_exchange() -> None:
    here, there = Endpoint("10.0.0.1", 4000, b"key"), Endpoint("10.0.0.2", 4000, b"another")
    control = FakeControl(
        Snapshot(1, Policy(), endpoints={"Model-large": (here,), "Model-small": (there,)}),
        Snapshot(1, Policy(), endpoints={"Model-large": (here, there)}),
        Snapshot(1, Policy(), endpoints={"Model-large": (here, there)}),
    )
    link = ControlLink(control, "Router", Telemetry())
    told: dict[str, list] = {"Model-large": [], "Model-small": []}
    for name, heard in told.items():
        link.follow(name, heard.append)
    link.start()
    await until(lambda: len(control.reports) == 4)
    link.stop()
    assert told == {"Model-large": [(here,), (here, there), (here, there)], "Model-small": [(there,), (), ()]}


async def test_who_follows_a_deployment_is_told_nothing_while_the_control_plane_is_away() -> None:
    control = FakeControl(RayActorError(), RayActorError())
    link = ControlLink(control, "Router", Telemetry())
    told: list = []
    link.follow("Model-large", told.append)
    link.start()
    await until(lambda: len(control.reports) == 3)
    link.stop()
    assert told == []
