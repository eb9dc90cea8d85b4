from __future__ import annotations

import dataclasses
import enum
import itertools
import math
import os
import subprocess
import sys
import timeit
from collections import OrderedDict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from ipaddress import ip_address
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import dspy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel, SecretStr

from serve_app.config import LevelConfig, ModelConfig, ProgramConfig
from serve_app.core.cache_key import cache_key, level_fingerprint
from serve_app.core.canonical_json import MAX_DEPTH, canonical_json
from serve_app.errors import InvalidInputs
from serve_app.messages import Complexity, Level, Options, Priority


class Color(enum.Enum):
    RED = "red"
    ONE = 1


class Shade(enum.StrEnum):
    RED = "red"


class Rank(enum.IntEnum):
    ONE = 1


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Address(BaseModel):
    street: str
    number: Any = None


class Place(BaseModel):
    street: str
    number: Any = None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    name: str = "x"


class Tags(RootModel[list[str]]):
    pass


@dataclasses.dataclass(frozen=True)
class Point:
    x: Any
    y: Any = 0


Pair = namedtuple("Pair", "x y")  # noqa: PYI024 - the untyped form is what people pass


class Text(str):
    __slots__ = ()


CALL = {
    "program": "triage",
    "version": "v1",
    "level": Level.FULL,
    "tenant": "",
    "inputs": {"ticket": "hello"},
    "options": Options(),
    "fingerprint": "f",
}


def key(**changes: Any) -> str:
    return cache_key(**{**CALL, **changes})


def of(value: object) -> bytes:
    return canonical_json(value, "inputs")


def test_a_key_is_64_hex_digits() -> None:
    assert len(key()) == 64
    assert set(key()) <= set("0123456789abcdef")


def test_the_key_of_a_known_call_never_changes_by_accident() -> None:
    assert key() == "bfc8683b8cea295ac72baa44af8aae142dc8f4f7e71b93b204af78356550ad8e"


DISTINCT = [
    None, True, False, 1, 1.0, "1", b"1", bytearray(b"1"), Decimal(1), Decimal("1.0"), Fraction(1), 1 + 0j, Rank.ONE, Color.ONE,
    Rights.READ, Rights.READ | Rights.WRITE, 0, 0.0, -0.0, "", "0", "None", "null", "true", "True", [], {}, (), set(), [None], [[]],
    [1], [1.0], [True], ["1"], (1,), {1}, deque([1]), [1, 2], [2, 1], [12], ["1", "2"], ["12"], ["1,2"], {"a": 1}, {"a": 1.0}, {"a": "1"},
    {"a": None}, {1: "a"}, {"1": "a"}, {1.5: "a"}, {None: "a"}, {True: "a"}, {(1, 2): "a"}, {"a": {"b": 1}}, {"a": {}, "b": 1},
    math.nan, math.inf, -math.inf, "nan", 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, str(10**400), float(10**300),
    "\ud800", "\udfff", "\ud800\udfff", "\\ud800", "é", "e\u0301", "\0", "\0date", Text("x"), "red", Color.RED, Shade.RED,
    date(2024, 2, 29), "2024-02-29", {"\0date": "2024-02-29"}, {"\0str": "00d8"}, {"\0map": []}, {"\0set": [1]}, {"\0tuple": ["", 1]},
    datetime.fromisoformat("2024-02-29"), datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=timezone(timedelta(hours=1))),
    datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    time(1), timedelta(1), timedelta(seconds=1), UUID(int=1), str(UUID(int=1)), PurePosixPath("a"), ip_address("::1"), "::1",
    Address(street="a"), Place(street="a"), {"street": "a", "number": None}, Address(street="a", number=1), Address(street="a", number="1"),
    Address(street="a", number=Address(street="a")), Open(), Open(y=1), Tags(["a"]), Point(1), Point(1.0), Point(Point(1)), Pair(1, 0), (1, 0),
    SecretStr("a"), SecretStr("b"), "**********", dspy.Image(url="https://a/1.png"), dspy.Image(url="https://a/2.png"),
    dspy.History(messages=[]), dspy.History(messages=[{"q": "1", "a": "2"}]), dspy.History(messages=[{"q": 1, "a": "2"}]),
]  # fmt: skip


