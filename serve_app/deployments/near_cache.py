"""``NearCache``: answers that an ingress gives by itself, without asking anybody."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from serve_app.adapters.local_store import LocalStore, StoreStats
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.core.cache_policy import Decision, current_ttl_s, entry_of, keep_s
from serve_app.core.clock import Clock
from serve_app.core.early_refresh import Draw, refreshes_early
from serve_app.core.forgotten import Forgotten
from serve_app.core.stored_answers import Stored, choose, keys_to_read
from serve_app.errors import Overloaded, SwitchyardError
from serve_app.messages import CacheStatus, Call, Freshness, Priority, Result
from serve_app.reports import Snapshot

log = logging.getLogger("switchyard.near_cache")

TIER: Final = "near"


class NearCache:
    """The cache level in an ingress: serves what is fresh, and has what is in demand made anew before it ends.

    Args:
        config: the application's topology.
        fetch: answers a call from farther away and keeps the answer here.
        telemetry: this replica's metrics.
    """

    def __init__(
        self,
        config: AppConfig,
        fetch: Callable[[Call], Awaitable[Result]],
        telemetry: Telemetry,
        *,
        clock: Clock = time.monotonic,
        unix_clock: Clock = time.time,
        draw: Draw = random.random,
    ) -> None:
        self._store = LocalStore(config.cache.near_entries, config.cache.near_max_bytes, clock=clock)
        self._forgotten = Forgotten(clock=clock)
        self._programs = {program.name: program.cache for program in config.programs}
        self._refresh_s = config.limits.default_deadline_s
        self._fetch = fetch
        self._telemetry = telemetry
        self._unix_clock = unix_clock
        self._draw = draw
        self._refreshes: dict[str, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._store)

    def answer(self, call: Call) -> Result | None:
        """A fresh answer of the call's level or a better one; ``None`` leaves the call to those farther away."""
        read = ((key, self._store.get(key)) for key in keys_to_read(call))
        found = {key: Stored(entry, TIER) for key, entry in read if entry is not None}
        if not found:
            return None
        config, unix_now = self._programs[call.program], self._unix_clock()
        decision, stored = choose(config, call, found, unix_now)
        if decision is not Decision.FRESH or stored is None:
            return None
        entry = stored.entry
        if refreshes_early(config, call, entry, unix_now, self._draw):
            self._start_refresh(call, entry.age_s(unix_now))
        self._telemetry.cache.hit(call.program, TIER, entry.cost_usd, entry.latency_s)
        current = current_ttl_s(config, entry)
        return entry.answer(call.id, status=CacheStatus.HIT, tier=TIER, unix_now=unix_now, ttl_s=current)

    def stats(self) -> StoreStats:
        """What is kept here, and what was."""
        return self._store.stats()

    def heard(self, snapshot: Snapshot) -> None:
        """Drop what an operator wants forgotten."""
        for program in self._forgotten.update(snapshot.orders.forgotten):
            self._store.delete_program(program)

    def keep(self, call: Call, result: Result, begun_at: float = math.inf) -> None:
        """Keep an answer that came from farther away, if it may be kept.

        Its age must be known: a shared one may have been begun long before this call, and so be forgotten by now.

        ``begun_at`` is the clock's reading when the call was sent.
        """
        is_shared = result.cache is CacheStatus.COALESCED
        if is_shared or not self._forgotten.outlives(call.program, begun_at - result.age_s):
            return
        config = self._programs[call.program]
        entry = entry_of(config, call, result, self._unix_clock())
        if entry is not None:
            self._store.put(call.key_at(entry.level), entry, keep_s(config, entry.ttl_s) - result.age_s)

    async def aclose(self) -> None:
        """End what runs beside the calls."""
        tasks = tuple(self._refreshes.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_refresh(self, call: Call, age_s: float) -> None:
        """Fetch a newer answer in the background, unless one is being fetched.

        Asked is for one at most half as old as this, so whatever another ingress has had made meanwhile will do, and
        identical refreshes are one model call. Nobody waits for it, so it is the first to give way under pressure.
        """
        if call.key in self._refreshes:
            return
        wanted = replace(
            call,
            id=f"{call.id}-refresh",
            remaining_s=self._refresh_s,
            options=replace(call.options, priority=Priority.SHEDDABLE),
            freshness=Freshness(max_age_s=age_s / 2),
        )
        task = self._refreshes[call.key] = asyncio.create_task(self._refresh(wanted))
        task.add_done_callback(lambda _: self._refreshes.pop(call.key, None))

    async def _refresh(self, call: Call) -> None:
        try:
            result = await self._fetch(call)
            error = result.error
        except SwitchyardError as refused:
            error = refused
        if error is not None and not isinstance(error, Overloaded):  # that is counted, and would be a line a hit
            log.warning("cache.refresh_failed", extra={"program": call.program, "error": error.code})
