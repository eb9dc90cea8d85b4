"""The answers that a cache keeps: in memory, and in a Redis that replicas share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

from serve_app.adapters.cache_metrics import CacheMetrics
from serve_app.adapters.local_store import LocalStore
from serve_app.adapters.redis_leases import Lease
from serve_app.adapters.redis_store import RedisStore, StoredBytes, StoreKey
from serve_app.config import AppConfig
from serve_app.core.cache_entry import Entry, decode, encode
from serve_app.core.cache_policy import keep_s
from serve_app.core.clock import Clock
from serve_app.core.forgotten import Forgotten
from serve_app.core.stored_answers import Stored, keys_to_read
from serve_app.deployments.shared_flight import SharedFlights
from serve_app.messages import Call

log = logging.getLogger("switchyard.cache")

Found = Mapping[str, Stored]
"""Stored answers by key."""


class Begun(NamedTuple):
    """When an answer was begun: by the clock, and in which generation of its program, where Redis knows one."""

    at: float
    generation: bytes | None


class AnswerStore:
    """Two levels that are read in turn and written together; Redis off the calls' path.

    Args:
        config: the application's topology.
        clock: monotonic seconds.
        unix_clock: seconds since 1970, by which answers age.

    Attributes:
        redis: the shared level; absent until it is known, and where none is wanted.
        has_peers: whether others may make answers for the same Redis; alone, no leases are needed.
        elsewhere: answers that other processes are making.
    """

    def __init__(self, config: AppConfig, *, clock: Clock = time.monotonic, unix_clock: Clock = time.time) -> None:
        self.redis: RedisStore | None = None
        self.has_peers = True
        self.elsewhere: SharedFlights[Entry] = SharedFlights(
            lambda: self.redis.leases if self.redis and self.has_peers else None, self.spawn, clock=clock
        )
        self._programs = {program.name: program.cache for program in config.programs}
        self._memory = LocalStore(config.cache.near_entries, config.cache.near_max_bytes, clock=clock)
        self._clock = clock
        self._unix_clock = unix_clock
        self._forgotten = Forgotten(clock=clock)
        self._unwritten: list[StoredBytes] = []
        self._unreleased: list[Lease] = []
        self._is_flushing = False
        self._tasks: set[asyncio.Task[None]] = set()

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def read_memory(self, calls: Iterable[Call]) -> dict[str, Stored]:
        """What memory has for these calls."""
        keys = dict.fromkeys(key for call in calls for key in keys_to_read(call))
        read = ((key, self._memory.get(key)) for key in keys)
        return {key: Stored(entry, "memory") for key, entry in read if entry is not None}

    async def read_redis(self, redis: RedisStore, calls: Iterable[Call], known: Found) -> Found:
        """What is ``known`` and what Redis has; of two answers under one key the one made last."""
        keys = list(dict.fromkeys(StoreKey(call.program, key) for call in calls for key in keys_to_read(call)))
        found, begun_at = dict(known), self._clock()
        for (program, key), data in zip(keys, await redis.get_many(keys), strict=True):
            entry = decode(data) if data else None
            if entry is None or entry.program != program or not _is_newer(entry, known.get(key)):
                continue
            if self.remember(key, entry, begun_at):
                found[key] = Stored(entry, "redis")
        return found

    def remember(self, key: str, entry: Entry, seen_at: float) -> bool:
        """Keep a stored answer of another replica here; false for one that was forgotten while it was read."""
        age_s = entry.age_s(self._unix_clock())
        if not self._forgotten.outlives(entry.program, seen_at - age_s):
            return False
        self._memory.put(key, entry, keep_s(self._programs[entry.program], entry.ttl_s) - age_s)
        return True

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────

    def begin(self, program: str) -> Begun:
        """What ``keep`` wants to know of an answer that is begun now."""
        return Begun(self._clock(), self.redis.generation(program) if self.redis else None)

    def keep(self, key: str, entry: Entry, begun: Begun) -> bool:
        """Keep the entry in memory and, soon, in Redis; false when neither takes it, or it was forgotten meanwhile."""
        if not self._forgotten.outlives(entry.program, begun.at):
            return False
        seconds = keep_s(self._programs[entry.program], entry.ttl_s)
        is_kept = self._memory.put(key, entry, seconds)
        data = encode(entry) if self.redis else None
        if data is None:
            return is_kept
        self._unwritten.append(StoredBytes(StoreKey(entry.program, key), data, seconds, begun.generation))
        self._flush_soon()
        return True

    def release(self, lease: Lease) -> None:
        """Give back the lease on an answer, once it is written: a follower finds it before the lease is gone."""
        self._unreleased.append(lease)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(lambda: self.spawn(self._flush()))

    async def _flush(self) -> None:
        writes, self._unwritten = self._unwritten, []
        leases, self._unreleased = self._unreleased, []
        self._is_flushing = False
        if self.redis is not None:
            await self.redis.put_many(writes)
        await self.elsewhere.release(leases)

    def forget(self, orders: Mapping[str, float]) -> frozenset[str]:
        """Drop what an operator wants forgotten, by program, in both levels; returns for which this is news."""
        programs = self._forgotten.update(orders)
        for program in programs:
            self._memory.delete_program(program)
            self.elsewhere.abandon(program)
            if self.redis is not None:
                self.spawn(_forget_in(self.redis, program))
        return programs

    # ── beside the calls ─────────────────────────────────────────────────────────────────────────────

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the calls, until ``aclose``."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """End what runs beside the calls, and close the connections to the shared level."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        redis, self.redis = self.redis, None
        if redis is not None:
            await redis.aclose()

    def count(self, metrics: CacheMetrics) -> None:
        """Put into the metrics what both levels hold and have done."""
        metrics.holds("memory", self._memory.stats())
        if self.redis is not None:
            metrics.store(self.redis.stats())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("cache.task_failed", exc_info=error)


async def _forget_in(redis: RedisStore, program: str) -> None:
    await redis.delete_program(program)


def _is_newer(entry: Entry, known: Stored | None) -> bool:
    return known is None or entry.created_at > known.entry.created_at
