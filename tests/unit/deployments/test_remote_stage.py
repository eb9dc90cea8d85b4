"""A deployment's replicas are one stage: who is asked, and what becomes of calls whose replica goes, dies or stalls."""

import asyncio
from dataclasses import replace

import pytest
from channel_fakes import LOOPBACK, Gated, asking, break_off, serving, until
from deployment_fakes import FakeStage, call, ok, run_all, settle

from serve_app.adapters.channel import accept, listen
from serve_app.core.clock import ManualClock
from serve_app.deployments import remote_stage
from serve_app.deployments.lane import Lane
from serve_app.deployments.remote_stage import GRACE_S, STALL_S, UNLISTED_S
from serve_app.deployments.stage import StageAbsent, StageLost, drive
from serve_app.deployments.stage_protocol import Batch, Leave
from serve_app.deployments.stage_server import BYE_TIMEOUT_S
from serve_app.errors import ClientClosed, InvalidInputs
from serve_app.messages import Result
from serve_app.reports import NOWHERE, Endpoint


def begun(stage, *numbers: int, **options) -> asyncio.Task[dict[str, Result]]:
    """These calls on their way as one batch, whose results come in the end."""
    results: dict[str, Result] = {}

    async def work() -> dict[str, Result]:
        await drive(stage, [call(n) for n in numbers], lambda result: results.update({result.id: result}), **options)
        return results

    return asyncio.create_task(work())


async def test_each_call_of_a_batch_gets_its_own_result_as_it_finishes() -> None:
    replica = Gated()
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        chunks = asker.stage.run([call(1), call(2)])
        assert await anext(chunks) == ()
        replica.open("c2")
        assert await anext(chunks) == (ok(call(2)),)
        replica.open("c1")
        assert await anext(chunks) == (ok(call(1)),)
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)


async def test_a_failure_of_a_call_crosses_as_its_result() -> None:
    def answer(asked):
        if asked.id == "c1":
            raise InvalidInputs("no such thing")
        return ok(asked)

    async with asking() as asker, serving(FakeStage(answer)) as server:
        await asker.find(server)
        results = await run_all(asker.stage, call(1), call(2))
        assert type(results["c1"].error) is InvalidInputs
        assert results["c2"].error is None


async def test_until_a_snapshot_says_where_replicas_are_the_handle_is_asked_and_then_no_more() -> None:
    replica = FakeStage()
    async with asking() as asker, serving(replica) as server:
        assert asker.link.deployment == "Model-x"
        await run_all(asker.stage, call(1))
        await asker.find(server)
        await run_all(asker.stage, call(2))
        assert asker.handle.asked == [["c1"]]
        assert [asked.id for asked in replica.calls] == ["c2"]


async def test_while_no_connection_has_come_about_the_handle_is_asked() -> None:
    async with asking() as asker, serving(FakeStage()) as server:
        asker.link.found([server.endpoint])
        await run_all(asker.stage, call(1))
        assert asker.handle.asked == [["c1"]]
        await until(lambda: not asker.stage._connecting)


async def test_a_listed_replica_that_cannot_be_reached_is_tried_at_each_snapshot_and_the_handle_asked(
    caplog, monkeypatch
) -> None:
    caplog.set_level("INFO")
    tried = []
    connect = remote_stage.connect
    monkeypatch.setattr(remote_stage, "connect", lambda endpoint: tried.append(endpoint) or connect(endpoint))
    nowhere = listen(LOOPBACK)
    endpoint = Endpoint(LOOPBACK, nowhere.getsockname()[1], bytes(32))
    nowhere.close()
    async with asking() as asker:
        for _ in range(2):
            asker.link.found([endpoint])
            await until(lambda: not asker.stage._connecting)
        await run_all(asker.stage, call(1))
        assert asker.handle.asked == [["c1"]]
    assert tried == [endpoint] * 2
    assert [record.message for record in caplog.records] == ["stage.unreachable"], "once, and not four times a second"
    assert str(endpoint.key) not in caplog.text


