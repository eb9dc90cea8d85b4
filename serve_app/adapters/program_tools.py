"""Tools that do not run twice: what one attempt's tool call returned, the next attempt is given.

Every ``dspy.Tool`` of a loaded module is found (attributes of instances and classes, dicts, lists, nested modules,
``ReAct``'s ``tools``) and its function wrapped. A tool call is known again by where the tool hangs in the program,
its name, its arguments and its occurrence. Outside of a call with a journal the function runs as ever.

Kept is what JSON says exactly, and what the function's return annotation reads back from JSON as an equal value
(pydantic models, dataclasses, tuples, dates). Anything else is not kept, and such a tool runs again, as do: a tool
that the program makes while it runs, a function that it calls without ``dspy.Tool``, and a tool that a thread was
still running, or began, after its attempt had run out of time.

A tool that raised has not finished, and runs again. The exception is ``dspy.ReAct``: it tells the model of the error
and goes on, so the error is the tool's answer there, and is kept in the words that ``ReAct`` found for it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import typing
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy
import orjson
from dspy.utils.exceptions import format_error_for_lm
from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from serve_app.adapters.call_scope import current_journal
from serve_app.core.canonical_json import canonical_json
from serve_app.core.journal import fingerprint
from serve_app.errors import InvalidInputs
from serve_app.messages import StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from serve_app.adapters.call_journal import CallJournal
    from serve_app.core.journal import Ask

_REACT_TRACEBACK_FRAMES = 5
_REACT_CODE = frozenset(inspect.unwrap(method).__code__ for method in (dspy.ReAct.forward, dspy.ReAct.aforward))


def journal_tools(module: dspy.Module) -> None:
    """Wrap the function of every tool in ``module``; one that is wrapped already stays as it is."""
    for path, tool in _tools(module):
        if not isinstance(tool.func, JournaledTool):
            is_async = _is_async(tool.func)
            tool.func = (JournaledAsyncTool if is_async else JournaledTool)(tool.func, tool.name, path)


class JournaledTool:
    """A tool's sync function that is asked once for each question of a call.

    Args:
        function: what the tool does.
        name: the tool's name.
        path: where it hangs in the program: tools of one name may differ.
    """

    def __init__(self, function: Callable[..., Any], name: str, path: str) -> None:
        functools.update_wrapper(self, function, updated=())
        self._function = function
        self._name = name
        self._path = path
        self._returned = _Returned(function)

    def __deepcopy__(self, memo: dict[int, Any]) -> JournaledTool:
        """A tool of a copied program: a method bound to the original becomes the copy's."""
        return type(self)(copy.deepcopy(self._function, memo), self._name, self._path)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - a person's function
        """What the function returns, or returned to an earlier attempt."""
        turn = self._turn(args, kwargs)
        if turn is None:
            return self._function(*args, **kwargs)
        if turn.replayed is not None:
            return _ready(turn.replayed.value) if turn.replayed.is_awaited else turn.replayed.value
        with turn:
            result = self._function(*args, **kwargs)
        if inspect.iscoroutine(result):
            return self._finish(turn, result)
        turn.returned(self._returned.dump(result))
        return result

    async def _finish(self, turn: _Turn, running: Any) -> Any:  # noqa: ANN401 - a person's coroutine
        with turn:
            result = await running
        turn.returned(self._returned.dump(result, is_awaited=True))
        return result

    def _turn(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Turn | None:
        journal = current_journal()
        if journal is None:
            return None
        try:
            question = canonical_json([self._path, self._name, args, kwargs], self._name)
        except InvalidInputs:  # an argument without a canonical form: nothing could tell this call from another
            return None
        ask = journal.ask(StepKind.TOOL, fingerprint(question))
        return _Turn(journal, ask, self._name, journal.replay(ask, self._returned.load))


class JournaledAsyncTool(JournaledTool):
    """The same for a coroutine function, and a coroutine function itself to whoever looks."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - a person's function
        """As ``JournaledTool``, awaited."""
        turn = self._turn(args, kwargs)
        if turn is None:
            return await self._function(*args, **kwargs)
        if turn.replayed is not None:
            return turn.replayed.value
        # One frame and no more: ReAct shows the model the first few of a traceback.
        with turn:
            result = await self._function(*args, **kwargs)
        turn.returned(self._returned.dump(result, is_awaited=True))
        return result


class _Turn:
    """One call of a tool. As a context, it watches the function run."""

    def __init__(self, journal: CallJournal, ask: Ask | None, name: str, replayed: _Reply | None) -> None:
        self._journal = journal
        self._ask = ask
        self._name = name
        self.replayed = replayed

    def __enter__(self) -> None:
        """Nothing to do: it is the end that counts."""

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None:
            self._journal.failed(self._ask, partial(_observation, self._name, error))

    def returned(self, reply: str | None) -> None:
        """Note what the function returned."""
        self._journal.record(self._ask, reply)


class _Reply(NamedTuple):
    value: Any
    is_awaited: bool


class _Returned:
    """What a function returns, to JSON text and back."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def dump(self, value: object, *, is_awaited: bool = False) -> str | None:
        """JSON text from which ``load`` makes an equal value; ``None`` when there is none."""
        try:
            if _is_plain(value):
                return _dumped(value, is_awaited=is_awaited, is_declared=False)
            if self._declared is None:
                return None
            form = self._declared.dump_python(value, mode="json", warnings="error")
            text = _dumped(form, is_awaited=is_awaited, is_declared=True)
            read = self.load(text).value
            return text if type(read) is type(value) and bool(read == value) else None
        except Exception:  # noqa: BLE001 - a person's types may raise anything when written, read or compared
            return None  # not kept: the tool runs again

    def load(self, text: str) -> _Reply:
        """What ``dump`` was given.

        Raises:
            ValueError: the function returns something else now.
        """
        is_awaited, is_declared, value = orjson.loads(text)
        if is_declared:
            if self._declared is None:
                raise ValueError("the function does not say any more what it returns")
            value = self._declared.validate_json(orjson.dumps(value))
        return _Reply(value, is_awaited)

    @cached_property
    def _declared(self) -> TypeAdapter[Any] | None:
        """The type of the function's return annotation; ``None`` without one that pydantic can read."""
        function = inspect.unwrap(self._function)
        function = function if inspect.isroutine(function) else type(function).__call__
        try:
            return TypeAdapter(typing.get_type_hints(function, include_extras=True)["return"])
        except (KeyError, NameError, TypeError, AttributeError, RecursionError, PydanticUserError):
            return None


def _dumped(value: object, *, is_awaited: bool, is_declared: bool) -> str:
    return orjson.dumps([is_awaited, is_declared, value]).decode()


def _is_plain(value: object) -> bool:
    """Whether JSON says the value exactly: no subclass, no tuple, no number that JSON has not."""
    kind = type(value)
    if kind is dict:
        return all(type(key) is str and _is_plain(item) for key, item in value.items())  # type: ignore[attr-defined]
    if kind is list:
        return all(_is_plain(item) for item in value)  # type: ignore[attr-defined]
    if kind is float:
        return math.isfinite(value)  # type: ignore[arg-type]
    return value is None or kind in (str, int, bool)


async def _ready(value: object) -> object:
    return value


def _observation(name: str, error: BaseException) -> str | None:
    """What ``ReAct`` told the model of ``error``, if it is ``ReAct`` that caught it.

    The traceback starts where the error was caught, which is known only afterwards.
    """
    caught = error.__traceback__
    if caught is None or caught.tb_frame.f_code not in _REACT_CODE:
        return None
    told = format_error_for_lm(error, traceback_frames=_REACT_TRACEBACK_FRAMES)
    return _dumped(f"Execution error in {name}: {told}", is_awaited=False, is_declared=False)


def _tools(module: dspy.Module) -> Iterator[tuple[str, dspy.Tool]]:
    """Every tool in ``module`` with its path; those of a class come under the instance's."""
    yield from module.named_sub_modules(type_=dspy.Tool)
    for path, part in module.named_sub_modules(type_=dspy.Module):
        for cls in type(part).__mro__:
            for name, value in vars(cls).items():
                if isinstance(value, dspy.Tool):
                    yield f"{path}.{name}", value


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004 - asked for what it is, not whether it is there
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
