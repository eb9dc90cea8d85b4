"""Reports travel over a channel once the control plane has said where it listens, and by handle whenever they cannot."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from channel_fakes import LOOPBACK, until
from deployment_fakes import settle

from serve_app.adapters.telemetry import Telemetry
from serve_app.core.clock import Clock, ManualClock
from serve_app.core.roster import SILENCE_S
from serve_app.deployments import control_link
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.exchange_server import ExchangeServer
from serve_app.messages import Attempt, Outcome
from serve_app.policy import Policy
from serve_app.reports import Endpoint, Snapshot


class Plane:
    """A control plane with both of its entrances; ``answer`` makes what ``exchange`` over the channel returns."""

    def __init__(self) -> None:
        self.by_handle: list = []
        self.by_channel: list = []
        self.answer = self.snapshot
        self.server = ExchangeServer(self._over_channel, LOOPBACK)
        self.endpoint: Endpoint | None = self.server.endpoint
        self.exchange = self.depart = self

    def snapshot(self) -> Snapshot:
        return Snapshot(1, Policy(), control=self.endpoint)

    async def remote(self, report) -> Snapshot:
        self.by_handle.append(report)
        return self.snapshot()

    async def _over_channel(self, report) -> Snapshot:
        self.by_channel.append(report)
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer


@asynccontextmanager
async def linked(plane: Plane, clock: Clock = time.monotonic) -> AsyncIterator[ControlLink]:
    plane.server.start()
    link = ControlLink(plane, "Router", Telemetry(), clock=clock)
    link.start()
    try:
        yield link
    finally:
        link.stop()
        await settle()  # asyncio leaks a connection that is accepted in the turn in which its server closes
        await plane.server.aclose()
        await settle()  # until its callers are gone, and their connections with them


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_link, "EXCHANGE_INTERVAL_S", 0)


async def test_only_the_first_report_goes_by_handle() -> None:
    plane = Plane()
    async with linked(plane) as link:
        await until(lambda: len(plane.by_channel) == 5)
        assert len(plane.by_handle) == 1
        assert {report.source for report in plane.by_channel} == {link.source}
        assert link.snapshot.control is None, "a channel's key does not travel on it"
        assert link.is_connected


async def test_a_control_plane_that_says_no_address_is_asked_by_handle() -> None:
    plane = Plane()
    plane.endpoint = None
    async with linked(plane):
        await until(lambda: len(plane.by_handle) == 3)
        assert plane.by_channel == []


async def test_an_address_that_nobody_answers_at_is_tried_again_after_a_while() -> None:
    plane, dead = Plane(), Plane()
    await dead.server.aclose()
    plane.endpoint = dead.server.endpoint
    tried = []

    async def connect(endpoint: Endpoint, timeout_s: float) -> control_link.Channel:
        tried.append(endpoint)
        assert timeout_s < SILENCE_S / 2, "meanwhile nothing is reported"
        return await real(endpoint, timeout_s)

    real, control_link.connect = control_link.connect, connect
    try:
        async with linked(plane, clock := ManualClock()):
            await until(lambda: len(plane.by_handle) == 4)
            assert tried == [dead.server.endpoint]
            plane.endpoint = plane.server.endpoint
            clock.advance(control_link.CONNECT_AGAIN_S)
            await until(lambda: plane.by_channel)
    finally:
        control_link.connect = real


async def test_when_the_control_plane_goes_its_successor_is_found_by_handle_and_nothing_is_lost() -> None:
    plane, successor = Plane(), Plane()
    successor.server.start()
    async with linked(plane) as link:
        await until(lambda: plane.by_channel)
        plane.endpoint = successor.endpoint
        plane.answer = plane.server.aclose
        link.attempt_finished(Attempt("large", Outcome.OK, 0.5))
        await until(lambda: successor.by_channel)
        heard = plane.by_handle[1:] + successor.by_channel
        assert sum(count.count for report in heard for count in report.outcomes) == 1
    await successor.server.aclose()
    await settle()


async def test_an_exchange_that_fails_ends_the_channel_and_the_next_goes_by_handle() -> None:
    def broken() -> Snapshot:
        plane.answer = plane.snapshot
        raise KeyError("a defect")

    plane = Plane()
    async with linked(plane) as link:
        await until(lambda: plane.by_channel)
        plane.answer = broken
        await until(lambda: len(plane.by_handle) == 2)
        await until(lambda: link.is_connected)


async def test_a_reply_that_comes_late_is_never_taken_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_link, "EXCHANGE_TIMEOUT_S", 0.02)
    release = asyncio.Event()

    async def late() -> Snapshot:
        plane.answer = plane.snapshot
        await release.wait()
        return replace(plane.snapshot(), version=99)

    plane = Plane()
    async with linked(plane) as link:
        await until(lambda: plane.by_channel)
        plane.answer = late
        await until(lambda: len(plane.by_handle) == 2)
        release.set()
        heard = len(plane.by_channel)
        await until(lambda: len(plane.by_channel) > heard + 3)
        assert link.snapshot.version == 1


async def test_a_replica_that_goes_gives_its_last_report_over_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = Plane()
    monkeypatch.setattr(control_link, "EXCHANGE_INTERVAL_S", 60)
    async with linked(plane) as link:
        await until(lambda: link._channel is not None)
        link.attempt_finished(Attempt("large", Outcome.OK, 0.5))
        await link.aclose()
        assert [count.count for report in plane.by_channel for count in report.outcomes] == [1]
        assert plane.by_handle[1:] == [link.source]  # the good-bye
