"""A stage answers over channels: each call once, whatever callers do, and all of them before it goes."""

import asyncio
import contextlib
import gc
import socket

import pytest
from channel_fakes import LOOPBACK, Gated, calling, serving, until
from deployment_fakes import FakeStage, call, ok, settle

from serve_app.adapters.channel import Channel, ChannelClosed, connect
from serve_app.deployments import stage_server
from serve_app.deployments.stage_protocol import BYE, Batch, Chunk, Leave
from serve_app.deployments.stage_server import StageServer
from serve_app.messages import Result


async def heard(channel: Channel, results: int) -> list[Chunk]:
    """Chunks up to so many results, or to the last one."""
    chunks: list[Chunk] = []
    async with asyncio.timeout(5):
        while sum(len(chunk.results) for chunk in chunks) < results and not (chunks and chunks[-1].is_last):
            chunks.append(await channel.receive())
    return chunks


def ids(chunks: list[Chunk]) -> list[str]:
    return [result.id for chunk in chunks for result in chunk.results]


async def test_each_call_of_a_batch_is_answered_as_it_finishes() -> None:
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(7, [call(1), call(2)]))
        assert await channel.receive() == Chunk(7, ())
        stage.open("c2")
        assert ids(await heard(channel, 1)) == ["c2"]
        stage.open("c1")
        (chunk,) = await heard(channel, 1)
        assert (chunk.number, ids([chunk]), chunk.is_last) == (7, ["c1"], False)


async def test_batches_of_one_caller_are_answered_side_by_side() -> None:
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1)]))
        channel.send(Batch(2, [call(2)]))
        stage.open("c2")
        chunks = await heard(channel, 1)
        assert (chunks[-1].number, ids(chunks)) == (2, ["c2"])


async def test_a_call_that_is_left_is_left_by_the_stage_and_its_neighbours_are_answered() -> None:
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1), call(2)]))
        await channel.receive()
        channel.send(Leave(["c1"]))
        await until(lambda: stage.cancelled)
        assert stage.cancelled == ["c1"]
        stage.open("c2")
        chunks = await heard(channel, 2)
        errors = {result.id: result.error for chunk in chunks for result in chunk.results}
        assert errors.keys() == {"c1", "c2"}
        assert errors["c2"] is None


async def test_a_call_that_is_left_in_the_breath_in_which_it_is_asked_is_left_by_the_stage() -> None:
    """So a replica reads them that was busy meanwhile."""
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1), call(2)]))
        channel.send(Leave(["c1"]))
        stage.open("c2")
        assert sorted(ids(await heard(channel, 2))) == ["c1", "c2"]


async def test_calls_of_a_caller_that_is_gone_are_cancelled() -> None:
    stage = Gated()
    async with serving(stage) as server:
        async with calling(server) as channel, calling(server) as other:
            channel.send(Batch(1, [call(1), call(2)]))
            other.send(Batch(1, [call(3)]))
            await until(lambda: len(stage.calls) == 3)
            channel.close()
            await until(lambda: len(stage.cancelled) == 2)
            assert sorted(stage.cancelled) == ["c1", "c2"]
            stage.open("c3")
            assert ids(await heard(other, 1)) == ["c3"]
        assert server.calls == 0