async def test_a_replica_is_connected_to_once_however_often_it_is_listed() -> None:
    async with asking() as asker, serving(FakeStage()) as server:
        for _ in range(3):
            asker.link.found([server.endpoint])
        await until(lambda: not asker.stage._connecting)
        await asker.find(server)
        await until(lambda: server._callers)
        await settle()
        assert len(server._callers) == 1


async def test_the_replica_with_fewer_of_our_calls_gets_the_next_batch() -> None:
    first, second = Gated(), Gated()
    async with asking() as asker, serving(first) as one, serving(second) as two:
        await asker.find(one)
        large = begun(asker.stage, 1, 2, 3)
        await until(lambda: len(first.calls) == 3)
        await asker.find(one, two)
        smaller = [begun(asker.stage, 4), begun(asker.stage, 5)]
        await until(lambda: len(second.calls) == 2)
        first.open("c1", "c2")
        await until(lambda: sum(replica.outstanding for replica in asker.stage._replicas.values()) == 3)
        last = begun(asker.stage, 6)
        await until(lambda: len(first.calls) + len(second.calls) == 6)
        assert [asked.id for asked in first.calls] == ["c1", "c2", "c3", "c6"]
        first.open()
        second.open()
        await asyncio.gather(large, *smaller, last)
        assert [replica.outstanding for replica in asker.stage._replicas.values()] == [0, 0]


async def test_idle_replicas_take_turns() -> None:
    replicas = [FakeStage(), FakeStage(), FakeStage()]
    async with asking() as asker, serving(replicas[0]) as one, serving(replicas[1]) as two, serving(replicas[2]) as six:
        await asker.find(one, two, six)
        for number in range(6):
            await run_all(asker.stage, call(number))
        assert [len(replica.calls) for replica in replicas] == [2, 2, 2]


async def test_a_call_that_is_left_is_left_by_the_replica_that_has_it_and_its_neighbours_are_answered() -> None:
    first, second = Gated(), Gated()
    async with asking() as asker, serving(first) as one, serving(second) as two:
        await asker.find(one, two)
        tasks = [begun(asker.stage, 1, 2), begun(asker.stage, 3, 4)]
        await until(lambda: len(first.calls) + len(second.calls) == 4)
        asker.stage.leave(["c1", "of nobody"])
        await until(lambda: first.cancelled + second.cancelled)
        first.open("c2", "c3", "c4")
        second.open("c2", "c3", "c4")
        results = {}
        for task in tasks:
            results |= await task
        assert first.cancelled + second.cancelled == ["c1"]
        assert isinstance(results["c1"].error, ClientClosed)
        assert [results[each].error for each in ("c2", "c3", "c4")] == [None] * 3


async def test_a_caller_that_gives_its_call_up_right_after_it_asked_costs_the_replica_no_work() -> None:
    replica = Gated()
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        gone, stays = Lane(asker.stage).ask_all([call(1), call(2)])
        asyncio.get_running_loop().call_soon(gone.cancel)
        await until(lambda: replica.calls)
        replica.open("c2")
        assert (await stays).error is None
        await until(lambda: not server.calls)


@pytest.mark.parametrize("is_accepted", [False, True])
async def test_a_batch_that_nobody_waits_for_any_more_is_left(is_accepted) -> None:
    replica = Gated()
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        task = begun(asker.stage, 1, 2)
        await until(lambda: replica.calls)
        if is_accepted:
            await settle(50)
        task.cancel()
        await until(lambda: len(replica.cancelled) == 2)
        await until(lambda: not server.calls)
        (known,) = asker.stage._replicas.values()
        assert (known.outstanding, known._asked, known._batches) == (0, set(), {})


async def test_a_generator_that_is_closed_early_leaves_what_is_unanswered_and_only_that() -> None:
    replica = Gated()
    replica.open("c1")
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        chunks = asker.stage.run([call(1), call(2)])
        while not await anext(chunks):
            pass
        await chunks.aclose()
        await until(lambda: replica.cancelled)
        assert replica.cancelled == ["c2"]


