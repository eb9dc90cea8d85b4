"""Identical work is done once; who leaves hurts nobody."""

import asyncio

import pytest
from deployment_fakes import settle

from serve_app.deployments.single_flight import SingleFlight


class Work:
    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> str:
        self.started += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"result {self.started}"


async def test_many_who_ask_at_once_share_one_result() -> None:
    flights, work = SingleFlight(), Work()
    asked = [asyncio.create_task(flights.do("key", work)) for _ in range(50)]
    await settle()
    work.gate.set()
    results = await asyncio.gather(*asked)
    assert work.started == 1
    assert [joined for _, joined in results].count(False) == 1
    assert {result for result, _ in results} == {"result 1"}
    assert len(flights) == 0


async def test_different_keys_and_later_calls_are_made_anew() -> None:
    flights, work = SingleFlight(), Work()
    work.gate.set()
    await asyncio.gather(flights.do("a", work), flights.do("b", work))
    await flights.do("a", work)
    assert work.started == 3


async def test_the_one_who_started_may_leave() -> None:
    flights, work = SingleFlight(), Work()
    leader = asyncio.create_task(flights.do("key", work))
    await settle()
    follower = asyncio.create_task(flights.do("key", work))
    await settle()
    leader.cancel()
    await settle()
    work.gate.set()
    assert await follower == ("result 1", True)
    assert work.cancelled == 0


async def test_when_the_last_leaves_the_work_is_cancelled() -> None:
    flights, work = SingleFlight(), Work()
    asked = [asyncio.create_task(flights.do("key", work)) for _ in range(3)]
    await settle()
    for task in asked:
        task.cancel()
    await settle()
    assert work.cancelled == 1
    assert len(flights) == 0


async def test_an_error_reaches_everyone_and_is_not_kept() -> None:
    flights, gate = SingleFlight(), asyncio.Event()

    async def fail() -> None:
        await gate.wait()
        raise ValueError("no")

    asked = [asyncio.create_task(flights.do("key", fail)) for _ in range(3)]
    await settle()
    gate.set()
    for task in asked:
        with pytest.raises(ValueError, match="no"):
            await task
    assert len(flights) == 0


async def test_a_cancelled_flight_that_is_still_landing_takes_no_later_one_with_it() -> None:
    flights, first, second = SingleFlight(), Work(), Work()
    leaver = asyncio.create_task(flights.do("key", first))
    await settle()
    leaver.cancel()
    await asyncio.sleep(0)  # the first flight is told to stop, and has not stopped yet
    asked = [asyncio.create_task(flights.do("key", second))]
    await settle()
    asked.append(asyncio.create_task(flights.do("key", second)))
    await settle()
    second.gate.set()
    assert [joined for _, joined in await asyncio.gather(*asked)] == [False, True]
    assert second.started == 1


async def test_who_is_in_flight_is_known() -> None:
    flights, work = SingleFlight(), Work()
    asked = asyncio.create_task(flights.do("key", work))
    await settle()
    assert "key" in flights
    work.gate.set()
    await asked
    assert "key" not in flights


@pytest.mark.parametrize("turns", range(6))
async def test_who_comes_while_a_flight_lands_asks_anew_and_does_not_wait(turns) -> None:
    """A task that is done tells so in a later turn of the loop; who joined it then would go in circles within one."""
    flights, work = SingleFlight(), Work()
    work.gate.set()
    first = asyncio.create_task(flights.do("key", work))
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(3):
        result, joined = await flights.do("key", work)
        if not joined:
            break
    assert not joined
    assert result == f"result {work.started}"
    await first
    assert len(flights) == 0
