"""A stage in another process: whatever Ray does to its stream, the contract of a stage holds."""

import asyncio

import pytest
from deployment_fakes import FakeHandle, call, ok, run_all, settle
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError

from serve_app.deployments import stage as stages
from serve_app.deployments.lane import Lane
from serve_app.deployments.stage import HandleStage, StageLost, drive
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


class Leavable(FakeHandle):
    """A handle whose stream takes the batch and then stays silent; remembers what was broadcast."""

    def __init__(self, *items, error=None) -> None:
        super().__init__(*items)
        self.told: list[list[str]] = []
        self.heard = asyncio.Event()
        self._error = error

    def broadcast(self, method, ids):
        assert method == "leave_calls"
        self.told.append(ids)
        return self

    async def results_async(self, **_):
        await self.heard.wait()
        if self._error:
            raise self._error
        return [None]


class Deaf(Leavable):
    """One of its replicas answers no message."""

    unanswered = most_unanswered = 0

    async def results_async(self, *, timeout_s, **_):
        self.unanswered += 1
        self.most_unanswered = max(self.most_unanswered, self.unanswered)
        try:
            async with asyncio.timeout(timeout_s):
                await self.heard.wait()
        finally:
            self.unanswered -= 1


async def taken(handle, calls: int = 4) -> tuple[HandleStage, asyncio.Task]:
    stage = HandleStage(handle)
    running = asyncio.create_task(run_all(stage, *(call(n) for n in range(1, calls + 1))))
    await settle()
    return stage, running


async def test_replicas_that_answer_are_told_who_left_one_message_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(stages, "LEAVE_GAP_S", 60)
    handle = Leavable((), "silence")
    stage, running = await taken(handle)
    stage.leave(["c1"])
    await settle()
    stage.leave(["c2"])
    stage.leave(["c3", "a call of another batch"])
    await settle()
    assert handle.told == [["c1"]]
    handle.heard.set()
    await settle()
    assert handle.told == [["c1"], ["c2", "c3"]]
    running.cancel()


async def test_a_replica_that_does_not_answer_keeps_the_news_from_no_other() -> None:
    handle = Leavable((), "silence")
    stage, running = await taken(handle)
    stage.leave(["c1"])
    await settle()
    stage.leave(["c2"])
    stage.leave(["c3"])
    async with asyncio.timeout(1):
        while len(handle.told) < 2:
            await asyncio.sleep(0)
    assert handle.told == [["c1"], ["c2", "c3"]]
    running.cancel()


async def test_messages_that_nobody_answers_are_bounded_in_number(monkeypatch) -> None:
    monkeypatch.setattr(stages, "LEAVE_TIMEOUT_S", 0.1)
    handle = Deaf((), "silence")
    stage, running = await taken(handle, calls=100)
    left = [f"c{n}" for n in range(1, 101)]
    for call_id in left:
        stage.leave([call_id])
        await asyncio.sleep(0.003)
    assert 1 < handle.most_unanswered <= 0.1 / stages.LEAVE_GAP_S + 1
    assert len(handle.told) < 50
    async with asyncio.timeout(5):
        while handle.unanswered:
            await asyncio.sleep(0)
    await settle()
    assert sorted(call_id for ids in handle.told for call_id in ids) == sorted(left)
    assert not stage._unheard
    running.cancel()


async def test_a_call_that_is_left_before_a_replica_said_to_have_it_is_told_of_now_and_then() -> None:
    """The replica may have it and not have said so yet, or get it after the message."""
    handle = Leavable()
    handle.stream = FakeSlowStream()
    handle.heard.set()
    stage, running = await taken(handle)
    stage.leave(["c1"])
    await settle()
    assert handle.told == [["c1"]]
    handle.stream.accept.set()
    await settle()
    assert handle.told == [["c1"], ["c1"]]
    running.cancel()


class FakeSlowStream:
    """Accepts when it is told to, and answers nothing."""

    def __init__(self) -> None:
        self.accept = asyncio.Event()
        self._accepted = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        await self.accept.wait()
        if self._accepted:
            await asyncio.Event().wait()
        self._accepted = True
        return ()

    def cancel(self) -> None:
        pass


async def test_a_call_that_was_answered_is_left_by_nobody() -> None:
    handle = Leavable((), [ok(call(1))], "silence")
    stage, running = await taken(handle)
    stage.leave(["c1"])
    await settle()
    assert handle.told == []
    running.cancel()


async def test_a_batch_that_everybody_left_is_told_of_too() -> None:
    handle = Leavable((), [ok(call(1))], "silence")
    handle.heard.set()
    _, running = await taken(handle)
    running.cancel()
    await settle()
    assert handle.stream.is_cancelled
    assert handle.told == [["c2", "c3", "c4"]]


async def test_calls_of_a_lost_replica_are_left_by_nobody_since_they_may_be_asked_again() -> None:
    handle = Leavable((), RayActorError())
    stage = HandleStage(handle)
    with pytest.raises(StageLost):
        await run_all(stage, call(1))
    await settle()
    assert handle.told == []


async def test_replicas_that_cannot_be_told_do_no_harm() -> None:
    handle = Leavable((), "silence", error=RayActorError())
    handle.heard.set()
    stage, running = await taken(handle)
    stage.leave(["c1"])
    await settle()
    stage.leave(["c2"])
    await settle()
    assert handle.told == [["c1"], ["c2"]]
    running.cancel()


async def test_nothing_is_remembered_of_a_batch_that_ended() -> None:
    stage = HandleStage(FakeHandle((), [ok(call(1))]))
    await run_all(stage, call(1))
    assert not (stage._offered | stage._taken | stage._left_early | stage._leaving)


async def test_a_batch_that_everybody_left_before_a_replica_said_to_have_it_is_told_of_too() -> None:
    """The replica says so only after some milliseconds, and has long been at work then."""
    handle = Leavable("silence")
    handle.heard.set()
    _, running = await taken(handle)
    running.cancel()
    await settle()
    assert handle.stream.is_cancelled
    assert handle.told == [["c1", "c2", "c3", "c4"]]


@pytest.mark.parametrize("failure", [asyncio.CancelledError(), RayActorError(), KeyError("unreadable")])
async def test_a_call_that_is_asked_again_is_not_left_because_of_its_first_run(failure) -> None:
    handle = Leavable((), failure)
    handle.heard.set()
    results: list = []
    again = asyncio.create_task(drive(HandleStage(handle), [call(1)], results.append, resubmit=True))
    await settle()
    assert handle.told == []
    again.cancel()


async def test_a_message_that_fails_holds_up_none_after_it() -> None:
    handle = Leavable((), "silence", error=TimeoutError())
    stage, running = await taken(handle)
    stage.leave(["c1"])
    await settle()
    stage.leave(["c2"])
    handle.heard.set()
    await settle()
    assert handle.told == [["c1"], ["c2"]]
    running.cancel()
