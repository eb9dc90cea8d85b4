"""Who makes an answer, when many replicas want it: a lease for each key, in the store they share.

A lease is a key with an expiry, taken with SET NX and given back by a script that compares the token first, so nobody
ends a lease that has passed on to another. It lies in the same slot of a cluster as the answer it is about.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final, NamedTuple

from serve_app.adapters.guarded_redis import GuardedRedis
from serve_app.adapters.redis_client import Client, execute, mget, strings
from serve_app.adapters.redis_generations import Generations, StoreKey

_RELEASE: Final = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"
_RENEW: Final = (
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end return 0"
)


class Lease(NamedTuple):
    """The right to make one answer; ``token`` is its holder's alone."""

    where: StoreKey
    token: str


class Seen(NamedTuple):
    """What the store says of one key.

    Attributes:
        is_ours: whether the lease asked for was taken.
        is_leased: whether anybody has a lease.
        answer: the answer's bytes, where there is one.
        token: of whoever has the lease, when only looked at.
    """

    is_ours: bool
    is_leased: bool
    answer: bytes | None
    token: bytes = b""


class RedisLeases:
    """Leases by key; nothing raises, ``None`` says that the store cannot be asked.

    Args:
        redis: the store.
        generations: which answers count.
    """

    def __init__(self, redis: GuardedRedis, generations: Generations) -> None:
        self._redis = redis
        self._generations = generations

    async def claim(self, wanted: Sequence[Lease], lease_s: float) -> list[Seen | None] | None:
        """Take each lease that is free, and see whether the answer is there already: one round trip for all.

        ``None`` in the list is a lease that the store refused to keep.
        """

        def give_back(redis: Client, seen: list[Seen | None]) -> Awaitable[None]:
            ours = [lease for lease, reply in zip(wanted, seen, strict=True) if reply is not None and reply.is_ours]
            return self._each(redis, ours, _RELEASE)

        return await self._redis.run(lambda redis: self._claim(redis, wanted, lease_s), undo=give_back)

    async def look(self, wanted: Sequence[StoreKey]) -> list[Seen] | None:
        """Which leases are still held and which answers are there: one MGET for all."""
        return await self._redis.run(lambda redis: self._look(redis, wanted))

    async def renew(self, held: Sequence[Lease], lease_s: float) -> None:
        """Let the leases that are still ours last ``lease_s`` from now."""
        await self._redis.run(lambda redis: self._each(redis, held, _RENEW, _ms(lease_s)))

    async def release(self, held: Sequence[Lease]) -> None:
        """Give back the leases that are still ours."""
        await self._redis.run(lambda redis: self._each(redis, held, _RELEASE))

    def _name(self, where: StoreKey) -> str:
        return f"{{{self._generations.name(*where)}}}:lease"

    async def _claim(self, redis: Client, wanted: Sequence[Lease], lease_s: float) -> list[Seen | None]:
        programs = list(dict.fromkeys(lease.where.program for lease in wanted))
        pipeline = redis.pipeline(transaction=False)
        for lease in wanted:
            pipeline.set(self._name(lease.where), lease.token, nx=True, px=_ms(lease_s))
        for program in programs:
            pipeline.get(self._generations.name(program))
        for lease in wanted:
            pipeline.get(self._generations.name(*lease.where))
        replies = await execute(pipeline)
        taken, found = replies[: len(wanted)], strings(replies[len(wanted) :], len(programs) + len(wanted))
        self._generations.learn(zip(programs, found, strict=False))
        return [
            self._seen(lease, reply, data)
            for lease, reply, data in zip(wanted, taken, found[len(programs) :], strict=True)
        ]

    def _seen(self, lease: Lease, reply: object, data: bytes | None) -> Seen | None:
        if isinstance(reply, Exception):
            self._redis.failed(reply)
            return None
        return Seen(reply is True, is_leased=True, answer=self._generations.open(lease.where, data))

    async def _look(self, redis: Client, wanted: Sequence[StoreKey]) -> list[Seen]:
        programs = list(dict.fromkeys(where.program for where in wanted))
        names = [self._generations.name(program) for program in programs]
        names += [name for where in wanted for name in (self._name(where), self._generations.name(*where))]
        found = await mget(redis, names)
        self._generations.learn(zip(programs, found, strict=False))
        leases, answers = found[len(programs) :: 2], found[len(programs) + 1 :: 2]
        return [
            Seen(False, lease is not None, self._generations.open(where, data), lease or b"")
            for where, lease, data in zip(wanted, leases, answers, strict=True)
        ]

    async def _each(self, redis: Client, held: Sequence[Lease], script: str, *arguments: int) -> None:
        pipeline: Any = redis.pipeline(transaction=False)
        for lease in held:
            pipeline.eval(script, 1, self._name(lease.where), lease.token, *arguments)
        for reply in await execute(pipeline):
            if isinstance(reply, Exception):
                self._redis.failed(reply)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
