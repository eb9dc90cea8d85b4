"""Results leave in chunks, each as soon as there is one."""

import asyncio

import pytest
from deployment_fakes import call, ok, settle

from serve_app.deployments import call_tasks
from serve_app.deployments.call_tasks import CallTasks
from serve_app.errors import ClientClosed


async def test_in_one_process_the_first_chunk_is_there_at_once_and_empty() -> None:
    chunks = CallTasks().run([call(1)], lambda asked: asyncio.sleep(0, ok(asked)))
    assert await anext(chunks) == ()
    assert [result.id for result in await anext(chunks)] == ["c1"]


async def test_across_processes_a_quick_result_says_that_the_batch_was_taken() -> None:
    chunks = CallTasks(is_remote=True).run([call(1)], lambda asked: asyncio.sleep(0, ok(asked)))
    assert [result.id for result in await anext(chunks)] == ["c1"]
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_across_processes_a_batch_is_taken_within_a_bound_however_slow_its_calls(monkeypatch) -> None:
    monkeypatch.setattr(call_tasks, "ACCEPT_WITHIN_S", 0.005)
    chunks = CallTasks(is_remote=True).run([call(1)], lambda _: asyncio.Event().wait())
    assert await asyncio.wait_for(anext(chunks), 5) == ()
    await chunks.aclose()


async def test_results_of_one_turn_share_a_chunk_and_wait_for_nobody() -> None:
    gates = {f"c{number}": asyncio.Event() for number in (1, 2, 3)}

    async def answer(asked):
        await gates[asked.id].wait()
        return ok(asked)

    chunks = CallTasks(is_remote=True).run([call(1), call(2), call(3)], answer)
    waiting = asyncio.ensure_future(anext(chunks))
    await settle()
    gates["c1"].set()
    gates["c2"].set()
    assert {result.id for result in await asyncio.wait_for(waiting, 5)} == {"c1", "c2"}
    await chunks.aclose()


async def test_a_call_left_before_its_first_step_still_has_a_result() -> None:
    tasks = CallTasks()
    chunks = tasks.run([call(1), call(2)], lambda asked: asyncio.sleep(0, ok(asked)))
    await anext(chunks)
    tasks.leave(["c1"])
    results = {result.id: result for chunk in [chunk async for chunk in chunks] for result in chunk}
    assert isinstance(results["c1"].error, ClientClosed)
    assert results["c2"].error is None
