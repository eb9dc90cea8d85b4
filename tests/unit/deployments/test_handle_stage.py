"""A stage in another process: whatever Ray does to its stream, the contract of a stage holds."""

import asyncio

import pytest
from deployment_fakes import FakeHandle, call, ok, run_all
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from serve_app.deployments.stage import HandleStage, Lane, StageLost
from serve_app.errors import Overloaded


async def test_a_handle_is_a_stage_like_any_other() -> None:
    handle = FakeHandle((), [ok(call(1))])
    assert (await run_all(HandleStage(handle), call(1)))["c1"].error is None
    assert not handle.stream.is_cancelled


@pytest.mark.parametrize(
    ("items", "error"),
    [
        (["silence"], StageLost),
        ([RayActorError()], StageLost),
        ([(), RayActorError()], StageLost),
        ([], StageLost),
        ([BackPressureError(1, 1)], Overloaded),
    ],
)
async def test_a_handle_that_fails_says_so(items, error) -> None:
    with pytest.raises(error):
        await run_all(HandleStage(FakeHandle(*items), accept_timeout_s=0.01), call(1))


async def test_leaving_a_handle_early_cancels_its_stream() -> None:
    handle = FakeHandle((), "silence")
    chunks = HandleStage(handle).run([call(1)])
    await anext(chunks)
    await chunks.aclose()
    assert handle.stream.is_cancelled


async def test_a_stream_that_ray_cancelled_by_itself_is_a_lost_replica() -> None:
    """Ray raises ``CancelledError`` out of a stream whose task was cancelled in the replica."""
    handle = FakeHandle((), asyncio.CancelledError())
    (result,) = await asyncio.wait_for(asyncio.gather(*Lane(HandleStage(handle)).ask_all([call(1)])), 5)
    assert isinstance(result.error, StageLost)


async def test_a_handle_that_cannot_even_be_asked_answers_every_caller() -> None:
    class Broken(FakeHandle):
        def remote(self, calls):
            raise RuntimeError("shut down")

    (result,) = await asyncio.gather(*Lane(HandleStage(Broken())).ask_all([call(1)]))
    assert isinstance(result.error, StageLost)
    assert "shut down" not in str(result.error)


async def test_a_stream_that_nobody_took_is_cancelled() -> None:
    handle = FakeHandle("silence")
    with pytest.raises(StageLost, match="in time"):
        await run_all(HandleStage(handle, accept_timeout_s=0.01), call(1))
    assert handle.stream.is_cancelled
