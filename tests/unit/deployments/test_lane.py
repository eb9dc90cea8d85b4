"""Calls on their way to another process share messages, and nobody who is alone waits."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from deployment_fakes import FakeHandle, FakeStage, call, ok, settle

from serve_app.deployments.lane import Lane
from serve_app.deployments.stage import HandleStage


def lingering(lane: Lane, seconds: float) -> Lane:
    """A lane that waits so long when a call is away."""
    lane._linger = SimpleNamespace(seconds=lambda in_flight: seconds if in_flight else 0.0, answered=lambda _: None)
    return lane


async def test_only_a_way_out_of_the_process_waits_for_company() -> None:
    assert Lane(FakeStage())._linger is None
    assert Lane(HandleStage(FakeHandle()))._linger is not None


async def test_who_is_alone_goes_at_once_and_who_has_company_waits_for_more() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    stage = FakeStage(answer)
    lane = lingering(Lane(stage), 0.02)
    asked = [lane.ask(call(1))]
    await settle()
    assert [len(batch) for batch in stage.batches] == [1]
    for number in (2, 3):
        asked.append(lane.ask(call(number)))
        await settle()
    assert [len(batch) for batch in stage.batches] == [1]
    gate.set()
    await asyncio.gather(*asked)
    assert [len(batch) for batch in stage.batches] == [1, 2]


async def test_a_full_batch_waits_for_nobody_and_none_is_larger() -> None:
    sizes = []
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    lane = lingering(Lane(FakeStage(answer), sent=sizes.append), 60.0)
    lane.max_batch_size = 3
    first = lane.ask(call(0))
    await settle()
    rest = lane.ask_all([call(number) for number in range(1, 8)])
    await settle()
    assert sizes == [1, 3, 3, 1]
    gate.set()
    assert {result.id for result in await asyncio.gather(first, *rest)} == {f"c{number}" for number in range(8)}


async def test_calls_away_are_those_that_have_no_answer_yet() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        if asked.id == "c1":
            await gate.wait()
        return ok(asked)

    lane = Lane(FakeStage(answer))
    slow, quick, left = lane.ask_all([call(1), call(2), call(3)])
    left.cancel()
    await quick
    await settle()
    assert lane._in_flight == 1
    gate.set()
    await slow
    await settle()
    assert lane._in_flight == 0


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


async def test_a_batch_of_one_is_full_at_once() -> None:
    stage = FakeStage(lambda _: asyncio.Event().wait())
    lane = lingering(Lane(stage, max_batch_size=1), 60.0)
    asked = [lane.ask(call(1))]
    await settle()
    asked.append(lane.ask(call(2)))
    await settle()
    assert [len(batch) for batch in stage.batches] == [1, 1]
    for each in asked:
        each.cancel()


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