class Ending:
    """Answers the first call of a batch, and then ends as it is told."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._error = error

    async def run(self, calls):
        yield [ok(calls[0])]
        if self._error:
            raise self._error

    def leave(self, ids):
        pass


@pytest.mark.parametrize("error", [None, KeyError("a defect"), asyncio.CancelledError()])
async def test_callers_of_a_stage_that_ends_with_calls_unanswered_are_told_that_there_is_no_more(error) -> None:
    async with serving(Ending(error)) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1), call(2)]))
        chunks = await heard(channel, 2)
        assert (ids(chunks), chunks[-1]) == (["c1"], Chunk(1, (), is_last=True))
        assert server.calls == 0


async def test_a_stage_that_answers_one_call_twice_and_another_never_does_not_hang_its_callers() -> None:
    class Confused(Ending):
        async def run(self, calls):
            yield [ok(calls[0]), ok(calls[0])]

    async with serving(Confused()) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1), call(2)]))
        assert (await heard(channel, 3))[-1].is_last


async def test_answers_that_cannot_be_sent_are_lost_and_do_not_hang_the_caller() -> None:
    stage = FakeStage(lambda asked: Result(asked.id, {"answer": lambda: None}))
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1)]))
        assert (await heard(channel, 1))[-1] == Chunk(1, (), is_last=True)


async def test_calls_in_hand_are_those_without_an_answer() -> None:
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1), call(2)]))
        channel.send(Batch(2, [call(3)]))
        await until(lambda: len(stage.calls) == 3)
        assert server.calls == 3
        stage.open("c1", "c3")
        await heard(channel, 2)
        assert server.calls == 1
        stage.open("c2")
        await heard(channel, 1)
        await until(lambda: not server._batches)
        assert server.calls == 0


async def test_a_server_that_goes_answers_what_it_has_and_is_gone_only_then() -> None:
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1)]))
        await channel.receive()
        going = asyncio.create_task(server.aclose())
        assert await channel.receive() is BYE
        channel.send(BYE)
        await until(lambda: all(has_gone.is_set() for has_gone in server._callers.values()))
        await settle()
        assert not going.done()
        stage.open("c1")
        assert ids(await heard(channel, 1)) == ["c1"]
        await going
        with pytest.raises(ChannelClosed):
            await channel.receive()


async def test_a_server_that_goes_is_gone_only_once_its_answers_have_left_the_process() -> None:
    """A caller that is busy reads a large one late, and what has not left ends with the process."""
    stage = FakeStage(lambda asked: Result(asked.id, {"answer": "x" * 30_000_000}))
    async with serving(stage) as server, calling(server) as channel:
        channel._writer.transport.pause_reading()
        channel.send(Batch(1, [call(1)]))
        channel.send(BYE)
        await until(lambda: stage.calls and not server._batches)
        going = asyncio.create_task(server.aclose())
        await settle(50)
        assert not going.done()
        channel._writer.transport.resume_reading()
        assert ids(await heard(channel, 1)) == ["c1"]
        await asyncio.wait_for(going, stage_server.BYE_TIMEOUT_S / 2)


async def test_a_caller_that_reads_nothing_more_holds_a_server_up_for_a_bounded_time(monkeypatch) -> None:
    monkeypatch.setattr(stage_server, "BYE_TIMEOUT_S", 0.02)
    stage = FakeStage(lambda asked: Result(asked.id, {"answer": "x" * 30_000_000}))
    async with serving(stage) as server, calling(server) as channel:
        channel._writer.transport.pause_reading()
        channel.send(Batch(1, [call(1)]))
        await until(lambda: stage.calls and not server._batches)
        await asyncio.wait_for(server.aclose(), 1)


async def test_a_batch_that_crosses_the_goodbye_is_answered() -> None:
    stage = FakeStage()
    async with serving(stage) as server, calling(server) as channel:
        await until(lambda: server._callers)
        going = asyncio.create_task(server.aclose())
        assert await channel.receive() is BYE
        channel.send(Batch(1, [call(1)]))
        channel.send(BYE)
        assert ids(await heard(channel, 1)) == ["c1"]
        await going


async def test_a_server_that_goes_takes_no_more_callers() -> None:
    stage = Gated()
    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1)]))
        await channel.receive()
        going = asyncio.create_task(server.aclose())
        assert await channel.receive() is BYE
        with pytest.raises(ChannelClosed):
            await connect(server.endpoint)
        stage.open("c1")
        channel.send(BYE)
        await going


async def test_a_caller_that_knocked_before_the_server_goes_and_comes_in_after_is_let_go(monkeypatch) -> None:
    stage, proved = Gated(), asyncio.Event()
    open_connection = asyncio.open_connection

    async def slowly(*args, **options):
        pair = await open_connection(*args, **options)
        await proved.wait()
        return pair

    async with serving(stage) as server, calling(server) as channel:
        channel.send(Batch(1, [call(1)]))
        await channel.receive()
        monkeypatch.setattr(asyncio, "open_connection", slowly)
        coming = asyncio.create_task(connect(server.endpoint))
        await settle(50)
        going = asyncio.create_task(server.aclose())
        assert await channel.receive() is BYE
        channel.send(BYE)
        proved.set()
        late = None
        with contextlib.suppress(ChannelClosed):
            late = await coming
            late.send(Batch(1, [call(2)]))
            with pytest.raises(ChannelClosed):
                await asyncio.wait_for(late.receive(), 2)
        if late:
            late.close()
        assert [asked.id for asked in stage.calls] == ["c1"]
        stage.open("c1")
        await going


async def test_a_caller_that_stalls_holds_a_server_up_for_a_bounded_time(monkeypatch) -> None:
    monkeypatch.setattr(stage_server, "BYE_TIMEOUT_S", 0.02)
    async with serving(FakeStage()) as server, calling(server):
        await until(lambda: server._callers)
        await asyncio.wait_for(server.aclose(), 1)


async def test_a_caller_that_has_not_said_goodbye_is_waited_for() -> None:
    async with serving(FakeStage()) as server, calling(server) as channel:
        await until(lambda: server._callers)
        going = asyncio.create_task(server.aclose())
        assert await channel.receive() is BYE
        await settle()
        assert not going.done()
        channel.send(BYE)
        await asyncio.wait_for(going, stage_server.BYE_TIMEOUT_S / 2)


async def test_a_caller_that_leaves_instead_of_saying_goodbye_is_not_waited_for() -> None:
    async with serving(FakeStage()) as server, calling(server) as channel:
        await until(lambda: server._callers)
        going = asyncio.create_task(server.aclose())
        assert await channel.receive() is BYE
        channel.close()
        await asyncio.wait_for(going, stage_server.BYE_TIMEOUT_S / 2)


async def test_a_server_that_was_never_started_closes_its_socket() -> None:
    server = StageServer(FakeStage(), LOOPBACK)
    await server.aclose()
    assert server._listener._socket.fileno() == -1


async def test_a_server_that_ends_in_the_turn_in_which_it_began_closes_its_socket() -> None:
    server = StageServer(FakeStage(), LOOPBACK)
    server.start()
    await server.aclose()
    assert server._listener._socket.fileno() == -1
    gc.collect()


async def test_what_comes_before_the_server_was_started_waits_for_it() -> None:
    server = StageServer(FakeStage(), LOOPBACK)
    with socket.create_connection(server.endpoint[:2]) as early:
        early.setblocking(False)
        server.start()
        challenge = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(early, 32), 2)
        assert len(challenge) == 32
    await server.aclose()


def test_each_server_has_a_key_of_its_own() -> None:
    servers = [StageServer(FakeStage(), LOOPBACK) for _ in range(2)]
    for server in servers:
        server._listener._socket.close()
    keys = {server.endpoint.key for server in servers}
    assert [len(key) for key in keys] == [32, 32]
