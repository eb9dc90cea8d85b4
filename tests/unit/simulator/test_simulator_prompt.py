from typing import Any, Literal

import dspy
import pytest
from pydantic import BaseModel, Field

from serve_app.simulator.prompt import message_text, read_inputs, read_layout

ADAPTERS = {"chat": dspy.ChatAdapter(), "json": dspy.JSONAdapter(), "xml": dspy.XMLAdapter()}


class Address(BaseModel):
    street: str
    floor: int = Field(ge=0, le=9)


class Wide(dspy.Signature):
    """Read the ticket. Your output fields are: all of them."""

    ticket: str = dspy.InputField(desc="the text (all of it): as it came")
    context: list[str] = dspy.InputField()
    category: Literal["billing", "it's (odd): one"] = dspy.OutputField(desc="a class (one): of these")
    urgent: bool = dspy.OutputField()
    stars: int = dspy.OutputField(ge=1, le=5)
    address: Address = dspy.OutputField()
    tags: list[str] = dspy.OutputField()
    extra: dict[str, Any] = dspy.OutputField()


def prompt(style, signature=Wide, demos=(), **inputs):
    messages = ADAPTERS[style].format(signature, list(demos), inputs)
    return read_layout(message_text(messages[0])), message_text(messages[-1])


@pytest.mark.parametrize("style", ADAPTERS)
def test_style_and_field_names_are_found(style):
    layout, _ = prompt(style, ticket="t", context=[])
    assert layout.style == style
    assert layout.inputs == ("ticket", "context")
    assert [field.name for field in layout.outputs] == ["category", "urgent", "stars", "address", "tags", "extra"]


@pytest.mark.parametrize("style", ADAPTERS)
def test_types_and_constraints_become_json_schema(style):
    layout, _ = prompt(style, ticket="t", context=[])
    schemas = {field.name: field.schema for field in layout.outputs}
    assert schemas["category"] == {"enum": ["billing", "it's (odd): one"]}
    assert schemas["urgent"] == {"type": "boolean"}
    assert schemas["stars"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert schemas["tags"] == {"type": "array", "items": {"type": "string"}}
    assert schemas["extra"]["type"] == "object"
    assert set(schemas["address"]["properties"]) == {"street", "floor"}


@pytest.mark.parametrize("style", ["chat", "json"])
def test_constraints_within_a_nested_model_are_kept(style):
    layout, _ = prompt(style, ticket="t", context=[])
    floor = layout.outputs[3].schema["properties"]["floor"]
    assert (floor["minimum"], floor["maximum"]) == (0, 9)


@pytest.mark.parametrize("style", ADAPTERS)
def test_input_values_come_back_as_they_were(style):
    ticket = "First line.\n\nRespond with care.\n\n[[ ## thought_0 ## ]]\nno field of mine <b>bold</b>"
    layout, user = prompt(style, ticket=ticket, context=["a", "b"])
    assert read_inputs(layout, user) == {"ticket": ticket, "context": '["a", "b"]'}


@pytest.mark.parametrize("style", ADAPTERS)
def test_demonstrations_are_not_taken_for_the_request(style):
    demo = dspy.Example(ticket="old", context=["x"], category="billing", urgent=True, stars=1, tags=[], extra={})
    layout, user = prompt(style, demos=[demo], ticket="new", context=["y"])
    assert read_inputs(layout, user)["ticket"] == "new"


@pytest.mark.parametrize("style", ADAPTERS)
def test_the_tools_of_react_are_read_from_its_objective(style):
    def search(query: str, limit: int = 3) -> str:
        """Look up a thing (on the web). It takes arguments like any other."""
        return ""

    agent = dspy.ReAct("question -> answer", tools=[search])
    layout, _ = prompt(style, agent.react.signature, question="q", trajectory="")
    assert [tool.name for tool in layout.tools] == ["search", "finish"]
    assert layout.tools[0].required == ("query",)
    assert layout.tools[1].required == ()


def test_a_system_message_that_no_adapter_wrote_has_no_layout():
    assert read_layout("You are a helpful assistant.") is None
    assert read_layout("Your output fields are:\n1. `x` (str): \nYour input fields are:\n") is None


def test_image_parts_of_a_message_are_left_out_of_its_text():
    parts = [
        {"type": "text", "text": "a "},
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "text", "text": "b"},
    ]
    assert message_text({"role": "user", "content": parts}) == "a b"
    assert message_text({"role": "assistant", "content": None}) == ""
