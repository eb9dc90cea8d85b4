import asyncio
import copy
import enum
import inspect
from datetime import UTC, datetime

import dspy
import pytest
import resume_samples
from resume_samples import RUNS, Place

from serve_app.adapters.call_journal import CallJournal
from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.program_tools import JournaledAsyncTool, JournaledTool, journal_tools


@pytest.fixture(autouse=True)
def _no_runs():
    RUNS.clear()


@pytest.fixture
def tools():
    module = resume_samples.Tools()
    journal_tools(module)
    return module


def journaled(function, path="self.t"):
    kind = JournaledAsyncTool if inspect.iscoroutinefunction(function) else JournaledTool
    return kind(function, function.__name__, path)


def twice(use, between=tuple):
    """What ``use`` gives in one attempt, and in the next."""
    first = CallJournal()
    with call_scope(10, None, first):
        before = use()
        steps = first.finished()
    between()
    with call_scope(10, None, CallJournal(steps)):
        return before, use()


def test_tools_are_found_wherever_they_hang(tools):
    found = [
        type(tools).of_the_class,
        tools.direct,
        tools.listed[0],
        tools.named["x"]["y"],
        tools.inner.shape,
        *tools.inner.agent.tools.values(),
    ]
    assert len(found) == 7
    assert all(isinstance(tool.func, JournaledTool) for tool in found)


def test_a_tool_is_wrapped_once(tools):
    before = tools.direct.func
    journal_tools(tools)
    assert tools.direct.func is before


def test_a_wrapped_tool_looks_like_the_function(tools):
    assert tools.direct.func.__name__ == "locate"
    assert inspect.signature(tools.direct.func) == inspect.signature(resume_samples.locate)
    assert inspect.getsource(tools.direct.func) == inspect.getsource(resume_samples.locate)
    wrapped = journaled(resume_samples.look_up_async)
    assert inspect.iscoroutinefunction(type(wrapped).__call__)


def test_without_a_journal_a_tool_runs_as_ever(tools):
    assert [tools.direct(name="x") for _ in range(2)] == [Place(name="x", at=(1, 2))] * 2
    assert len(RUNS) == 2


def test_a_tool_that_returned_runs_no_more():
    assert twice(lambda: journaled(resume_samples.search)("a")) == ("a was found", "a was found")
    assert RUNS == [("search", "a")]