async def test_calls_of_a_replica_that_dies_are_lost_at_once() -> None:
    replica = Gated()
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        running = asyncio.create_task(run_all(asker.stage, call(1)))
        await until(lambda: replica.calls)
        break_off(server)
        with pytest.raises(StageLost):
            await asyncio.wait_for(running, 2)


async def test_what_a_dead_replica_left_unanswered_is_answered_by_another() -> None:
    first, second = Gated(), Gated()
    async with asking() as asker, serving(first) as one, serving(second) as two:
        await asker.find(one)
        running = begun(asker.stage, 1, 2, resubmit=True)
        await until(lambda: len(first.calls) == 2)
        first.open("c1")
        await asker.find(one, two)
        await until(lambda: [replica.outstanding for replica in asker.stage._replicas.values()] == [1, 0])
        break_off(one)
        second.open("c2")
        results = await running
        assert [results[each].error for each in ("c1", "c2")] == [None, None]
        assert [asked.id for asked in second.calls] == ["c2"]


async def test_a_replica_that_was_lost_is_connected_to_anew_at_the_next_snapshot_and_till_then_the_handle_asked() -> (
    None
):
    replica = FakeStage()
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        await until(lambda: server._callers)
        for channel in server._callers:
            channel._writer.transport.abort()
        await until(lambda: not asker.stage._replicas)
        await run_all(asker.stage, call(1))
        assert asker.handle.asked == [["c1"]]
        await asker.find(server)
        await run_all(asker.stage, call(2))
        assert [asked.id for asked in replica.calls] == ["c2"]


async def test_a_replica_that_goes_answers_what_it_has_and_the_next_batch_goes_elsewhere() -> None:
    going, stays = Gated(), FakeStage()
    async with asking() as asker, serving(going) as one, serving(stays) as two:
        await asker.find(one)
        running = begun(asker.stage, 1)
        await until(lambda: going.calls)
        await asker.find(one, two)
        closing = asyncio.create_task(one.aclose())
        await until(lambda: any(replica.is_leaving for replica in asker.stage._replicas.values()))
        for number in (2, 3):
            await run_all(asker.stage, call(number))
        assert [asked.id for asked in stays.calls] == ["c2", "c3"]
        assert not closing.done()
        going.open("c1")
        assert (await running)["c1"].error is None
        await closing


async def test_where_the_only_replica_goes_the_handle_is_asked() -> None:
    async with asking() as asker, serving(FakeStage()) as server:
        await asker.find(server)
        await server.aclose()
        await run_all(asker.stage, call(1))
        assert asker.handle.asked == [["c1"]]


async def test_who_is_told_goodbye_says_it_back_so_that_the_replica_need_not_wait() -> None:
    async with asking() as asker, serving(FakeStage()) as server:
        await asker.find(server)
        await until(lambda: server._callers)
        await asyncio.wait_for(server.aclose(), BYE_TIMEOUT_S / 2)


async def test_a_batch_that_crosses_the_goodbye_is_answered() -> None:
    async with asking() as asker, serving(FakeStage()) as server:
        await asker.find(server)
        await until(lambda: server._callers)
        closing = asyncio.create_task(server.aclose())
        await settle(1)  # the goodbye is under way
        results = await begun(asker.stage, 1, 2)
        await closing
        assert [result.error for result in results.values()] == [None, None]


async def test_a_replica_that_said_goodbye_is_not_connected_to_again_while_it_is_still_listed(monkeypatch) -> None:
    tried: list[Endpoint] = []
    connect = remote_stage.connect

    async def counting(endpoint):
        tried.append(endpoint)
        return await connect(endpoint)

    monkeypatch.setattr(remote_stage, "connect", counting)
    async with asking() as asker, serving(FakeStage()) as server:
        await asker.find(server)
        await server.aclose()
        await until(lambda: not asker.stage._replicas)
        await asker.find(server)
        await asker.find(server)
        assert tried == [server.endpoint]
        await asker.find()
        assert asker.stage._gone == set()


