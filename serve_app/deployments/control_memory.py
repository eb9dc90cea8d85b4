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
MAX_BYTES: Final = 1_000_000
"""Longest state read: a few hundred bytes a model are usual."""


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
        """What was written last, as JSON's own types; ``None`` when there is nothing that can be read."""
        data = await self._redis.run(self._get)
        if not isinstance(data, bytes) or len(data) > MAX_BYTES:
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

    async def _get(self, redis: Client) -> object:
        return await redis.get(self._name)


async def remember(plane: ControlPlane, addresses: AsyncIterator[str], application: str) -> None:
    """Restore the plane's state once, then write it down whenever it changes, for as long as ``addresses`` lasts.

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
        if writer is not None:
            writer.cancel()


async def _write_through(plane: ControlPlane, url: str, application: str) -> None:
    try:
        memory = ControlMemory(url, application)
    except ConfigError as error:
        log.error("state.not_kept", extra={"problems": error.problems})  # noqa: TRY400 - the lines say it all
        return
    try:
        state = await memory.load()
        if state is not None:
            log.warning("state.%s", "restored" if plane.restore(state) else "unreadable")
        while True:
            plane.changed.clear()
            if not await memory.save(plane.state()):
                plane.changed.set()
                await asyncio.sleep(RETRY_S)
            await plane.changed.wait()
    finally:
        await memory.aclose()
