"""A batch goes in, each call comes out exactly once, whatever the stage does."""

import asyncio
from types import SimpleNamespace

import pytest
from deployment_fakes import FakeStage, call, ok, run_all, settle

from serve_app.deployments.call_tasks import CallTasks, answer_each
from serve_app.deployments.lane import Lane
from serve_app.deployments.stage import StageLost, drive
from serve_app.errors import ClientClosed, ExecutionError, InvalidInputs, Overloaded
from serve_app.messages import Outcome, Result


class Scripted:
    """A stage that yields the chunks given for each run; an exception among them is raised."""

    def __init__(self, *runs) -> None:
        self._runs = list(runs)
        self.asked: list[list[str]] = []

    async def run(self, calls):
        self.asked.append([asked.id for asked in calls])
        yield ()
        for chunk in self._runs.pop(0):
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


async def delivered(stage, *calls, **options) -> list[Result]:
    results: list[Result] = []
    await drive(stage, calls, results.append, **options)
    return results


async def test_results_are_delivered_as_they_come() -> None:
    one, two = call(1), call(2)
    results = await delivered(Scripted([[ok(two)], [ok(one)]]), one, two)
    assert [result.id for result in results] == ["c2", "c1"]


async def test_doubles_and_strangers_are_dropped() -> None:
    one = call(1)
    results = await delivered(Scripted([[ok(one), ok(call(9))], [ok(one)]]), one)
    assert [result.id for result in results] == ["c1"]


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ([], StageLost),
        ([StageLost("gone")], StageLost),
        ([InvalidInputs("no")], InvalidInputs),
        ([KeyError()], StageLost),
    ],
)
async def test_what_a_stage_leaves_unanswered_is_answered_with_why(end, error) -> None:
    one, two = call(1), call(2)
    results = await delivered(Scripted([[ok(one)], *end]), one, two)
    assert [result.id for result in results] == ["c1", "c2"]
    assert type(results[1].error) is error


async def test_what_a_lost_replica_had_is_asked_once_more() -> None:
    one, two = call(1), call(2)
    stage = Scripted([[ok(one)], StageLost("gone", outcome=Outcome.UNREACHABLE)], [[ok(two)]])
    results = await delivered(stage, one, two, resubmit=True)
    assert [result.error for result in results] == [None, None]
    assert stage.asked == [["c1", "c2"], ["c2"]]


async def test_it_is_asked_once_more_and_no_oftener() -> None:
    lost = StageLost("gone")
    stage = Scripted([lost], [lost], [[ok(call(1))]])
    (result,) = await delivered(stage, call(1), resubmit=True)
    assert isinstance(result.error, StageLost)
    assert len(stage.asked) == 2


async def test_a_refusal_is_not_asked_again() -> None:
    stage = Scripted([Overloaded("full")])
    (result,) = await delivered(stage, call(1), resubmit=True)
    assert isinstance(result.error, Overloaded)
    assert len(stage.asked) == 1


async def test_one_poisoned_call_fails_alone() -> None:
    def answer(asked):
        if asked.id == "c2":
            raise ValueError("poison")
        if asked.id == "c3":
            raise InvalidInputs("bad")
        return ok(asked)

    results = await run_all(FakeStage(answer), call(1), call(2), call(3))
    assert results["c1"].error is None
    assert isinstance(results["c2"].error, ExecutionError)
    assert "poison" not in str(results["c2"].error)
    assert isinstance(results["c3"].error, InvalidInputs)


async def test_a_slow_call_holds_up_no_neighbour() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        if asked.id == "c1":
            await gate.wait()
        return ok(asked)

    chunks = answer_each([call(1), call(2)], answer)
    assert await anext(chunks) == ()
    assert [result.id for result in await anext(chunks)] == ["c2"]
    gate.set()
    assert [result.id for result in await anext(chunks)] == ["c1"]


async def test_leaving_early_cancels_what_is_not_finished() -> None:
    stage = FakeStage(lambda _: asyncio.Event().wait())
    chunks = stage.run([call(1)])
    await anext(chunks)
    await settle()
    await chunks.aclose()
    await settle()
    assert stage.cancelled == ["c1"]


