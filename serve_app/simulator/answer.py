"""Answers a chat completion request the way a willing model would.

What the request holds decides how: tools are called, a DSPy signature is filled in, a JSON schema is met,
and anything else gets a sentence. The same request to the same model always gets the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from serve_app.simulator.formats import to_json, write
from serve_app.simulator.material import items_of, material_of
from serve_app.simulator.prompt import Layout, message_text, read_inputs, read_layout
from serve_app.simulator.source import Source
from serve_app.simulator.tools import FINISH, Tool, choose, tools_in_request, tools_in_text, wanted_tool
from serve_app.simulator.values import Values

if TYPE_CHECKING:
    from serve_app.simulator.field_types import OutputField
    from serve_app.simulator.replay import Recordings

_REACT = {"next_thought", "next_tool_name", "next_tool_args"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says: text, or a call of a tool with its arguments as JSON."""

    text: str = ""
    tool: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The parts of a request that matter for the answer."""

    system: str
    user: str
    observations: tuple[str, ...]

    @classmethod
    def of(cls, messages: list[dict[str, Any]]) -> Conversation:
        """The first system message, the last user message, and the tool results since."""
        system = next((message_text(m) for m in messages if m.get("role") in {"system", "developer"}), "")
        user = ""
        observations: list[str] = []
        for message in messages:
            if message.get("role") == "user":
                user, observations = message_text(message), []
            elif message.get("role") in {"tool", "function"}:
                observations.append(message_text(message))
        return cls(system, user, tuple(observations))


class Answerer:
    """One model's way of answering.

    Args:
        model: its id; decides, with the prompt, which prompts it gets wrong.
        quality: share of prompts answered rightly, 0..1.
        recordings: answers to serve word for word.
    """

    def __init__(self, model: str, quality: float, recordings: Recordings | None = None) -> None:
        self._model = model
        self._quality = quality
        self._recordings = recordings

    def answer(self, request: dict[str, Any], choice: int = 0) -> Answer:
        """The answer to a validated request; ``choice`` counts the ``n`` alternatives."""
        talk = Conversation.of(request["messages"])
        layout = read_layout(talk.system)
        inputs = read_inputs(layout, talk.user) if layout else {}
        material = material_of(inputs) or talk.user
        source = Source(material, salt=str(choice) if choice else "", is_wrong=self._is_wrong(talk))
        tool = _native_tool(request, talk, material)
        if tool:
            return Answer(tool=tool.name, arguments=to_json(_arguments(tool, source)))
        if layout:
            return Answer(self._fill(layout, inputs, source))
        recorded = self._recordings.find([talk.user]) if self._recordings else None
        return Answer(recorded if recorded is not None else _free_answer(request, talk, source))

    def _is_wrong(self, talk: Conversation) -> bool:
        if self._quality >= 1:
            return False
        digest = blake2b(f"{self._model}\0{talk.system}\0{talk.user}".encode(errors="replace"), digest_size=8).digest()
        return int.from_bytes(digest) / 2**64 >= self._quality

    def _fill(self, layout: Layout, inputs: dict[str, str], source: Source) -> str:
        values = _react_step(layout, inputs) or self._replayed(layout, inputs)
        maker = Values(source, _items(layout, inputs, source))
        for field in layout.outputs:
            if field.name not in values:
                values[field.name] = _tool_calls(field, inputs, source) or maker.make(field.schema, field.name)
        return write(layout.style, layout.outputs, values)

    def _replayed(self, layout: Layout, inputs: dict[str, str]) -> dict[str, Any]:
        """The recorded words in their field; a field of another type gets a value drawn from them."""
        recorded = self._recordings.find(inputs.values()) if self._recordings else None
        if recorded is None or self._recordings is None or not layout.outputs:
            return {}
        by_name = {field.name: field for field in layout.outputs}
        field = by_name.get(self._recordings.answer_field or "", layout.outputs[-1])
        is_text = field.schema.get("type") == "string" or {"type": "string"} in field.schema.get("anyOf", ())
        return {field.name: recorded if is_text else _drawn(field, recorded)}


def _items(layout: Layout, inputs: dict[str, str], source: Source) -> list[Source] | None:
    """What stands at each place of the list inputs; ``None`` when there is no list, or lists of different lengths."""
    found = (items_of(inputs.get(name, "")) for name in layout.list_inputs)
    lists = [items for items in found if items is not None]
    if len({len(items) for items in lists}) != 1:
        return None
    return [source.of("\n".join(items)) for items in zip(*lists, strict=True)]


def _drawn(field: OutputField, recorded: str) -> object:
    """A value of the field's type from recorded words; numbers from the end, where answers stand."""
    source = Source(recorded)
    if field.schema.get("type") in {"integer", "number"} and source.numbers:
        number = source.numbers[-1]
        return int(number) if field.schema["type"] == "integer" else number
    return Values(source).make(field.schema, field.name)


def _native_tool(request: dict[str, Any], talk: Conversation, material: str) -> Tool | None:
    """The tool to call, unless its result is already there."""
    if not request.get("tools") or (talk.observations and request.get("tool_choice") != "required"):
        return None
    return choose(tools_in_request(request), material, wanted_tool(request))


def _arguments(tool: Tool, source: Source) -> dict[str, Any]:
    maker = Values(source)
    return {name: maker.make(tool.arguments[name], name) for name in tool.required}


def _react_step(layout: Layout, inputs: dict[str, str]) -> dict[str, Any]:
    """The next step of ``dspy.ReAct``: one tool call, then ``finish``; empty for any other signature."""
    if not {field.name for field in layout.outputs} >= _REACT:
        return {}
    question = Source(material_of({name: value for name, value in inputs.items() if name != "trajectory"}))
    tool = None if "observation_0" in inputs.get("trajectory", "") else choose(layout.tools, question.text)
    thought = f"{tool.name} will tell me more." if tool else "I know enough to answer."
    arguments = _arguments(tool, question) if tool else {}
    return {
        "next_thought": thought,
        "next_tool_name": tool.name if tool else FINISH,
        "next_tool_args": arguments,
    }


def _tool_calls(field: OutputField, inputs: dict[str, str], source: Source) -> dict[str, Any] | None:
    """A value for an output of type ``dspy.ToolCalls``; ``None`` for any other field."""
    if "tool_calls" not in field.schema.get("properties", {}):
        return None
    tool = choose(tools_in_text("\n".join(inputs.values())), source.text)
    return {"tool_calls": [{"name": tool.name, "args": _arguments(tool, source)}] if tool else []}


def _free_answer(request: dict[str, Any], talk: Conversation, source: Source) -> str:
    """An answer to a request that no DSPy adapter wrote."""
    wanted = request.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if isinstance(wanted, dict) and kind == "json_schema":
        schema = (wanted.get("json_schema") or {}).get("schema") or {"type": "object"}
        return to_json(Values(source).make(schema, "answer"))
    if talk.observations:
        text = f"I looked it up: {Source(talk.observations[-1]).sentence('answer')}"
    else:
        text = f"You asked about this: {source.sentence('answer')}"
    return to_json({"answer": text}) if kind == "json_object" else text
