"""Pydantic's adapters for the types that DSPy formats and parses, built once a type.

For each value that goes into a prompt and each typed field that comes out of a reply, DSPy builds a
``pydantic.TypeAdapter`` anew: a twentieth of the cheapest call without its HTTP, and milliseconds where the type is a
list of models. Which adapter a type gives never changes, so DSPy's modules are given a maker that remembers.

Types are told apart by identity: ``int | str`` and ``str | int`` are equal and yet read "1" differently. A type that
is made anew for every call is therefore never found; to bound what they take, all are forgotten once there are many.
"""

from __future__ import annotations

from typing import Any, Final

import dspy.adapters.utils
import dspy.adapters.xml_adapter
from pydantic import TypeAdapter

MAX_TYPES: Final = 4096
_USERS: Final = (dspy.adapters.utils, dspy.adapters.xml_adapter)


class TypeMemo:
    """Makes a ``TypeAdapter`` as the class itself does, and returns the same one for the same type.

    Args:
        max_types: how many are remembered.
    """

    def __init__(self, max_types: int = MAX_TYPES) -> None:
        self._max_types = max_types
        self._known: dict[int, tuple[object, TypeAdapter[Any]]] = {}  # the type itself keeps its id from being reused

    def __call__(self, type_: Any, **options: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - whatever is a type to pydantic
        """The adapter of ``type_``; with options a new one."""
        if options:
            return TypeAdapter(type_, **options)
        found = self._known.get(id(type_))
        if found is None:
            if len(self._known) >= self._max_types:
                self._known.clear()
            found = self._known[id(type_)] = (type_, TypeAdapter(type_))
        return found[1]


def use_type_memo() -> None:
    """Let DSPy's adapters remember, in this process; a module that no longer makes them so is left alone."""
    memo = TypeMemo()
    for module in _USERS:
        if getattr(module, "TypeAdapter", None) is TypeAdapter:
            module.TypeAdapter = memo
