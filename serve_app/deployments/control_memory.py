"""Where the control plane writes its state down, so that its next life goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from pydantic_core import from_json, to_json

from serve_app.adapters.guarded_redis import GuardedRedis
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from serve_app.adapters.redis_client import Client
    from serve_app.deployments.control_plane import ControlPlane

log = logging.getLogger("switchyard.control_memory")

TIMEOUT_S: Final = 1.0
"""Seconds an operation may take; nobody's call waits for it."""
RETRY_S: Final = 2.0
"""Seconds after which a state that could not be written is tried again."""
REWRITE_S: Final = 30.0
"""Seconds after which a state that did not change is written again: the server may have come back empty since, or
have evicted what nobody asked for."""
READ_ATTEMPTS: Final = 20
READ_PAUSE_S: Final = 0.5
"""Seconds between attempts to read. All of them last longer than a first policy that is refused waits (``RECALL_S``):
a life that ends for want of a policy has not written a state without one over a state that it could not read."""
MAX_BYTES: Final = 64_000_000
"""Longest state read: a few hundred bytes a model, and once replicas have left some kB for each program and model."""


class ControlMemory:
    """The control plane's state at one place of a Redis; a Redis that is sick costs nothing but the memory.

    Args:
        url: as ``GuardedRedis`` takes it.
        application: name of the Serve application; several may share one Redis.

    Raises:
        ConfigError: the URL cannot be read.
    """

    def __init__(self, url: str, application: str) -> None:
        self._redis = GuardedRedis(url, timeout_s=TIMEOUT_S)
        self._name = f"switchyard-control:{application}"

    async def load(self) -> object:
        """What was written last, as JSON's own types; ``None`` when there is nothing that can be read.

        Raises:
            ConnectionError: the Redis does not answer.
        """
        data = await self._redis.run(self._get)
        if data is None:
            raise ConnectionError("the Redis does not answer")
        if len(data) > MAX_BYTES:
            log.error("state.too_long", extra={"bytes": len(data)})
            return None
        with contextlib.suppress(ValueError):
            return from_json(data)
        return None

    async def save(self, state: object) -> bool:
        """Write a state over the one before; False when that failed."""
        data = to_json(state)
        return await self._redis.run(lambda redis: redis.set(self._name, data)) is True

    async def aclose(self) -> None:
        """Close every connection."""
        await self._redis.aclose()

    async def _get(self, redis: Client) -> bytes:
        data = await redis.get(self._name)
        return data if isinstance(data, bytes) else b""


async def remember(plane: ControlPlane, addresses: AsyncIterator[str], application: str) -> None:
    """Restore the plane's state once, then write it down, whenever it changes at once, while ``addresses`` lasts.

    Sets ``plane.recalled`` when all that is remembered has been told, or there is nothing to ask.

    Args:
        plane: whose state.
        addresses: where the Redis is: its URL, and again when it has moved; the state moves with it.
        application: name of the Serve application.
    """
    writer: asyncio.Task[None] | None = None
    try:
        async for url in addresses:
            if writer is not None:
                writer.cancel()
            writer = asyncio.create_task(_write_through(plane, url, application))
        if writer is not None:
            await writer
    finally:
        plane.recalled.set()
        if writer is not None:
            writer.cancel()


async def _write_through(plane: ControlPlane, url: str, application: str) -> None:
    try:
        memory = ControlMemory(url, application)
    except ConfigError as error:
        log.error("state.not_kept", extra={"problems": error.problems})  # noqa: TRY400 - the lines say it all
        return
    try:
        await _recall(plane, memory)
        while True:
            plane.changed.clear()
            if not await memory.save(plane.state()):
                plane.changed.set()
                await asyncio.sleep(RETRY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REWRITE_S):
                    await plane.changed.wait()
    finally:
        await memory.aclose()


async def _recall(plane: ControlPlane, memory: ControlMemory) -> None:
    for _ in range(READ_ATTEMPTS):
        with contextlib.suppress(ConnectionError):
            state = await memory.load()
            if state is not None:
                log.warning("state.%s", "restored" if plane.restore(state) else "unreadable")
            break
        await asyncio.sleep(READ_PAUSE_S)
    plane.recalled.set()
