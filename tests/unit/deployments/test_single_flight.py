"""Identical work is done once; who leaves hurts nobody."""

import asyncio

import pytest
from deployment_fakes import settle

from serve_app.core.flight_terms import Terms
from serve_app.deployments.single_flight import SingleFlight
from serve_app.messages import Priority

BEST, WORST = Terms(Priority.CRITICAL, 0.0, 10.0), Terms(Priority.SHEDDABLE, 0.0, 10.0)


class Flights(SingleFlight[str]):
    """One whose results serve all, save those that end in ``alone``."""

    def __init__(self) -> None:
        super().__init__(serves_all=lambda result: not result.endswith("alone"))

    async def ask(self, key, work, terms=BEST) -> tuple[str, bool]:
        """The result, and whether somebody else had it made."""
        result, led = await self.do(key, work, terms, may_join=terms.may_join)
        return result, led is not None


class Work:
    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.told: list[bool] = []
        self.gate = asyncio.Event()

    async def __call__(self, is_beside) -> str:
        self.started += 1
        self.told.append(is_beside)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return f"result {self.started}"


async def test_many_who_ask_at_once_share_one_result() -> None:
    flights, work = Flights(), Work()
    asked = [asyncio.create_task(flights.ask("key", work)) for _ in range(50)]
    await settle()
    work.gate.set()
    results = await asyncio.gather(*asked)
    assert work.started == 1
    assert [joined for _, joined in results].count(False) == 1
    assert {result for result, _ in results} == {"result 1"}
    assert len(flights) == 0


async def test_different_keys_and_later_calls_are_made_anew() -> None:
    flights, work = Flights(), Work()
    work.gate.set()
    await asyncio.gather(flights.ask("a", work), flights.ask("b", work))
    await flights.ask("a", work)
    assert work.started == 3


async def test_the_one_who_started_may_leave() -> None:
    flights, work = Flights(), Work()
    leader = asyncio.create_task(flights.ask("key", work))
    await settle()
    follower = asyncio.create_task(flights.ask("key", work))
    await settle()
    leader.cancel()
    await settle()
    work.gate.set()
    assert await follower == ("result 1", True)
    assert work.cancelled == 0


async def test_when_the_last_leaves_the_work_is_cancelled() -> None:
    flights, work = Flights(), Work()
    asked = [asyncio.create_task(flights.ask("key", work)) for _ in range(3)]
    await settle()
    for task in asked:
        task.cancel()
    await settle()
    assert work.cancelled == 1
    assert len(flights) == 0


async def test_an_error_reaches_everyone_and_is_not_kept() -> None:
    flights, gate = Flights(), asyncio.Event()

    async def fail(_) -> None:
        await gate.wait()
        raise ValueError("no")

    asked = [asyncio.create_task(flights.ask("key", fail)) for _ in range(3)]
    await settle()
    gate.set()
    for task in asked:
        with pytest.raises(ValueError, match="no"):
            await task
    assert len(flights) == 0


async def test_a_cancelled_flight_that_is_still_landing_takes_no_later_one_with_it() -> None:
    flights, first, second = Flights(), Work(), Work()
    leaver = asyncio.create_task(flights.ask("key", first))
    await settle()
    leaver.cancel()
    await asyncio.sleep(0)  # the first flight is told to stop, and has not stopped yet
    asked = [asyncio.create_task(flights.ask("key", second))]
    await settle()
    asked.append(asyncio.create_task(flights.ask("key", second)))
    await settle()
    second.gate.set()
    assert [joined for _, joined in await asyncio.gather(*asked)] == [False, True]
    assert second.started == 1


async def test_who_is_in_flight_is_known() -> None:
    flights, work = Flights(), Work()
    asked = asyncio.create_task(flights.ask("key", work))
    await settle()
    assert "key" in flights
    work.gate.set()
    await asked
    assert "key" not in flights