class Ending:
    """Ends a batch without an answer, as it is told."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    async def run(self, calls):
        yield ()
        if self._error:
            raise self._error

    def leave(self, ids):
        pass


@pytest.mark.parametrize("error", [None, KeyError("a defect")])
async def test_a_stage_that_fails_or_answers_too_little_is_lost_without_waiting(error) -> None:
    async with asking() as asker, serving(Ending(error)) as server:
        await asker.find(server)
        with pytest.raises(StageLost):
            await asyncio.wait_for(run_all(asker.stage, call(1)), 2)


async def test_answers_that_cannot_be_sent_do_not_hang_their_caller() -> None:
    async with asking() as asker, serving(FakeStage(lambda asked: Result(asked.id, {"f": lambda: None}))) as server:
        await asker.find(server)
        results = await asyncio.wait_for(begun(asker.stage, 1, resubmit=True), 2)
        assert isinstance(results["c1"].error, StageLost)


async def test_calls_that_cannot_be_sent_fail_alone() -> None:
    replica = FakeStage()
    async with asking() as asker, serving(replica) as server:
        await asker.find(server)
        results: list[Result] = []
        await asyncio.wait_for(drive(asker.stage, [call(1, inputs={"f": lambda: None})], results.append), 2)
        assert isinstance(results[0].error, StageLost)
        assert (await run_all(asker.stage, call(2)))["c2"].error is None
        assert [known.outstanding for known in asker.stage._replicas.values()] == [0]


async def test_a_replica_that_does_not_take_a_batch_in_time_is_absent_and_told_to_leave_the_calls() -> None:
    heard: list = []

    async def mute(channel) -> None:
        try:
            while True:
                heard.append(await channel.receive())
        finally:
            channel.close()

    bound = listen(LOOPBACK)
    endpoint = Endpoint(LOOPBACK, bound.getsockname()[1], bytes(32))
    server = await accept(bound, endpoint.key, mute)
    async with asking(accept_timeout_s=0.02) as asker:
        asker.link.found([endpoint])
        await until(lambda: asker.stage._replicas)
        with pytest.raises(StageAbsent, match="in time"):
            await run_all(asker.stage, call(1), call(2))
        await until(lambda: len(heard) == 2)
        number, calls = heard[0]
        assert heard == [Batch(number, calls), Leave(["c1", "c2"])]
        assert [asked.id for asked in calls] == ["c1", "c2"]
        (known,) = asker.stage._replicas.values()
        assert known.outstanding == 0
        known._channel.close()
    server.close()
    await settle()


class Stalling(Gated):
    """Says nothing, not even that it has a batch, until it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = asyncio.Event()

    async def run(self, calls):
        self.batches.append(list(calls))
        await self.goes_on.wait()
        yield [ok(asked) for asked in calls]


async def test_a_replica_that_let_a_batch_wait_in_vain_is_asked_after_the_others_until_it_says_something() -> None:
    stalled, busy = Stalling(), Gated()
    async with asking(accept_timeout_s=0.2) as asker, serving(stalled) as one, serving(busy) as two:
        await asker.find(two)
        running = begun(asker.stage, 1)
        await until(lambda: busy.calls)
        busy.open("c2", "c3")
        await asker.find(one, two)
        for number in (2, 3):
            result = (await begun(asker.stage, number, resubmit=True))[f"c{number}"]
            assert result.error is None
        assert [[asked.id for asked in batch] for batch in stalled.batches] == [["c2"]]
        stalled.goes_on.set()
        await until(lambda: not any(replica.is_stalled for replica in asker.stage._replicas.values()))
        assert (await begun(asker.stage, 4))["c4"].error is None
        assert len(stalled.batches) == 2, "it has fewer of our calls"
        busy.open()
        await running


async def test_a_replica_that_took_a_batch_may_be_at_work_on_it_for_longer_than_it_may_take_to_take_it() -> None:
    replica = Gated()
    async with asking(accept_timeout_s=0.02) as asker, serving(replica) as server:
        await asker.find(server)
        running = begun(asker.stage, 1)
        await until(lambda: replica.calls)
        asyncio.get_running_loop().call_later(0.05, replica.open)
        assert (await running)["c1"].error is None


