"""Pydantic models of a program's inputs and outputs, as JSON sees them.

DSPy's signature fields carry extras that belong in prompts (``__dspy_field_type``, ``prefix``, ``desc``); here only
the type, the constraints, the default and the description are kept. How values of these types are written is said in
``serve_app.adapters.wire_types``.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    model_validator,
)
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, PydanticUndefined

from serve_app.adapters.wire_types import Annotation, wire_type
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from serve_app.config import CacheRule

MAX_DEPTH = 100
"""Most levels of nesting in inputs and outputs; DSPy and JSON writers recurse, and recursion has an end."""

FieldDefinition = tuple[Annotation, FieldInfo]
"""What ``pydantic.create_model`` takes for a field."""


class _Inputs(BaseModel):
    """Base of every inputs model: an unknown field is an error, and so is text that no provider can receive."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _is_sendable(cls, data: object) -> object:
        problem = json_problem(data) if isinstance(data, dict) else ""
        if problem:
            raise ValueError(problem)
        return data


class _Outputs(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


def inputs_model(name: str, fields: Mapping[str, FieldDefinition]) -> type[BaseModel]:
    """A model that validates a call's inputs strictly.

    Raises:
        ConfigError: a field whose type has no JSON form, by name.
    """
    return _model(f"{_pascal(name)}Inputs", _Inputs, fields, "input")


def outputs_model(name: str, fields: Mapping[str, FieldDefinition]) -> type[BaseModel]:
    """A model that every answer fits; what a program returns beside the fields is left out.

    Raises:
        ConfigError: a field whose type has no JSON form, by name.
    """
    return _model(f"{_pascal(name)}Outputs", _Outputs, fields, "output")


def may_say(outputs: type[BaseModel], rule: CacheRule) -> bool:
    """Whether the output that ``rule`` names can ever be what the rule asks for."""
    field = outputs.model_fields[rule.field]
    annotation: Annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        said = adapter.dump_python(adapter.validate_python(rule.equals), mode="json")
    except (ValidationError, PydanticSerializationError):
        return False
    return rule.matches({rule.field: said})


def definition(field: FieldInfo, annotation: Annotation = None) -> FieldDefinition:
    """A signature's or model's field as JSON sees it: DSPy's extras gone, its ``desc`` the description."""
    kept: dict[str, Any] = {"title": field.title, "examples": field.examples, "description": _description(field)}
    if field.default_factory is not None:
        kept["default_factory"] = field.default_factory
    elif field.default is not PydanticUndefined:
        kept["default"] = field.default
    bare = field.annotation if annotation is None else annotation
    full = Annotated[(bare, *field.metadata)] if field.metadata else bare
    return full, Field(**{key: value for key, value in kept.items() if value is not None or key == "default"})


def optional(field: FieldDefinition) -> FieldDefinition:
    """The same field, but the answer may lack it."""
    annotation, info = field
    kept = FieldInfo(default=None, description=info.description, title=info.title, examples=info.examples)
    return annotation, kept


def json_problem(value: object) -> str:
    """Why ``value`` cannot travel as JSON, or ``""``: not Unicode, not a finite number, or nested too deep.

    Walks with its own stack, so that depth is an answer and not a ``RecursionError``.
    """
    stack: list[tuple[object, int]] = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, str):
            if not item.isascii() and not _is_unicode(item):
                return "text is not valid Unicode (lone surrogate)"
        elif isinstance(item, float):
            if not math.isfinite(item):
                return "NaN and infinity are not JSON numbers"
        elif isinstance(item, (dict, list, tuple)):
            if depth >= MAX_DEPTH:
                return f"nested deeper than {MAX_DEPTH} levels"
            if isinstance(item, dict):
                stack.extend((key, depth + 1) for key in item)
            stack.extend((part, depth + 1) for part in (item.values() if isinstance(item, dict) else item))
    return ""


def describe_errors(errors: Iterable[Mapping[str, Any]]) -> str:
    """Validation errors as ``field: what is expected``; never a value."""
    lines = [f"{'.'.join(str(part) for part in error['loc']) or 'inputs'}: {_expectation(error)}" for error in errors]
    return "; ".join(lines[:10])


def _expectation(error: Mapping[str, Any]) -> str:
    # A validator of the person's own writes its message, and may put the value in it.
    is_own = error["type"] in {"value_error", "assertion_error"}
    return "is not valid" if is_own and error["loc"] else str(error["msg"]).removeprefix("Value error, ")


def _model(name: str, base: type[BaseModel], fields: Mapping[str, FieldDefinition], direction: str) -> type[BaseModel]:
    wired: dict[str, Any] = {}
    problems: list[str] = []
    for field, (annotation, info) in fields.items():
        try:
            wired[field] = (wire_type(annotation, is_input=direction == "input"), info)
            TypeAdapter(wired[field][0]).json_schema()
        except (PydanticUserError, NameError, TypeError, ValueError) as error:
            problems.append(f"{direction} {field!r} has type {_type_name(annotation)}, which has no JSON form")
            problems[-1] += f" ({str(error).splitlines()[0]})" if str(error) else ""
    if problems:
        raise ConfigError(problems)
    try:
        with warnings.catch_warnings():  # a field named like a BaseModel method is fine: values are read by name
            warnings.filterwarnings("ignore", message=".*shadows an attribute.*", category=UserWarning)
            return create_model(name, __base__=base, **wired)
    except (PydanticUserError, NameError, TypeError, ValueError) as error:
        raise ConfigError([f"the {direction}s cannot be a model: {str(error).splitlines()[0]}"]) from error


def _description(field: FieldInfo) -> str | None:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    desc = extra.get("desc") or field.description
    is_placeholder = isinstance(desc, str) and desc.startswith("${")
    return desc if isinstance(desc, str) and desc and not is_placeholder else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _type_name(annotation: Annotation) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _pascal(name: str) -> str:
    words = "".join(character if character.isalnum() else " " for character in name).split()
    return "".join(word[:1].upper() + word[1:] for word in words)
