"""One mistake in a configuration, and the one place that puts pydantic's findings into our words."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serve_app.config import PATTERN_WORDS

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Key = tuple[str | int, ...]
"""Where in a document: mapping keys and list positions from the top."""

MAX_NAMES_SHOWN: Final = 12
MIN_PREFIX: Final = 3

_MISSING: Final = "required key is missing"
MAX_TEXT_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake, on one line.

    Attributes:
        key: where it is in the document; empty for the document as a whole.
        text: what is wrong, with the nearest valid name where there is one; never a value that may be secret.
        file: the document's path as the person wrote it; empty when there is no file.
        line: 1-based; 0 when unknown.
    """

    key: Key
    text: str
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.file and self.line else self.file
        return ": ".join(part for part in (where, format_key(self.key), one_line(self.text)) if part)

    def under(self, prefix: Key) -> Problem:
        """The same problem of a document that holds this one at ``prefix``."""
        return replace(self, key=(*prefix, *self.key))


def format_key(key: Key) -> str:
    """``("models", 1, "name")`` as ``models[1].name``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return one_line(text.removeprefix("."))


def one_line(text: str) -> str:
    """``text`` on one printable line of bounded length."""
    joined = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return joined if len(joined) <= MAX_TEXT_CHARS else joined[: MAX_TEXT_CHARS - 1] + "…"


def suggest(name: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'?``, or what there is to choose from; empty when nothing is valid."""
    names = {candidate.lower(): candidate for candidate in valid}
    nearest = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    nearest = nearest or [known for known in names if len(name) >= MIN_PREFIX and known.startswith(name.lower())]
    if nearest:
        return f"did you mean '{names[nearest[0]]}'?"
    shown = sorted(names.values())[:MAX_NAMES_SHOWN]
    more = ", …" if len(names) > MAX_NAMES_SHOWN else ""
    return f"valid: {', '.join(shown)}{more}" if shown else ""


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """``unknown model 'x'; did you mean 'y'?``."""
    return "; ".join(part for part in (f"unknown {kind} '{name}'", suggest(name, valid)) if part)


def unknown_key(name: str, valid: Iterable[str]) -> str:
    """``unknown key; did you mean 'y'?``; the key itself stands in front."""
    return "; ".join(part for part in ("unknown key", suggest(name, valid)) if part)


def from_pydantic(model: type[BaseModel], error: ValidationError, document: object) -> list[Problem]:
    """Pydantic's findings in our words, one for each place.

    A union reports every member that did not fit, with the member's name in the path; such a path is cut back to
    what the document holds, and the first finding stands for all.
    """
    problems: dict[Key, Problem] = {}
    for details in error.errors(include_url=False, include_context=True):
        if _is_echo(details, document):
            continue
        key = _existing(details["loc"], document, missing=details["type"] == "missing")
        problems.setdefault(key, Problem(key, _words(model, details, key)))
    return without_echoes(problems.values())


