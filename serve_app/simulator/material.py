"""The part of a prompt's inputs that an answer may be drawn from.

JSON is reduced to the words and numbers in it, descriptions of tools are left out, and of an agent's trajectory
only what its tools observed is used, in place of the question once there is any.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_OBSERVATION = re.compile(
    r"^(?:\[\[ ## observation_\d+ ## \]\]|<observation_\d+>)\n(.*?)(?=\n\n\[\[ ## |\n</observation_|\Z)",
    re.MULTILINE | re.DOTALL,
)
_TOOL_SENTENCE = "It takes arguments {"
_FINISHED = "Completed."
_QUOTES = str.maketrans("", "", "«»")


def material_of(inputs: Mapping[str, str]) -> str:
    """The inputs' text, a line or more for each."""
    observed = list(_observations(inputs.get("trajectory", "")))
    if observed:
        return "\n".join(_plain(value) for value in observed)
    kept = (value for name, value in inputs.items() if name != "trajectory" and _TOOL_SENTENCE not in value)
    return "\n".join(_plain(value) for value in kept)


def items_of(value: str) -> list[str] | None:
    """The text of each item of a JSON list; ``None`` for any other value."""
    if not value.startswith("["):
        return None
    try:
        items = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    return ["\n".join(_leaves(item)) for item in items]


def _observations(trajectory: str) -> Iterator[str]:
    for match in _OBSERVATION.finditer(trajectory):
        if match[1].strip() != _FINISHED:
            yield match[1].translate(_QUOTES)


def _plain(value: str) -> str:
    """The value itself; of a JSON object or list, what is in it."""
    if not value.startswith(("{", "[")):
        return value
    try:
        return "\n".join(_leaves(orjson.loads(value)))
    except orjson.JSONDecodeError:
        return value


def _leaves(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for part in value.values():
            yield from _leaves(part)
    elif isinstance(value, list):
        for part in value:
            yield from _leaves(part)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
