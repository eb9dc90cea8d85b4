"""Run a person's reward function over answers, so that nothing it does can hurt a call.

``function(args, pred) -> float`` as DSPy's optimisers take it: ``args`` the inputs by name, ``pred`` a
``dspy.Prediction``.

A thread cannot be stopped, so a sync function that hangs keeps its place until it ends; with ``MAX_RUNNING`` places
taken, further answers go unscored instead of waiting. The threads are daemons: a process ends without them.

A score is a number in 0..1. What lies outside is refused and counted, never clamped: a reward on another scale would
read as perfect for ever, and teach the router so. ``True`` is 1, and ``None`` is no opinion.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import threading
from collections.abc import Callable
from typing import Any, Final

import dspy

from serve_app.adapters.program_source import load_function
from serve_app.config import RewardConfig
from serve_app.errors import ConfigError

MAX_RUNNING: Final = 4
"""Most scores of one program worked out at once in one process."""

ABSTAINED: Final = "abstained"
"""Why there is no score when the function has no opinion: counted, and no reason to log."""


class RewardFailed(Exception):
    """There is no score.

    Attributes:
        reason: ``abstained``, ``busy``, ``timeout``, ``raised``, ``not_a_number``, ``not_finite`` or ``out_of_range``.
        kind: type of the exception that the function raised; empty otherwise.
    """

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason, kind)
        self.reason = reason
        self.kind = kind


class RewardFunction:
    """One program's reward, loaded.

    Attributes:
        share: of the answers, that are to be scored.

    Args:
        config: what the person wrote.
    """

    def __init__(self, config: RewardConfig) -> None:
        """Load the function.

        Raises:
            ConfigError: there is none of that name, or it does not take ``(args, pred)``.
        """
        self.share = config.share
        self._timeout_s = config.timeout_s
        self._function = _load(config.function)
        self._is_async = _is_async(self._function)
        self._running = 0

    async def score(self, arguments: Callable[[], tuple[dict[str, Any], dspy.Prediction]]) -> float:
        """The score of an answer; ``arguments`` gives ``args`` and ``pred``.

        Raises:
            RewardFailed: there is none.
        """
        if self._running >= MAX_RUNNING:
            raise RewardFailed("busy")
        self._running += 1

        def ask() -> Any:  # noqa: ANN401 - whatever the person's function returns
            return self._function(*arguments())

        try:
            with dspy.context(trace=[], disable_history=True, max_history_size=0):
                async with asyncio.timeout(self._timeout_s) as limit:
                    value = await (self._on_loop(ask) if self._is_async else self._in_thread(ask))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise RewardFailed("raised", type(error).__name__) from None
        except Exception as error:  # noqa: BLE001 - a person's code may raise anything, and none of it may cross
            is_late = isinstance(error, TimeoutError) and limit.expired()
            raise RewardFailed("timeout" if is_late else "raised", type(error).__name__) from None
        return read_score(value)

    async def _on_loop(self, ask: Callable[[], Any]) -> object:
        try:
            return await ask()
        finally:
            self._running -= 1

    async def _in_thread(self, ask: Callable[[], object]) -> object:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[object] = loop.create_future()

        def deliver(value: object, error: Exception | None) -> None:
            self._running -= 1
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(value)

        def work() -> None:
            value, raised = None, None
            try:
                value = ask()
            except Exception as error:  # noqa: BLE001 - told to the one who waits
                raised = error
            except BaseException as error:  # noqa: BLE001 - SystemExit and the like end no thread of ours
                raised = RuntimeError(type(error).__name__)
            if not loop.is_closed():
                loop.call_soon_threadsafe(deliver, value, raised)

        try:
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(work,), name="reward", daemon=True).start()
        except RuntimeError:  # the system gives no more threads
            self._running -= 1
            raise
        return await done


def read_score(value: object) -> float:
    """``value`` as a score in 0..1.

    Raises:
        RewardFailed: it is none.
    """
    if value is None:
        raise RewardFailed(ABSTAINED)
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise RewardFailed("not_a_number")
    try:
        score = float(value)  # a number, a numpy scalar, a Prediction that has a score
    except Exception as error:  # noqa: BLE001 - a value of a person's own type may raise anything
        raise RewardFailed("not_a_number", type(error).__name__) from None
    if not math.isfinite(score):
        raise RewardFailed("not_finite")
    if not 0 <= score <= 1:
        raise RewardFailed("out_of_range")
    return score


def _load(source: str) -> Callable[..., Any]:
    found = load_function(source)
    try:
        inspect.signature(found).bind({}, dspy.Prediction())
    except TypeError as error:
        raise ConfigError([f"{source!r} must take (args, pred): {error}"]) from error
    except ValueError:  # built in C and says nothing of its parameters
        pass
    return found


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
