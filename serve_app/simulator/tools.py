"""The tools a request offers, and which of them to call.

They come natively in ``tools``, or as the sentence that ``str(dspy.Tool)`` writes into a prompt.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_SENTENCE = re.compile(
    r"(?:^|[\"'\s])(\w+)(?:, whose description is <desc>(.*?)</desc>)?\."
    r"\s+It takes arguments (\{.*?\})\.(?=\s*$|[\"'],|[\"']\])",
    re.MULTILINE | re.DOTALL,
)
FINISH = "finish"
"""The tool by which ``dspy.ReAct`` is told that nothing more is needed."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: its arguments are JSON schemas by name, ``required`` the ones a call must bring."""

    name: str
    description: str
    arguments: dict[str, Any]
    required: tuple[str, ...]


def tools_in_text(text: str) -> tuple[Tool, ...]:
    """The tools that a prompt describes in words."""
    return tuple(_from_sentence(*match.groups()) for match in _SENTENCE.finditer(text))


def tools_in_request(request: dict[str, Any]) -> tuple[Tool, ...]:
    """The function tools in a chat completion request; of none when ``tool_choice`` is ``none``."""
    if request.get("tool_choice") == "none":
        return ()
    offered = request.get("tools")
    functions = [_function(tool) for tool in offered] if isinstance(offered, list) else []
    return tuple(_from_function(function) for function in functions if function.get("name"))


def choose(tools: Sequence[Tool], text: str, wanted: str | None = None) -> Tool | None:
    """The tool to call: the ``wanted`` one, else the one whose words the text uses most; never ``finish``."""
    if wanted is not None:
        return next((tool for tool in tools if tool.name == wanted), None)
    words = _words(text)
    candidates = [tool for tool in tools if tool.name != FINISH]
    return max(candidates, key=lambda tool: len(words & _words(f"{tool.name} {tool.description}")), default=None)


def wanted_tool(request: dict[str, Any]) -> str | None:
    """The function that ``tool_choice`` names."""
    choice = request.get("tool_choice")
    return _function(choice).get("name") if isinstance(choice, dict) else None


def _function(tool: object) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return function if isinstance(function, dict) else {}


def _from_function(function: dict[str, Any]) -> Tool:
    parameters = function.get("parameters") or {}
    defs = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    properties = {name: {**schema, **defs} for name, schema in (parameters.get("properties") or {}).items()}
    required = tuple(name for name in parameters.get("required") or () if name in properties)
    return Tool(str(function["name"]), str(function.get("description") or ""), properties, required)


def _from_sentence(name: str, description: str | None, arguments: str) -> Tool:
    try:
        schemas = ast.literal_eval(arguments)
    except (SyntaxError, ValueError):
        schemas = {}
    required = tuple(key for key, schema in schemas.items() if "default" not in schema)
    return Tool(name, description or "", schemas, required)


def _words(text: str) -> set[str]:
    return {word for word in re.split(r"[\W_]+", text.lower()) if len(word) > 2}  # noqa: PLR2004 - articles and the like
