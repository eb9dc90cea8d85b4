"""What DSPy's prompts say about a field's type, as JSON Schema.

DSPy names a type three ways: as an annotation (``list[str]``), as a note with a JSON schema or the
members of an enum, and, in its XML adapter, as a skeleton of nested tags. Whichever says most wins.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import orjson

Schema = dict[str, Any]

_NAMED: dict[str, Schema] = {
    "str": {"type": "string"},
    "Reasoning": {"type": "string"},
    "Code": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "Any": {},
    "NoneType": {"type": "null"},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "UUID": {"type": "string", "format": "uuid"},
    "list": {"type": "array", "items": {"type": "string"}},
    "dict": {"type": "object", "additionalProperties": {"type": "string"}},
}
_BOUNDS = {
    "greater than or equal to": "minimum",
    "greater than": "exclusiveMinimum",
    "less than or equal to": "maximum",
    "less than": "exclusiveMaximum",
    "minimum length": "minLength",
    "maximum length": "maxLength",
    "a multiple of the given number": "multipleOf",
}
_BOUND = re.compile(rf"({'|'.join(_BOUNDS)}): (-?[\d.]+(?:[eE][+-]?\d+)?)")
_SCHEMA_NOTE = "must adhere to the JSON schema: "
_ENUM_NOTE = "must be one of: "
UNTYPED: Schema = {"x-untyped": True}
"""A leaf of an XML skeleton: its type is nowhere in the prompt."""


@dataclass(frozen=True, slots=True)
class OutputField:
    """One output field of a signature.

    Attributes:
        name: its name.
        schema: JSON Schema of its value.
        is_bare: a string value is written without quotes in the chat format.
        is_nested_xml: lists and objects are written as nested tags in the XML format.
    """

    name: str
    schema: Schema
    is_bare: bool = True
    is_nested_xml: bool = False


def output_field(name: str, annotation: str, constraints: str, note: str, skeleton: str) -> OutputField:
    """The field that the prompt's four sayings describe; any but the name may be empty."""
    schema, is_bare = _from_annotation(annotation), _is_bare(annotation)
    if note.startswith(_SCHEMA_NOTE):
        schema = _json(note.removeprefix(_SCHEMA_NOTE)) or schema
    elif note.startswith(_ENUM_NOTE):
        schema, is_bare = {"enum": _members(note.removeprefix(_ENUM_NOTE))}, True
    elif skeleton and _has_untyped(schema):
        shape = _from_skeleton(skeleton)
        schema = schema if shape is UNTYPED else shape
    return OutputField(name, {**schema, **_bounds(constraints)}, is_bare, bool(skeleton))


def is_list(annotation: str) -> bool:
    """Whether a value of that annotation may be a list of any length."""
    schema = _from_annotation(annotation)
    return any("items" in kind for kind in schema.get("anyOf", (schema,)))


def _from_annotation(annotation: str) -> Schema:
    try:
        return _from_node(ast.parse(annotation, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return UNTYPED


def _from_node(node: ast.expr) -> Schema:
    if isinstance(node, ast.Name):
        return _NAMED.get(node.id, UNTYPED)
    if not isinstance(node, ast.Subscript) or not isinstance(node.value, ast.Name):
        return UNTYPED
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return _from_generic(node.value.id, inner)


def _from_generic(name: str, inner: list[ast.expr]) -> Schema:
    if name == "Literal":
        return {"enum": [_literal(item) for item in inner]}
    if name in {"Union", "Optional"}:
        return {"anyOf": [_from_node(item) for item in inner]}
    if name in {"list", "set", "frozenset", "Sequence", "List", "Set"}:
        return {"type": "array", "items": _from_node(inner[0])}
    if name in {"tuple", "Tuple"}:
        items = [_from_node(item) for item in inner if not isinstance(item, ast.Constant)]
        return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}
    if name in {"dict", "Mapping", "Dict"}:
        return {"type": "object", "additionalProperties": _from_node(inner[-1])}
    return UNTYPED


def _has_untyped(schema: Schema) -> bool:
    inner = (schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", ()))
    return schema is UNTYPED or any(_has_untyped(part) for part in inner if isinstance(part, dict))


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _is_bare(annotation: str) -> bool:
    """Whether DSPy takes a string of that type as it stands, instead of reading it as JSON."""
    if annotation.startswith(("Union[", "Optional[")):
        return bool(re.search(r"\bstr\b", annotation))
    return annotation in {"", "str", "Reasoning", "Code"} or annotation.startswith("Literal[")


def _members(text: str) -> list[Any]:
    members: list[Any] = text.strip().split("; ")
    if all(re.fullmatch(r"-?\d+", member) for member in members):
        return [int(member) for member in members]
    return members


def _bounds(constraints: str) -> Schema:
    return {_BOUNDS[word]: _number(value) for word, value in _BOUND.findall(constraints)}


def _number(text: str) -> int | float:
    return float(text) if re.search(r"[.eE]", text) else int(text)


def _json(text: str) -> Schema:
    try:
        value = orjson.loads(text.strip())
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _from_skeleton(skeleton: str) -> Schema:
    try:
        return _from_element(ET.fromstring(skeleton))  # noqa: S314 - expat refuses entity bombs; the tree is tags only
    except ET.ParseError:
        return UNTYPED


def _from_element(element: ET.Element) -> Schema:
    children = list(element)
    if not children:
        return UNTYPED
    if [child.tag for child in children] == ["item"]:
        return {"type": "array", "items": _from_element(children[0])}
    properties = {child.tag: _from_element(child) for child in children}
    return {"type": "object", "properties": properties, "required": list(properties)}
