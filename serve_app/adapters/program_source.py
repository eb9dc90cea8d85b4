"""Turn what a person writes under ``program:`` into a DSPy module of our own.

    "ticket -> category"            a signature: ``dspy.Predict`` over it
    "package.module:Class"          a ``dspy.Module`` class, made with no arguments, or a ``dspy.Signature`` class
    "package.module:instance"       a module-level ``dspy.Module``, copied

Every refusal is one sentence that says what was looked for, where, and what is there instead.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import dspy
from dspy.signatures import make_signature

from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_REFERENCE = re.compile(r"^(?P<module>[A-Za-z_][\w.]*):(?P<name>[A-Za-z_][\w.]*)$")


def load_module(source: str) -> dspy.Module:
    """A fresh module for ``source``; two calls never share state.

    Raises:
        ConfigError: one line that says what is wrong.
    """
    if is_signature(source):
        return dspy.Predict(parse_signature(source))
    found = _REFERENCE.match(source.strip())
    if found is None:
        raise ConfigError([f"{source!r} is neither 'module:Class' nor a signature like 'ticket -> category'"])
    return _as_module(_find(found["module"], found["name"], _served_names), source)


def load_function(source: str) -> Callable[..., Any]:
    """What ``module:function`` names.

    Raises:
        ConfigError: one line that says what is wrong.
    """
    found = _REFERENCE.match(source.strip())
    if found is None:
        raise ConfigError([f"{source!r} is not 'module:function'"])
    function = _find(found["module"], found["name"], _public_functions)
    if not callable(function):
        raise ConfigError([f"{source!r} is a {type(function).__name__}, not a function"])
    return function


def is_signature(source: str) -> bool:
    """Whether ``source`` is a signature string rather than the name of a class."""
    return "->" in source


def parse_signature(source: str) -> type[dspy.Signature]:
    """The signature that ``source`` spells, types included.

    Names resolve in ``typing``, the builtins and importable modules (``dspy.Image``), never in whoever calls.

    Raises:
        ConfigError: it does not parse, or a side is empty.
    """
    try:
        signature: type[dspy.Signature] = make_signature(source, custom_types={})
    except (SyntaxError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError([f"signature {source!r} does not parse: {_one_line(error)}"]) from error
    for side, fields in (("inputs", signature.input_fields), ("outputs", signature.output_fields)):
        if not fields:
            raise ConfigError([f"signature {source!r} has no {side}"])
    return signature


def untyped_fields(source: str) -> frozenset[str]:
    """Fields of a signature string that carry no type of their own (DSPy takes them as ``str``)."""
    names: set[str] = set()
    for side in source.split("->"):
        definition = ast.parse(f"def f({side}): pass").body[0]
        if isinstance(definition, ast.FunctionDef):
            names.update(argument.arg for argument in definition.args.args if argument.annotation is None)
    return frozenset(names)


def nearest(name: str, candidates: Iterable[str]) -> str:
    """A hint such as ``; did you mean 'Triage'?``, or what there is when nothing is near."""
    known = sorted(set(candidates))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or [
        candidate for candidate in known if candidate.lower() == name.lower()
    ]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(repr(candidate) for candidate in known[:8])}" if known else ""


def _find(module_name: str, name: str, names: Callable[[object], list[str]]) -> object:
    found: object = _import(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError([f"{module_name!r} has no {name!r}{nearest(name, names(found))}"])
        found = getattr(found, part)
    return found


def _import(module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError([_missing(module_name, error)]) from error
    except (Exception, SystemExit) as error:  # whatever a person's module does at import is theirs to read
        raise ConfigError([f"importing {module_name!r} raised {_one_line(error)}{_where(error)}"]) from error


def _missing(module_name: str, error: ModuleNotFoundError) -> str:
    absent = error.name or ""
    if module_name == absent or module_name.startswith(f"{absent}."):
        here = str(Path.cwd())
        is_searched = here in sys.path or "" in sys.path
        return f"no module {absent!r} on the Python path, which {'includes' if is_searched else 'lacks'} {here}"
    return f"{module_name!r} imports {absent!r}, which is not installed{_where(error)}"


def _as_module(found: object, source: str) -> dspy.Module:
    if isinstance(found, type) and issubclass(found, dspy.Signature):
        return dspy.Predict(found)
    if isinstance(found, type) and issubclass(found, dspy.Module):
        return _construct(found, source)
    if isinstance(found, dspy.Module):
        copy: dspy.Module = found.deepcopy()
        return copy
    kind = "a function" if inspect.isroutine(found) else f"a {type(found).__name__}"
    if isinstance(found, type):
        kind = "a class, but not a dspy.Module or dspy.Signature"
    raise ConfigError([f"{source!r} is {kind}; a dspy.Module class, a signature class or a module instance is served"])


def _construct(cls: type[dspy.Module], source: str) -> dspy.Module:
    try:
        return cls()
    except (Exception, SystemExit) as error:  # a person's constructor may raise anything
        raise ConfigError(
            [f"{source!r} cannot be made with no arguments: {_one_line(error)}{_where(error)}"]
        ) from error


def _served_names(found: object) -> list[str]:
    """Public names of a module that could be served; all public names when none could."""
    public: dict[str, Any] = {name: value for name, value in vars(found).items() if not name.startswith("_")}
    served = [name for name, value in public.items() if _is_servable(value) and not _is_dspys_own(value)]
    return served or list(public)


def _public_functions(found: object) -> list[str]:
    """Public names of a module that are functions of its own or imported ones, no classes."""
    public = {name: value for name, value in vars(found).items() if not name.startswith("_")}
    return [name for name, value in public.items() if inspect.isroutine(value)]


def _is_servable(value: object) -> bool:
    return isinstance(value, dspy.Module) or (
        isinstance(value, type) and issubclass(value, (dspy.Module, dspy.Signature))
    )


def _is_dspys_own(value: object) -> bool:
    return isinstance(value, type) and value.__module__.partition(".")[0] == "dspy"


def _where(error: BaseException) -> str:
    """`` (file:line)`` of the innermost frame, when it is a file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _one_line(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
