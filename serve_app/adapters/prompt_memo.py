"""DSPy's adapters, with the part of a prompt that is the same for every call rendered once.

The system message describes a signature: its fields, their types and its instructions. DSPy renders it anew for each
call, at a fifth of what a call costs without its HTTP. Here it is kept for each signature, and
rendered again when the instructions or a field of it are no longer the ones it was rendered from.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import dspy

_Stamp = tuple[object, ...]


class _RendersOnce:
    """Keeps what ``format_system_message`` returned."""

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - the adapter's own
        """Not DSPy's, which would wrap ``format`` and ``parse`` for callbacks a second time."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - the adapter's own
        super().__init__(*args, **options)
        self._rendered: WeakKeyDictionary[type[dspy.Signature], tuple[_Stamp, str]] = WeakKeyDictionary()

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The system message for calls of ``signature``."""
        stamp = _stamp(signature)
        known = self._rendered.get(signature)
        if known is None or known[0] != stamp:
            known = stamp, super().format_system_message(signature)  # type: ignore[misc]  # of the adapter behind
            self._rendered[signature] = known
        return known[1]


class ChatAdapter(_RendersOnce, dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is untyped
    """``dspy.ChatAdapter``, rendering once."""


class JSONAdapter(_RendersOnce, dspy.JSONAdapter):  # type: ignore[misc]  # DSPy is untyped
    """``dspy.JSONAdapter``, rendering once."""


class XMLAdapter(_RendersOnce, dspy.XMLAdapter):  # type: ignore[misc]  # DSPy is untyped
    """``dspy.XMLAdapter``, rendering once."""


def _stamp(signature: type[dspy.Signature]) -> _Stamp:
    """What the message is made of, by identity; a field's description may be changed in place."""
    fields = ((name, id(field), str(field.json_schema_extra)) for name, field in signature.model_fields.items())
    return signature.__doc__, *fields
