import json

import dspy
import program_samples
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve_app.adapters.program_interface import interface_of
from serve_app.adapters.program_schema import MAX_DEPTH, describe_errors, inputs_model, json_problem, outputs_model
from serve_app.adapters.program_source import load_module
from serve_app.errors import ConfigError

EVERYTHING = {
    "word": "x",
    "flag": True,
    "count": 3,
    "share": 0.5,
    "mood": "good",
    "names": ["a"],
    "counts": {"a": 1},
    "maybe": None,
    "person": {"name": "Ann", "age": 4},
    "people": [{"name": "Bob", "age": None}],
    "image": {"url": "https://example.com/x.png"},
    "images": [{"url": "data:image/png;base64,AAAA"}],
    "gallery": {"title": "t", "cover": {"url": "https://example.com/y.png"}},
    "history": {"messages": [{"question": "q", "answer": "a"}]},
}


def inputs(source):
    return inputs_model("the-program", interface_of(load_module(source)).inputs)


@pytest.fixture(scope="module")
def everything():
    return inputs("program_samples:Everything")


def test_every_type_validates_from_json_to_python(everything):
    value = everything.model_validate(EVERYTHING)
    assert value.mood is program_samples.Mood.GOOD
    assert isinstance(value.person, program_samples.Person)
    assert isinstance(value.image, dspy.Image)
    assert isinstance(value.history, dspy.History)
    assert isinstance(value.gallery.cover, dspy.Image)


def test_the_json_form_validates_back_to_itself(everything):
    once = everything.model_validate(EVERYTHING).model_dump(mode="json")
    assert once == EVERYTHING
    assert everything.model_validate(json.loads(json.dumps(once))).model_dump(mode="json") == once


def test_the_schema_is_free_of_dspys_extras_and_docstrings(everything):
    text = json.dumps(everything.model_json_schema())
    for word in ("__dspy", "prefix", "${", "IS_TYPE_UNDEFINED", "constraints", "dspy.configure"):
        assert word not in text


def test_the_schema_keeps_descriptions_constraints_and_defaults():
    schema = inputs("program_samples:Classify").model_json_schema()
    assert schema["title"] == "TheProgramInputs"
    assert schema["additionalProperties"] is False
    assert schema["properties"]["text"] == {"description": "any text", "title": "Text", "type": "string"}
    assert schema["properties"]["hint"]["default"] == ""
    assert schema["required"] == ["text"]
    output = outputs_model("x", interface_of(load_module("program_samples:Classify")).outputs).model_json_schema()
    assert output["properties"]["score"]["maximum"] == 5
    assert output["properties"]["topic"]["enum"] == ["a", "b"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"word": "z"}, "word: Input should be 'x' or 'y'"),
        ({"flag": "perhaps"}, "flag: "),
        ({"count": -1}, "count: Input should be greater than or equal to 0"),
        ({"share": float("nan")}, "NaN and infinity"),
        ({"mood": "sad"}, "mood: "),
        ({"names": "a"}, "names: "),
        ({"counts": {"a": "many"}}, "counts.a: "),
        ({"person": {"age": 3}}, "person.name: Field required"),
        ({"image": {"url": "/etc/passwd"}}, "image"),
        ({"image": {"url": "https://example.com/x", "download": True}}, "image"),
        ({"image": "x"}, "image"),
        ({"history": {"messages": "x"}}, "history"),
        ({"unknown": 1}, "unknown: Extra inputs are not permitted"),
        ({"word": "\ud800"}, "lone surrogate"),
    ],
)
def test_what_does_not_fit_names_its_field(everything, change, told):
    with pytest.raises(ValidationError) as caught:
        everything.model_validate({**EVERYTHING, **change})
    assert told in describe_errors(caught.value.errors())


def test_a_missing_field_is_named(everything):
    with pytest.raises(ValidationError) as caught:
        everything.model_validate({name: value for name, value in EVERYTHING.items() if name != "word"})
    assert describe_errors(caught.value.errors()) == "word: Field required"


def test_errors_never_quote_a_value(everything):
    secret = "sk-secret-value-123"
    for field in EVERYTHING:
        if field in ("names", "counts", "maybe"):
            continue
        with pytest.raises(ValidationError) as caught:
            everything.model_validate({**EVERYTHING, field: secret})
        assert secret not in describe_errors(caught.value.errors())


def test_a_type_without_json_form_is_refused_by_name():
    with pytest.raises(ConfigError, match="input 'tool' has type Tool, which has no JSON form"):
        inputs("program_samples:NeedsTool")


def test_fields_may_have_the_names_of_model_methods():
    model = inputs("program_samples:OddFields")
    assert model.model_validate({"schema": "s"}).__dict__ == {"schema": "s", "copy": 1, "model_name": "m"}


def test_a_field_that_pydantic_refuses_is_a_configuration_error(tmp_path, monkeypatch):
    (tmp_path / "private_field.py").write_text(
        "import dspy\nclass P(dspy.Module):\n    async def aforward(self, _x: int) -> dict:\n        return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = load_module("private_field:P")
    module.predict = dspy.Predict("a -> b")
    with pytest.raises(ConfigError, match="the inputs cannot be a model"):
        inputs_model("x", interface_of(module).inputs)


def test_reasoning_is_text_in_answers():
    signature = dspy.Signature({"why": (dspy.Reasoning, dspy.OutputField()), "q": (str, dspy.InputField())})
    model = outputs_model("x", interface_of(dspy.Predict(signature)).outputs)
    assert model(why=dspy.Reasoning(content="because")).model_dump(mode="json") == {"why": "because"}


def test_answers_may_hold_dspys_types_and_models_around_them():
    fields = {"gallery": program_samples.Gallery, "calls": dspy.ToolCalls, "images": list[dspy.Image]}
    outputs = {name: (annotation, dspy.OutputField()) for name, annotation in fields.items()}
    signature = dspy.Signature({"q": (str, dspy.InputField()), **outputs})
    model = outputs_model("x", interface_of(dspy.Predict(signature)).outputs)
    plain = {
        "gallery": {"title": "t", "cover": {"url": "https://example.com/y.png"}},
        "calls": {"tool_calls": [{"name": "find", "args": {"word": "sun"}}]},
        "images": [{"url": "https://example.com/x.png"}],
    }
    dumped = model.model_validate(plain).model_dump(mode="json")
    assert dumped["calls"]["tool_calls"][0]["args"] == {"word": "sun"}
    assert {**dumped, "calls": None} == {**plain, "calls": None}
    for mode in ("validation", "serialization"):
        properties = model.model_json_schema(mode=mode)["properties"]
        assert properties["gallery"]["properties"]["cover"]["properties"]["url"]["type"] == "string"
        assert properties["images"]["items"]["properties"]["url"]["type"] == "string"


def test_nesting_deeper_than_the_bound_is_a_problem_and_not_a_recursion_error():
    value = []
    for _ in range(100_000):
        value = [value]
    assert json_problem(value) == f"nested deeper than {MAX_DEPTH} levels"


@pytest.mark.parametrize("value", ["\ud83d", {"\udc00": 1}, [["\ud83d"]], {"a": float("inf")}])
def test_what_json_cannot_carry_is_a_problem(value):
    assert json_problem(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_ordinary_json_is_no_problem(value):
    assert json_problem(value) == ""
