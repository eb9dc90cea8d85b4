"""A call that is given up takes along what was begun for it, on whatever loop."""

import asyncio
import threading

import dspy
import pytest

from serve_app.adapters.call_scope import CallScope, call_scope, current_scope


async def test_what_is_held_gives_its_result():
    with call_scope(10) as scope:
        assert await scope.hold(asyncio.sleep(0, "done")) == "done"


async def test_giving_up_ends_everything_that_is_held():
    with call_scope(10) as scope:
        held = [asyncio.create_task(scope.hold(asyncio.Event().wait())) for _ in range(2)]
        await asyncio.sleep(0)
        scope.give_up()
        scope.give_up()
        results = await asyncio.wait_for(asyncio.gather(*held, return_exceptions=True), 5)
    assert [type(result) for result in results] == [TimeoutError, TimeoutError]
    assert scope.remaining_s() == 0


async def test_nothing_is_held_for_a_call_that_was_given_up():
    scope = CallScope(deadline=asyncio.get_running_loop().time() + 10)
    scope.give_up()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scope.hold(asyncio.Event().wait()), 5)


async def test_what_was_under_way_when_the_time_was_over_is_known():
    async def fails():
        raise ValueError

    with call_scope(10) as scope:
        await scope.hold(asyncio.sleep(0))
        with pytest.raises(ValueError):
            await scope.hold(fails())
        assert scope.asking == 0
        held = [asyncio.create_task(scope.hold(asyncio.Event().wait())) for _ in range(2)]
        await asyncio.sleep(0)
        held[0].cancel()
        scope.give_up()
        await asyncio.gather(*held, return_exceptions=True)
        assert scope.asking == 2


async def test_a_cancelled_task_is_cancelled_and_not_given_up():
    with call_scope(10) as scope:
        held = asyncio.create_task(scope.hold(asyncio.Event().wait()))
        await asyncio.sleep(0)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        assert scope.remaining_s() > 0


async def test_what_another_threads_loop_holds_ends_too():
    began, ended = threading.Event(), []

    async def work():
        asyncio.get_running_loop().call_soon(began.set)
        await scope.hold(asyncio.Event().wait())

    def run():
        with pytest.raises(TimeoutError) as caught:
            asyncio.run(asyncio.wait_for(work(), 20))
        ended.append(caught.value)

    with call_scope(10) as scope:
        thread = threading.Thread(target=run)
        thread.start()
        assert await asyncio.to_thread(began.wait, 5)
        scope.give_up()
        await asyncio.to_thread(thread.join, 5)
    assert len(ended) == 1


async def test_a_loop_that_has_closed_meanwhile_holds_nothing():
    scope = CallScope(deadline=asyncio.get_running_loop().time() + 10)
    closed = asyncio.new_event_loop()
    closed.close()
    scope._held[asyncio.timeout(None)] = closed
    scope.give_up()
    assert scope.remaining_s() == 0


async def test_the_scope_goes_where_dspys_settings_go_and_ends_with_its_body():
    with call_scope(10) as scope:
        with dspy.context(trace=[]):
            assert current_scope() is scope
        assert await asyncio.to_thread(current_scope) is scope
        assert await dspy.asyncify(current_scope)() is scope
    assert current_scope() is None
