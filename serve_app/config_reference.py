"""``docs/configuration.md``, from the models: ``python -m serve_app.config_reference`` prints it.

The models are the only place where a key, its range, its default and its meaning are written down; ``make docs``
writes the page, and a test holds it equal to what this module makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from serve_app.config import PATTERN_WORDS, AppConfig
from serve_app.policy import Policy

HEAD: Final = """\
# Configuration

Made from the models in `serve_app/config.py` and `serve_app/policy.py` by `make docs`: change those, not this page.
Durations are seconds, money is USD, shares and qualities are 0 to 1. Unknown keys are errors; `switchyard check` names
them with file and line, and `switchyard schema` prints the same as JSON Schema for editors. The levels around `args`
and `user_config` are Ray Serve's.
"""

PARTS: Final[Mapping[str, tuple[type[BaseModel], str]]] = {
    "args": (
        AppConfig,
        "Topology: changing it and running `serve deploy` replaces replicas, a new one before an old one.",
    ),
    "user_config": (Policy, "Policy, under the deployment `ControlPlane`: changing it restarts nothing."),
}
"""The two keys of ``serve_config.yaml`` that are ours."""

_BOUNDS: Final = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))


def reference() -> str:
    """The page, in Markdown."""
    return "\n".join([HEAD, *(text for key, (model, word) in PARTS.items() for text in _part(key, model, word))])


def _part(key: str, model: type[BaseModel], word: str) -> Iterator[str]:
    schema = model.model_json_schema(ref_template="{model}")
    sections = {name: _mapping_of(found) for name, found in {**schema.pop("$defs", {}), model.__name__: schema}.items()}
    yield f"## `{key}`\n\n{word}\n"
    for name, where in _visit(model.__name__, key, sections, {}).items():
        if "properties" in sections[name]:
            yield _section(name, sections, where)


def _mapping_of(schema: dict[str, Any]) -> dict[str, Any]:
    """The section itself where a shorter way to write it is allowed beside the mapping."""
    return next((choice for choice in schema.get("anyOf", ()) if "properties" in choice), schema)


def _visit(name: str, place: str, sections: Mapping[str, Any], places: dict[str, list[str]]) -> dict[str, list[str]]:
    """Where in the file each section stands, in the order in which a reader meets them."""
    places.setdefault(name, []).append(place)
    for key, field in sections[name].get("properties", {}).items():
        for inner, suffix in _refs(field):
            _visit(inner, f"{place}.{key}{suffix}", sections, places)
    return places


def _refs(schema: Mapping[str, Any], suffix: str = "") -> Iterator[tuple[str, str]]:
    if "$ref" in schema:
        yield schema["$ref"], suffix
    for choice in schema.get("anyOf", ()):
        yield from _refs(choice, suffix)
    if isinstance(schema.get("items"), Mapping):
        yield from _refs(schema["items"], suffix + "[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from _refs(schema["additionalProperties"], suffix + ".*")


def _section(name: str, sections: Mapping[str, Any], where: list[str]) -> str:
    schema = sections[name]
    at = ", ".join(f"`{place}`" for place in where)
    lines = [f"### {name}", "", f"{_cell(schema.get('description', ''))} At {at}.", ""]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else _default(field, sections)
        lines.append(f"| `{key}` | {_type(field, sections)} | {default} | {_cell(_meaning(field, sections))} |")
    return "\n".join([*lines, ""])


def _meaning(field: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """The field's description; a field that says the same as its section has none of its own."""
    own = field.get("description") or sections.get(field.get("$ref", ""), {}).get("description", "")
    return str(own)


def _type(schema: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"]
        return _values(sections[name]["enum"]) if "enum" in sections[name] else f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(choice, sections) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return _values(schema.get("enum") or [schema["const"]])
    if "pattern" in schema:
        words = PATTERN_WORDS.get(schema["pattern"], f"text like `{schema['pattern']}`")
        return _cell(words.removesuffix(" or null"))  # which the field says itself
    return _plain_type(schema, sections)


def _plain_type(schema: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), sections)}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_type(inner, sections)}" if isinstance(inner, Mapping) else "mapping"
    words = {"string": "text", "boolean": "true or false"}.get(kind, kind)
    return ", ".join([words, *(f"{sign} {schema[bound]:.15g}" for bound, sign in _BOUNDS if bound in schema)])


def _values(values: list[object]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _default(schema: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """The default as JSON; nothing where it is a section as that section's own defaults make it."""
    if "default" not in schema:
        return "empty"
    shown = schema["default"]
    if isinstance(shown, Mapping):
        if "$ref" in schema and shown == _defaults_of(schema["$ref"], sections):
            return ""
        shown = {name: value for name, value in shown.items() if value is not None}
    return f"`{_cell(json.dumps(shown, ensure_ascii=False))}`"


def _defaults_of(name: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    return {key: field.get("default") for key, field in sections[name]["properties"].items()}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
