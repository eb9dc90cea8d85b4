"""Writes output values the way each DSPy adapter reads them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from serve_app.simulator.field_types import OutputField
    from serve_app.simulator.prompt import Style

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def write(style: Style, fields: Sequence[OutputField], values: Mapping[str, Any]) -> str:
    """The whole completion for the fields, in the adapter's format."""
    if style == "json":
        return to_json({field.name: values[field.name] for field in fields})
    if style == "xml":
        return "\n\n".join(_tagged(field, values[field.name]) for field in fields)
    sections = [f"[[ ## {field.name} ## ]]\n{_bare(field, values[field.name])}" for field in fields]
    return "\n\n".join([*sections, "[[ ## completed ## ]]"])


def to_json(value: object) -> str:
    """The value as JSON text."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def _bare(field: OutputField, value: object) -> str:
    if isinstance(value, str):
        return value if field.is_bare else to_json(value)
    return str(value) if isinstance(value, bool | int | float) else to_json(value)


def _tagged(field: OutputField, value: object) -> str:
    if field.is_nested_xml and isinstance(value, dict | list):
        return _element(field.name, value)
    return f"<{field.name}>\n{_escaped(_bare(field, value))}\n</{field.name}>"


def _element(tag: str, value: object, key: str | None = None) -> str:
    opening = tag if key is None else f"{tag} key={quoteattr(_NOT_XML.sub('', key))}"
    if isinstance(value, list):
        body = "".join(_element("item", part) for part in value)
    elif isinstance(value, dict):
        body = "".join(_member(str(name), part) for name, part in value.items())
    else:
        body = "" if value is None else _escaped(str(value))
    return f"<{opening}>{body}</{tag}>"


def _member(name: str, value: object) -> str:
    """A key that is no tag name goes into an ``entry``, as DSPy's XML adapter does."""
    is_tag = re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII) is not None
    return _element(name, value) if is_tag else _element("entry", value, name)


def _escaped(text: str) -> str:
    return escape(_NOT_XML.sub("", text))
