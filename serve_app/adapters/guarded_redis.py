"""A Redis client that costs a caller ``timeout_s`` at worst, and next to nothing once the server is known to be sick.

An operation runs as a task of its own, and its caller waits ``timeout_s`` for it. A slow connect (TLS, far away)
therefore finishes in the background within ``LINGER_S`` and is there for the next call, and a caller that leaves never
tears a connection apart in the middle of a reply.

After a failure ``serve_app.core.store_health`` keeps operations away, and a probe in the background finds out when the
server is well again. There are no retries: the next call is one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from redis.asyncio import RedisCluster

from serve_app.adapters.redis_client import Client, open_client
from serve_app.adapters.redis_failures import reason_of, takes_down
from serve_app.core.clock import Clock
from serve_app.core.store_health import StoreHealth

LINGER_S: Final = 1.0
"""Seconds an operation may take, connecting included, though its caller has left; never less than a caller waits."""
LATE_S: Final = 0.005
"""Seconds by which a timer may fire late before this process counts as busy."""

_T = TypeVar("_T")


class GuardedRedis:
    """Runs operations on one server; none of them raises, save for the caller's own cancellation.

    Args:
        url: see ``serve_app.redis_url``.
        timeout_s: most seconds a caller waits for an operation.
        clock: monotonic seconds.
        recovered: awaited in the background when the server is well again.

    Raises:
        ConfigError: the URL cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float,
        clock: Clock = time.monotonic,
        recovered: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._linger_s = max(LINGER_S, timeout_s)
        self._redis = open_client(url, timeout_s=timeout_s, socket_timeout_s=self._linger_s)
        self._health = StoreHealth(clock=clock)
        self._recovered = recovered
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures: Counter[str] = Counter()

    @property
    def is_up(self) -> bool:
        """Whether the server is asked at all."""
        return self._health.is_up

    @property
    def failures(self) -> Mapping[str, int]:
        """Failed operations by reason; ``skipped`` counts those not tried while the server is down."""
        return dict(self._failures)

    async def run(
        self,
        operation: Callable[[Client], Awaitable[_T]],
        undo: Callable[[Client, _T], Awaitable[object]] | None = None,
    ) -> _T | None:
        """What the operation returns; ``None`` if the server is down, the operation fails or is not done in time.

        ``undo`` gets the result of one that was done after all, when its caller had given it up.
        """
        if not self._health.is_up:
            self._failures["skipped"] += 1
            if self._health.claim_probe():
                self._spawn(self._probe())
            return None
        generation = self._health.generation
        task = self._spawn(self._attempt(operation))
        if await self._is_done_in_time(task):
            result, error = task.result()
        else:
            result, error = None, TimeoutError()
            if undo is not None:
                self._spawn(self._undo(task, undo))
        if error is not None:
            self.failed(error)
            if takes_down(error):
                self._health.failed(generation)
        return result

    async def _is_done_in_time(self, task: asyncio.Task[Any]) -> bool:
        """Wait for ``timeout_s``, and once more for as long as this process was too busy to look.

        A loop that stands still while a herd of calls arrives finds the timer and the reply due in the same turn.
        """
        clock = asyncio.get_running_loop().time
        due = clock() + self._timeout_s
        done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        late_s = clock() - due
        if not done and late_s > LATE_S:
            done, _ = await asyncio.wait({task}, timeout=min(late_s, self._timeout_s))
        return bool(done)

    def failed(self, error: BaseException) -> None:
        """Count a failure, such as that of one command in a pipeline."""
        self._failures[reason_of(error)] += 1

    async def aclose(self) -> None:
        """End what runs in the background and close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _attempt(self, operation: Callable[[Client], Awaitable[_T]]) -> tuple[_T | None, Exception | None]:
        try:
            async with asyncio.timeout(self._linger_s):
                return await operation(self._redis), None
        except Exception as error:  # noqa: BLE001 - whatever a server does is a failed operation, counted by its reason
            return None, error

    async def _undo(
        self,
        task: asyncio.Task[tuple[_T | None, Exception | None]],
        undo: Callable[[Client, _T], Awaitable[object]],
    ) -> None:
        result, _ = await task
        if result is not None:
            late = result
            await self._attempt(lambda redis: undo(redis, late))

    async def _probe(self) -> None:
        """Connect if need be, then see whether a reply comes in time."""
        error: Exception | None = TimeoutError()
        try:
            if isinstance(self._redis, RedisCluster):
                await self._attempt(lambda _: self._redis.aclose())  # its nodes may be others by now: look again
            _, error = await self._attempt(self._ping)
            if error is None:
                error = await self._ping_in_time()
        finally:
            self._health.probed(answered=error is None)
        if error is not None:
            self.failed(error)
        elif self._recovered is not None:
            await self._recovered()

    async def _ping_in_time(self) -> Exception | None:
        try:
            async with asyncio.timeout(self._timeout_s):
                return (await self._attempt(self._ping))[1]
        except TimeoutError as error:
            return error

    @staticmethod
    async def _ping(redis: Client) -> bool:
        return bool(await redis.ping())
