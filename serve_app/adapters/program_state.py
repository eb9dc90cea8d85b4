"""Put a program's saved state back, or say in one line why it does not fit.

DSPy's own loader zips fields by position and ignores what is missing or too much, so a state of another program
loads without a word. Here the state must have exactly the program's predictors, each with its number of fields, and
come from a DSPy no newer than the installed one. Only JSON is read: a pickle runs code when it is opened.
"""

from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING, Any

import dspy

from serve_app.adapters.program_source import nearest
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("switchyard.program")

_PREDICTOR_KEYS = frozenset({"traces", "train", "demos", "signature", "lm", "fields"})


def apply_state(module: dspy.Module, path: Path) -> bytes:
    """Load the JSON state at ``path`` into ``module``; the file's bytes are returned for the program's version.

    Raises:
        ConfigError: a line for each thing that does not fit; ``module`` is then untouched.
    """
    content = _read(path)
    state = _parse(content, path)
    problems = [*_version_problems(state), *_predictor_problems(state, module)]
    if problems:
        raise ConfigError([f"{path}: {problem}" for problem in problems])
    saved = {name: {**part, "lm": None} for name, part in state.items() if name != "metadata"}
    try:
        module.load_state(saved)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ConfigError([f"{path}: DSPy refuses it: {type(error).__name__}: {error}"]) from error
    return content


def clear_lms(module: dspy.Module) -> None:
    """Take every LM out of ``module``: one left inside would silently win over the routed model."""
    for name, predictor in module.named_sub_modules(type_=dspy.Predict):
        if predictor.lm is not None:
            logger.warning("program.lm_cleared", extra={"predictor": name.removeprefix("self.")})
            predictor.lm = None


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise ConfigError([f"{path} is a directory: a whole saved program is a pickle, and loading it runs code"])
    if path.suffix in {".pkl", ".pickle"}:
        raise ConfigError([f"{path} is a pickle, and loading it runs code; save it with program.save('state.json')"])
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError([f"there is no file {path}"]) from error
    except OSError as error:
        raise ConfigError([f"{path} cannot be read: {error.strerror}"]) from error


def _parse(content: bytes, path: Path) -> dict[str, Any]:
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{path} is not JSON: {error}"]) from error
    if not isinstance(state, dict):
        raise ConfigError([f"{path} is JSON, but not a state saved by program.save"])
    return state


def _version_problems(state: dict[str, Any]) -> list[str]:
    metadata = state.get("metadata")
    versions = metadata.get("dependency_versions") if isinstance(metadata, dict) else None
    saved = versions.get("dspy") if isinstance(versions, dict) else None
    found = _major_minor(saved) if isinstance(saved, str) else None
    if found is None:
        return ["metadata.dependency_versions.dspy is missing; was it saved by program.save?"]
    installed = _major_minor(dspy.__version__)
    if installed is not None and found > installed:
        return [f"saved with DSPy {saved}, newer than the installed {dspy.__version__}"]
    return []


def _major_minor(version: str) -> tuple[int, int] | None:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else None


def _predictor_problems(state: dict[str, Any], module: dspy.Module) -> list[str]:
    predictors = dict(module.named_predictors())
    saved = {name: part for name, part in state.items() if name != "metadata"}
    problems = [
        f"has no predictor {name!r} of the program{nearest(name, saved)}" for name in predictors if name not in saved
    ]
    problems += [
        f"has predictor {name!r}, which the program has not{nearest(name, predictors)}"
        for name in saved
        if name not in predictors
    ]
    for name, predictor in predictors.items():
        if name in saved:
            problems += [f"predictor {name!r}: {problem}" for problem in _part_problems(saved[name], predictor)]
    return problems


def _part_problems(part: object, predictor: dspy.Predict) -> list[str]:
    fields = _saved_fields(part)
    if not isinstance(part, dict) or fields is None:
        return ["is not a predictor's state (signature with instructions and fields, demos)"]
    unknown = sorted(part.keys() - _PREDICTOR_KEYS)
    if unknown:
        return [f"unknown key {unknown[0]!r}{nearest(unknown[0], _PREDICTOR_KEYS)}"]
    now = [str(field.json_schema_extra["prefix"]) for field in predictor.signature.fields.values()]
    if len(fields) != len(now):
        names = ", ".join(predictor.signature.fields)
        return [f"was saved with {len(fields)} fields, the program's signature has {len(now)} ({names})"]
    if fields != now and sorted(fields) == sorted(now):
        return [f"fields were saved in another order: {', '.join(fields)}"]
    return []


def _saved_fields(part: object) -> list[str] | None:
    """The prefixes of the saved signature; ``None`` when ``part`` has not the shape of a predictor's state."""
    signature = part.get("signature") if isinstance(part, dict) else None
    demos = part.get("demos") if isinstance(part, dict) else None
    if not isinstance(signature, dict) or not isinstance(signature.get("instructions"), str):
        return None
    fields = signature.get("fields")
    if not isinstance(fields, list) or not isinstance(demos, list) or not all(isinstance(d, dict) for d in demos):
        return None
    if not all(isinstance(field, dict) and _is_field(field) for field in fields):
        return None
    return [field["prefix"] for field in fields]


def _is_field(field: dict[str, Any]) -> bool:
    return isinstance(field.get("prefix"), str) and isinstance(field.get("description"), str)
