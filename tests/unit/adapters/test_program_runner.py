import asyncio
import contextvars
import threading
from functools import partial

import dspy
import program_samples
import pytest
from dspy import lm15
from program_fakes import Provider, chat_reply

from serve_app.adapters.program_runner import ProgramThreads, Runner
from serve_app.errors import Overloaded, UpstreamError
from serve_app.messages import Outcome


@pytest.fixture
def threads():
    made = ProgramThreads(2, "test")
    yield made
    made.close()


@pytest.fixture
def waits():
    """A sync program that holds its thread until the test is over."""
    program_samples.Waits.started.clear()
    program_samples.Waits.release.clear()
    yield program_samples.Waits()
    program_samples.Waits.release.set()


async def until(condition, seconds=10.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_an_async_program_runs_on_the_loop(threads):
    provider = Provider(chat_reply(topic="a", score=3))
    with dspy.context(lm=provider.lm(), trace=[]):
        prediction = await Runner(program_samples.OneShot(), threads).run({"text": "t", "hint": ""}, 10)
    assert prediction.topic == "a"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("program-test")]


async def test_a_sync_program_runs_in_another_thread_with_the_context(threads):
    provider = Provider(chat_reply(summary="short"))
    with dspy.context(lm=provider.lm(), trace=[]):
        pair = await Runner(program_samples.SyncOnly(), threads).run({"text": "t"}, 10)
    assert pair.left == "short"
    assert pair.right != threading.get_ident()


async def test_context_variables_reach_the_thread(threads):
    variable = contextvars.ContextVar("v", default="unset")
    variable.set("set")
    assert await threads.run(variable.get, 10) == "set"


async def test_the_loop_goes_on_while_a_thread_waits(threads, waits):
    running = asyncio.create_task(Runner(waits, threads).run({"text": "abc"}, 20))
    await until(waits.started.is_set)
    assert not running.done()
    waits.release.set()
    assert await running == {"letters": 3}


async def test_a_stuck_thread_is_given_up_at_the_deadline_and_counted_until_it_ends(threads, waits):
    with pytest.raises(UpstreamError) as caught:
        await Runner(waits, threads).run({"text": "t"}, 0.05)
    assert caught.value.outcome is Outcome.TIMEOUT
    assert (threads.stuck, threads.given_up) == (1, 1)
    waits.release.set()
    await until(lambda: threads.stuck == 0)
    assert threads.given_up == 1


async def test_a_cancelled_caller_leaves_a_counted_thread(threads, waits):
    running = asyncio.create_task(Runner(waits, threads).run({"text": "t"}, 20))
    await until(waits.started.is_set)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert threads.stuck == 1


async def test_calls_that_were_given_up_take_no_thread_from_the_next(threads, waits):
    results = await asyncio.gather(
        *(Runner(waits, threads).run({"text": "t"}, 0.05) for _ in range(2)), return_exceptions=True
    )
    assert [type(result) for result in results] == [UpstreamError, UpstreamError]
    both = threading.Barrier(2)
    await asyncio.gather(*(threads.run(partial(both.wait, 10), 20) for _ in range(2)))
    assert threads.stuck == 2


async def test_calls_are_refused_at_once_when_every_thread_is_held(threads, waits):
    runner = Runner(waits, threads)
    for _ in range(2):
        await asyncio.gather(*(runner.run({"text": "t"}, 0.05) for _ in range(2)), return_exceptions=True)
    with pytest.raises(Overloaded) as caught:
        await runner.run({"text": "t"}, 20)
    assert caught.value.retry_after_s == 1.0
    waits.release.set()
    await until(lambda: threads.stuck == 0)
    assert await runner.run({"text": "t"}, 20) == {"letters": 1}


async def test_a_timeout_raised_inside_a_thread_is_not_the_deadline(threads):
    def fail():
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await threads.run(fail, 10)


async def test_an_async_program_is_cancelled_at_the_deadline(threads):
    program_samples.WaitsAsync.cancelled = False
    with pytest.raises(UpstreamError) as caught:
        await Runner(program_samples.WaitsAsync(), threads).run({"text": "t"}, 0.02)
    assert caught.value.outcome is Outcome.TIMEOUT
    assert program_samples.WaitsAsync.cancelled


async def test_a_program_that_overrides_forward_alone_is_not_gone_around(threads):
    provider = Provider(chat_reply(reasoning="r", summary="short"))
    with dspy.context(lm=provider.lm(), trace=[]):
        prediction = await Runner(program_samples.OnlyForwardOverCot(), threads).run({"text": "t"}, 10)
    assert prediction.summary == "SHORT"


async def test_what_one_call_stores_another_never_sees(threads):
    module = program_samples.KeepsState()
    runner = Runner(module, threads)
    assert await runner.run({"text": "first"}, 10) == {"summary": ""}
    assert await runner.run({"text": "second"}, 10) == {"summary": ""}
    assert module.last == ""


async def test_best_of_n_gives_the_best_and_is_not_changed_by_running(threads):
    provider = Provider(chat_reply(summary="a"), chat_reply(summary="longer"))
    module = program_samples.Refined()
    with dspy.context(lm=provider.lm(), trace=[]):
        prediction = await Runner(module, threads).run({"text": "t"}, 10)
    assert prediction.summary == "longer"
    assert module.module.fail_count == 2


async def test_a_failure_that_best_of_n_swallows_is_the_models(threads, capsys):
    provider = Provider(lm15.ServerError("down", status=500))
    with dspy.context(lm=provider.lm(), trace=[]), pytest.raises(UpstreamError) as caught:
        await Runner(program_samples.Refined(), threads).run({"text": "t"}, 10)
    assert caught.value.outcome is Outcome.SERVER_ERROR
    capsys.readouterr()  # BestOfN prints what it swallows
