"""What is rendered once is what DSPy would have rendered."""

import gc

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from pydantic import BaseModel

from serve_app.adapters import prompt_memo

PAIRS = [
    (prompt_memo.ChatAdapter, dspy.ChatAdapter),
    (prompt_memo.JSONAdapter, dspy.JSONAdapter),
    (prompt_memo.XMLAdapter, dspy.XMLAdapter),
]


class Place(BaseModel):
    city: str
    zip_code: int


def signature() -> type[dspy.Signature]:
    class Find(dspy.Signature):
        """Find the place."""

        text: str = dspy.InputField(desc="a letter")
        places: list[Place] = dspy.OutputField()
        is_sure: bool = dspy.OutputField(desc="whether there is no doubt")

    return Find


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_messages_are_dspys_own_each_time(ours, theirs) -> None:
    adapter, find = ours(), signature()
    demos = [{"text": "x", "places": [{"city": "A", "zip_code": 1}], "is_sure": True}]
    for text in ("one", "two"):
        inputs = {"text": text}
        assert adapter.format(find, demos, inputs) == theirs().format(find, demos, inputs)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_the_system_message_is_rendered_once_a_signature(ours, theirs, monkeypatch) -> None:
    rendered = []
    original = theirs.format_field_structure
    monkeypatch.setattr(theirs, "format_field_structure", lambda self, s: rendered.append(s) or original(self, s))
    adapter, find, other = ours(), signature(), dspy.Signature("a -> b")
    for each in (find, other, find, other):
        adapter.format_system_message(each)
    assert rendered == [find, other]


def test_changed_instructions_are_rendered_anew() -> None:
    adapter, find = prompt_memo.ChatAdapter(), signature()
    adapter.format_system_message(find)
    find.instructions = "Find the street."
    assert "Find the street." in adapter.format_system_message(find)


def test_a_field_described_anew_in_place_is_rendered_anew() -> None:
    adapter, find = prompt_memo.ChatAdapter(), signature()
    adapter.format_system_message(find)
    find.model_fields["text"].json_schema_extra["desc"] = "a telegram"
    assert "a telegram" in adapter.format_system_message(find)


def test_a_signature_that_is_gone_is_not_remembered() -> None:
    adapter = prompt_memo.ChatAdapter()
    adapter.format_system_message(signature())
    gc.collect()
    assert len(adapter._rendered) == 0


def test_a_variant_of_a_signature_has_its_own() -> None:
    adapter, find = prompt_memo.ChatAdapter(), signature()
    adapter.format_system_message(find)
    assert "Look twice." in adapter.format_system_message(find.with_instructions("Look twice."))


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_callbacks_hear_of_a_format_as_often_as_with_dspys_own(ours, theirs) -> None:
    class Heard(BaseCallback):
        def __init__(self) -> None:
            self.inputs = []

        def on_adapter_format_start(self, call_id, instance, inputs) -> None:
            del call_id, instance
            self.inputs.append(sorted(inputs))

    heard = {}
    for kind in (ours, theirs):
        heard[kind] = Heard()
        kind(callbacks=[heard[kind]]).format(signature(), [], {"text": "x"})
    assert heard[ours].inputs == heard[theirs].inputs
    assert heard[ours].inputs
