"""Bounded concurrency over a stream of work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def check_concurrency(concurrency: int) -> None:
    """Refuse what would let nothing be in work.

    Raises:
        ValueError: it is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")


def as_finished(items: Iterable[T], work: Callable[[T], Awaitable[R]], concurrency: int) -> AsyncGenerator[R, None]:
    """What ``work`` makes of each item, in the order in which it gets ready.

    At most ``concurrency`` items are in work, and no more are read ahead than that. What is in work is cancelled when
    the generator is closed, or when ``work`` or ``items`` raises, which ends it; what was ready when ``items`` raised
    comes before the error.

    Raises:
        ValueError: ``concurrency`` is below 1; at once, not when the first item is asked for.
    """
    check_concurrency(concurrency)
    return _as_finished(iter(items), work, concurrency)


async def _as_finished(
    unread: Iterator[T], work: Callable[[T], Awaitable[R]], concurrency: int
) -> AsyncGenerator[R, None]:
    async def one(item: T) -> R:
        return await work(item)

    running: set[asyncio.Task[R]] = set()
    done: set[asyncio.Task[R]] = set()

    def begin(count: int) -> None:
        for item in islice(unread, count):
            running.add(asyncio.create_task(one(item)))

    try:
        begin(concurrency)
        while running:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            running -= done
            try:
                begin(len(done))
            finally:  # reading on may raise, and what is ready is not lost by that
                for task in done:
                    yield task.result()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *done, return_exceptions=True)
