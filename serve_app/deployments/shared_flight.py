"""Identical work in flight in many processes is done once, as long as they share a store (``core.lease_wait``).

Followers poll rather than subscribe: one MGET for all of them serves clusters and sentinels alike, needs no connection
of its own that may go silent, and sees what a lost message would have said. Claims made in one turn of the loop travel
together. Without a store everybody's turn comes at once.

A lease says at which priority its holder asks, so that nobody follows one who goes after them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve_app.adapters.redis_leases import Lease, RedisLeases, Seen
from serve_app.adapters.redis_store import StoreKey
from serve_app.core.clock import Clock
from serve_app.core.lease_wait import LEASE_S, MIN_PAUSE_S, RENEW_S, may_claim, pause_s
from serve_app.messages import PRIORITIES, Priority

T = TypeVar("T")
Read = Callable[[bytes], T | None]
"""Makes an answer of stored bytes; ``None`` for one that is not what is waited for."""


@dataclass(frozen=True, slots=True)
class Turn(Generic[T]):
    """What became of waiting for one's turn.

    Attributes:
        answer: what another process made; ``None`` when it is to be made now.
        lease: held while it is made, then given to ``SharedFlights.release``; ``None`` without a store.
        has_waited: whether another process was making the answer.
    """

    answer: T | None = None
    lease: Lease | None = None
    has_waited: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Follower:
    where: StoreKey
    due: float
    seen: asyncio.Future[Seen | None]


class SharedFlights(Generic[T]):
    """Single-flight among the processes that share a store.

    Args:
        leases: of the store there is now; ``None`` when there is none.
        spawn: runs something in the background for as long as the owner lives.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        leases: Callable[[], RedisLeases | None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        self._leases = leases
        self._spawn = spawn
        self._clock = clock
        self._prefix = f"{os.getpid()}-{uuid.uuid4().hex}"  # so an operator can see in the store who makes what
        self._numbers = itertools.count()
        self._claims: list[tuple[Lease, asyncio.Future[Seen | None]]] = []
        self._held: dict[Lease, None] = {}
        self._followers: dict[_Follower, None] = {}
        self._is_renewing = self._is_looking = False

    async def turn(self, where: StoreKey, read: Read[T], priority: Priority) -> Turn[T]:
        """Wait until another process has made the answer, or until it is to be made here.

        One whose holder asks at a worse ``priority`` is not waited for.
        """
        followed = 0
        while self._leases() is not None and may_claim(followed):
            lease = Lease(where, f"{self._prefix}-{next(self._numbers)}-{priority}")
            seen = await self._claim(lease)
            if seen is None:
                break
            answer = read(seen.answer) if seen.answer is not None else None
            if answer is not None:
                self._give_back(lease, seen)
                return Turn(answer, has_waited=followed > 0)
            if seen.is_ours:
                return Turn(lease=self._hold(lease), has_waited=followed > 0)
            answer = await self._follow(where, read, priority)
            if answer is not None:
                return Turn(answer, has_waited=True)
            followed += 1
        return Turn(has_waited=followed > 0)

    async def joined(self, where: StoreKey, read: Read[T]) -> Turn[T]:
        """The answer, if another process is making it; for one whose turn to make it does not come."""
        answer = await self._follow(where, read, PRIORITIES[-1]) if self._leases() is not None else None
        return Turn(answer, has_waited=answer is not None)

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give leases back, whatever came of them."""
        for lease in leases:
            self._held.pop(lease, None)
        store = self._leases()
        if store is not None and leases:
            await store.release(leases)

    def abandon(self, program: str) -> None:
        """Give back every lease on that program's answers: what is made under them is not going to be stored."""
        if gone := [lease for lease in self._held if lease.where.program == program]:
            self._spawn(self.release(gone))

    # ── claims ───────────────────────────────────────────────────────────────────────────────────────

    async def _claim(self, lease: Lease) -> Seen | None:
        loop = asyncio.get_running_loop()
        if not self._claims:
            loop.call_soon(lambda: self._spawn(self._send_claims()))
        future: asyncio.Future[Seen | None] = loop.create_future()
        self._claims.append((lease, future))
        try:
            return await future
        except asyncio.CancelledError:  # perhaps in the turn in which the reply came
            if future.done() and not future.cancelled():
                self._give_back(lease, future.result())
            raise

    async def _send_claims(self) -> None:
        claims, self._claims = self._claims, []
        store = self._leases()
        leases = [lease for lease, future in claims if not future.done()]
        seen = await store.claim(leases, LEASE_S) if store is not None and leases else None
        replies = dict(zip(leases, seen, strict=True)) if seen is not None else {}
        for lease, future in claims:
            reply = replies.get(lease)
            if not future.done():
                future.set_result(reply)
            else:  # whoever wanted it has left meanwhile
                self._give_back(lease, reply)

    def _give_back(self, lease: Lease, seen: Seen | None) -> None:
        if seen is not None and seen.is_ours:
            self._spawn(self.release([lease]))

    def _hold(self, lease: Lease) -> Lease:
        self._held[lease] = None
        if not self._is_renewing:
            self._is_renewing = True
            self._spawn(self._renew())
        return lease

    async def _renew(self) -> None:
        try:
            await asyncio.sleep(RENEW_S)
            while self._held:
                store = self._leases()
                if store is not None:
                    await store.renew(list(self._held), LEASE_S)
                await asyncio.sleep(RENEW_S)
        finally:
            self._is_renewing = False

    # ── followers ────────────────────────────────────────────────────────────────────────────────────

    async def _follow(self, where: StoreKey, read: Read[T], priority: Priority) -> T | None:
        """The answer another process makes, at that priority or a better one.

        ``None`` once its lease has ended without one, or the store is gone.
        """
        since = self._clock()
        while True:
            due = self._clock() + pause_s(self._clock() - since)
            follower = _Follower(where, due, asyncio.get_running_loop().create_future())
            self._followers[follower] = None
            if not self._is_looking:
                self._is_looking = True
                self._spawn(self._look())
            try:
                seen = await follower.seen
            finally:
                self._followers.pop(follower, None)
            answer = read(seen.answer) if seen is not None and seen.answer is not None else None
            if answer is not None or seen is None or not seen.is_leased or seen.token.endswith(_worse(priority)):
                return answer

    async def _look(self) -> None:
        """Look for all whose pause is over at once."""
        try:
            while self._followers:
                await asyncio.sleep(MIN_PAUSE_S)
                now = self._clock()
                looking = [follower for follower in self._followers if follower.due <= now]
                if looking:
                    await self._look_for(looking)
                    await asyncio.sleep(0)  # those who wait on are followers again
        finally:
            self._is_looking = False

    async def _look_for(self, looking: Sequence[_Follower]) -> None:
        for follower in looking:
            del self._followers[follower]
        places, store = list(dict.fromkeys(follower.where for follower in looking)), self._leases()
        seen = await store.look(places) if store is not None else None
        replies = dict(zip(places, seen, strict=True)) if seen is not None else {}
        for follower in looking:
            if not follower.seen.done():
                follower.seen.set_result(replies.get(follower.where))


def _worse(priority: Priority) -> tuple[bytes, ...]:
    """How tokens end whose holders ask after a call of that priority."""
    return tuple(f"-{each}".encode() for each in PRIORITIES[PRIORITIES.index(priority) + 1 :])
