from typing import Any, Literal

import dspy
import program_samples
import pytest

from serve_app.adapters.program_interface import entry_point, interface_of, runs_async
from serve_app.adapters.program_schema import inputs_model, outputs_model
from serve_app.adapters.program_source import load_module
from serve_app.errors import ConfigError


def interface(name):
    return interface_of(load_module(name if "->" in name else f"program_samples:{name}"))


def types(fields):
    return {name: annotation for name, (annotation, _) in fields.items()}


def problem(name):
    with pytest.raises(ConfigError) as caught:
        interface(name)
    return caught.value.problems[0]


def test_a_predictor_has_its_signature():
    found = interface("ticket, n: int -> category: Literal['a', 'b'], urgent: bool")
    assert types(found.inputs) == {"ticket": str, "n": int}
    assert types(found.outputs) == {"category": Literal["a", "b"], "urgent": bool}
    assert found.is_declared


def test_a_declared_signature_wins_over_forward():
    found = interface("OneShot")
    assert list(found.inputs) == ["text", "hint"]
    assert list(found.outputs) == ["topic", "score"]
    assert found.is_declared


def test_parameters_take_their_type_from_the_hint_the_predictor_or_any():
    assert types(interface("Guessing").inputs) == {"question": int, "extra": Any, "depth": int}


def test_parameters_with_a_default_are_optional_and_others_are_not():
    model = inputs_model("x", interface("Guessing").inputs)
    assert model(question=1).model_dump() == {"question": 1, "extra": None, "depth": 2}
    assert model.model_json_schema()["required"] == ["question"]


def test_outputs_nobody_declared_are_the_last_predictors_and_optional():
    found = interface("Guessing")
    assert list(found.outputs) == ["reasoning", "answer"]
    assert not found.is_declared
    assert outputs_model("x", found.outputs)(answer=1.5).answer == 1.5


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("ReturnsTuple", {"left": str, "right": int}),
        ("ReturnsDict", {"letters": int}),
        ("ReturnsDataclass", {"half": float}),
        ("ReturnsPrediction", {"verdict": bool}),
    ],
)
def test_a_return_annotation_declares_the_outputs(name, outputs):
    found = interface(name)
    assert types(found.outputs) == outputs
    assert found.is_declared


def test_a_returned_pydantic_model_keeps_its_descriptions():
    schema = outputs_model("x", interface("ReturnsModel").outputs).model_json_schema()
    assert schema["properties"]["name"]["description"] == "full name"


def test_chain_of_thought_has_its_signature_and_the_reasoning():
    found = interface_of(dspy.ChainOfThought("question -> answer: int"))
    assert types(found.inputs) == {"question": str}
    assert types(found.outputs) == {"reasoning": str, "answer": int}
    assert found.is_declared


def test_an_agent_has_the_signature_it_was_made_with():
    found = interface("Agent")
    assert (list(found.inputs), list(found.outputs)) == (["question"], ["answer"])


def test_a_wrapper_has_the_interface_of_what_it_wraps():
    best = dspy.BestOfN(dspy.ChainOfThought("question -> answer"), N=2, reward_fn=lambda a, b: 1.0, threshold=1.0)
    found = interface_of(best)
    assert (list(found.inputs), list(found.outputs)) == (["question"], ["reasoning", "answer"])
    assert found.is_declared


def test_a_subclass_of_chain_of_thought_that_overrides_forward_keeps_the_inputs():
    found = interface("OnlyForwardOverCot")
    assert list(found.inputs) == ["text"]
    assert not found.is_declared


def test_inputs_that_cannot_be_told_are_said_with_what_to_do():
    assert problem("Untellable") == (
        "the inputs of Untellable cannot be told: name the parameters of forward, or give it a 'signature' attribute"
    )


def test_outputs_that_cannot_be_told_are_said_with_what_to_do():
    assert "the outputs of NoOutputs cannot be told: annotate what forward returns" in problem("NoOutputs")


def test_a_class_without_forward_is_said():
    assert problem("Nothing") == "Nothing has no forward or aforward"


def test_an_async_forward_is_said():
    assert "AsyncForward.forward is a coroutine function" in problem("AsyncForward")


def test_hints_that_do_not_resolve_are_said(tmp_path, monkeypatch):
    (tmp_path / "bad_hints.py").write_text(
        "import dspy\nclass P(dspy.Module):\n    async def aforward(self, a: 'Missing') -> dict:\n        return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError, match=r"the type hints of P.aforward do not resolve: name 'Missing' is not defined"
    ):
        interface_of(load_module("bad_hints:P"))


@pytest.mark.parametrize(
    ("module", "is_async"),
    [
        (dspy.Predict("a -> b"), True),
        (dspy.ChainOfThought("a -> b"), True),
        (program_samples.OneShot(), True),
        (program_samples.SyncOnly(), False),
        (program_samples.OnlyForwardOverCot(), False),
        (program_samples.Refined(), False),
    ],
)
def test_a_program_is_async_when_acall_runs_what_the_person_wrote(module, is_async):
    assert runs_async(module) is is_async
    assert entry_point(module).__name__ == ("aforward" if is_async else "forward")
