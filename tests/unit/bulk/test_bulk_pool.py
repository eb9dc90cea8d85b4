"""Bounded concurrency: as many at once as allowed, each item once, nothing left behind."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.bulk.pool import as_finished


@given(items=st.integers(0, 40), concurrency=st.integers(1, 9), seed=st.randoms(use_true_random=False))
def test_each_item_is_worked_on_once_and_never_more_at_once_than_allowed(items, concurrency, seed) -> None:
    running = most = 0

    async def work(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(seed.randint(0, 5)):
            await asyncio.sleep(0)
        running -= 1
        return item

    async def collect() -> list[int]:
        return [result async for result in as_finished(range(items), work, concurrency)]

    assert sorted(asyncio.run(collect())) == list(range(items))
    assert most <= concurrency
    assert most == min(items, concurrency) or most > 0


async def test_what_is_ready_first_comes_first() -> None:
    slow = asyncio.Event()

    async def work(item: str) -> str:
        if item == "slow":
            await slow.wait()
        return item

    results = as_finished(["slow", "quick", "later"], work, 2)
    assert [await anext(results), await anext(results)] == ["quick", "later"]
    slow.set()
    assert [item async for item in results] == ["slow"]


async def test_closing_cancels_what_is_in_work() -> None:
    cancelled = []

    async def work(item: int) -> int:
        if item == 0:
            return item
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(item)
            raise
        return item

    results = as_finished(range(9), work, 4)
    assert await anext(results) == 0
    await asyncio.sleep(0)  # the item that took its place begins
    await results.aclose()
    assert sorted(cancelled) == [1, 2, 3, 4]


async def test_items_are_read_no_further_ahead_than_they_are_worked_on() -> None:
    read = []

    def items():
        for item in range(100):
            read.append(item)
            yield item

    async def work(item: int) -> int:
        return item

    results = as_finished(items(), work, 3)
    await anext(results)
    assert len(read) <= 6
    await results.aclose()


async def test_what_work_raises_ends_it() -> None:
    async def work(item: int) -> int:
        raise ValueError(item)

    with pytest.raises(ValueError):
        async for _ in as_finished(range(9), work, 4):
            pass


@pytest.mark.parametrize("concurrency", [0, -3])
async def test_what_would_let_nothing_be_in_work_is_refused_at_once(concurrency) -> None:
    with pytest.raises(ValueError, match=f"concurrency must be at least 1, not {concurrency}"):
        as_finished([1], asyncio.sleep, concurrency)


def broken_after(count: int):
    yield from range(count)
    raise KeyError("source")


async def test_a_source_that_raises_in_the_first_fill_leaves_nothing_in_work() -> None:
    with pytest.raises(KeyError, match="source"):
        await anext(as_finished(broken_after(2), asyncio.sleep, 4))
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_source_that_raises_later_loses_nothing_that_is_ready() -> None:
    async def work(item: int) -> int:
        return item

    results = as_finished(broken_after(4), work, 4)
    assert sorted([await anext(results) for _ in range(4)]) == [0, 1, 2, 3]
    with pytest.raises(KeyError, match="source"):
        await anext(results)
