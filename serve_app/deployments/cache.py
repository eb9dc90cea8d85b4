"""``Cache``: exact answers from memory and Redis, and identical calls in flight made once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from serve_app.adapters.local_store import LocalStore
from serve_app.adapters.redis_store import RedisStore, StoredBytes, StoreKey
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.core.cache_entry import Entry, decode, encode
from serve_app.core.cache_policy import Decision, decide_entry, entry_of, keep_s
from serve_app.core.clock import Clock
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.single_flight import SingleFlight
from serve_app.deployments.stage import Chunks, Lane, Stage, answer_each
from serve_app.errors import DeadlineExceeded
from serve_app.messages import CacheStatus, Call, Result, Usage

log = logging.getLogger("switchyard.cache")

STALE_RESERVE_S = 0.25
"""Seconds before its deadline at which a call that has a stale answer waits no longer for a model."""

_Found = tuple[Entry | None, str]
"""A stored answer and the tier that had it."""


class Cache:
    """A stage that answers what it knows, passes the rest on, and remembers what comes back.

    Args:
        config: the application's topology.
        downstream: who makes answers.
        telemetry: this replica's metrics.
        link: the line to the control plane.
    """

    def __init__(
        self,
        config: AppConfig,
        downstream: Stage,
        telemetry: Telemetry,
        link: ControlLink,
        *,
        clock: Clock = time.monotonic,
        unix_clock: Clock = time.time,
    ) -> None:
        self.redis: RedisStore | None = None
        """The shared level; absent until it is known, and where none is wanted."""
        self._programs = {program.name: program.cache for program in config.programs}
        self._lane = Lane(downstream, resubmit=True)
        self._memory = LocalStore(config.cache.near_entries, config.cache.near_max_bytes, clock=clock)
        self._telemetry = telemetry
        self._clock = clock
        self._unix_clock = unix_clock
        self._flights: SingleFlight[Result] = SingleFlight()
        self._unwritten: list[StoredBytes] = []
        self._tasks: set[asyncio.Task[None]] = set()
        link.add_gauges(self._gauges)

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call, each as it is ready; one read of Redis for all that memory does not have."""
        deadlines = {call.id: self._clock() + call.remaining_s for call in calls}
        found: dict[str, _Found] = {}
        unknown = []
        for call in calls:
            if not _may_use_stored(call):
                continue
            entry = self._memory.get(call.key)
            if entry is not None:
                found[call.key] = (entry, "memory")
            else:
                unknown.append(call)
        reading = asyncio.ensure_future(self._read_redis(self.redis, unknown)) if unknown and self.redis else None

        async def answer(call: Call) -> Result:
            known = found.get(call.key)
            if known is None and reading is not None and _may_use_stored(call):
                known = (await asyncio.shield(reading)).get(call.key)
            return await self._answer(call, known or (None, ""), deadlines[call.id])

        return answer_each(calls, answer)

    async def _answer(self, call: Call, found: _Found, deadline: float) -> Result:
        config, (entry, tier) = self._programs[call.program], found
        decision = decide_entry(config, call.freshness, entry, self._unix_clock())
        match decision:
            case Decision.FRESH if entry:
                return self._hit(call, entry, tier, CacheStatus.HIT)
            case Decision.STALE if entry:
                if call.key not in self._flights:
                    self.spawn(self._refresh(call, deadline))
                return self._hit(call, entry, tier, CacheStatus.STALE)
            case Decision.UNSATISFIABLE:
                raise DeadlineExceeded("only-if-cached, and no stored answer may be served", request_id=call.request_id)
            case Decision.BYPASS:
                return replace(await self._ask(call, deadline), cache=CacheStatus.BYPASS)
            case Decision.IF_ERROR:
                deadline -= min(STALE_RESERVE_S, (deadline - self._clock()) / 2)
        self._telemetry.cache_missed(call.program)
        result = await self._make(call, deadline)
        if result.error is not None and decision is Decision.IF_ERROR and entry:
            log.warning("cache.stale_if_error", extra={"program": call.program, "error": result.error.code})
            return self._hit(call, entry, tier, CacheStatus.STALE)
        return result

    def _hit(self, call: Call, entry: Entry, tier: str, status: CacheStatus) -> Result:
        self._telemetry.cache_hit(call.program, tier)
        return entry.answer(call.id, status=status, tier=tier, age_s=entry.age_s(self._unix_clock()))

    async def _make(self, call: Call, deadline: float) -> Result:
        """A new answer, shared with identical calls in flight; each keeps its own deadline."""
        if not call.key or call.freshness.no_cache:
            return await self._ask_and_keep(call, deadline)
        while True:
            flight = self._flights.do(call.key, lambda: self._ask_and_keep(call, deadline))
            try:
                async with asyncio.timeout(deadline - self._clock()):
                    result, joined = await flight
            except TimeoutError:
                return _out_of_time(call)
            if not joined:
                return result
            if not isinstance(result.error, DeadlineExceeded):  # the leader's deadline is not this call's
                return replace(
                    result, id=call.id, cache=CacheStatus.COALESCED, attempts=(), usage=Usage(), cost_usd=0.0
                )

    async def _ask_and_keep(self, call: Call, deadline: float) -> Result:
        result = await self._ask(call, deadline)
        config = self._programs[call.program]
        entry = entry_of(config, call, result, self._unix_clock())
        if entry is not None:
            self._keep(call.key, entry, keep_s(config, entry.ttl_s))
        return result

    async def _ask(self, call: Call, deadline: float) -> Result:
        remaining_s = deadline - self._clock()
        try:
            async with asyncio.timeout(remaining_s):
                return await self._lane.ask(replace(call, remaining_s=remaining_s))
        except TimeoutError:
            return _out_of_time(call)

    async def _refresh(self, call: Call, deadline: float) -> None:
        result, _ = await self._flights.do(call.key, lambda: self._ask_and_keep(call, deadline))
        if result.error is not None:
            log.warning("cache.refresh_failed", extra={"program": call.program, "error": result.error.code})

    async def _read_redis(self, redis: RedisStore, calls: Sequence[Call]) -> dict[str, _Found]:
        keys = list(dict.fromkeys(StoreKey(call.program, call.key) for call in calls))
        found: dict[str, _Found] = {}
        for (program, key), data in zip(keys, await redis.get_many(keys), strict=True):
            entry = decode(data) if data else None
            if entry is not None and entry.program == program:
                found[key] = (entry, "redis")
                age_s = entry.age_s(self._unix_clock())
                self._memory.put(key, entry, keep_s(self._programs[program], entry.ttl_s) - age_s)
        return found

    def _keep(self, key: str, entry: Entry, seconds: float) -> None:
        self._memory.put(key, entry, seconds)
        data = encode(entry) if self.redis else None
        if data is None:
            return
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(lambda: self.spawn(self._write_redis()))
        self._unwritten.append(StoredBytes(StoreKey(entry.program, key), data, seconds))

    async def _write_redis(self) -> None:
        writes, self._unwritten = self._unwritten, []
        if self.redis is not None:
            await self.redis.put_many(writes)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the calls, for as long as the cache lives."""
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

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("cache.task_failed", exc_info=error)

    def _gauges(self) -> dict[str, float]:
        return {
            "cache_memory_entries": len(self._memory),
            "cache_in_flight": len(self._flights),
        }


def _may_use_stored(call: Call) -> bool:
    """Whether looking for a stored answer can be of use to the call."""
    wanted = call.freshness
    return bool(call.key) and not wanted.no_cache and (wanted.only_if_cached or not wanted.no_store)


def _out_of_time(call: Call) -> Result:
    return Result(call.id, error=DeadlineExceeded("the deadline passed before a model answered"))
