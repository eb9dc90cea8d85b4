"""Which answers of a program count: those of its current *generation*, a random number that the store keeps.

It stands in front of each stored answer and, alone, at ``{namespace}:{program}``; an answer of any other generation is
a miss. So forgetting a program is one SET: at once, for every replica, whatever the number of answers, with no scan of
a shared server; the old ones end by their TTL. A generation that was lost (evicted, flushed) takes its answers with it:
the next one is new.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from serve_app.adapters.guarded_redis import GuardedRedis
from serve_app.adapters.redis_client import Client, execute, strings
from serve_app.adapters.redis_failures import BadReply

GENERATION_BYTES: Final = 8


class StoreKey(NamedTuple):
    """Where an answer is kept."""

    program: str
    key: str


class Generations:
    """What is known of the programs' generations.

    Args:
        redis: where they are kept.
        namespace: first part of every name.
    """

    def __init__(self, redis: GuardedRedis, namespace: str) -> None:
        self._redis = redis
        self._namespace = namespace
        self._known: dict[str, bytes] = {}
        self._forgotten: set[str] = set()

    def name(self, *parts: str) -> str:
        """The name of what is kept about a program, or about one answer of it."""
        return ":".join((self._namespace, *parts))

    def of(self, program: str) -> bytes | None:
        """The generation in force; ``None`` when it is not known."""
        return None if program in self._forgotten else self._known.get(program)

    def learn(self, seen: Iterable[tuple[str, bytes | None]]) -> None:
        """Take what the store says."""
        for program, generation in seen:
            if generation is not None and len(generation) == GENERATION_BYTES:
                self._known[program] = generation
            else:
                self._known.pop(program, None)

    def open(self, where: StoreKey, data: bytes | None) -> bytes | None:
        """The bytes behind the generation; ``None`` when they are of another one."""
        generation = self.of(where.program)
        if data is None or generation is None or not data.startswith(generation):
            return None
        return data[GENERATION_BYTES:]

    async def forget(self, program: str) -> bool:
        """End the program's generation here at once, and in the store; false when it cannot be told now."""
        self._forgotten.add(program)
        return await self.settle({program})

    async def settle(self, programs: Collection[str]) -> bool:
        """See to it that each program has a generation, a new one if it is to be forgotten."""
        unsettled = [name for name in programs if self.of(name) is None]
        if not unsettled:
            return True
        return await self._redis.run(lambda redis: self._set(redis, unsettled)) is True

    async def store_is_back(self) -> None:
        """Ask anew, for it may have come back empty, and tell it what it missed."""
        self._known.clear()
        if self._forgotten:
            await self.settle(tuple(self._forgotten))

    async def _set(self, redis: Client, programs: Sequence[str]) -> bool:
        forgotten = self._forgotten.intersection(programs)
        names = [self.name(program) for program in programs]
        pipeline = redis.pipeline(transaction=False)
        for program, name in zip(programs, names, strict=True):
            pipeline.set(name, os.urandom(GENERATION_BYTES), nx=program not in forgotten)
        for name in names:
            pipeline.get(name)
        replies = await execute(pipeline)
        refusals = [reply for reply in replies[: len(names)] if isinstance(reply, Exception)]
        if refusals:
            if forgotten:  # a server out of memory still deletes, and no generation is as good as a new one
                await redis.delete(*map(self.name, forgotten))
            raise refusals[0]
        self.learn(zip(programs, strings(replies[len(names) :], len(names)), strict=True))
        self._forgotten -= forgotten
        strange = [name for program, name in zip(programs, names, strict=True) if program not in self._known]
        if strange:
            await redis.delete(*strange)  # something else is kept there; the next write starts anew
            raise BadReply("wrong_type")
        return True
