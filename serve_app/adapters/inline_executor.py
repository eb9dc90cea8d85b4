"""An event loop's default executor that runs DSPy's own short steps at once instead of in a thread.

DSPy hands two steps of every LM call to ``asyncio.to_thread``: it puts the request together, and it looks up a price.
Both take microseconds, and each change of threads costs more than the rest of the call's preparation together.
Only these two are run in place, known by module and name: the first only when its
messages are plain text, since one that carries media may read files, the second only for an engine of ours, whose
prices DSPy does not know, since a real look-up may read a file. Whatever a program itself sends to a thread goes
to a thread, and so does everything if DSPy renames its steps.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, cast

MAX_THREADS: Final = 32
_STEPS: Final = "dspy.clients.execution"
_PREPARE: Final = "prepare"
_PRICE: Final = "_price_result"


class InlineExecutor(ThreadPoolExecutor):
    """Threads for blocking work, and the calling thread for DSPy's short steps."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        super().__init__(max_threads, thread_name_prefix="blocking")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - the base's own
        """Run ``fn``; its result is there already when it is one of the short steps.

        That result comes in a future of the running loop itself, which ``run_in_executor`` hands on as it is
        (``asyncio.wrap_future``): one of ``concurrent.futures`` costs a turn of the loop and a system call more.
        """
        if not is_short_step(fn):
            return super().submit(fn, *args, **kwargs)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the one who awaits the future gets it
            done.set_exception(error)
        return cast("Future[Any]", done)


def is_short_step(fn: Callable[..., Any]) -> bool:
    """Whether ``asyncio.to_thread`` wrapped one of DSPy's short steps: ``partial(context.run, step, *args)``."""
    if not isinstance(fn, functools.partial) or not fn.args:
        return False
    step, *args = fn.args
    if getattr(step, "__module__", None) != _STEPS:
        return False
    name = getattr(step, "__name__", "")
    return (name == _PREPARE and _is_text(*args)) or (name == _PRICE and _is_unpriced(*args))


def use_inline_executor() -> None:
    """Give the running loop such an executor."""
    asyncio.get_running_loop().set_default_executor(InlineExecutor())


def _is_unpriced(lm: object, result: object, response: object, provider: object, request: object = None) -> bool:
    del lm, result, response, request
    return provider is None


def _is_text(lm: object = None, prompt: object = None, messages: object = None, options: object = None) -> bool:
    del lm, options
    if not isinstance(messages, list) or not isinstance(prompt, str | None):
        return False
    return all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)
