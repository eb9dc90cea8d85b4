"""DSPy's short steps run in place, everything else in a thread."""

import asyncio
import contextvars
import functools
import threading

import dspy
import pytest
from dspy import lm15

from serve_app.adapters.inline_executor import is_short_step, use_inline_executor

REPLY = "[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]"


class Blocking:
    """What DSPy reads a model's capabilities from."""

    supports_function_calling = supports_reasoning = supports_response_schema = False
    supported_params: frozenset[str] = frozenset()

    def complete(self, request):
        raise AssertionError(request)


class Asked:
    """An engine that notes which threads were there when it was asked."""

    def __init__(self) -> None:
        self.threads: list[set[str]] = []

    async def complete(self, request):
        del request
        self.threads.append(threads())
        part = lm15.TextPart(REPLY)
        usage = lm15.Usage(input_tokens=3, output_tokens=4)
        message = lm15.Message("assistant", (part,))
        return lm15.Response(id="1", model="m", message=message, usage=usage, finish_reason="stop")


def lm_over(asked: Asked) -> dspy.LM:
    return dspy.LM("openai/gpt-4o", cache=False, num_retries=0, engine=Blocking(), async_engine=asked)


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("blocking")}


@pytest.fixture
async def executor():
    use_inline_executor()
    yield
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_a_call_of_a_program_needs_no_thread(executor) -> None:
    asked = Asked()
    lm = lm_over(asked)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]):
        answer = await dspy.Predict("question -> answer").acall(question="is it?")
    assert answer.answer == "yes"
    assert asked.threads == [set()]
    assert threads() == set()


async def test_a_short_step_takes_no_turn_of_the_loop(executor) -> None:
    def prepare(_lm, _prompt, messages, _options):
        return len(messages)

    prepare.__module__ = "dspy.clients.execution"
    step = asyncio.to_thread(prepare, None, None, [{"role": "user", "content": "hi"}], {})
    with pytest.raises(StopIteration) as ended:
        step.send(None)
    assert ended.value.value == 1


async def test_a_request_that_may_read_files_is_put_together_in_a_thread(executor) -> None:
    asked = Asked()
    lm = lm_over(asked)
    picture = dspy.Image("data:image/png;base64,iVBORw0KGgo=")
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]):
        await dspy.Predict("picture: dspy.Image -> answer").acall(picture=picture)
    assert asked.threads != [set()]


async def test_what_a_program_sends_to_a_thread_goes_to_one(executor) -> None:
    name = await asyncio.to_thread(lambda: threading.current_thread().name)
    assert name.startswith("blocking")


async def test_a_step_that_raises_raises_where_it_is_awaited(executor) -> None:
    lm = lm_over(Asked())
    with pytest.raises(ValueError, match="n must be a positive integer"):
        await lm.acall(messages=[{"role": "user", "content": "hi"}], n=0)
    assert threads() == set()


def test_a_price_that_dspy_would_look_up_is_looked_up_in_a_thread() -> None:
    def step(name):
        def run(*_):
            return None

        run.__module__, run.__name__ = "dspy.clients.execution", name
        return run

    def wrapped(name, *args):
        return functools.partial(contextvars.copy_context().run, step(name), *args)

    assert is_short_step(wrapped("_price_result", "lm", "result", "response", None, "request"))
    assert not is_short_step(wrapped("_price_result", "lm", "result", "response", "openai", "request"))
    assert not is_short_step(wrapped("_store", "lm"))
    assert not is_short_step(functools.partial(print, "not a step"))
