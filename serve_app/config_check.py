"""Whether a configuration can be served, and in which words it is refused.

``switchyard check`` reads the whole file; a graph's ``build()`` sees only its own ``args``. Both go through
``parse_section`` and ``check_app``, so a mistake reads the same in both, with file and line where there is a file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from serve_app.adapters.operator_key import read_operator_key
from serve_app.config import AppConfig, LevelConfig, ProgramConfig, Section
from serve_app.config_lines import read_document
from serve_app.config_problem import Key, Problem, from_pydantic, unknown
from serve_app.errors import ConfigError
from serve_app.policy import Policy

S = TypeVar("S", bound=Section)

SLOW_S: Final = 5.0
"""Seconds of loading a program after which its name is told."""

_TELLING_NAME: Final = re.compile(r"^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$")
"""A variable's name that is surely no key that someone pasted in its place, and so may be shown."""


def parse_section(model: type[S], value: object) -> S:
    """``value`` as ``model``, strictly: ``"64"`` and ``yes`` are not numbers.

    Raises:
        Invalid: with a problem for each mistake.
    """
    if isinstance(value, model):
        return value
    try:
        document = _with_text_keys(value)
        return model.model_validate_json(json.dumps(document, default=_plain), strict=True)
    except ValidationError as error:
        raise Invalid(from_pydantic(model, error, document)) from None
    except RecursionError:
        raise Invalid([Problem((), "nested too deeply")]) from None


