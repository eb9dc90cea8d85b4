"""Calls that ask the same with different deadlines: none fails because another was more patient, or less."""

import asyncio

import pytest
from deployment_fakes import call, ok, settle
from test_cache_stage import Bench

from serve_app.errors import NoRoute, ProgramError
from serve_app.messages import CacheStatus, Options, Priority, Result


class House(Bench):
    """A cache over a stage whose calls end as a test says, and callers who all ask the same."""

    def __init__(self) -> None:
        self.ends: dict[str, asyncio.Future] = {}
        super().__init__(self._answer)

    async def _answer(self, asked) -> Result:
        end = self.ends[asked.id] = asyncio.get_running_loop().create_future()
        error = await end
        return Result(asked.id, error=error) if error else ok(asked)

    async def asks(self, name: str, remaining_s: float, priority: Priority = Priority.DEFAULT) -> asyncio.Task:
        asked = call(1, id=name, remaining_s=remaining_s, options=Options(priority=priority))
        task = asyncio.create_task(self.ask(asked))
        await settle()
        return task

    async def end(self, name: str, error=None) -> None:
        self.ends[name].set_result(error)
        await settle()

    @property
    def asked(self) -> list[str]:
        return [each.id for each in self.stage.calls]


async def test_a_hasty_call_does_not_wait_for_a_patient_one_whose_model_hangs() -> None:
    house = House()
    patient, hasty = await house.asks("patient", 15), await house.asks("hasty", 3)
    assert house.asked == ["patient", "hasty"]
    await house.end("hasty")
    assert (await hasty).cache is CacheStatus.MISS
    assert (await patient).cache is CacheStatus.COALESCED, "nor does the patient one wait on"
    assert house.stage.cancelled == ["patient"]


async def test_a_hasty_call_takes_the_patient_ones_answer_when_that_comes_first() -> None:
    house = House()
    patient, hasty = await house.asks("patient", 15), await house.asks("hasty", 3)
    await house.end("patient")
    assert [(await task).cache for task in (patient, hasty)] == [CacheStatus.MISS, CacheStatus.COALESCED]
    assert house.stage.cancelled == ["hasty"]


async def test_a_herd_of_one_deadline_that_arrives_over_seconds_is_one_call_and_one_more_for_a_hasty_herd() -> None:
    house = House()
    herd = []
    for second in range(10):
        herd.append(await house.asks(f"default-{second}", 60))
        herd.append(await house.asks(f"short-{second}", 20))
        house.advance(1)
    assert house.asked == ["default-0", "short-0"]
    await house.end("short-0")
    assert {(await task).error for task in herd} == {None}


async def test_a_patient_herd_asks_once_after_a_hasty_leader_has_failed() -> None:
    house = House()
    hasty = await house.asks("hasty", 1.9)
    herd = [await house.asks(f"patient-{number}", 30) for number in range(20)]
    assert house.asked == ["hasty"]
    house.clock.advance(1.4)
    await house.end("hasty", NoRoute("no model could answer in its share of the deadline"))
    assert isinstance(hasty.result().error, NoRoute)
    assert house.asked == ["hasty", "patient-0"]
    again = await house.asks("hasty again", 1.9)
    await house.end("hasty again")
    results = [await task for task in (*herd, again)]
    assert {result.error for result in results} == {None}
    assert [result.cache for result in results].count(CacheStatus.MISS) == 1


async def test_a_call_that_a_hasty_leader_has_failed_does_not_join_another_one() -> None:
    house = House()
    await house.asks("hasty", 1.9)
    patient = await house.asks("patient", 30)
    await house.asks("vital", 1.9, Priority.CRITICAL)
    assert house.asked == ["hasty", "vital"]
    await house.end("hasty", NoRoute("no model could answer in its share of the deadline"))
    assert house.asked == ["hasty", "vital", "patient"]
    await house.end("vital", NoRoute("no model could answer in its share of the deadline"))
    await house.end("patient")
    assert (await patient).cache is CacheStatus.MISS


@pytest.mark.parametrize(
    ("leader_s", "error"), [(30, NoRoute("down")), (1.9, ProgramError("the program failed")), (25, NoRoute("down"))]
)
async def test_a_failure_that_more_time_would_not_mend_is_shared(leader_s, error) -> None:
    house = House()
    leader, joined = await house.asks("leader", leader_s), await house.asks("joined", 30)
    await house.end("leader", error)
    assert [type((await task).error) for task in (leader, joined)] == [type(error)] * 2
    assert house.asked == ["leader"]
