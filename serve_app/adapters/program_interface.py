"""Work out what a DSPy module takes and gives.

Inputs, first that applies:
    1. a ``signature`` attribute of the module or its class: the program's own interface (``Predict`` and ``ReAct``
       have one; a person may declare one)
    2. the named parameters of ``aforward``, or of ``forward`` where that is what runs; a parameter without a type
       hint takes the type of a predictor's input of that name, else ``Any``
    3. for ``forward(**kwargs)``: the inputs of the one module inside it

Outputs, first that applies:
    1. the same ``signature`` attribute
    2. the return annotation, when it is a pydantic model, a ``TypedDict``, a ``NamedTuple``, a dataclass or a
       ``dspy.Prediction`` subclass with annotations
    3. for DSPy's own modules: the outputs of the module inside
    4. the outputs of the last predictor, each optional: a guess, because ``forward`` may return something else

A field of a signature without a type is ``str``, as DSPy has it.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel, Field

from serve_app.adapters.program_schema import FieldDefinition, definition, optional
from serve_app.adapters.wire_types import is_typed_dict
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo


@dataclass(frozen=True, slots=True)
class Interface:
    """What a program takes and gives.

    Attributes:
        inputs: field definitions by name.
        outputs: field definitions by name.
        is_declared: false when the outputs are a guess; every one of them is then optional.
    """

    inputs: dict[str, FieldDefinition]
    outputs: dict[str, FieldDefinition]
    is_declared: bool = True


def interface_of(module: dspy.Module) -> Interface:
    """The interface of ``module``.

    Raises:
        ConfigError: it cannot be told, and how to declare it.
    """
    signature = _own_signature(module)
    if signature is not None:
        return Interface(_definitions(signature.input_fields), _definitions(signature.output_fields))
    entry = entry_point(module)
    inputs = _parameters(entry, module)
    inner = _inner_interface(module) if _is_dspys(entry) or (not inputs and _takes_anything(entry)) else None
    if inner is not None:
        inputs = inputs or inner.inputs
    outputs = _returned(entry)
    if not outputs and inner is not None and _is_dspys(entry):
        outputs = inner.outputs
    return Interface(inputs, outputs) if outputs else Interface(inputs, _guessed_outputs(module), is_declared=False)


def runs_async(module: dspy.Module) -> bool:
    """Whether ``acall`` runs what the person wrote.

    A class that overrides only ``forward`` over a base with ``aforward`` (``class Mine(dspy.ChainOfThought)``) is
    sync: its ``aforward`` would go around the person's code.
    """
    ancestors = type(module).__mro__
    where = {name: _definer(ancestors, name) for name in ("forward", "aforward")}
    return where["aforward"] <= where["forward"] and where["aforward"] < len(ancestors)


def entry_point(module: dspy.Module) -> Callable[..., Any]:
    """The function that a call ends in: ``aforward`` or ``forward``.

    Raises:
        ConfigError: there is neither, or ``forward`` is a coroutine function.
    """
    name = "aforward" if runs_async(module) else "forward"
    function = getattr(type(module), name, None)
    class_name = type(module).__name__
    if function is None:
        raise ConfigError([f"{class_name} has no forward or aforward"])
    if name == "forward" and inspect.iscoroutinefunction(function):
        raise ConfigError([f"{class_name}.forward is a coroutine function; DSPy calls that aforward"])
    if name == "aforward" and not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise ConfigError([f"{class_name}.aforward is not a coroutine function"])
    entry: Callable[..., Any] = function
    return entry


def takes_batches(module: dspy.Module) -> bool:
    """Whether the program answers many calls at once: its class defines ``aforward_batch(inputs)``.

    Raises:
        ConfigError: ``aforward_batch`` is not a coroutine function.
    """
    function = getattr(type(module), "aforward_batch", None)
    if function is not None and not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise ConfigError([f"{type(module).__name__}.aforward_batch is not a coroutine function"])
    return function is not None


def _definer(ancestors: tuple[type, ...], name: str) -> int:
    return next((index for index, cls in enumerate(ancestors) if name in vars(cls)), len(ancestors))


def _own_signature(module: dspy.Module) -> type[dspy.Signature] | None:
    found = getattr(module, "signature", None)
    return found if isinstance(found, type) and issubclass(found, dspy.Signature) else None


def _definitions(fields: dict[str, FieldInfo]) -> dict[str, FieldDefinition]:
    return {name: definition(field) for name, field in fields.items()}


def _parameters(entry: Callable[..., Any], module: dspy.Module) -> dict[str, FieldDefinition]:
    hints = _hints(entry)
    known = {
        name: field
        for _, predictor in reversed(module.named_predictors())
        for name, field in predictor.signature.input_fields.items()
    }
    named = list(inspect.signature(entry).parameters.values())[1:]
    fields = {}
    for parameter in named:
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and not _is_plumbing(
            parameter, entry
        ):
            fields[parameter.name] = _parameter(parameter, hints, known.get(parameter.name))
    return fields


def _takes_anything(entry: Callable[..., Any]) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in inspect.signature(entry).parameters.values())


def _is_plumbing(parameter: inspect.Parameter, entry: Callable[..., Any]) -> bool:
    """Whether DSPy's own module takes it for itself, beside ``**kwargs`` (``RLM``'s interpreter)."""
    return _is_dspys(entry) and parameter.default is not parameter.empty


def _parameter(parameter: inspect.Parameter, hints: dict[str, Any], known: FieldInfo | None) -> FieldDefinition:
    hint = hints.get(parameter.name)
    default = ... if parameter.default is parameter.empty else parameter.default
    if known is None:
        return (Any if hint is None else hint), Field(default=default)
    annotation, info = definition(known) if hint is None else (hint, definition(known)[1])
    return annotation, Field(default=default, description=info.description, examples=info.examples)


def _returned(entry: Callable[..., Any]) -> dict[str, FieldDefinition]:
    """Fields of the return annotation; none when it names no fields."""
    returned = _hints(entry).get("return")
    if not isinstance(returned, type):
        return {}
    if issubclass(returned, BaseModel):
        return _definitions(returned.model_fields)
    if issubclass(returned, dspy.Prediction):
        inherited = typing.get_type_hints(dspy.Prediction)
        hints = typing.get_type_hints(returned, include_extras=True)
        return {name: (hint, Field()) for name, hint in hints.items() if name not in inherited}
    if is_typed_dict(returned) or dataclasses.is_dataclass(returned) or hasattr(returned, "_fields"):
        return {name: (hint, Field()) for name, hint in typing.get_type_hints(returned, include_extras=True).items()}
    return {}


def _hints(entry: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(entry, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigError([f"the type hints of {entry.__qualname__} do not resolve: {error}"]) from error


def _inner_interface(module: dspy.Module) -> Interface:
    """Interface of the one module that ``module`` is built around."""
    wrapped = getattr(module, "module", None)
    if isinstance(wrapped, dspy.Module):
        return interface_of(wrapped)
    predictors = module.predictors()
    children = [value for value in vars(module).values() if isinstance(value, dspy.Module)]
    if len(predictors) == 1:
        return interface_of(predictors[0])
    if len(children) == 1:
        return interface_of(children[0])
    name = type(module).__name__
    raise ConfigError(
        [f"the inputs of {name} cannot be told: name the parameters of forward, or give it a 'signature' attribute"]
    )


def _guessed_outputs(module: dspy.Module) -> dict[str, FieldDefinition]:
    predictors = module.predictors()
    if not predictors:
        name = type(module).__name__
        raise ConfigError(
            [f"the outputs of {name} cannot be told: annotate what forward returns, or give it a 'signature' attribute"]
        )
    return {name: optional(definition(field)) for name, field in predictors[-1].signature.output_fields.items()}


def _is_dspys(entry: Callable[..., Any]) -> bool:
    return entry.__module__.partition(".")[0] == "dspy"