def _with_text_keys(value: object) -> object:
    """``value`` with every key as text: YAML reads ``on``, ``2024-01-01`` and ``~`` as something else."""
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(inner) for key, inner in value.items()}
    return [_with_text_keys(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


class Invalid(Exception):
    """A section that is not valid by itself."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__(problems)
        self.problems = problems


def load_app_config(args: Mapping[str, Any] | AppConfig) -> AppConfig:
    """An application's ``args``, checked as ``switchyard check`` does; for a graph's ``build()``.

    Paths and imports are relative to the working directory, as Ray has it.

    Raises:
        BuildRefused: a ``ConfigError`` whose words Ray passes on; keys begin with ``args``.
    """
    try:
        config = parse_section(AppConfig, args)
        problems = list(check_app(config))
    except Invalid as error:
        config, problems = None, error.problems
    if config is None or problems:
        from serve_app.build_refused import BuildRefused  # noqa: PLC0415 - Ray is imported only to tell Ray

        raise BuildRefused([str(problem.under(("args",))) for problem in problems])
    return config


def load_policy(user_config: Mapping[str, Any] | None) -> Policy:
    """``user_config`` of ``ControlPlane``, in the same words.

    Raises:
        ConfigError: keys begin with ``user_config``.
    """
    try:
        return parse_section(Policy, user_config or {})
    except Invalid as error:
        raise ConfigError([str(problem.under(("user_config",))) for problem in error.problems]) from None


def check_app(
    config: AppConfig, base_dir: Path | None = None, environment: Mapping[str, str] | None = None
) -> tuple[Problem, ...]:
    """What types alone cannot tell: names that lead nowhere, programs that do not load, keys that are not set.

    Args:
        config: valid by itself.
        base_dir: what paths are relative to; the working directory unless given.
        environment: where ``api_key_env`` is looked up; ``os.environ`` unless given.
    """
    variables = os.environ if environment is None else environment
    return (
        *_twice(("models",), [model.name for model in config.models]),
        *_twice(("programs",), [program.name for program in config.programs]),
        *_unknown_models(config),
        *_unset_keys(config, variables),
        *_programs(config, base_dir or Path.cwd()),
        *_unknown_providers(config),  # last, as programs may register providers of their own
    )


def _twice(key: Key, names: list[str]) -> Iterator[Problem]:
    for position, name in enumerate(names):
        first = names.index(name)
        if first < position:
            at = "".join(f"[{part}]" if isinstance(part, int) else part for part in (*key, first))
            yield Problem((*key, position, "name"), f"'{name}' is taken by {at}")


def _unknown_models(config: AppConfig) -> Iterator[Problem]:
    known = [model.name for model in config.models]
    if config.default_model not in known:
        yield Problem(("default_model",), unknown("model", config.default_model, known))
    for key, level in _levels(config):
        for position, name in enumerate(level.models):
            if name not in known:
                yield Problem((*key, "models", position), unknown("model", name, known))
            elif name in level.models[:position]:
                yield Problem((*key, "models", position), f"model '{name}' is listed twice")


def _levels(config: AppConfig) -> Iterator[tuple[Key, LevelConfig]]:
    for position, program in enumerate(config.programs):
        for name in ("full", "degraded", "minimal"):
            level: LevelConfig | None = getattr(program.levels, name)
            if level is not None:
                yield ("programs", position, "levels", name), level


def _unset_keys(config: AppConfig, variables: Mapping[str, str]) -> Iterator[Problem]:
    for position, model in enumerate(config.models):
        name = model.api_key_env
        if name is not None and not str(variables.get(name) or "").strip():
            shown = f"environment variable {name}" if _TELLING_NAME.match(name) else "the environment variable it names"
            yield Problem(("models", position, "api_key_env"), f"{shown} is not set")


def _programs(config: AppConfig, base_dir: Path) -> Iterator[Problem]:
    for position, program in enumerate(config.programs):
        texts: dict[Key, list[str]] = {}
        for line in _load_problems(program, base_dir):
            where, _, text = line.removeprefix(f"programs.{program.name}.").partition(": ")
            key = (int(part) if part.isdecimal() else part for part in where.split("."))
            texts.setdefault(("programs", position, *key), []).append(text)
        yield from (Problem(key, "; ".join(found)) for key, found in texts.items())


def _load_problems(program: ProgramConfig, base_dir: Path) -> tuple[str, ...]:
    """``programs.<name>.<key>: <what is wrong>`` for each thing that keeps the program from loading."""
    from serve_app.adapters.dspy_program import load_program  # noqa: PLC0415 - DSPy is slow to import

    with _told_when_slow(f"Still loading program '{program.name}' ({program.program}) …"):
        try:
            load_program(program, base_dir).close()
        except ConfigError as error:
            return error.problems
    return ()


@contextmanager
def _told_when_slow(text: str) -> Iterator[None]:
    """Say ``text`` on standard error once what is done meanwhile takes ``SLOW_S``: a person's code may never end."""
    timer = threading.Timer(SLOW_S, lambda: sys.stderr.write(f"{text}\n"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unknown_providers(config: AppConfig) -> Iterator[Problem]:
    from serve_app.adapters.litellm_upstream import litellm_providers  # noqa: PLC0415 - DSPy is slow to import
    from serve_app.adapters.lm_upstream import knows_provider  # noqa: PLC0415 - same

    for position, model in enumerate(config.models):
        if not knows_provider(model):
            provider = model.lm.partition("/")[0]
            yield Problem(("models", position, "lm"), unknown("provider", provider, litellm_providers()))


def _operator_key(variables: Mapping[str, str]) -> Iterator[Problem]:
    try:
        read_operator_key(variables)
    except ConfigError as error:
        yield from (Problem((), text) for text in error.problems)


def check_file(path: Path) -> tuple[Problem, ...]:
    """Every mistake of a ``serve_config.yaml``, Ray's own levels included, in the order of its lines."""
    document = read_document(path)
    if document.problems:
        return document.problems
    from serve_app.config_apps import check_applications  # noqa: PLC0415 - Ray is slow to import
    from serve_app.config_serve import check_serve  # noqa: PLC0415 - Ray is slow to import

    found = [*check_serve(document.value), *check_applications(document.value), *_operator_key(os.environ)]
    located = [document.locate(problem) for problem in found]
    return tuple(sorted(located, key=lambda problem: problem.line))
