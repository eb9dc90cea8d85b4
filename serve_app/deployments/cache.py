"""``Cache``: exact answers from memory and Redis, and identical calls in flight made once."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from serve_app.adapters.redis_store import StoreKey
from serve_app.adapters.telemetry import Telemetry
from serve_app.adapters.tracing import traced
from serve_app.config import AppConfig
from serve_app.core.cache_entry import Entry, decode
from serve_app.core.cache_policy import Decision, current_ttl_s, decide_entry, entry_of
from serve_app.core.clock import Clock
from serve_app.core.deadline import passed_on_s
from serve_app.core.early_refresh import Draw, may_refresh, refreshes_early
from serve_app.core.flight_terms import Terms
from serve_app.core.permit import Refusal
from serve_app.core.recent_refusals import RecentRefusals
from serve_app.core.stored_answers import Stored, choose, forward_reason, keys_to_read
from serve_app.deployments.answer_store import AnswerStore, Found
from serve_app.deployments.call_tasks import CallTasks
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.lane import Lane
from serve_app.deployments.single_flight import SingleFlight
from serve_app.deployments.stage import Chunks, Stage
from serve_app.errors import DeadlineExceeded, Overloaded
from serve_app.messages import CacheStatus, Call, Priority, Result, Usage
from serve_app.reports import Snapshot

log = logging.getLogger("switchyard.cache")

STALE_RESERVE_S = 0.25
"""Seconds before its deadline at which a call that has a stale answer waits no longer for a model."""


class Cache:
    """A stage that answers what it knows, passes the rest on, and remembers what comes back.

    Args:
        config: the application's topology.
        downstream: who makes answers.
        telemetry: this replica's metrics.
        link: the line to the control plane.
    """

    is_remote: ClassVar[bool] = False
    """Whether who asks is in another process."""

    def __init__(
        self,
        config: AppConfig,
        downstream: Stage,
        telemetry: Telemetry,
        link: ControlLink,
        *,
        clock: Clock = time.monotonic,
        unix_clock: Clock = time.time,
        draw: Draw = random.random,
    ) -> None:
        self.store = AnswerStore(config, clock=clock, unix_clock=unix_clock)
        self._programs = {program.name: program.cache for program in config.programs}
        self._refresh_s = config.limits.default_deadline_s
        self._refusals = RecentRefusals(clock=clock)
        self._lane = Lane(downstream, resubmit=True)
        self._work = CallTasks(is_remote=self.is_remote)
        self._telemetry = telemetry
        self._clock = clock
        self._unix_clock = unix_clock
        self._draw = draw
        self._flights: SingleFlight[Result] = SingleFlight(serves_all=lambda result: result.error is None)
        link.add_gauges(self._gauges)
        link.on_snapshot(self._heard)

    def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call, each as it is ready; one read of Redis for all that memory does not have."""
        deadlines = {call.id: self._clock() + call.remaining_s for call in calls}
        found, redis = self.store.read_memory(calls), self.store.redis
        asking = {call.id: call for call in calls if keys_to_read(call) and not self._is_fresh(call, found)}
        reading = None
        if asking and redis:
            reading = asyncio.ensure_future(self.store.read_redis(redis, asking.values(), found))

        async def answer(call: Call) -> Result:
            known = await asyncio.shield(reading) if reading is not None and call.id in asking else found
            return await self._answer(call, known, deadlines[call.id])

        return self._work.run(calls, answer)

    def leave(self, ids: Sequence[str]) -> None:
        """Give up these calls; an answer that others wait for is still made."""
        self._work.leave(ids)

    async def aclose(self) -> None:
        """End what runs beside the calls."""
        await self.store.aclose()

    def _is_fresh(self, call: Call, found: Found) -> bool:
        return self._choose(call, found)[0] is Decision.FRESH

    def _choose(self, call: Call, found: Found) -> tuple[Decision, Stored | None]:
        return choose(self._programs[call.program], call, found, self._unix_clock())

    @traced("cache")
    async def _answer(self, call: Call, found: Found, deadline: float) -> Result:
        config, unix_now = self._programs[call.program], self._unix_clock()
        decision, stored = self._choose(call, found)
        old = found[call.key].entry if call.key in found else None
        match decision:
            case Decision.FRESH if stored:
                if refreshes_early(config, call, stored.entry, unix_now, self._draw):
                    self._start_refresh(call, old)
                return self._hit(call, stored, CacheStatus.HIT)
            case Decision.STALE if stored:
                self._start_refresh(call, old)
                return self._hit(call, stored, CacheStatus.STALE)
            case Decision.UNSATISFIABLE:
                raise DeadlineExceeded("only-if-cached, and no stored answer may be served", request_id=call.request_id)
            case Decision.BYPASS:
                return replace(await self._ask(call, deadline), cache=CacheStatus.BYPASS)
            case Decision.IF_ERROR:
                deadline -= min(STALE_RESERVE_S, (deadline - self._clock()) / 2)
        self._telemetry.cache.missed(call.program)
        result = await self._make(call, deadline, old)
        if result.error is not None and decision is Decision.IF_ERROR and stored:
            if not isinstance(result.error, Overloaded):  # that is counted, and would be a line a call
                log.warning("cache.stale_if_error", extra={"program": call.program, "error": result.error.code})
            hit = self._hit(call, stored, CacheStatus.STALE)  # which says what was tried and spent all the same
            return replace(hit, attempts=result.attempts, usage=result.usage, cost_usd=result.cost_usd)
        reason = forward_reason(config, call, found, unix_now)
        return replace(result, forwarded=reason) if reason else result

    def _hit(self, call: Call, stored: Stored, status: CacheStatus) -> Result:
        (entry, tier), config = stored, self._programs[call.program]
        is_stale = status is CacheStatus.STALE
        self._telemetry.cache.hit(call.program, tier, entry.cost_usd, entry.latency_s, is_stale=is_stale)
        current = current_ttl_s(config, entry)
        return entry.answer(call.id, status=status, tier=tier, unix_now=self._unix_clock(), ttl_s=current)

    async def _make(self, call: Call, deadline: float, old: Entry | None) -> Result:
        """An answer newer than ``old``, shared with identical calls in flight; each keeps its own deadline."""
        if not call.key or call.freshness.no_cache:
            return await self._ask_and_keep(call, deadline)
        again = False
        while True:
            flight = self._fly(call, deadline, old, again=again)
            try:
                async with asyncio.timeout(deadline - self._clock()):
                    result, led = await flight
            except TimeoutError:
                return _out_of_time(call)
            if led is None:
                return result
            was_tried, terms = bool(result.attempts), self._terms(call, deadline)
            if result.error is None or not terms.asks_after(result.error, led, was_tried=was_tried):
                return self._share(call, result)
            if refusal := self._refusal(call, deadline - self._clock()):  # at once: else a herd leads one by one
                return self._refuse(call, refusal)
            again = True

    def _terms(self, call: Call, deadline: float) -> Terms:
        return Terms(call.options.priority, self._clock(), deadline)

    def _fly(
        self, call: Call, deadline: float, old: Entry | None, *, again: bool = False
    ) -> Coroutine[Any, Any, tuple[Result, Terms | None]]:
        """Join a flight or lead one; a call that may not ask joins whatever there is."""
        terms, may_ask = self._terms(call, deadline), self._refusal(call, deadline - self._clock()) is None

        def may_join(led: Terms) -> bool:
            return not may_ask or terms.may_join(led, again=again)

        make = partial(self._lead, call, deadline, old)
        return self._flights.do(call.key, make, terms, may_join=may_join, group=call.program)

    async def _lead(self, call: Call, deadline: float, old: Entry | None, is_beside: bool) -> Result:  # noqa: FBT001 - a ``Make``
        """An answer for all who wait for it here: from whoever makes it elsewhere, else made now, and kept.

        A call that may not ask makes nobody elsewhere wait for it. One beside another flight would wait for that one's
        lease, and asks without.
        """
        if is_beside:
            return await self._ask_and_keep(call, deadline)
        remaining_s = deadline - self._clock()
        refusal = self._refusal(call, remaining_s)
        where, newer, elsewhere = StoreKey(call.program, call.key), self._newer(call, old), self.store.elsewhere
        look = elsewhere.joined(where, newer) if refusal else elsewhere.turn(where, newer, call.options.priority)
        try:
            async with asyncio.timeout(remaining_s):
                turn = await look
        except TimeoutError:
            return _out_of_time(call)
        if turn.answer is not None:
            unix_now = self._unix_clock()
            self.store.remember(call.key, turn.answer, self._clock())
            if not turn.has_waited:  # it was made between our look and our claim
                return self._hit(call, Stored(turn.answer, "redis"), CacheStatus.HIT)
            status = CacheStatus.COALESCED
            return self._share(call, turn.answer.answer(call.id, status=status, tier="", unix_now=unix_now))
        if refusal:  # also when it has ended meanwhile: to ask takes a lease
            return self._refuse(call, refusal)
        try:
            return await self._ask_and_keep(call, deadline)
        finally:
            if turn.lease is not None:
                self.store.release(turn.lease)

    def _newer(self, call: Call, old: Entry | None) -> Callable[[bytes], Entry | None]:
        """Reads stored bytes, and believes those that hold an answer newer than ``old``, fresh enough for the call."""
        config = self._programs[call.program]

        def read(data: bytes) -> Entry | None:
            entry = decode(data)
            if entry is None or entry.program != call.program or (old and entry.created_at <= old.created_at):
                return None
            decision = decide_entry(config, call.freshness, entry, self._unix_clock())
            return entry if decision is Decision.FRESH else None

        return read

    def _share(self, call: Call, result: Result) -> Result:
        shared = _shared(call, result)
        self._telemetry.cache.coalesced(call.program, shared.saved_cost_usd)
        return shared

    async def _ask_and_keep(self, call: Call, deadline: float) -> Result:
        begun = self.store.begin(call.program)
        result = await self._ask(call, deadline)
        entry = entry_of(self._programs[call.program], call, result, self._unix_clock())
        if entry is None or not self.store.keep(call.key_at(entry.level), entry, begun):
            return result
        return replace(result, fresh_for_s=entry.ttl_s)

    async def _ask(self, call: Call, deadline: float) -> Result:
        """Ask downstream, unless the call is refused here."""
        remaining_s = deadline - self._clock()
        if refusal := self._refusal(call, remaining_s):
            return self._refuse(call, refusal)
        try:
            async with asyncio.timeout(remaining_s):
                result = await self._lane.ask(replace(call, remaining_s=passed_on_s(remaining_s)))
        except TimeoutError:
            return _out_of_time(call)
        self._refusals.note(call, remaining_s, result)
        return result

    def _refusal(self, call: Call, remaining_s: float) -> Refusal | None:
        """Why a call may not ask downstream: the ingress has no room for it, or it was refused there a moment ago."""
        return call.shed or self._refusals.find(call, remaining_s)

    def _refuse(self, call: Call, refusal: Refusal) -> Result:
        self._telemetry.shed(refusal.reason, call.options.priority)
        return Result(call.id, error=Overloaded(f"too much traffic: {refusal.reason}", refusal.retry_after_s))

    def _start_refresh(self, call: Call, old: Entry | None) -> None:
        """Make a new answer in the background, unless one is being made, or would be refused.

        Nobody waits for it: it has its own time, whatever the caller's, and is the first to give way under pressure.
        """
        if call.key in self._flights or not may_refresh(call):
            return
        wanted = replace(
            call,
            id=f"{call.id}-refresh",
            remaining_s=self._refresh_s,
            options=replace(call.options, priority=Priority.SHEDDABLE),
        )
        if self._refusal(wanted, wanted.remaining_s) is None:
            self.store.spawn(self._refresh(wanted, self._clock() + wanted.remaining_s, old))

    async def _refresh(self, call: Call, deadline: float, old: Entry | None) -> None:
        result, _ = await self._fly(call, deadline, old)
        if result.error is not None and not isinstance(result.error, Overloaded):
            log.warning("cache.refresh_failed", extra={"program": call.program, "error": result.error.code})

    def _heard(self, snapshot: Snapshot) -> None:
        """Drop what an operator wants forgotten; what is being made is not joined any more."""
        for program in self.store.forget(snapshot.orders.forgotten):
            self._flights.close_group(program)
            log.info("cache.forgotten", extra={"program": program})

    def _gauges(self) -> dict[str, float]:
        counts = self._telemetry.cache
        self.store.count(counts)
        return counts.gauges() | {"cache_in_flight": len(self._flights)}


def _shared(call: Call, result: Result) -> Result:
    """What a call gets that another one has paid for."""
    return replace(
        result,
        id=call.id,
        cache=CacheStatus.COALESCED,
        attempts=(),
        usage=Usage(),
        cost_usd=0.0,
        saved_cost_usd=result.cost_usd + result.saved_cost_usd,
        saved_s=sum(attempt.latency_s for attempt in result.attempts) + result.saved_s,
    )


def _out_of_time(call: Call) -> Result:
    return Result(call.id, error=DeadlineExceeded("the deadline passed before a model answered"))
