"""A remembered type reads and writes as a new one would."""

from __future__ import annotations

from typing import Annotated, Any

import dspy
import dspy.adapters.utils
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from serve_app.adapters import type_memo
from serve_app.adapters.type_memo import TypeMemo, use_type_memo


class Place(BaseModel):
    city: str
    zip_code: int


@pytest.fixture
def made(monkeypatch) -> list[Any]:
    """The types for which an adapter was built by DSPy's adapters, which remember."""
    built: list[Any] = []

    def build(type_: Any) -> TypeAdapter[Any]:
        built.append(type_)
        return TypeAdapter(type_)

    for module in type_memo._USERS:
        monkeypatch.setattr(module, "TypeAdapter", TypeAdapter)  # given back afterwards
    use_type_memo()
    monkeypatch.setattr(type_memo, "TypeAdapter", build)
    return built


class Find(dspy.Signature):
    """Find the places."""

    text: str = dspy.InputField()
    hint: Place = dspy.InputField()
    places: list[Place] = dspy.OutputField()
    is_sure: bool = dspy.OutputField()


REPLY = '[[ ## places ## ]]\n[{"city": "A", "zip_code": 1}]\n\n[[ ## is_sure ## ]]\nTrue\n\n[[ ## completed ## ]]'


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.XMLAdapter()])
def test_a_prompt_is_dspys_own_and_builds_each_type_once(made, adapter) -> None:
    for number in range(3):
        inputs = {"text": f"letter {number}", "hint": Place(city="B", zip_code=number)}
        remembered = adapter.format(Find, [], inputs)
        assert f"letter {number}" in remembered[1]["content"]
        assert str(number) in remembered[1]["content"]
    assert len(made) == len({id(each) for each in made})


def test_a_reply_is_read_as_ever_and_builds_each_type_once(made) -> None:
    for _ in range(3):
        answer = dspy.ChatAdapter().parse(Find, REPLY)
        assert answer == {"places": [Place(city="A", zip_code=1)], "is_sure": True}
    assert made == [list[Place], bool]


def test_a_reply_that_does_not_fit_is_refused_each_time(made) -> None:
    broken = REPLY.replace('"zip_code": 1', '"zip_code": "one"')
    for _ in range(2):
        with pytest.raises(dspy.utils.exceptions.AdapterParseError):
            dspy.ChatAdapter().parse(Find, broken)


def test_equal_types_that_read_differently_are_told_apart() -> None:
    memo, number_first, text_first = TypeMemo(), int | None | str, str | None | int
    assert number_first == text_first
    assert memo(number_first) is memo(number_first)
    assert memo(number_first) is not memo(text_first)


def test_what_cannot_be_hashed_is_remembered_too() -> None:
    unhashable = Annotated[list[int], {"unit": "m"}]
    with pytest.raises(TypeError):
        hash(unhashable)
    memo = TypeMemo()
    assert memo(unhashable) is memo(unhashable)
    assert memo(unhashable).validate_python(["1"]) == [1]


def test_options_make_a_new_adapter() -> None:
    memo = TypeMemo()
    assert memo(int, config={"strict": True}) is not memo(int)
    with pytest.raises(ValidationError):
        memo(int, config={"strict": True}).validate_python("1")
    assert memo(int).validate_python("1") == 1


def test_types_made_for_one_call_do_not_pile_up() -> None:
    memo = TypeMemo(max_types=10)
    for _ in range(100):
        memo(list[int])  # a new object each time
    assert len(memo._known) <= 10


def test_a_dspy_that_makes_them_otherwise_is_left_alone(monkeypatch) -> None:
    own = object()
    for module in type_memo._USERS:
        monkeypatch.setattr(module, "TypeAdapter", own)
    use_type_memo()
    assert all(module.TypeAdapter is own for module in type_memo._USERS)
