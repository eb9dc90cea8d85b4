"""Bounded concurrency over a stream of work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def as_finished(
    items: Iterable[T], work: Callable[[T], Awaitable[R]], concurrency: int
) -> AsyncGenerator[R, None]:
    """What ``work`` makes of each item, in the order in which it gets ready.

    At most ``concurrency`` items are in work, and no more are read ahead than that. What is in work is cancelled when
    the generator is closed, or when ``work`` raises, which ends it.
    """

    async def one(item: T) -> R:
        return await work(item)

    unread = iter(items)
    running = {asyncio.create_task(one(item)) for item in islice(unread, concurrency)}
    done: set[asyncio.Task[R]] = set()
    try:
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            running |= {asyncio.create_task(one(item)) for item in islice(unread, len(done))}
            for task in done:
                yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *done, return_exceptions=True)
