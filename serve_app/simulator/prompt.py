"""Reads the prompts of DSPy's chat, JSON and XML adapters back into a task.

The system message holds the signature: field lists, field structure, objective. It is the same for every call
of a program, so reading it is memoised. The last user message holds the inputs. Layout as written by
``dspy.adapters`` 3.4.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import orjson

from serve_app.simulator.field_types import OutputField, is_list, output_field
from serve_app.simulator.tools import Tool, tools_in_text

Style = Literal["chat", "json", "xml"]

_INPUTS = "Your input fields are:\n"
_OUTPUTS = "Your output fields are:\n"
_STRUCTURE = "All interactions will be structured in the following way"
_JSON_OUTPUTS = "Outputs will be a JSON object with the following fields."
_OBJECTIVE = "In adhering to this structure, your objective is:"
_REQUIREMENTS = "\n\nRespond with "
_ITEM = re.compile(r"^\d+\. `(\w+)` \(", re.MULTILINE)
_NOTE = re.compile(r"^\{(\w+)\} {8}# note: the value you produce (.*)$", re.MULTILINE)
_SKELETON = re.compile(r"^(<(\w+)>.*</\2>)$", re.MULTILINE)


@dataclass(frozen=True)
class Layout:
    """What a system message asks for, whatever the inputs.

    Attributes:
        style: the adapter that wrote it.
        inputs: the input fields' names, in order.
        list_inputs: those of them that are lists.
        outputs: the output fields, in order.
        objective: the signature's instructions.
    """

    style: Style
    inputs: tuple[str, ...]
    list_inputs: tuple[str, ...]
    outputs: tuple[OutputField, ...]
    objective: str

    @cached_property
    def tools(self) -> tuple[Tool, ...]:
        """Tools that the objective lists, as ``dspy.ReAct`` does."""
        return tools_in_text(self.objective)

    @cached_property
    def header(self) -> re.Pattern[str]:
        """Matches the line that opens an input field's value."""
        return re.compile(rf"^\[\[ ## ({'|'.join(self.inputs) or '(?!)'}) ## \]\]$", re.MULTILINE)


def message_text(message: dict[str, Any]) -> str:
    """The text of a chat message, its image and file parts left out."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


@lru_cache(maxsize=512)
def read_layout(system: str) -> Layout | None:
    """The layout in a system message; ``None`` when no DSPy adapter wrote it."""
    starts = [system.find(mark) for mark in (_INPUTS, _OUTPUTS, _STRUCTURE)]
    objective = system.find(_OBJECTIVE)
    if min(starts) < 0 or sorted(starts) != starts or objective < starts[2]:
        return None
    structure = system[starts[2] : objective]
    notes, skeletons = _notes(structure)
    outputs = tuple(
        output_field(name, annotation, constraints, notes.get(name, ""), skeletons.get(name, ""))
        for name, annotation, constraints in _field_list(system[starts[1] + len(_OUTPUTS) : starts[2]])
    )
    listed = _field_list(system[starts[0] + len(_INPUTS) : starts[1]])
    inputs = tuple(name for name, _, _ in listed)
    lists = tuple(name for name, annotation, _ in listed if is_list(annotation))
    return Layout(_style(structure), inputs, lists, outputs, system[objective + len(_OBJECTIVE) :])


def read_inputs(layout: Layout, user: str) -> dict[str, str]:
    """The input values in a user message, by name, stripped."""
    end = user.rfind(_REQUIREMENTS)
    body = user[:end] if end >= 0 else user
    return _tagged_inputs(layout, body) if layout.style == "xml" else _headed_inputs(layout, body)


def _style(structure: str) -> Style:
    if _JSON_OUTPUTS in structure:
        return "json"
    return "chat" if "[[ ## completed ## ]]" in structure else "xml"


def _field_list(text: str) -> list[tuple[str, str, str]]:
    """Name, annotation and constraints of each field of a numbered list."""
    items = list(_ITEM.finditer(text))
    ends = [item.start() for item in items[1:]] + [len(text)]
    return [
        (item[1], _annotation(text[item.end() : end]), _constraints(text[item.end() : end]))
        for item, end in zip(items, ends, strict=True)
    ]


def _annotation(rest: str) -> str:
    """The annotation before ``):``, which may itself hold brackets and quoted colons."""
    end = rest.find("):")
    while end >= 0:
        if _is_expression(rest[:end]):
            return rest[:end]
        end = rest.find("):", end + 1)
    return ""


def _is_expression(text: str) -> bool:
    try:
        compile(text, "annotation", "eval")
    except (SyntaxError, ValueError):
        return False
    return True


def _constraints(rest: str) -> str:
    return rest.rpartition("\nConstraints: ")[2] if "\nConstraints: " in rest else ""


def _notes(structure: str) -> tuple[dict[str, str], dict[str, str]]:
    """The note and the XML skeleton of each output field that has one."""
    _, found, block = structure.partition(_JSON_OUTPUTS)
    if found:
        structure = "\n".join(str(value) for value in _json_object(block).values())
    skeletons = {match[2]: match[1] for match in _SKELETON.finditer(structure)}
    return dict(_NOTE.findall(structure)), skeletons


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _headed_inputs(layout: Layout, body: str) -> dict[str, str]:
    order = {name: index for index, name in enumerate(layout.inputs)}
    heads: list[re.Match[str]] = []
    for match in layout.header.finditer(body):
        if not heads or order[match[1]] > order[heads[-1][1]]:
            heads.append(match)
    ends = [head.start() for head in heads[1:]] + [len(body)]
    return {head[1]: body[head.end() : end].strip() for head, end in zip(heads, ends, strict=True)}


def _tagged_inputs(layout: Layout, body: str) -> dict[str, str]:
    values, position = {}, 0
    for name in layout.inputs:
        start = body.find(f"<{name}>\n", position)
        end = body.find(f"\n</{name}>", start)
        if start >= 0 and end >= 0:
            values[name] = body[start + len(name) + 3 : end].strip()
            position = end
    return values
