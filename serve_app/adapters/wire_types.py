"""How values of a program's types are written as JSON.

DSPy's own types (``Image``, ``History``, …) write prompt markers by default; here they are plain JSON that validates
back to the same value. So are inputs whose type writes another form than it reads: they are written where the call is
admitted and read again where the program runs.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from enum import Enum
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import dspy
from pydantic import (
    BaseModel,
    BeforeValidator,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapSerializer,
    WrapValidator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python

Annotation: TypeAlias = Any
"""A type annotation at run time: a class, a generic, a union, ``Annotated``."""


def wire_type(annotation: Annotation, *, is_input: bool) -> Annotation:
    """``annotation`` with every DSPy type in it, and every input that writes what it cannot read, made plain JSON.

    Raises:
        TypeError: a secret as an input.
    """
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return _wire_class(annotation, is_input=is_input)
    origin: Any = get_origin(annotation)
    arguments = get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(wire_type(arguments[0], is_input=is_input), *annotation.__metadata__)]
    wired = tuple(wire_type(argument, is_input=is_input) for argument in arguments)
    if all(new is old for new, old in zip(wired, arguments, strict=True)):
        return annotation
    return Union[wired] if origin in (Union, types.UnionType) else origin[wired]  # noqa: UP007 - made at run time


def _wire_class(cls: type, *, is_input: bool) -> Annotation:
    if issubclass(cls, dspy.Reasoning):
        return Annotated[str, BeforeValidator(_reasoning_text)]
    if _holds(cls, _is_dspys, set()):
        return Annotated[(cls, WrapValidator(_guarded), PlainSerializer(_plain), *_brief_schema(cls))]
    if is_input and _holds(cls, _is_secret, set()):
        raise TypeError("a secret is written as asterisks, which is what the program would get: take text")
    if is_input and _holds(cls, _writes_otherwise, set()):
        return Annotated[cls, _as_read(cls)]
    return cls


def _as_read(cls: type) -> WrapSerializer:
    """What ``cls`` itself writes where it reads that as an equal value, else its fields."""
    adapter: TypeAdapter[Any] = TypeAdapter(cls)

    def written(value: object, write: SerializerFunctionWrapHandler, info: SerializationInfo) -> object:
        if is_typed_dict(cls) or isinstance(value, cls):  # a union tries its other members with it, too
            with suppress(Exception):  # a person's types may raise anything, which says that they do not read it
                own = write(value)
                if adapter.validate_python(own, by_alias=False, by_name=True) == value:
                    return own
        try:
            return _plain(value, info)
        except (PydanticSerializationError, UnicodeError):
            return write(value)

    return WrapSerializer(written)


def _guarded(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """DSPy's own types raise ``TypeError`` for some bad input; a caller's mistake must be a validation error."""
    try:
        return validate(value)
    except TypeError as error:
        raise ValueError("is not valid") from error


def _plain(value: object, info: SerializationInfo) -> object:
    """``value`` as JSON of its fields, where its class would write a prompt marker, or something it cannot read."""
    if isinstance(value, RootModel):
        return _plain(value.root, info)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        aliases = {name: field.serialization_alias or name for name, field in fields.items()} if info.by_alias else {}
        written = {aliases.get(name, name): _plain(getattr(value, name), info) for name in fields}
        return written | {name: _plain(item, info) for name, item in (value.model_extra or {}).items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {part.name: _plain(getattr(value, part.name), info) for part in dataclass_fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item, info) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item, info) for item in value]
    return value.value if isinstance(value, Enum) else to_jsonable_python(value)


def _brief_schema(cls: type) -> list[WithJsonSchema]:
    """JSON Schema of a DSPy type in one piece, without docstrings, which explain Python usage.

    Nothing for a type that contains itself: that needs definitions, and pydantic's own schema has them.
    """
    schema = TypeAdapter(cls).json_schema()
    definitions = schema.pop("$defs", {})
    if any(f"#/$defs/{name}" in json.dumps(part) for name, part in definitions.items()):
        return []
    schema.pop("description", None)
    return [WithJsonSchema(_inlined(schema, definitions))]


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:  # noqa: ANN401 - any part of a JSON Schema
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inlined(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
        return {key: _inlined(part, definitions) for key, part in schema.items()}
    return [_inlined(part, definitions) for part in schema] if isinstance(schema, list) else schema


def _holds(annotation: Annotation, wanted: Callable[[type], bool], seen: set[type]) -> bool:
    """Whether there is a class in ``annotation``, or in a field of a structure in it, of which ``wanted`` is true."""
    if not isinstance(annotation, type) or get_origin(annotation) is not None:
        return any(_holds(argument, wanted, seen) for argument in get_args(annotation))
    if annotation in seen:
        return False
    seen.add(annotation)
    return wanted(annotation) or any(_holds(part, wanted, seen) for part in _parts(annotation))


def _parts(cls: type) -> Iterable[Annotation]:
    """The types of a structure's fields."""
    if issubclass(cls, BaseModel):
        return [field.annotation for field in cls.model_fields.values()]
    if is_dataclass(cls) or is_typed_dict(cls):
        return get_type_hints(cls, include_extras=True).values()
    return ()


def is_typed_dict(cls: type) -> bool:
    """Whether ``typing`` or ``typing_extensions`` made it, each of which knows only its own."""
    return issubclass(cls, dict) and hasattr(cls, "__required_keys__")


def _is_dspys(cls: type) -> bool:
    return issubclass(cls, (dspy.Type, dspy.History))


def _is_secret(cls: type) -> bool:
    return issubclass(cls, (Secret, SecretStr, SecretBytes))


def _writes_otherwise(cls: type) -> bool:
    """Whether a model has serializers of its own, or fields that it does not write."""
    if not issubclass(cls, BaseModel):
        return False
    own = cls.__pydantic_decorators__
    return bool(own.field_serializers or own.model_serializers) or any(map(_is_altered, cls.model_fields.values()))


def _is_altered(field: FieldInfo) -> bool:
    return bool(field.exclude) or any(isinstance(part, (PlainSerializer, WrapSerializer)) for part in field.metadata)


def _reasoning_text(value: object) -> object:
    return value.content if isinstance(value, dspy.Reasoning) else value
