"""From what a caller sent to a validated ``Call``: the only place where outside values are looked at."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticKnownError, PydanticSerializationError, from_json

from serve_app.adapters.dspy_program import Program
from serve_app.errors import InvalidInputs, ProgramError, UnknownModel, UnknownProgram
from serve_app.messages import Complexity, Options, Priority

log = logging.getLogger("switchyard.program")

MAX_SAID: Final = 1000
"""Characters of a path or of what is wrong there."""


class OptionsBody(BaseModel):
    """What a caller may ask for beside the inputs."""

    model_config = ConfigDict(extra="forbid", title="Options", allow_inf_nan=False)

    complexity: Complexity = Field(Complexity.AUTO, description="How hard the call is; auto estimates it.")
    budget_usd: float | None = Field(None, ge=0, description="Most the call may cost, USD.")
    deadline_s: float | None = Field(None, gt=0, description="Seconds after which the answer is worth nothing.")
    priority: Priority = Field(Priority.DEFAULT, description="Who is refused last when there is too much work.")
    model: str | None = Field(None, description="The one model to ask.")
    max_tokens: int | None = Field(None, ge=1, description="Most output tokens of each LM call.")

    @field_validator("budget_usd", "deadline_s", "max_tokens", mode="before")
    @classmethod
    def _is_no_boolean(cls, value: object) -> object:
        if isinstance(value, bool):  # which Python counts among the numbers
            raise PydanticKnownError("float_type")
        return value


_DEFAULT_OPTIONS = Options()

B = TypeVar("B", bound=BaseModel)


def read_object(kind: type[B], raw: bytes) -> B:
    """A request's body as ``kind``, strictly.

    Raises:
        InvalidInputs: names every member that does not fit.
    """
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        raise InvalidInputs(_sentences("body", error)) from error


class RequestReader:
    """Validates calls against the programs' own types.

    Args:
        programs: by name.
        models: names of the configured models.
        max_deadline_s: most seconds a call may ask for.
    """

    def __init__(self, programs: Mapping[str, Program], models: Iterable[str], max_deadline_s: float) -> None:
        self._programs = programs
        self._models = frozenset(models)
        self._max_deadline_s = max_deadline_s

    def program(self, name: str) -> Program:
        """The program of that name.

        Raises:
            UnknownProgram: there is none; the detail names the nearest.
        """
        program = self._programs.get(name)
        if program is None:
            raise UnknownProgram(f"no program is called {_shown(name)}{_nearest(name, self._programs)}")
        return program

    def model(self, name: str) -> str:
        """The name of a model that is configured.

        Raises:
            UnknownModel: it is not; the detail names the nearest.
        """
        if name not in self._models:
            raise UnknownModel(f"no model is called {_shown(name)}{_nearest(name, self._models)}")
        return name

    def body(self, raw: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """``inputs`` and ``options`` of a request body.

        Raises:
            InvalidInputs: not JSON, or not an object with these two keys.
        """
        try:
            body = from_json(raw, allow_inf_nan=False)
        except ValueError as error:
            raise InvalidInputs(f"the body is not valid JSON: {error}") from error
        if not isinstance(body, dict):
            raise InvalidInputs('the body must be an object: {"inputs": {…}, "options": {…}}')
        if unknown := body.keys() - {"inputs", "options"}:
            name = min(unknown)
            raise InvalidInputs(f"unknown key {_shown(name)} beside inputs and options")
        if "inputs" not in body:
            raise InvalidInputs('the body lacks "inputs"')
        inputs, options = body["inputs"], body.get("options")
        options = {} if options is None else options
        for name, value in (("inputs", inputs), ("options", options)):
            if not isinstance(value, dict):
                raise InvalidInputs(f"{name} must be an object")
        return inputs, options

    def inputs(self, program: Program, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs in JSON form, defaults filled in.

        Raises:
            InvalidInputs: names every field that does not fit.
            ProgramError: a validator of the program's types raised something else; logged, not told.
        """
        try:
            given = dict(inputs)
        except (ValueError, TypeError) as error:
            raise InvalidInputs("inputs must be an object") from error
        try:
            model = program.inputs.model_validate(given)
            dumped: dict[str, Any] = model.model_dump(mode="json", round_trip=True, by_alias=False)
        except ValidationError as error:
            raise InvalidInputs(_sentences("inputs", error)) from error
        except (PydanticSerializationError, UnicodeError, RecursionError) as error:
            raise InvalidInputs(f"inputs cannot be written as JSON: {error}") from error
        except Exception as error:
            log.exception("program.raised", extra={"program": program.name})
            raise ProgramError("the program's own check of its inputs raised an error") from error
        return dumped

    def options(self, options: Mapping[str, Any]) -> Options:
        """The options.

        Raises:
            InvalidInputs: names the option that does not fit.
        """
        if not options:
            return _DEFAULT_OPTIONS
        try:
            body = OptionsBody.model_validate(dict(options))
        except ValidationError as error:
            raise InvalidInputs(_sentences("options", error)) from error
        except (ValueError, TypeError) as error:
            raise InvalidInputs("options must be an object") from error
        if body.model is not None and body.model not in self._models:
            raise InvalidInputs(
                f"options.model: no model is called {_shown(body.model)}{_nearest(body.model, self._models)}"
            )
        if body.deadline_s is not None and body.deadline_s > self._max_deadline_s:
            raise InvalidInputs(f"options.deadline_s: must be at most {self._max_deadline_s:g}")
        return Options(body.complexity, body.budget_usd, body.deadline_s, body.priority, body.model, body.max_tokens)


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 100 else name[:100] + "…")  # noqa: PLR2004 - an excerpt


def _clipped(text: str) -> str:
    """Enough of it for a list of all that is allowed; a caller's name or value may be as long as the body."""
    return text if len(text) <= MAX_SAID else text[:MAX_SAID] + "…"


def _nearest(name: str, names: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name[:100], list(names), 1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _sentences(prefix: str, error: ValidationError) -> str:
    """One short clause an error, without the value that was sent unless the program's own validator quotes it."""
    clauses = []
    for item in error.errors(include_input=False, include_url=False, include_context=False):
        path = ".".join(str(part) for part in (prefix, *item["loc"]))
        clauses.append(f"{_clipped(path)}: {_clipped(item['msg'][:1].lower() + item['msg'][1:])}")
    shown = clauses[:20]
    if len(clauses) > len(shown):
        shown.append(f"and {len(clauses) - len(shown)} more")
    return "; ".join(shown).encode("utf-8", "backslashreplace").decode()
