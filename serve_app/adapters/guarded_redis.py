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

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from serve_app.adapters.redis_failures import reason_of, takes_down
from serve_app.core.clock import Clock
from serve_app.core.store_health import StoreHealth
from serve_app.errors import ConfigError

LINGER_S: Final = 1.0
"""Seconds an operation goes on in the background, connecting included, after its caller has left."""
MAX_CONNECTIONS: Final = 16

_T = TypeVar("_T")


class GuardedRedis:
    """Runs operations on one server; none of them raises, save for the caller's own cancellation.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as ``redis.asyncio.from_url`` reads it.
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
        self._redis = _client(url, timeout_s)
        self._timeout_s = timeout_s
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

    async def run(self, operation: Callable[[Redis], Awaitable[_T]]) -> _T | None:
        """What the operation returns; ``None`` if the server is down, the operation fails or is not done in time."""
        if not self._health.is_up:
            self._failures["skipped"] += 1
            if self._health.claim_probe():
                self._spawn(self._probe())
            return None
        generation = self._health.generation
        task = self._spawn(self._attempt(operation))
        done, _ = await asyncio.wait({task}, timeout=self._timeout_s)
        result, error = task.result() if done else (None, TimeoutError())
        if error is not None:
            self.failed(error)
            if takes_down(error):
                self._health.failed(generation)
        return result

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

    async def _attempt(self, operation: Callable[[Redis], Awaitable[_T]]) -> tuple[_T | None, Exception | None]:
        try:
            async with asyncio.timeout(LINGER_S):
                return await operation(self._redis), None
        except Exception as error:  # noqa: BLE001 - whatever a server does is a failed operation, counted by its reason
            return None, error

    async def _probe(self) -> None:
        """Connect if need be, then see whether a reply comes in time."""
        error: Exception | None = TimeoutError()
        try:
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
    async def _ping(redis: Redis) -> bool:
        return bool(await redis.ping())


def _client(url: str, timeout_s: float) -> Redis:
    """A client without retries, health checks or greetings: each would cost a round trip nobody waits for."""
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=LINGER_S,
            socket_connect_timeout=LINGER_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
            decode_responses=False,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError([f"cache.redis_url: {error}"]) from error
    return Redis.from_pool(pool)
