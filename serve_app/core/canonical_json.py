r"""Canonical typed JSON: one byte string for each value, the same in every process.

Two values share it exactly when they have the same types and would read the same in a prompt: ``1``, ``1.0``, ``True``
and ``"1"`` differ, and so do ``Decimal("1.0")`` and ``Decimal("1.00")``; the order of a dict or a set does not matter.
What JSON has no form for becomes an object with one key that starts with NUL, such as ``{"\0date": "2024-02-29"}``; a
plain dict with such a key takes that road itself, so nothing can pass for something else.

Pydantic models and dataclasses count by class and fields, private attributes left out. What has no canonical form, a
function or an open file, is an error that names the field: leaving it out would make two different values one.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import orjson
from pydantic import AnyUrl, BaseModel, SecretBytes, SecretStr

from serve_app.errors import InvalidInputs

MAX_DEPTH: Final = 100
"""Deepest nesting that has a form; orjson's own limit lies above twice this."""
MAX_SHOWN_CHARS: Final = 80
"""Most characters of a key, and thrice as many of a path, that an error quotes."""

_SORTED: Final = orjson.OPT_SORT_KEYS
_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**64 - 1


class _NoForm(Exception):
    """A value without a canonical form; ``path`` leads to it, innermost first."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def canonical_json(value: object, root: str) -> bytes:
    """The value's canonical bytes.

    Args:
        value: anything.
        root: what to call it in an error, such as ``inputs``.

    Raises:
        InvalidInputs: something in it has no canonical form; the detail says where and what.
    """
    try:
        return orjson.dumps(_typed(value, MAX_DEPTH), option=_SORTED)
    except _NoForm as problem:
        where = "".join(reversed(problem.path))[: 3 * MAX_SHOWN_CHARS]
        raise InvalidInputs(f"{root}{where}: {problem.reason}") from None


def _typed(value: Any, depth: int) -> Any:  # noqa: ANN401, PLR0911 - one branch per JSON type, commonest first
    """The value itself where JSON says it exactly, else a tagged object."""
    kind = type(value)
    if kind is str:
        return value if _is_utf8(value) else {"\0str": value.encode("utf-8", "surrogatepass").hex()}
    if kind is bool or value is None:
        return value
    if kind is int:
        return value if _MIN_INT <= value <= _MAX_INT else {"\0int": hex(value)}
    if kind is float:
        return value if value - value == 0 else {"\0float": repr(value)}
    if depth <= 0:
        raise _NoForm(f"nested more than {MAX_DEPTH} deep")
    if kind is dict:
        return _object(value, depth)
    if kind is list:
        return _items(value, depth)
    return _tagged(value, depth)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _object(mapping: Mapping[Any, object], depth: int) -> Any:  # noqa: ANN401 - JSON
    result = {}
    for key, item in mapping.items():
        if type(key) is not str or key.startswith("\0") or not _is_utf8(key):
            return {"\0map": _pairs(mapping, depth)}
        try:
            result[key] = _typed(item, depth - 1)
        except _NoForm as problem:
            problem.path.append(f".{key[:MAX_SHOWN_CHARS]}")
            raise
    return result


def _pairs(mapping: Mapping[Any, object], depth: int) -> list[Any]:
    """Keys of any type, each before its value, in an order that depends on neither insertion nor hash."""
    pairs = []
    for key, item in mapping.items():
        try:
            pairs.append([_typed(key, depth - 1), _typed(item, depth - 1)])
        except _NoForm as problem:
            problem.path.append(f"[{repr(key)[:MAX_SHOWN_CHARS]}]")
            raise
    return [part for pair in sorted(pairs, key=_bytes) for part in pair]


def _items(values: Iterable[object], depth: int) -> list[Any]:
    result = []
    for index, item in enumerate(values):
        try:
            result.append(_typed(item, depth - 1))
        except _NoForm as problem:
            problem.path.append(f"[{index}]")
            raise
    return result


def _tagged(value: object, depth: int) -> Any:  # noqa: ANN401 - JSON
    """Everything that is not a plain JSON type; subclasses go by the first type that fits."""
    if isinstance(value, BaseModel):
        return {"\0model": [_class_of(value), _object(_model_fields(value), depth - 1)]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"\0dataclass": [_class_of(value), _object(fields, depth - 1)]}
    if isinstance(value, Enum):
        return {"\0enum": [_class_of(value), _typed(value.value, depth - 2)]}
    for kind, tag, form in _FORMS:
        if isinstance(value, kind):
            return {f"\0{tag}": form(value)} if tag else _typed(form(value), depth)
    return _container(value, depth)


def _container(value: object, depth: int) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, Mapping):
        return _object(value, depth)
    if isinstance(value, list):
        return _items(value, depth)
    if isinstance(value, set | frozenset):
        return {"\0set": sorted(_items(value, depth), key=_bytes)}
    if isinstance(value, deque):
        return {"\0deque": _items(value, depth)}
    if isinstance(value, tuple):
        return {"\0tuple": [_class_of(value) if type(value) is not tuple else "", *_items(value, depth)]}
    raise _NoForm(f"a value of type {_class_of(value)} has no canonical form")


def _model_fields(model: BaseModel) -> dict[str, object]:
    """Fields and allowed extras, without what pydantic or the class caches on the instance."""
    fields = {name: getattr(model, name) for name in type(model).model_fields}
    return fields | (model.__pydantic_extra__ or {})


def _moment(value: datetime | time) -> list[str]:
    """ISO text and the time zone's own name: equal offsets may be different zones."""
    return [value.isoformat(), "" if value.tzinfo is None else _zone(value.tzinfo)]


def _zone(zone: tzinfo) -> str:
    return str(zone) if type(zone).__str__ is not object.__str__ else type(zone).__name__


def _digest(value: bytes | bytearray | memoryview) -> str:
    """Stands for the bytes, so that a large file costs no memory."""
    return hashlib.sha256(value).hexdigest()


# Order matters: datetime is a date. An empty tag means the form itself is keyed: a subclass of a JSON type.
_FORMS: Final[tuple[tuple[type | tuple[type, ...], str, Callable[[Any], Any]], ...]] = (
    (str, "", str.__str__),
    (int, "", int.__int__),
    (float, "", float.__float__),
    (datetime, "datetime", _moment),
    (date, "date", date.isoformat),
    (time, "time", _moment),
    (timedelta, "timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    (Decimal, "decimal", str),
    (Fraction, "fraction", lambda value: [hex(value.numerator), hex(value.denominator)]),
    (complex, "complex", repr),
    (bytes, "bytes", _digest),
    (bytearray, "bytearray", _digest),
    (memoryview, "memoryview", _digest),
    (UUID, "uuid", str),
    (PurePath, "path", str),
    (AnyUrl, "url", str),
    ((SecretStr, SecretBytes), "secret", lambda value: _digest(_secret_bytes(value))),
    ((IPv4Address, IPv6Address, IPv4Network, IPv6Network, IPv4Interface, IPv6Interface), "ip", repr),
)


def _secret_bytes(value: SecretStr | SecretBytes) -> bytes:
    secret = value.get_secret_value()
    return secret.encode("utf-8", "surrogatepass") if isinstance(secret, str) else secret


def _bytes(value: object) -> bytes:
    return orjson.dumps(value, option=_SORTED)


def _class_of(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
