from typing import Literal

import dspy
import pytest

from serve_app.adapters.program_levels import shape_of, variant_of
from serve_app.adapters.program_runner import ProgramThreads
from serve_app.adapters.program_source import load_module
from serve_app.config import LevelConfig

THREADS = ProgramThreads(1, "test")


@pytest.fixture
def full():
    return variant_of("sample", load_module("program_samples:Classify"), THREADS)


def shape(full, **settings):
    made, problems = shape_of("sample", LevelConfig(models=("m",), **settings), full, THREADS)
    assert problems == []
    return made


def problems(full, **settings):
    made, found = shape_of("sample", LevelConfig(models=("m",), **settings), full, THREADS)
    assert made is None
    return found


def test_a_plain_level_changes_nothing(full):
    values = {"text": "some words", "hint": "h"}
    assert shape(full).apply(dict(values)) == values


def test_a_dropped_input_is_sent_empty(full):
    assert shape(full, drop_inputs=("hint",)).apply({"text": "t", "hint": "h"}) == {"text": "t", "hint": ""}


def test_a_long_input_is_cut_at_a_word(full):
    made = shape(full, max_input_chars={"text": 10})
    assert made.apply({"text": "some words here", "hint": ""})["text"] == "some words"
    assert made.apply({"text": "some wordsmith", "hint": ""})["text"] == "some"


def test_a_dropped_input_is_not_cut_as_well(full):
    made = shape(full, drop_inputs=("text",), max_input_chars={"text": 10})
    assert made.limits == ()


def test_each_type_has_its_own_empty_value():
    everything = variant_of("sample", load_module("program_samples:Everything"), THREADS)
    names = ("word", "flag", "count", "names", "counts", "maybe", "person", "image", "history")
    made = shape(everything, drop_inputs=names)
    first, second = (made.apply(dict.fromkeys(names, "full")) for _ in range(2))
    assert first == {
        "word": None,
        "flag": None,
        "count": None,
        "names": [],
        "counts": {},
        "maybe": None,
        "person": None,
        "image": None,
        "history": dspy.History(messages=[]),
    }
    assert first["names"] is not second["names"]


def test_dropping_an_input_the_program_has_not_is_said_with_the_nearest(full):
    assert problems(full, drop_inputs=("hints",)) == ["drop_inputs: there is no input 'hints'; did you mean 'hint'?"]


def test_cutting_an_input_the_program_has_not_is_said_with_the_nearest(full):
    assert problems(full, max_input_chars={"txt": 5}) == [
        "max_input_chars: there is no input 'txt'; did you mean 'text'?"
    ]


def test_cutting_what_is_not_text_is_said():
    everything = variant_of("sample", load_module("program_samples:Everything"), THREADS)
    assert problems(everything, max_input_chars={"count": 5}) == ["max_input_chars: input 'count' is not text"]
    assert shape(everything, max_input_chars={"maybe": 5}).limits == (("maybe", 5),)


def test_every_problem_of_a_level_is_told(full):
    assert len(problems(full, drop_inputs=("x1", "x2"), max_input_chars={"y": 1}, program="nope -> topic")) == 4


def test_a_simpler_program_answers_with_the_full_programs_types(full):
    variant = shape(full, program="text -> topic").variant
    assert list(variant.inputs.model_fields) == ["text"]
    assert list(variant.outputs.model_fields) == ["topic"]
    assert variant.outputs.model_validate({"topic": "a"}).topic == "a"
    with pytest.raises(ValueError, match="Input should be 'a' or 'b'"):
        variant.outputs.model_validate({"topic": "z"})


def test_untyped_fields_of_a_simpler_signature_take_the_full_programs_type_and_description(full):
    signature = shape(full, program="text -> topic").variant.module.signature
    assert signature.output_fields["topic"].annotation == Literal["a", "b"]
    assert signature.output_fields["topic"].json_schema_extra["desc"] == "its topic"
    assert signature.input_fields["text"].json_schema_extra["desc"] == "any text"


def test_typed_fields_of_a_simpler_signature_keep_their_type(full):
    signature = shape(full, program="text -> topic: str").variant.module.signature
    assert signature.output_fields["topic"].annotation is str


def test_a_simpler_programs_looser_type_never_loosens_the_answer(full):
    outputs = shape(full, program="text -> topic: str").variant.outputs
    with pytest.raises(ValueError, match="Input should be 'a' or 'b'"):
        outputs.model_validate({"topic": "z"})


def test_a_simpler_program_may_be_a_class(full):
    assert shape(full, program="program_samples:OneShot").variant.runner.is_async


def test_a_simpler_program_with_an_input_of_its_own_is_refused(full):
    assert problems(full, program="text, hints -> topic") == [
        "program: 'text, hints -> topic' needs input 'hints', which 'sample' has not; did you mean 'hint'?"
    ]


def test_a_simpler_program_with_an_output_of_its_own_is_refused(full):
    assert problems(full, program="text -> topics") == [
        "program: 'text -> topics' gives output 'topics', which 'sample' has not; did you mean 'topic'?"
    ]


def test_a_simpler_program_that_does_not_load_is_said(full):
    assert problems(full, program="program_samples:Absent")[0].startswith("program: 'program_samples' has no 'Absent'")


def test_inputs_a_simpler_program_has_not_are_neither_blanked_nor_cut(full):
    made = shape(full, program="text -> topic", drop_inputs=("hint",), max_input_chars={"text": 3})
    assert made.apply({"text": "one two"}) == {"text": "one"}