async def test_a_lane_sends_what_is_asked_in_one_turn_together() -> None:
    stage = FakeStage()
    lane = Lane(stage)
    first = [lane.ask(call(1)), lane.ask(call(2))]
    await settle()
    last = lane.ask(call(3))
    results = await asyncio.gather(*first, last)
    assert [result.id for result in results] == ["c1", "c2", "c3"]
    assert [len(batch) for batch in stage.batches] == [2, 1]


async def test_a_lane_never_sends_a_call_that_was_given_up_before() -> None:
    stage = FakeStage()
    lane = Lane(stage)
    lane.ask(call(1)).cancel()
    await lane.ask(call(2))
    assert [asked.id for asked in stage.calls] == ["c2"]


async def test_a_batch_lives_as_long_as_one_of_its_callers_and_each_call_as_long_as_its_own() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    stage = FakeStage(answer)
    gone, stays = Lane(stage).ask_all([call(1), call(2)])
    await settle()
    gone.cancel()
    await settle()
    assert stage.cancelled == ["c1"]
    gate.set()
    assert (await stays).id == "c2"


async def test_a_call_that_is_left_is_answered_all_the_same_so_that_its_batch_can_end() -> None:
    tasks, gate = CallTasks(), asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    running = asyncio.create_task(
        run_all(SimpleNamespace(run=lambda calls: tasks.run(calls, answer)), call(1), call(2))
    )
    await settle()
    tasks.leave(["c1", "unheard of"])
    gate.set()
    results = await running
    assert isinstance(results["c1"].error, ClientClosed)
    assert results["c2"].error is None
    assert tasks._tasks == {}


async def test_a_batch_that_everybody_left_is_cancelled() -> None:
    stage = FakeStage(lambda _: asyncio.Event().wait())
    futures = Lane(stage).ask_all([call(1), call(2)])
    await settle()
    for future in futures:
        future.cancel()
    await settle()
    assert sorted(stage.cancelled) == ["c1", "c2"]


async def test_a_drive_that_is_cancelled_itself_is_cancelled() -> None:
    task = asyncio.create_task(drive(FakeStage(lambda _: asyncio.Event().wait()), [call(1)], lambda _: None))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_call_whose_work_was_cancelled_by_others_is_answered_all_the_same() -> None:
    async def answer(asked):
        if asked.id == "c1":
            raise asyncio.CancelledError
        return ok(asked)

    results = await asyncio.wait_for(run_all(FakeStage(answer), call(1), call(2)), 5)
    assert isinstance(results["c1"].error, ExecutionError)
    assert results["c2"].error is None


async def test_the_second_replica_is_told_how_much_time_the_first_one_used() -> None:
    asked_again = []

    class Lossy:
        async def run(self, calls):
            yield ()
            if not asked_again:
                asked_again.append(None)
                await asyncio.sleep(0.02)
                raise StageLost("gone")
            asked_again.extend(calls)
            yield [ok(asked) for asked in calls]

    await delivered(Lossy(), call(1, remaining_s=10.0), resubmit=True)
    assert 9.0 < asked_again[1].remaining_s <= 10.0 - 0.02


async def test_a_caller_who_leaves_before_the_batch_goes_out_costs_nothing() -> None:
    stage = FakeStage()
    Lane(stage).ask(call(1)).cancel()
    await settle()
    assert stage.batches == []


async def test_no_task_outlives_its_batch() -> None:
    before = asyncio.all_tasks()
    lane = Lane(FakeStage())
    await asyncio.gather(*lane.ask_all([call(1), call(2)]))
    await settle()
    assert asyncio.all_tasks() == before
    assert lane._drives == set()


async def test_an_empty_batch_is_no_batch() -> None:
    stage = FakeStage()
    assert Lane(stage).ask_all([]) == []
    await settle()
    assert stage.batches == []
    assert await run_all(stage) == {}