def test_values_that_differ_in_type_or_text_have_different_keys() -> None:
    seen: dict[bytes, object] = {}
    for value in DISTINCT:
        assert seen.setdefault(of(value), value) is value, f"{value!r} and {seen[of(value)]!r}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}),
        ({1: "a", "1": "b", None: "c"}, {None: "c", "1": "b", 1: "a"}),
        ({"\ud800": 1, "a": 2}, {"a": 2, "\ud800": 1}),
        (set("abcdefgh"), set("hgfedcba")),
        ({1, 2}, frozenset({2, 1})),
        ({"a": 1}, OrderedDict(a=1)),
        ({"a": 1}, MappingProxyType({"a": 1})),
        ("x", Text("x")),
        (float("nan"), -float("nan")),
        (Address(street="a", number={2: 1, 1: 2}), Address(number={1: 2, 2: 1}, street="a")),
        ([Address(street="a")], [Address(street="a", number=None)]),
        (dspy.History(messages=[{"a": "2", "q": "1"}]), dspy.History(messages=[{"q": "1", "a": "2"}])),
    ],
)
def test_values_that_differ_in_order_only_have_one_key(one: object, other: object) -> None:
    assert of(one) == of(other)


def test_what_a_class_caches_on_an_instance_does_not_count() -> None:
    address = Address(street="a")
    before = of(address)
    object.__setattr__(address, "_seen", True)
    address.__dict__["cached"] = 1
    assert of(address) == before


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"program": "other"}, False),
        ({"version": "v2"}, False),
        ({"level": Level.DEGRADED}, False),
        ({"tenant": "acme"}, False),
        ({"fingerprint": "g"}, False),
        ({"inputs": {"ticket": "hello "}}, False),
        ({"options": Options(model="large")}, False),
        ({"options": Options(max_tokens=64)}, False),
        ({"options": Options(complexity=Complexity.HIGH)}, False),
        ({"options": Options(budget_usd=0.1)}, False),
        ({"options": Options(priority=Priority.CRITICAL)}, True),
        ({"options": Options(deadline_s=1.0)}, True),
    ],
)
def test_what_changes_the_answer_changes_the_key(changes: dict[str, Any], same: bool) -> None:
    assert (key(**changes) == key()) is same


def test_parts_cannot_run_into_each_other() -> None:
    assert key(program="ab", version="c") != key(program="a", version="bc")
    assert key(tenant="a", fingerprint="") != key(tenant="", fingerprint="a")


def test_a_tenant_of_any_text_has_a_key() -> None:
    assert key(tenant="\ud800") != key(tenant="?")


@pytest.mark.parametrize(
    ("inputs", "where"),
    [
        ({"ask": len}, r"inputs\.ask: .*builtin_function"),
        ({"a": [1, {"b": object()}]}, r"inputs\.a\[1\]\.b: .*builtins\.object"),
        ({"a": {("k", 1): iter(())}}, r"inputs\.a\[\('k', 1\)\]: "),
        ({"a": Address(street="x", number=int)}, r"inputs\.a\.number: .*builtins\.type"),
        ({"a": Point(1, sys)}, r"inputs\.a\.y: .*module"),
        ({"tool": dspy.Tool(len, name="len", desc="", args={})}, r"inputs\.tool\.func: "),
        ({"s": {frozenset({1}), sys.stdout.write}}, r"inputs\.s\[\d\]: "),
    ],
)
def test_what_cannot_be_keyed_is_an_error_that_names_the_field(inputs: dict[str, object], where: str) -> None:
    with pytest.raises(InvalidInputs, match=where):
        key(inputs=inputs)


def nested(depth: int, wrap: Any) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"a": v}, lambda v: (v,), lambda v: {1: v}, Point])
def test_nesting_has_a_limit_and_an_error_that_says_so(wrap: Any) -> None:
    assert of(nested(MAX_DEPTH // 2, wrap))
    for depth in (MAX_DEPTH + 1, 10_000):
        with pytest.raises(InvalidInputs, match=r"inputs.*nested more than 100 deep") as raised:
            of(nested(depth, wrap))
        assert len(str(raised.value)) < 400


def test_a_value_that_contains_itself_is_an_error() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(InvalidInputs, match="nested"):
        of(loop)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary() | st.dates() | st.datetimes()
    | st.times() | st.timedeltas() | st.decimals() | st.uuids() | st.complex_numbers() | st.fractions() | st.sampled_from(Color)
)  # fmt: skip
HASHABLE = st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.dates() | st.tuples(st.integers())
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters()) | HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Address, street=st.text(), number=inner)
        | st.builds(Point, inner, inner)
    ),
    max_leaves=8,
)


def shape(value: object) -> object:
    """An independent reading of what must be told apart: type and text, with orders taken out."""
    if isinstance(value, dict):
        return ("dict", frozenset((shape(name), shape(item)) for name, item in value.items()))
    if isinstance(value, set):
        return ("set", frozenset(map(shape, value)))
    if isinstance(value, list | tuple):
        return (type(value), *map(shape, value))
    if isinstance(value, Address):
        return ("Address", shape(value.street), shape(value.number))
    if isinstance(value, Point):
        return ("Point", shape(value.x), shape(value.y))
    return (type(value), repr(value))