def test_each_occurrence_is_given_its_own_value():
    values = iter(range(100))

    def count(word: str) -> int:
        return next(values)

    tool = journaled(count)
    assert twice(lambda: [tool("a"), tool("a"), tool("b")]) == ([0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize("other", [("b",), (1,), ("1",), (1.0,), (True,), (None,), ()])
def test_other_arguments_are_another_question(other):
    calls = []

    def tool(*args):
        calls.append(args)
        return "r"

    wrapped = journaled(tool)
    first = CallJournal()
    with call_scope(10, None, first):
        wrapped("a")
        steps = first.finished()
    with call_scope(10, None, CallJournal(steps)):
        wrapped(*other)
    assert calls == [("a",), other]


def test_tools_of_one_name_in_two_places_are_two():
    one, other = (journaled(resume_samples.search, path) for path in ("self.a", "self.b"))
    first = CallJournal()
    with call_scope(10, None, first):
        one("x")
        steps = first.finished()
    with call_scope(10, None, CallJournal(steps)):
        other("x")
    assert len(RUNS) == 2


def test_arguments_without_a_canonical_form_run_the_tool_each_time():
    def tool(thing: object) -> str:
        RUNS.append(("tool", ""))
        return "r"

    wrapped = journaled(tool)
    assert twice(lambda: wrapped(object())) == ("r", "r")
    assert len(RUNS) == 2


def test_an_argument_that_is_a_model_is_known_by_its_fields():
    tool = journaled(resume_samples.shape)
    twice(lambda: tool(Place(name="x", at=(1, 2))))
    assert len(RUNS) == 1


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["", "ü\U0001f600", 0, -1.5, True, None, [1, 1.0, "1", None], {"a": {"b": [False]}}])
def test_plain_values_come_back_exactly(value):
    runs = []

    def tool():
        runs.append(1)
        return value

    before, after = twice(journaled(tool))
    assert after == before
    assert repr(after) == repr(before)
    assert len(runs) == 1


def test_values_of_the_declared_type_come_back_as_that_type():
    place, two = journaled(resume_samples.locate), journaled(resume_samples.pair)
    before, after = twice(lambda: [place("x"), two("y")])
    assert after == before == [Place(name="x", at=(1, 2)), ("y", 1)]
    assert [type(value) for value in after] == [Place, tuple]
    assert len(RUNS) == 2


def test_a_declared_date_comes_back_as_a_date():
    runs = []

    def now() -> datetime:
        runs.append(1)
        return datetime(2026, 1, 2, tzinfo=UTC)

    before, after = twice(journaled(now))
    assert (after, type(after), len(runs)) == (before, datetime, 1)


class Colour(enum.StrEnum):
    RED = "red"


class Odd:
    def __eq__(self, other):
        raise RuntimeError("cannot be compared")

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    [
        object(),
        Odd(),
        (1, 2),
        {1: "a"},
        {"a": (1,)},
        [{"b": {1, 2}}],
        float("nan"),
        float("inf"),
        2**70,
        Colour.RED,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,  # the same in every process of a run
)
def test_what_json_cannot_say_and_nothing_declares_is_run_again(value):
    runs = []

    def tool():
        runs.append(1)
        return value

    twice(journaled(tool))
    assert len(runs) == 2


def test_a_value_that_does_not_match_its_declaration_is_run_again():
    runs = []

    def tool() -> Place:
        runs.append(1)
        return ("not", "a place")

    twice(journaled(tool))
    assert len(runs) == 2


def test_what_the_program_does_to_a_value_later_is_not_kept():
    tool = journaled(lambda: {"list": [1]})

    def use():
        value = tool()
        value["list"].append(2)
        return value

    assert twice(use) == ({"list": [1, 2]}, {"list": [1, 2]})


# ── async ────────────────────────────────────────────────────────────────────────────────────────────


async def returns_one(word: str) -> int:
    RUNS.append(("async", word))
    await asyncio.sleep(0)
    return 1


def returns_a_coroutine(word: str):
    return returns_one(word)


@pytest.mark.parametrize("function", [returns_one, returns_a_coroutine], ids=["coroutine function", "sync function"])
async def test_an_async_tool_is_still_awaited_when_it_does_not_run(function):
    tool = dspy.Tool(function, name="t")
    module = dspy.Predict("a -> b")
    module.tools = [tool]
    journal_tools(module)
    first = CallJournal()
    with call_scope(10, None, first):
        assert await tool.acall(word="a") == 1
        assert await tool.func(word="b") == 1
        steps = first.finished()
    with call_scope(10, None, CallJournal(steps)):
        assert await tool.acall(word="a") == 1
        assert await tool.func(word="b") == 1
    assert len(RUNS) == 2


async def test_async_tools_at_once_each_get_their_own_value():
    async def tool(word: str) -> str:
        RUNS.append(("tool", word))
        await asyncio.sleep(0.01 if word == "a" else 0)
        return f"{word} {len(RUNS)}"

    wrapped = journaled(tool)
    first = CallJournal()
    with call_scope(10, None, first):
        before = await asyncio.gather(*(wrapped(word) for word in "aba"))
        steps = first.finished()
    with call_scope(10, None, CallJournal(steps)):
        assert await asyncio.gather(*(wrapped(word) for word in "aba")) == before
    assert len(RUNS) == 3


async def test_a_tool_that_was_cancelled_and_called_again_runs_no_more_once_it_returned():
    is_there = asyncio.Event()

    async def wait() -> str:
        await is_there.wait()
        RUNS.append(("wait",))
        return "waited"

    async def use():
        try:
            async with asyncio.timeout(0):
                return await tool()
        except TimeoutError:
            is_there.set()
            return await tool()

    tool, first = journaled(wait), CallJournal()
    with call_scope(10, None, first):
        assert await use() == "waited"
        steps = first.finished()
    with call_scope(10, None, CallJournal(steps)):
        assert await tool() == "waited"
    assert len(RUNS) == 1


async def test_a_cancelled_tool_has_not_finished():
    journal = CallJournal()
    with call_scope(10, None, journal):
        running = asyncio.ensure_future(journaled(forever)())
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert journal.finished() == ()


async def forever() -> str:
    await asyncio.Event().wait()
    return ""


# ── errors and copies ────────────────────────────────────────────────────────────────────────────────


def test_an_error_is_no_answer():
    tool = journaled(resume_samples.search_fails)

    def use():
        with pytest.raises(LookupError):
            tool("w1")

    twice(use)
    assert len(RUNS) == 2


def test_a_copied_programs_tool_is_the_copys_own():
    module = resume_samples.Counts()
    journal_tools(module)
    copied = copy.deepcopy(module)
    copied.count(word="x")
    assert (module.seen, copied.seen) == (0, 1)
    assert isinstance(copied.count.func, JournaledTool)
