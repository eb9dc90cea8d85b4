"""The cache level that all replicas share: Redis or Valkey, and harmless when it is neither.

No failure of the store is a failure of a call: what does not arrive in time, or is strange, is a miss and counted by
its reason (``serve_app.adapters.guarded_redis``). Keys are ``{namespace}:{program}:{key}``, values a generation
(``serve_app.adapters.redis_generations``) and the bytes given.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.adapters.guarded_redis import GuardedRedis
from serve_app.adapters.redis_client import Client, execute, mget
from serve_app.adapters.redis_generations import Generations, StoreKey
from serve_app.adapters.redis_leases import RedisLeases
from serve_app.core.clock import Clock

__all__ = ["RedisStats", "RedisStore", "StoreKey", "StoredBytes"]


class StoredBytes(NamedTuple):
    """What to keep, and for how many seconds at most.

    Attributes:
        begun_in: the program's generation when the answer was begun; if it has ended since, nothing is kept.
    """

    where: StoreKey
    data: bytes
    keep_s: float
    begun_in: bytes | None = None


@dataclass(frozen=True, slots=True)
class RedisStats:
    """What the store has done since it was made.

    Attributes:
        writes: answers the server took.
        failures: operations that failed by reason (``serve_app.adapters.redis_failures``); ``skipped`` counts those
            not tried while the store is down.
    """

    is_up: bool
    hits: int
    misses: int
    writes: int
    failures: Mapping[str, int]


class RedisStore:
    """A shared cache level; nothing it does raises, except that a caller's own cancellation passes through.

    Args:
        url: see ``serve_app.redis_url``.
        timeout_s: most seconds a caller waits for any operation.
        clock: monotonic seconds.
        namespace: first part of every key.

    Raises:
        ConfigError: the URL cannot be read.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 0.05, clock: Clock = time.monotonic, namespace: str = "switchyard"
    ) -> None:
        self._redis = GuardedRedis(url, timeout_s=timeout_s, clock=clock, recovered=self._is_back)
        self._generations = Generations(self._redis, namespace)
        self._counts: Counter[str] = Counter()
        self.leases = RedisLeases(self._redis, self._generations)
        """Who makes which answer."""

    async def get_many(self, wanted: Sequence[StoreKey]) -> list[bytes | None]:
        """The bytes at each place, in order, from one MGET; ``None`` for what is not there or cannot be had."""
        if not wanted:
            return []
        programs = list(dict.fromkeys(where.program for where in wanted))
        name = self._generations.name
        names = [name(program) for program in programs] + [name(*where) for where in wanted]
        replies = await self._redis.run(lambda redis: mget(redis, names))
        if replies is None:
            self._counts["misses"] += len(wanted)
            return [None] * len(wanted)
        self._generations.learn(zip(programs, replies, strict=False))
        answers = zip(wanted, replies[len(programs) :], strict=True)
        found = [self._generations.open(where, data) for where, data in answers]
        hits = sum(data is not None for data in found)
        self._counts["hits"] += hits
        self._counts["misses"] += len(found) - hits
        return found

    async def put_many(self, entries: Sequence[StoredBytes]) -> int:
        """Keep the entries, in one pipeline; returns how many the server took."""
        wanted = [entry for entry in entries if entry.keep_s > 0]
        programs = {entry.where.program for entry in wanted}
        if not wanted or not await self._generations.settle(programs):
            return 0
        taken = await self._redis.run(lambda redis: self._set_all(redis, wanted)) or 0
        self._counts["writes"] += taken
        return taken

    def generation(self, program: str) -> bytes | None:
        """The generation that answers begun now belong to, as far as it is known."""
        return self._generations.of(program)

    async def delete_program(self, program: str) -> bool:
        """Forget one program's answers, everywhere.

        False when the store cannot be told now: this replica then reads none of them and tells it when it is back.
        """
        return await self._generations.forget(program)

    async def ping(self) -> bool:
        """Whether the store answers within ``timeout_s``."""
        return await self._redis.run(_ping) is True

    def stats(self) -> RedisStats:
        """What the store has done."""
        counts = self._counts
        return RedisStats(
            self._redis.is_up, counts["hits"], counts["misses"], counts["writes"], dict(self._redis.failures)
        )

    async def aclose(self) -> None:
        """End what runs in the background and close every connection."""
        await self._redis.aclose()

    async def _is_back(self) -> None:
        await self._generations.store_is_back()

    async def _set_all(self, redis: Client, entries: Sequence[StoredBytes]) -> int:
        pipeline = redis.pipeline(transaction=False)
        for where, data, keep_s, begun_in in entries:
            generation = self._generations.of(where.program)
            if generation is not None and begun_in in (None, generation):
                name = self._generations.name(*where)
                pipeline.set(name, generation + data, px=max(1, int(keep_s * 1000)))
        replies = await execute(pipeline)
        for reply in replies:
            if isinstance(reply, Exception):
                self._redis.failed(reply)
        return sum(reply is True for reply in replies)


async def _ping(redis: Client) -> bool:
    return bool(await redis.ping())
