"""The cache level that all replicas share: Redis or Valkey, and harmless when it is neither.

No failure of the store is a failure of a call: what does not arrive in time, or is strange, is a miss and counted by
its reason (``serve_app.adapters.guarded_redis``).

Keys are ``{namespace}:{program}:{key}``, values an 8-byte *generation* and the bytes given. Each program's current
generation, a random number, is at ``{namespace}:{program}``; an answer of any other is a miss. So forgetting a
program is one SET: at once, for every replica, whatever the number of answers, with no scan of a shared server; the old
ones end by their TTL. A generation that was lost (evicted, flushed) takes its answers with it: the next one is new.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from redis.asyncio import Redis

from serve_app.adapters.guarded_redis import GuardedRedis
from serve_app.adapters.redis_failures import BadReply
from serve_app.core.clock import Clock

GENERATION_BYTES: Final = 8


class StoreKey(NamedTuple):
    """Where an answer is kept."""

    program: str
    key: str


class StoredBytes(NamedTuple):
    """What to keep, and for how many seconds at most."""

    where: StoreKey
    data: bytes
    keep_s: float


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
        url: ``redis://``, ``rediss://`` or ``unix://``, as ``redis.asyncio.from_url`` reads it.
        timeout_s: most seconds a caller waits for any operation.
        clock: monotonic seconds.
        namespace: first part of every key.

    Raises:
        ConfigError: the URL cannot be read.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 0.05, clock: Clock = time.monotonic, namespace: str = "switchyard"
    ) -> None:
        self._redis = GuardedRedis(url, timeout_s=timeout_s, clock=clock, recovered=self._tell_forgotten)
        self._namespace = namespace
        self._generations: dict[str, bytes] = {}
        self._forgotten: set[str] = set()
        self._counts: Counter[str] = Counter()

    async def get_many(self, wanted: Sequence[StoreKey]) -> list[bytes | None]:
        """The bytes at each place, in order, from one MGET; ``None`` for what is not there or cannot be had."""
        if not wanted:
            return []
        programs = list(dict.fromkeys(where.program for where in wanted))
        names = [self._name(program) for program in programs] + [self._name(*where) for where in wanted]
        replies = await self._redis.run(lambda redis: _mget(redis, names))
        if replies is None:
            self._counts["misses"] += len(wanted)
            return [None] * len(wanted)
        self._learn(zip(programs, replies, strict=False))
        found = [self._current(where, data) for where, data in zip(wanted, replies[len(programs) :], strict=True)]
        hits = sum(data is not None for data in found)
        self._counts["hits"] += hits
        self._counts["misses"] += len(found) - hits
        return found

    async def put_many(self, entries: Sequence[StoredBytes]) -> int:
        """Keep the entries, in one pipeline; returns how many the server took."""
        wanted = [entry for entry in entries if entry.keep_s > 0]
        programs = {entry.where.program for entry in wanted}
        if not wanted or not await self._settle(programs):
            return 0
        taken = await self._redis.run(lambda redis: self._set_all(redis, wanted)) or 0
        self._counts["writes"] += taken
        return taken

    async def delete_program(self, program: str) -> bool:
        """Forget one program's answers, everywhere.

        False when the store cannot be told now: this replica then reads none of them and tells it when it is back.
        """
        self._forgotten.add(program)
        return await self._settle({program})

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

    def _name(self, *parts: str) -> str:
        return ":".join((self._namespace, *parts))

    # ── generations ──────────────────────────────────────────────────────────────────────────────────

    def _learn(self, seen: Iterable[tuple[str, bytes | None]]) -> None:
        for program, generation in seen:
            if generation is not None and len(generation) == GENERATION_BYTES:
                self._generations[program] = generation
            else:
                self._generations.pop(program, None)

    def _current(self, where: StoreKey, data: bytes | None) -> bytes | None:
        generation = self._generations.get(where.program)
        if data is None or generation is None or where.program in self._forgotten:
            return None
        return data[GENERATION_BYTES:] if data.startswith(generation) else None

    async def _settle(self, programs: Collection[str]) -> bool:
        """See to it that each program has a generation, a new one if it is to be forgotten."""
        unsettled = [name for name in programs if name in self._forgotten or name not in self._generations]
        if not unsettled:
            return True
        return await self._redis.run(lambda redis: self._set_generations(redis, unsettled)) is True

    async def _tell_forgotten(self) -> None:
        if self._forgotten:
            await self._settle(self._forgotten)

    async def _set_generations(self, redis: Redis, programs: Sequence[str]) -> bool:
        forgotten = self._forgotten.intersection(programs)
        names = [self._name(program) for program in programs]
        pipeline = redis.pipeline(transaction=False)
        for program, name in zip(programs, names, strict=True):
            pipeline.set(name, os.urandom(GENERATION_BYTES), nx=program not in forgotten)
        pipeline.mget(names)
        replies = await pipeline.execute(raise_on_error=True)
        self._learn(zip(programs, _strings(replies[-1], len(names)), strict=True))
        self._forgotten -= forgotten
        if any(program not in self._generations for program in programs):
            await redis.delete(*names)  # something else is kept there; the next write starts anew
            raise BadReply("wrong_type")
        return True

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────

    async def _set_all(self, redis: Redis, entries: Sequence[StoredBytes]) -> int:
        pipeline = redis.pipeline(transaction=False)
        for where, data, keep_s in entries:
            generation = self._generations.get(where.program)
            if generation is not None:
                pipeline.set(self._name(*where), generation + data, px=max(1, int(keep_s * 1000)))
        replies = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception):
                self._redis.failed(reply)
        return sum(reply is True for reply in replies)


async def _mget(redis: Redis, names: Sequence[str]) -> list[bytes | None]:
    return _strings(await redis.mget(names), len(names))


async def _ping(redis: Redis) -> bool:
    return bool(await redis.ping())


def _strings(reply: object, count: int) -> list[bytes | None]:
    """MGET's reply, checked: a server that answers anything else is not believed."""
    if not isinstance(reply, list) or len(reply) != count:
        raise BadReply("protocol")
    return [item if isinstance(item, bytes) else None for item in reply]
