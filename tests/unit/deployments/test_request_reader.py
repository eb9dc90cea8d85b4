"""What a caller sent becomes inputs and options, or a sentence that says what is wrong with it."""

import dspy
import pytest
from deployment_fakes import app_config, programs
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from serve_app.deployments.requests import RequestReader
from serve_app.errors import InvalidInputs, UnknownProgram
from serve_app.messages import Complexity, Options, Priority

CONFIG = app_config()
PROGRAMS = programs(CONFIG)
READER = RequestReader(PROGRAMS, [model.name for model in CONFIG.models], max_deadline_s=600)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (b'{"inputs": {"question": NaN}}', "not valid JSON"),
        (b'{"inputs": {"question": Infinity}}', "not valid JSON"),
        (b'\xff{"inputs": {}}', "not valid JSON"),
        (b'{"inputs": {}} trailing', "not valid JSON"),
        (b"[]", "must be an object"),
        (b'"inputs"', "must be an object"),
        (b"{}", 'lacks "inputs"'),
        (b'{"inputs": []}', "inputs must be an object"),
        (b'{"inputs": null}', "inputs must be an object"),
        (b'{"inputs": {}, "options": []}', "options must be an object"),
        (b'{"inputs": {}, "options": false}', "options must be an object"),
        (b'{"inputs": {}, "options": 0}', "options must be an object"),
        (b'{"inputs": {}, "options": ""}', "options must be an object"),
        (b'{"inputs": {}, "option": {}}', "unknown key 'option'"),
    ],
)
def test_a_body_that_is_no_call_says_why(raw, says) -> None:
    with pytest.raises(InvalidInputs, match=says):
        READER.body(raw)


@pytest.mark.parametrize("raw", [b'{"inputs": {"a": 1}}', b'{"inputs": {"a": 1}, "options": null}'])
def test_options_may_be_left_out(raw) -> None:
    assert READER.body(raw) == ({"a": 1}, {})


@given(st.binary(max_size=200))
def test_no_body_whatever_it_holds_raises_anything_else(raw) -> None:
    try:
        READER.body(raw)
    except InvalidInputs as refused:
        str(refused).encode()  # fit to be sent back


@given(st.text(max_size=300))
def test_an_unknown_name_is_quoted_in_plain_and_bounded_characters(name) -> None:
    if name in PROGRAMS:
        return
    with pytest.raises(UnknownProgram) as refused:
        READER.program(name)
    assert str(refused.value).isascii() or "…" in str(refused.value)
    assert len(str(refused.value)) < 1400


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    with pytest.raises(UnknownProgram, match="did you mean 'ask'"):
        READER.program("aks")
    assert READER.program("ask") is PROGRAMS["ask"]


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, "inputs.question"),
        ({"question": 3}, "inputs.question"),
        ({"question": None}, "inputs.question"),
        ({"question": "x", "ticket": "y"}, "inputs.ticket"),
        ({"question": "x", 3: "y"}, "inputs"),
        ("question", "inputs"),
        (5, "inputs"),
    ],
)
def test_an_input_that_does_not_fit_is_named_and_its_value_is_not(inputs, says) -> None:
    with pytest.raises(InvalidInputs) as refused:
        READER.inputs(PROGRAMS["ask"], inputs)
    assert str(refused.value).startswith(says)
    assert "'y'" not in str(refused.value)


def test_no_more_than_twenty_clauses_are_written() -> None:
    with pytest.raises(InvalidInputs, match="and 481 more") as refused:
        READER.inputs(PROGRAMS["ask"], {f"extra{n}": n for n in range(500)})
    assert len(str(refused.value)) < 2000


def test_what_is_said_is_short_however_long_what_was_sent_is(monkeypatch) -> None:
    with pytest.raises(InvalidInputs, match="extra inputs are not permitted") as refused:
        READER.inputs(PROGRAMS["ask"], {"x" * 500_000: 1})
    assert len(str(refused.value)) < 3000
    image = create_model("Inputs", picture=(dspy.Image, ...))  # its validator quotes what it was given
    monkeypatch.setattr(PROGRAMS["ask"], "inputs", image)
    with pytest.raises(InvalidInputs, match=r"^inputs\.picture: value error, Unrecognized") as refused:
        READER.inputs(PROGRAMS["ask"], {"picture": {"url": "x" * 500_000}})
    assert len(str(refused.value)) < 3000


def test_text_that_is_not_valid_unicode_is_refused_or_kept_but_never_a_crash() -> None:
    try:
        READER.inputs(PROGRAMS["ask"], {"question": "\ud800", "\ud801": 1})
    except InvalidInputs as refused:
        str(refused).encode()


def test_no_options_are_the_defaults() -> None:
    assert READER.options({}) == Options()


def test_options_are_read_as_what_they_are() -> None:
    asked = {
        "complexity": "high",
        "budget_usd": 0.5,
        "deadline_s": 3,
        "priority": "critical",
        "model": "small",
        "max_tokens": 9,
    }
    assert READER.options(asked) == Options(Complexity.HIGH, 0.5, 3.0, Priority.CRITICAL, "small", 9)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"deadline_s": 0}, "options.deadline_s"),
        ({"deadline_s": -1}, "options.deadline_s"),
        ({"deadline_s": float("nan")}, "options.deadline_s"),
        ({"deadline_s": float("inf")}, "options.deadline_s"),
        ({"deadline_s": 600.1}, "options.deadline_s: must be at most 600"),
        ({"budget_usd": -0.01}, "options.budget_usd"),
        ({"max_tokens": 0}, "options.max_tokens"),
        ({"deadline_s": True}, "options.deadline_s: input should be a valid number"),
        ({"budget_usd": False}, "options.budget_usd: input should be a valid number"),
        ({"max_tokens": True}, "options.max_tokens: input should be a valid number"),
        ({"complexity": "easy"}, "options.complexity"),
        ({"priority": "vip"}, "options.priority"),
        ({"model": "larg"}, "options.model: no model is called 'larg'; did you mean 'large'"),
        ({"dealine_s": 3}, "options.dealine_s"),
        (["deadline_s"], "options must be an object"),
        (7, "options must be an object"),
    ],
)
def test_an_option_that_does_not_fit_is_named(options, says) -> None:
    with pytest.raises(InvalidInputs) as refused:
        READER.options(options)
    assert str(refused.value).startswith(says)