@pytest.mark.parametrize("turns", range(6))
async def test_who_comes_while_a_flight_lands_asks_anew_and_does_not_wait(turns) -> None:
    """A task that is done tells so in a later turn of the loop; who joined it then would go in circles within one."""
    flights, work = Flights(), Work()
    work.gate.set()
    first = asyncio.create_task(flights.ask("key", work))
    for _ in range(turns):
        await asyncio.sleep(0)
    for _ in range(3):
        result, joined = await flights.ask("key", work)
        if not joined:
            break
    assert not joined
    assert result == f"result {work.started}"
    await first
    assert len(flights) == 0


class Beside:
    """A flight led at the worst terms, one at the best beside it, and those who wait for either."""

    def __init__(self, first="first", second="second") -> None:
        self.flights = Flights()
        self.gates = {text: asyncio.Event() for text in (first, second)}
        self.told: dict[str, bool] = {}
        self.cancelled: list[str] = []
        self.first, self.second = first, second

    def _work(self, text: str):
        async def work(is_beside) -> str:
            self.told[text] = is_beside
            try:
                await self.gates[text].wait()
            except asyncio.CancelledError:
                self.cancelled.append(text)
                raise
            return text

        return work

    async def ask(self, text: str, terms: Terms) -> asyncio.Task:
        task = asyncio.create_task(self.flights.ask("key", self._work(text), terms))
        await settle()
        return task

    async def begin(self) -> list[asyncio.Task]:
        """A leader and a follower of each."""
        asked = [await self.ask(self.first, WORST), await self.ask("not made", WORST)]
        return [*asked, await self.ask(self.second, BEST), await self.ask("not made", BEST)]


@pytest.mark.parametrize("faster", ["first", "second"])
async def test_whom_no_flight_suits_starts_one_beside_it_and_the_first_result_is_everybodys(faster) -> None:
    bench = Beside()
    asked = await bench.begin()
    assert bench.told == {"first": False, "second": True}
    bench.gates[faster].set()
    results = await asyncio.wait_for(asyncio.gather(*asked), 5)
    assert [result for result, _ in results] == [faster] * 4
    assert [joined for _, joined in results].count(False) == 1
    await settle()
    assert bench.cancelled == [{"first": "second", "second": "first"}[faster]]
    assert len(bench.flights) == 0


@pytest.mark.parametrize(("ends", "goes_on"), [("first alone", "second"), ("second alone", "first")])
async def test_a_result_that_does_not_serve_all_leaves_the_flights_beside_it_alone(ends, goes_on) -> None:
    bench = Beside(*((ends, goes_on) if ends.startswith("first") else (goes_on, ends)))
    asked = await bench.begin()
    bench.gates[ends].set()
    await settle()
    assert [task.result()[0] for task in asked if task.done()] == [ends] * 2
    late = await bench.ask("not made", WORST)
    bench.gates[goes_on].set()
    assert [result for result, _ in await asyncio.gather(*asked, late)].count(goes_on) == 3
    assert bench.cancelled == []
    assert len(bench.flights) == 0


async def test_who_comes_later_joins_the_flight_that_began_last_and_suits() -> None:
    bench = Beside("first", "second alone")
    asked = await bench.begin()
    late = await bench.ask("not made", WORST)
    bench.gates["second alone"].set()
    assert await late == ("second alone", True)
    for task in asked:
        task.cancel()


async def test_a_flight_whose_waiters_have_left_is_cancelled_and_the_one_beside_it_goes_on() -> None:
    bench = Beside()
    asked = await bench.begin()
    for task in asked[2:]:
        task.cancel()
    await settle()
    assert bench.cancelled == ["second"]
    bench.gates["first"].set()
    assert [result for result, _ in await asyncio.gather(*asked[:2])] == ["first"] * 2


async def test_after_its_group_was_closed_a_flight_serves_nobody_who_came_later() -> None:
    bench = Beside()
    old = await bench.ask("first", WORST)
    bench.flights.close_group("")
    new = await bench.ask("second", BEST)
    assert bench.told == {"first": False, "second": False}
    bench.gates["first"].set()
    assert await old == ("first", False)
    await settle()
    assert not new.done()
    bench.gates["second"].set()
    assert await new == ("second", False)
