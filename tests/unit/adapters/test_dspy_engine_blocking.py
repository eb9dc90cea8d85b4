from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time

import dspy
import pytest
from dspy import lm15
from lm_fault_server import FaultServer, reply, silence, sse

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server():
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def pool():
    pool = LMPool()
    yield pool
    await pool.aclose()


def model(server, name="small", **settings):
    return ModelConfig(name=name, **{"lm": "openai/small", "api_base": server.url} | settings)


def engines(pool, server, **settings):
    lm = pool.lm(model(server, **settings))
    return lm._engine_spec, lm._async_engine_spec


def request(**fields):
    return lm15.Request(**{"model": "openai/small", "messages": lm15.Message.user("hi")} | fields)


async def in_thread(work):
    """Run ``work`` as a replica runs a synchronous program: in a thread, in a copy of the context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, context.run, work)


async def test_a_synchronous_program_shares_the_scope_and_leaves_the_loop_free(server, pool):
    lm = pool.lm(model(server))
    release, ticks = asyncio.Event(), 0

    async def slowly(received, writer):
        await release.wait()
        await reply()(received, writer)

    server.answer = slowly
    with call_scope(10) as scope, dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]):
        work = asyncio.ensure_future(in_thread(lambda: dspy.Predict("question -> answer")(question="?")))
        await server.until(lambda s: s.requests)
        while ticks < 100:  # the loop turns while the program waits
            await asyncio.sleep(0)
            ticks += 1
        release.set()
        assert (await work).answer == "Paris"
    assert (scope.lm_calls, scope.usage.output_tokens) == (1, 12)


async def test_the_calls_of_dspy_parallel_count_and_keep_the_deadline(server, pool):
    ask = dspy.Predict("question -> answer")
    examples = [(ask, dspy.Example(question=f"{number}").with_inputs("question")) for number in range(3)]
    parallel = dspy.Parallel(num_threads=3, disable_progress_bar=True)
    with call_scope(10) as scope, dspy.context(lm=pool.lm(model(server)), adapter=dspy.ChatAdapter(), trace=[]):
        await in_thread(lambda: parallel(examples))
        scope.deadline = 0.0
        await in_thread(lambda: parallel(examples))
    assert (scope.lm_calls, scope.usage.output_tokens) == (3, 36)
    assert len(server.requests) == 3


async def test_many_synchronous_programs_at_once_reuse_connections(server, pool):
    blocking, _ = engines(pool, server)
    for _ in range(3):
        await asyncio.gather(*(in_thread(lambda: blocking.complete(request())) for _ in range(20)))
    assert len(server.requests) == 60
    assert server.connections <= 20


async def test_a_synchronous_call_ends_with_its_deadline(server, pool):
    server.answer = silence
    blocking, _ = engines(pool, server)
    started = time.monotonic()
    with call_scope(0.3), pytest.raises(lm15.TimeoutError):
        await in_thread(lambda: blocking.complete(request()))
    assert time.monotonic() - started < 0.8
    await server.until(lambda s: s.open_now == 0)


async def test_a_synchronous_stream_yields_as_it_arrives(server, pool):
    chunk = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
    end = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    server.answer = sse(chunk, end, "[DONE]")
    blocking, _ = engines(pool, server)
    events = await in_thread(lambda: list(blocking.stream(request())))
    assert [event.type for event in events] == ["start", "delta", "end"]


async def test_a_synchronous_stream_left_early_closes_the_upstream_request(server, pool):
    chunk = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
    server.answer = sse(chunk, close=False)
    blocking, _ = engines(pool, server)

    def first():
        events = blocking.stream(request())
        event = next(events)
        events.close()
        return event

    assert (await in_thread(first)).type == "start"
    await server.until(lambda s: s.open_now == 0, within_s=0.5)


async def test_a_synchronous_stream_ends_when_its_call_is_given_up(server, pool):
    chunk = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
    server.answer = sse(chunk, close=False)
    blocking, _ = engines(pool, server)
    began = threading.Event()

    def read():
        for _ in blocking.stream(request()):
            began.set()

    with call_scope(60) as scope:
        reading = asyncio.ensure_future(in_thread(read))
        assert await asyncio.to_thread(began.wait, 5)
        scope.give_up()
        with pytest.raises(lm15.TimeoutError):
            await asyncio.wait_for(reading, 5)
    await server.until(lambda s: s.open_now == 0, within_s=0.5)


async def test_a_synchronous_call_on_a_running_loop_is_answered_and_logged_once(pool, caplog):
    address, started, stop = [], threading.Event(), threading.Event()

    def serve():  # on a thread of its own: the test's loop will stand still
        async def main():
            async with FaultServer() as server:
                address.append(server.url)
                started.set()
                await asyncio.to_thread(stop.wait)

        asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    assert await asyncio.to_thread(started.wait, 5)
    lm = pool.lm(ModelConfig(name="small", lm="openai/small", api_base=address[0]))
    with (
        caplog.at_level(logging.WARNING, "switchyard.engine"),
        dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]),
    ):
        for _ in range(2):
            assert dspy.Predict("question -> answer")(question="?").answer == "Paris"
    stop.set()
    await asyncio.to_thread(thread.join)
    assert [(record.message, record.model) for record in caplog.records] == [("engine.loop_blocked", "small")]


async def test_closing_the_pool_ends_a_synchronous_call_in_flight(server):
    pool = LMPool()
    server.answer = silence
    blocking, _ = engines(pool, server)
    work = asyncio.ensure_future(in_thread(lambda: blocking.complete(request())))
    await server.until(lambda s: s.requests)
    await pool.aclose()
    with pytest.raises(lm15.TransportError):
        await asyncio.wait_for(work, 5)


async def test_closing_the_pool_closes_both_loops_connections_and_ends_the_thread(server):
    pool = LMPool()
    blocking, engine = engines(pool, server)
    await engine.complete(request())
    await in_thread(lambda: blocking.complete(request()))
    assert server.open_now == 2
    await pool.aclose()
    await server.until(lambda s: s.open_now == 0)
    assert "lm-pool" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(lm15.ConfigurationError):
        await engine.complete(request())
    with pytest.raises(lm15.ConfigurationError):
        await in_thread(lambda: blocking.complete(request()))