def without_echoes(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once; a required key that stands there misspelt is unknown, not missing as well."""
    kept = list(dict.fromkeys(problems))
    meant = {(problem.key[:-1], problem.text) for problem in kept if problem.key}
    return [
        problem
        for problem in kept
        if problem.text != _MISSING
        or (problem.key[:-1], f"unknown key; did you mean '{problem.key[-1]}'?") not in meant
    ]


def _is_echo(details: ErrorDetails, document: object) -> bool:
    """Whether a list is called too short only because its items are invalid."""
    if details["type"] != "too_short":
        return False
    for part in details["loc"]:
        if not _holds(document, part):
            return False
        document = document[part]  # type: ignore[index]
    return isinstance(document, (list, tuple)) and len(document) >= details["ctx"]["min_length"]


def _existing(loc: Key, document: object, *, missing: bool) -> Key:
    here: Any = document
    for depth, part in enumerate(loc):
        if not _holds(here, part):
            return loc if missing and depth == len(loc) - 1 else loc[:depth]
        here = here[part]
    return loc


def _holds(value: object, part: str | int) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, (list, tuple)) and isinstance(part, int) and part < len(value)


def _words(model: type[BaseModel], details: ErrorDetails, key: Key) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        at = model_at(model, key[:-1])
        return unknown_key(str(key[-1]), at.model_fields if at else ())
    if kind in {"literal_error", "enum"}:
        return _choice(str(context.get("expected", "")), details["input"])
    words = _WORDS.get(kind)
    return words(context) if words else details["msg"].removeprefix("Value error, ")


def _choice(expected: str, given: object) -> str:
    choices = re.findall(r"'([^']*)'", expected) or [expected]
    must = f"must be one of {', '.join(choices)}"
    nearest = difflib.get_close_matches(str(given).lower(), choices, n=1, cutoff=0.6)
    return f"{must}; did you mean '{nearest[0]}'?" if nearest else must


def _says(text: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda _: text


def _pattern(context: Mapping[str, Any]) -> str:
    pattern = str(context["pattern"])
    return f"must be {PATTERN_WORDS.get(pattern, f'text that matches {pattern}')}"


_NUMBER, _INTEGER, _TEXT, _BOOL = "a number", "an integer", "a string", "true or false"
_LIST, _MAPPING = "a list", "a mapping"

_WORDS: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "missing": _says(_MISSING),
    "greater_than": lambda c: f"must be above {c['gt']:.15g}",
    "greater_than_equal": lambda c: f"must be at least {c['ge']:.15g}",
    "less_than": lambda c: f"must be below {c['lt']:.15g}",
    "less_than_equal": lambda c: f"must be at most {c['le']:.15g}",
    "finite_number": _says("must be a finite number"),
    "too_short": _says("must not be empty"),
    "string_too_short": _says("must not be empty"),
    "string_too_long": lambda c: f"must have at most {c['max_length']} characters",
    "string_pattern_mismatch": _pattern,
    "json_invalid": lambda c: f"cannot be read: {c['error']}",
    **{f"float_{end}": _says(f"must be {_NUMBER}") for end in ("type", "parsing")},
    **{f"int_{end}": _says(f"must be {_INTEGER}") for end in ("type", "parsing", "from_float", "parsing_size")},
    **{f"bool_{end}": _says(f"must be {_BOOL}") for end in ("type", "parsing")},
    **{f"string_{end}": _says(f"must be {_TEXT}") for end in ("type", "unicode")},
    **{f"{kind}_type": _says(f"must be {_LIST}") for kind in ("list", "tuple", "set")},
    **{f"{kind}_type": _says(f"must be {_MAPPING}") for kind in ("dict", "model", "model_attributes", "mapping")},
}


def model_at(model: type[BaseModel], key: Key) -> type[BaseModel] | None:
    """The model that describes what stands at ``key`` of a document of ``model``; ``None`` where none does."""
    annotation: Any = model
    for part in key:
        annotation = _step(annotation, part)
    return next(iter(models_in(annotation)), None)


def _step(annotation: Any, part: str | int) -> Any:  # noqa: ANN401 - an annotation has no narrower type
    for model in models_in(annotation) if isinstance(part, str) else ():
        if part in model.model_fields:
            return model.model_fields[part].annotation
    for inner in members(annotation):
        if isinstance(part, int) and get_origin(inner) in {list, tuple, Sequence}:
            return get_args(inner)[0]
        if isinstance(part, str) and get_origin(inner) is dict:
            return get_args(inner)[1]
    return None


def models_in(annotation: Any) -> list[type[BaseModel]]:  # noqa: ANN401 - an annotation has no narrower type
    """The models that a value of that annotation may be itself (not inside a list or a mapping)."""
    return [inner for inner in members(annotation) if isinstance(inner, type) and issubclass(inner, BaseModel)]


def members(annotation: Any) -> list[Any]:  # noqa: ANN401 - an annotation has no narrower type
    """``X | None`` as ``[X, NoneType]``, through ``Annotated``; anything else as its only member."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in {Union, types.UnionType}:
        return [inner for member in get_args(annotation) for inner in members(member)]
    return [annotation]