@settings(max_examples=100, deadline=None)
@given(st.lists(VALUES, min_size=2, max_size=12))
@example([{"a": 1}, {"a": True}, {1: 2}, {True: 2}, [1, [2]], [[1], 2], ["1", 2], {0: 1, 1.5: 2}])
def test_values_share_a_key_exactly_when_type_and_text_are_the_same(values: list[object]) -> None:
    for one, other in itertools.combinations(values, 2):
        assert (of(one) == of(other)) == (shape(one) == shape(other))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=6), st.randoms())
def test_the_order_of_a_dict_does_not_matter(inputs: dict[str, object], random: Any) -> None:
    items = list(inputs.items())
    random.shuffle(items)
    assert key(inputs=dict(items)) == key(inputs=inputs)


SCRIPT = """
from datetime import date
from decimal import Decimal
import dspy
from serve_app.core.cache_key import cache_key
from serve_app.messages import Level, Options
inputs = {
    "set": set("abcdefghij"), "nested": [{frozenset(range(20)): {"x", "y", "z"}}], "map": {1: "a", "1": "b", None: {"q"}, ("t", 2): 1},
    "date": date(2024, 2, 29), "decimal": Decimal("1.10"), "image": dspy.Image(url="https://a/1.png"),
    "history": dspy.History(messages=[{"q": "1", "a": "2"}]), "bytes": b"abc", "surrogate": "\\ud800", "nan": float("nan"), "big": 2**200,
}
print(cache_key(program="p", version="v", level=Level.FULL, tenant="t", inputs=inputs, options=Options(), fingerprint="f"))
"""


def test_a_key_is_the_same_in_every_process_whatever_the_hash_seed() -> None:
    keys = set()
    for seed in ("0", "1", "4242"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", SCRIPT]
        keys.add(subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout)
    assert len(keys) == 1


def test_a_small_call_takes_microseconds() -> None:
    inputs = {
        "ticket": "My invoice is wrong, I was charged twice",
        "priority": 3,
        "tags": ["a", "b"],
        "meta": {"x": 1.5},
    }
    best = min(timeit.repeat(lambda: key(inputs=inputs), number=500, repeat=7)) / 500
    assert best < 50e-6  # 5 µs on an idle core


LARGE = ModelConfig(name="large", lm="openai/gpt-4o", api_base="http://a/v1", api_key_env="KEY")
SMALL = ModelConfig(name="small", lm="openai/gpt-4o-mini")
OTHER = ModelConfig(name="other", lm="openai/other")
PROGRAM = ProgramConfig.model_validate(
    {
        "name": "triage",
        "program": "ticket -> category",
        "levels": {"full": {"models": ["large"]}, "minimal": {"models": ["small"]}},
    }
)


def fingerprint(
    *models: ModelConfig, program: ProgramConfig = PROGRAM, level: Level = Level.FULL, pin: str | None = None
) -> str:
    return level_fingerprint(program, level, models or (LARGE, SMALL, OTHER), default_model="small", pin=pin)


@pytest.mark.parametrize(
    "change",
    [
        {"lm": "openai/gpt-5"},
        {"api_base": "http://b/v1"},
        {"api_key_env": "OTHER_KEY"},
        {"model_type": "responses"},
        {"temperature": 0.5},
        {"max_tokens": 5},
    ],
)
def test_anything_that_changes_what_a_model_says_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(LARGE.model_copy(update=change), SMALL, OTHER) != fingerprint()
    assert fingerprint(LARGE, SMALL.model_copy(update=change), OTHER) != fingerprint()  # the default may answer


@pytest.mark.parametrize(
    "change", [{"quality": 0.1}, {"latency_s": 9.0}, {"max_ongoing_requests": 2}, {"context_window": 5}]
)
def test_what_only_changes_who_is_asked_does_not(change: dict[str, Any]) -> None:
    assert fingerprint(LARGE.model_copy(update=change), SMALL, OTHER) == fingerprint()


def test_models_that_cannot_answer_do_not_count_and_neither_does_the_order_of_the_list() -> None:
    assert fingerprint(SMALL, LARGE) == fingerprint()


def test_a_pin_counts_the_pinned_model_alone() -> None:
    pinned = fingerprint(pin="other")
    assert fingerprint(LARGE.model_copy(update={"temperature": 1}), SMALL, OTHER, pin="other") == pinned
    assert fingerprint(LARGE, SMALL, OTHER.model_copy(update={"temperature": 1}), pin="other") != pinned


def test_the_level_and_its_settings_count() -> None:
    levels = PROGRAM.levels
    cut = levels.model_copy(update={"full": LevelConfig(models=("large",), max_tokens=64)})
    assert fingerprint(level=Level.MINIMAL) != fingerprint()
    assert fingerprint(program=PROGRAM.model_copy(update={"levels": cut})) != fingerprint()
    assert fingerprint(program=PROGRAM.model_copy(update={"adapter": "json"})) != fingerprint()
