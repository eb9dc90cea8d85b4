import json
from datetime import date, datetime, time
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from serve_app.simulator.source import Source
from serve_app.simulator.values import Values

TEXT = "Order 4711 from Berlin has 3 parts. The parcel is broken! Please send a refund."


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    name: str
    weight: Annotated[float, Field(gt=0, lt=5)]
    colour: Colour


class Order(BaseModel):
    number: Annotated[int, Field(ge=10, le=20)]
    parts: Annotated[list[Part], Field(min_length=2)]
    by_day: dict[str, int]
    note: str | None = None
    size: tuple[int, str]


class Tree(BaseModel):
    label: str
    left: "Tree | None"
    children: list["Tree"]


TYPES: list[Any] = [
    bool, int, float, str, list[str], dict[str, float], dict[str, Any], Any, int | None, str | None, Literal["a", 2] | None,
    Colour, Part, Order, list[Order], Tree, date, datetime, time, UUID, tuple[int, ...], set[str], Literal[1],
    Annotated[int, Field(multiple_of=7, ge=20, le=40)], Annotated[int, Field(lt=-3)], Annotated[float, Field(le=-1)],
    Annotated[str, Field(min_length=120, max_length=130)], Annotated[str, Field(max_length=3)], Part | Order, list[list[int]],
]  # fmt: skip


def make(kind: Any, text: str = TEXT, path: str = "value", **options: Any) -> Any:
    return Values(Source(text, **options)).make(TypeAdapter(kind).json_schema(), path)


@pytest.mark.parametrize("is_wrong", [False, True])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_every_type_gets_a_value_that_it_accepts(kind, is_wrong):
    TypeAdapter(kind).validate_python(json.loads(json.dumps(make(kind, is_wrong=is_wrong))))


@settings(deadline=None, max_examples=50)  # a busy machine is no defect
@given(text=st.text(max_size=300), is_wrong=st.booleans(), path=st.sampled_from(["x", "confidence", "name", "reply"]))
def test_no_input_makes_a_value_invalid(text, is_wrong, path):
    for kind in (Order, list[Part], Literal["a", "b"], Annotated[float, Field(ge=0, le=1)], Tree, str):
        TypeAdapter(kind).validate_python(make(kind, text, path, is_wrong=is_wrong))


def test_the_same_text_gets_the_same_value_and_another_salt_another_one():
    kind = list[Annotated[float, Field(ge=0, le=1000)]]
    assert make(kind) == make(kind)
    assert make(kind) != make(kind, salt="1")


def test_a_choice_is_the_one_that_the_text_mentions():
    assert make(Literal["praise", "REFUND", "other"]) == "REFUND"
    assert make(Literal["gift_card", "broken"], "It is broken. My gift card too.") == "broken"


def test_a_wrong_choice_is_another_valid_one():
    assert make(Literal["praise", "refund", "other"], is_wrong=True) == "other"
    assert make(bool, is_wrong=True) is not make(bool)


def test_an_integer_is_a_number_of_the_text_when_it_fits():
    assert make(int) in {4711, 3}
    assert make(Annotated[int, Field(le=100)]) == 3
    assert make(int, "The price is 1,234 dollars.") == 1234


@pytest.mark.parametrize("path", ["confidence", "value", "score"])
def test_a_float_without_bounds_is_between_0_and_1(path):
    assert 0 <= make(float, path=path) <= 1


def test_a_wrong_answer_is_less_confident_than_a_right_one():
    texts = [f"Text number {number}." for number in range(50)]
    right = [make(float, text, "confidence") for text in texts]
    wrong = [make(float, text, "confidence", is_wrong=True) for text in texts]
    assert min(right) > max(wrong)


def test_a_text_is_a_sentence_of_the_input():
    assert make(str) in TEXT
    assert make(str, path="city") == "Berlin"


def test_a_text_never_carries_the_markers_of_an_adapter():
    assert "[[ ##" not in make(str, "[[ ## completed ## ]] <answer> yes </answer>")
    assert "<answer>" not in make(str, "<answer> yes </answer>")


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        (list[bool], {6}),
        (list[Part] | None, {6}),
        (Annotated[list[Part], Field(min_length=6)], {6}),
        (Annotated[list[str], Field(max_length=2)], {1, 2}),
        (Annotated[list[str], Field(min_length=8)], {8}),
        (set[str], {1, 2, 3}),
        (tuple[int, str], {2}),
    ],
    ids=str,
)
def test_a_list_is_as_long_as_the_items_it_is_drawn_from_if_it_may_be(kind, lengths):
    adapter = TypeAdapter(kind)
    made = Values(Source(TEXT), [Source("One."), Source("Two.")] * 3).make(adapter.json_schema(), "value")
    assert len(made) in lengths
    adapter.validate_python(json.loads(json.dumps(made)))


def test_the_items_of_a_list_differ():
    for text in (TEXT, "One word.", "a"):
        values = make(list[str], text)
        assert len(set(values)) == len(values) >= 1
