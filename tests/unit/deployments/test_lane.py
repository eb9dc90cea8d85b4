"""Calls of one turn share a batch, and nobody waits."""

import asyncio
from dataclasses import replace

import pytest
from deployment_fakes import FakeStage, call, ok, settle

from serve_app.deployments.lane import Lane


async def test_what_is_asked_in_one_turn_travels_together_and_waits_for_nobody() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    stage = FakeStage(answer)
    lane = Lane(stage)
    asked = [lane.ask(call(1))]
    await settle()
    asked += [lane.ask(call(number)) for number in (2, 3)]
    await settle()
    assert [len(batch) for batch in stage.batches] == [1, 2]
    gate.set()
    await asyncio.gather(*asked)


async def test_no_batch_is_larger_than_the_largest() -> None:
    sizes = []
    lane = Lane(FakeStage(), sent=sizes.append, max_batch_size=3)
    results = await asyncio.gather(*lane.ask_all([call(number) for number in range(8)]))
    assert sizes == [3, 3, 2]
    assert {result.id for result in results} == {f"c{number}" for number in range(8)}


async def test_a_call_left_in_the_turn_in_which_it_is_sent_is_left_by_the_stage() -> None:
    asked = []

    async def answer(each):
        asked.append(each.id)
        await asyncio.Event().wait()

    stage = FakeStage(answer)
    gone, stays = Lane(stage).ask_all([call(1), call(2)])
    asyncio.get_running_loop().call_soon(gone.cancel)  # behind the sending, before the stage's first step
    await settle()
    assert stage.cancelled == [each for each in asked if each == "c1"]
    assert not stays.done()
    stays.cancel()


@pytest.mark.parametrize(
    ("spread", "calls", "sizes"),
    [(1, 8, [8]), (4, 8, [2, 2, 2, 2]), (4, 3, [1, 1, 1]), (3, 8, [3, 3, 2]), (2, 90, [40, 40, 10])],
)
async def test_a_batch_is_divided_among_replicas(spread, calls, sizes) -> None:
    stage = FakeStage()
    lane = Lane(stage, max_batch_size=40)
    lane.spread = spread
    results = await asyncio.gather(*lane.ask_all([call(number) for number in range(calls)]))
    assert [len(batch) for batch in stage.batches] == sizes
    assert [result.id for result in results] == [f"c{number}" for number in range(calls)]


async def test_calls_of_a_program_that_answers_many_at_once_stay_together() -> None:
    stage = FakeStage()
    lane = Lane(stage)
    lane.spread = 4
    calls = [replace(call(number), together=number % 2 == 0) for number in range(8)]
    await asyncio.gather(*lane.ask_all(calls))
    assert [[each.id for each in batch] for batch in stage.batches] == [
        ["c0", "c2", "c4", "c6"],
        ["c1"],
        ["c3"],
        ["c5"],
        ["c7"],
    ]
    await lane.ask(replace(call(9), together=True))
    assert len(stage.batches[-1]) == 1
