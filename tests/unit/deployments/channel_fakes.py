"""Replicas and who asks them, over real channels on the loopback."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from deployment_fakes import FakeHandle, FakeStage, FakeStream, ok

from serve_app.adapters.channel import Channel, connect
from serve_app.core.clock import Clock
from serve_app.deployments.remote_stage import RemoteStage
from serve_app.deployments.stage_server import StageServer
from serve_app.messages import Call, Result
from serve_app.reports import Endpoint

LOOPBACK = "127.0.0.1"


async def until(condition: Callable[[], object]) -> None:
    """Let everything go on until it holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


class Gated(FakeStage):
    """Answers a call once its gate is open, or all are."""

    def __init__(self) -> None:
        self._gates: dict[str, asyncio.Event] = {}
        self._all_open = False
        super().__init__(self._when_open)

    def open(self, *ids: str) -> None:
        """Let these calls be answered; without any, all of them from now on."""
        self._all_open |= not ids
        for call_id in ids or tuple(self._gates):
            self._gate(call_id).set()

    async def _when_open(self, asked: Call) -> Result:
        if not self._all_open:
            await self._gate(asked.id).wait()
        return ok(asked)

    def _gate(self, call_id: str) -> asyncio.Event:
        return self._gates.setdefault(call_id, asyncio.Event())


class FakeLink:
    """Stands for the line to the control plane: a test says what its snapshots list."""

    def follow(self, deployment: str, found: Callable[[Sequence[Endpoint]], None]) -> None:
        self.deployment, self.found = deployment, found


class AnsweringHandle(FakeHandle):
    """A handle whose replica answers everything at once; remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[str]] = []

    def remote(self, calls: list[Call]) -> FakeStream:
        self.asked.append([asked.id for asked in calls])
        return FakeStream([(), [ok(asked, text="by handle") for asked in calls]])


def break_off(server: StageServer) -> None:
    """Have the replica's process be gone from one moment to the next, as its callers see it."""
    if server._listener._listening is not None:
        server._listener._listening.cancel()
    for channel in server._callers:
        channel._writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(stage: Any) -> AsyncIterator[StageServer]:
    """A replica that takes calls for the stage."""
    server = StageServer(stage, LOOPBACK)
    server.start()
    try:
        yield server
    finally:
        break_off(server)
        await until(lambda: not server._callers and not server._batches and server._listener._listening.done())


@contextlib.asynccontextmanager
async def calling(server: StageServer) -> AsyncIterator[Channel]:
    """A caller of it that a test speaks for."""
    channel = await connect(server.endpoint)
    try:
        yield channel
    finally:
        channel.close()
        await until(channel._writer.transport.is_closing)


class Asking:
    """Who asks a deployment, what it knows of where the replicas are, and the handle that it falls back on."""

    def __init__(self, *, accept_timeout_s: float | None = None, clock: Clock = time.monotonic) -> None:
        self.link, self.handle = FakeLink(), AnsweringHandle()
        self.stage = RemoteStage(self.handle, self.link, accept_timeout_s=accept_timeout_s, clock=clock)

    async def find(self, *servers: StageServer) -> None:
        """Be told where these replicas are, and connect to them."""
        self.link.found([server.endpoint for server in servers])
        await until(lambda: not self.stage._connecting)


@contextlib.asynccontextmanager
async def asking(**options: Any) -> AsyncIterator[Asking]:
    """Who asks, until its replicas are gone, which must have been begun after it."""
    asker = Asking(**options)
    try:
        yield asker
    finally:
        await until(lambda: not asker.stage._connecting and not asker.stage._replicas)