async def test_a_replica_that_is_listed_no_more_is_asked_only_if_there_is_no_other() -> None:
    silent, listed = FakeStage(), FakeStage()
    clock = ManualClock()
    async with asking(clock=clock) as asker, serving(silent) as one, serving(listed) as two:
        await asker.find(one, two)
        clock.advance(UNLISTED_S)
        await asker.find(two)
        await run_all(asker.stage, call(1))
        await run_all(asker.stage, call(2))
        assert [len(silent.calls), len(listed.calls)] == [1, 1], "a snapshot may come late"
        clock.advance(0.1)
        for number in (3, 4, 5):
            await run_all(asker.stage, call(number))
        assert [len(silent.calls), len(listed.calls)] == [1, 4]
        await asker.find(one, two)
        for number in (6, 7):
            await run_all(asker.stage, call(number))
        assert [len(silent.calls), len(listed.calls)] == [2, 5], "it is listed again"


async def test_replicas_that_are_all_listed_no_more_are_asked_all_the_same() -> None:
    """As while the control plane is away for long."""
    replica, clock = FakeStage(), ManualClock()
    async with asking(clock=clock) as asker, serving(replica) as server:
        await asker.find(server)
        clock.advance(60)
        await run_all(asker.stage, call(1))
        assert asker.handle.asked == []


async def test_where_one_replica_is_out_of_reach_calls_go_over_ray_to_all_of_them() -> None:
    reached, clock = FakeStage(), ManualClock()
    async with asking(clock=clock) as asker, serving(reached) as server:
        asker.link.found([server.endpoint, NOWHERE])
        await until(lambda: not asker.stage._connecting)
        await run_all(asker.stage, call(1))
        assert [len(reached.calls), len(asker.handle.asked)] == [1, 0], "it may just have been killed"
        clock.advance(GRACE_S + 0.1)
        await run_all(asker.stage, call(2))
        assert [len(reached.calls), len(asker.handle.asked)] == [1, 1]
        await asker.find(server)
        await run_all(asker.stage, call(3))
        assert [len(reached.calls), len(asker.handle.asked)] == [2, 1], "it is listed no more"


async def test_a_replica_that_does_not_even_say_that_it_took_a_batch_is_asked_after_the_others() -> None:
    stalled, busy, clock = Stalling(), Gated(), ManualClock()
    async with asking(clock=clock) as asker, serving(stalled) as one, serving(busy) as two:
        await asker.find(one)
        waiting = begun(asker.stage, 1)
        await until(lambda: stalled.batches)
        await asker.find(one, two)
        running = [begun(asker.stage, number) for number in (2, 3)]
        await until(lambda: len(busy.calls) == 1)
        clock.advance(STALL_S + 0.1)
        running.append(begun(asker.stage, 4))
        await until(lambda: len(busy.calls) == 2)
        stalled.goes_on.set()
        await waiting
        busy.open()
        await asyncio.gather(*running)
        assert not any(replica.is_stalled for replica in asker.stage._replicas.values())


class Unreadable:
    """What the other side has no type for."""

    def __reduce__(self):
        return _has_no_such_type, ()


def _has_no_such_type() -> None:
    raise AttributeError("no such type")


async def test_answers_that_cannot_be_read_are_lost_and_their_neighbours_are_not() -> None:
    async def answer(asked):
        return replace(ok(asked), outputs={"text": Unreadable()}) if asked.id == "c1" else await busy._when_open(asked)

    busy = Gated()
    async with asking() as asker, serving(FakeStage(answer)) as server:
        await asker.find(server)
        neighbour = begun(asker.stage, 2)
        with pytest.raises(StageLost):
            await run_all(asker.stage, call(1))
        busy.open()
        assert (await neighbour)["c2"].error is None


async def test_calls_that_cannot_be_read_are_lost_and_their_neighbours_are_not() -> None:
    busy = Gated()
    async with asking() as asker, serving(busy) as server:
        await asker.find(server)
        neighbour = begun(asker.stage, 2)
        await until(lambda: busy.calls)
        with pytest.raises(StageLost):
            await run_all(asker.stage, replace(call(1), inputs={"text": Unreadable()}))
        busy.open()
        assert (await neighbour)["c2"].error is None
