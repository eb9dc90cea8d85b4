"""Find the builder that an application's ``import_path`` names, or say which part of the path is wrong."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel
from ray.serve import Application

from serve_app.config import AppConfig
from serve_app.config_check import load_app_config
from serve_app.config_problem import suggest
from serve_app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Builder:
    """What an ``import_path`` leads to.

    Attributes:
        args: the model its ``args`` must fit; ``None`` when it takes anything.
        deployment_names: gives the names of its deployments for valid ``args``; ``None`` when it does not tell.
    """

    args: type[BaseModel] | None = None
    deployment_names: Callable[[Any], tuple[str, ...]] | None = None


@contextmanager
def importing_from(directory: Path) -> Iterator[None]:
    """``directory`` first on ``sys.path``, as ``serve run`` has it; the console script has its own there."""
    sys.path.insert(0, str(directory))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(directory))


def find_builder(import_path: str) -> Builder:
    """What ``module:function`` or ``module.function`` leads to.

    A builder says what it takes by its parameter's annotation, or by handing it to ``load_app_config``; it may say
    which deployments it makes by a function ``deployment_names(config)`` beside it.

    Raises:
        ConfigError: one line: which part is missing, and the nearest name that is there.
    """
    module_name, name = _split(import_path)
    module = _import(module_name)
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [known for known in vars(found) if not known.startswith("_")]
            raise ConfigError([_hinted(f"'{module_name}' has no '{name}'", suggest(name, public))])
        found = getattr(found, part)
    if isinstance(found, Application):
        return Builder()
    if not isinstance(found, FunctionType):  # which Ray refuses, but only when it deploys
        what = f"is a {type(found).__name__}, not an application or a function that builds one"
        raise ConfigError([f"'{import_path}' {what}"])
    return Builder(_args_model(found), getattr(module, "deployment_names", None))


def _split(import_path: str) -> tuple[str, str]:
    separator = ":" if ":" in import_path else "."
    module_name, _, name = import_path.rpartition(separator)
    return module_name, name


def _import(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError([_missing(module_name, error.name or "")]) from error
    except (Exception, SystemExit) as error:  # whatever a person's module does at import is theirs to read
        raise ConfigError([f"importing '{module_name}' raised {type(error).__name__}: {error}"]) from error


def _missing(module_name: str, absent: str) -> str:
    if module_name != absent and not module_name.startswith(f"{absent}."):
        return f"'{module_name}' imports '{absent}', which is not installed"
    parent, _, last = absent.rpartition(".")
    return _hinted(f"no module '{absent}'", suggest(last, _siblings(parent)))


def _hinted(text: str, hint: str) -> str:
    return f"{text}; {hint}" if hint else text


def _siblings(parent: str) -> list[str]:
    """Names of the modules beside the missing one: in its package, or in the first directory of ``sys.path``."""
    path = sys.modules[parent].__path__ if parent in sys.modules else sys.path[:1]
    return [module.name for module in pkgutil.iter_modules(path)]


def _args_model(builder: Callable[..., Any]) -> type[BaseModel] | None:
    """The pydantic model in the annotation of the builder's one parameter; ``AppConfig`` when it loads one."""
    if load_app_config.__name__ in getattr(getattr(builder, "__code__", None), "co_names", ()):
        return AppConfig
    parameters = list(inspect.signature(builder).parameters)
    try:
        hints: Mapping[str, Any] = typing.get_type_hints(builder)
    except NameError:  # a name imported for type checkers only
        return None
    annotation = hints.get(parameters[0]) if len(parameters) == 1 else None
    for member in (annotation, *typing.get_args(annotation)):
        if isinstance(member, type) and issubclass(member, BaseModel):
            return member
    return None


def is_app(builder: Builder | None, args: object) -> bool:
    """Whether ``args`` is an ``AppConfig``: the builder says so or, when it says nothing, the keys look like it."""
    if builder is not None and builder.args is not None:
        return builder.args is AppConfig
    return isinstance(args, Mapping) and {"programs", "models"} <= set(args)
