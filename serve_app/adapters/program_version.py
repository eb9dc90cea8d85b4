"""A short name for everything that decides what a program answers.

Two processes with the same code, state and configuration agree on it, whatever ``PYTHONHASHSEED`` says; a change in
any of them gives another, so that answers cached for the old program are never served for the new one.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from typing import TYPE_CHECKING, Any

import dspy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import BaseModel

    from serve_app.config import ProgramConfig

_LENGTH = 16
_FORM = 2
"""Of written answers; another one when they are written otherwise, so that callers never see both."""


def version_of(
    config: ProgramConfig,
    modules: Iterable[dspy.Module],
    models: Iterable[type[BaseModel]],
    state: bytes,
) -> str:
    """16 hex digits of SHA-256 over code, signatures, demonstrations, state file, adapter, levels and DSPy's version.

    Args:
        config: the program's configuration; which models answer it is left out.
        modules: the program and the simpler programs of its levels.
        models: their inputs and outputs.
        state: content of the state file; empty without one.
    """
    parts = {
        "form": _FORM,
        "dspy": dspy.__version__,
        "program": config.program,
        "adapter": config.adapter,
        "levels": _levels(config),
        "modules": [_module(module) for module in modules],
        "types": [model.model_json_schema() for model in models],
        "state": hashlib.sha256(state).hexdigest(),
    }
    canonical = json.dumps(parts, sort_keys=True, default=_type_name)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:_LENGTH]


def _levels(config: ProgramConfig) -> dict[str, Any]:
    return {
        name: level.model_dump(mode="json", exclude={"models"}) if level is not None else None
        for name, level in (
            ("full", config.levels.full),
            ("degraded", config.levels.degraded),
            ("minimal", config.levels.minimal),
        )
    }


def _module(module: dspy.Module) -> dict[str, Any]:
    predictors = module.named_sub_modules(type_=dspy.Predict)
    return {
        "predictors": [[name, _predictor(predictor)] for name, predictor in predictors],
        "sources": _sources(type(part) for _, part in module.named_sub_modules(type_=dspy.Module)),
    }


def _predictor(predictor: dspy.Predict) -> dict[str, Any]:
    fields = [
        [name, inspect.formatannotation(field.annotation), [repr(limit) for limit in field.metadata]]
        for name, field in predictor.signature.fields.items()
    ]
    return {"state": predictor.dump_state(), "fields": fields, "config": predictor.config}


def _sources(classes: Iterable[type]) -> list[list[str]]:
    """Name and source of the files that define the classes, DSPy's own left out; a class without a file by name."""
    files = {cls.__module__ for cls in classes if cls.__module__.partition(".")[0] != "dspy"}
    return [[name, _source(name)] for name in sorted(files)]


def _source(module_name: str) -> str:
    try:
        return inspect.getsource(sys.modules[module_name])
    except (KeyError, OSError, TypeError):  # made in a notebook or by exec: its signatures still count
        return ""


def _type_name(value: object) -> str:
    return type(value).__qualname__
