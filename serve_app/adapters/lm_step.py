"""LM calls in the form a journal keeps: a request's fingerprint, a response as JSON text.

The fingerprint covers what the program asked: system text, messages, tools, and every setting of the request. It
leaves out what belongs to the model that was asked: its name, and a temperature or token limit that came from the
model's own configuration and not from the program. The bound of the level and of the caller is the same for every
attempt at a call, and no part of it either.

A response keeps everything a program can see: parts of every kind (text, reasoning, tool calls, citations, media),
what providers want back with them, finish reason, usage, log probabilities and adaptations. Left out is
``provider_data``, the provider's raw reply, which repeats all of it.

What has no JSON form (a media part that names a local file) is not journaled.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import orjson
from dspy import lm15

from serve_app.core.journal import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping

_SORTED: Final = orjson.OPT_SORT_KEYS
_SETTINGS: Final = tuple(field.name for field in dataclasses.fields(lm15.Config))
_PLACES: Final = {name: place for place, name in enumerate(_SETTINGS)}
_settings_of = attrgetter(*_SETTINGS)
_RESPONSE: Final = tuple(field.name for field in dataclasses.fields(lm15.Response) if field.name != "provider_data")
_PARTS: Final[dict[str, Any]] = {
    "text": lm15.TextPart,
    "thinking": lm15.ThinkingPart,
    "refusal": lm15.RefusalPart,
    "citation": lm15.CitationPart,
    "data": lm15.DataPart,
    "tool_call": lm15.ToolCallPart,
    "image": lm15.ImagePart,
    "audio": lm15.AudioPart,
    "video": lm15.VideoPart,
    "document": lm15.DocumentPart,
    "binary": lm15.BinaryPart,
}
"""Every part that a response may hold, by its ``type``."""


def request_fingerprint(request: lm15.Request, defaults: Mapping[str, object]) -> str | None:
    """What stands for ``request`` on any model; ``None`` when it has no JSON form.

    Args:
        request: as DSPy hands it to an engine.
        defaults: settings (fields of ``lm15.Config``) that the model's own configuration fills in.
    """
    settings = list(_settings_of(request.config))
    for name, default in defaults.items():
        place = _PLACES[name]
        if settings[place] == default:
            settings[place] = None
    try:
        return fingerprint(orjson.dumps((request.system, request.messages, request.tools, settings), option=_SORTED))
    except TypeError:
        return None


def dump_response(response: lm15.Response) -> str | None:
    """``response`` as JSON text; ``None`` when it has no such form."""
    try:
        return orjson.dumps({name: getattr(response, name) for name in _RESPONSE}).decode()
    except TypeError:
        return None


def load_response(reply: str) -> lm15.Response:
    """The response that ``dump_response`` wrote.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it was written by another version, or by somebody else.
    """
    fields = orjson.loads(reply)
    fields["message"] = _message(fields["message"])
    fields["usage"] = lm15.Usage(**fields["usage"])
    fields["adaptations"] = tuple(lm15.Adaptation(**item) for item in fields["adaptations"])
    if fields["logprobs"] is not None:
        fields["logprobs"] = tuple(_logprob(item) for item in fields["logprobs"])
    return lm15.Response(**fields)


def _message(fields: dict[str, Any]) -> lm15.Message:
    parts = tuple(_part(part) for part in fields["parts"])
    return lm15.Message(fields["role"], parts, _continuation(fields["continuation"]))


def _part(fields: dict[str, Any]) -> Any:  # noqa: ANN401 - lm15's parts share no public base
    part = _PARTS[fields.pop("type")]
    return part(**fields | {"continuation": _continuation(fields["continuation"])})


def _continuation(states: list[dict[str, Any]]) -> tuple[lm15.ContinuationState, ...]:
    return tuple(lm15.ContinuationState(**state) for state in states)


def _logprob(fields: dict[str, Any]) -> lm15.TokenLogprob:
    top = tuple(lm15.TopLogprob(**_with_bytes(item)) for item in fields["top"])
    return lm15.TokenLogprob(**_with_bytes(fields) | {"top": top})


def _with_bytes(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"bytes": None if fields["bytes"] is None else tuple(fields["bytes"])}
