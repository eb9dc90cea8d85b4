"""What a program becomes at each level of service: fewer characters, fewer inputs, or a simpler program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import dspy

from serve_app.adapters.program_interface import Interface, interface_of
from serve_app.adapters.program_runner import ProgramThreads, Runner
from serve_app.adapters.program_schema import FieldDefinition, inputs_model, optional, outputs_model
from serve_app.adapters.program_source import is_signature, load_module, nearest, parse_signature, untyped_fields
from serve_app.adapters.wire_types import Annotation
from serve_app.core.trimming import trim_to_words
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from serve_app.config import LevelConfig

_EMPTY: dict[Any, Callable[[], Any]] = {
    str: str,
    list: list,
    dict: dict,
    set: set,
    frozenset: frozenset,
    tuple: tuple,
    dspy.History: lambda: dspy.History(messages=[]),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """A program, or the simpler one of a level, with its types.

    Attributes:
        module: what runs.
        interface: its fields.
        runner: how it runs.
        inputs: model of its inputs.
        outputs: model of its answer.
    """

    module: dspy.Module
    interface: Interface
    runner: Runner
    inputs: type[BaseModel]
    outputs: type[BaseModel]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a call is answered at one level.

    Attributes:
        variant: the program that answers.
        blanks: inputs sent empty, with what makes the empty value.
        limits: most characters by input.
    """

    variant: Variant
    blanks: tuple[tuple[str, Callable[[], Any]], ...] = ()
    limits: tuple[tuple[str, int], ...] = ()

    def apply(self, values: dict[str, Any]) -> dict[str, Any]:
        """Blank and shorten ``values`` in place; the same dictionary is returned."""
        for name, empty in self.blanks:
            values[name] = empty()
        for name, max_chars in self.limits:
            if isinstance(values[name], str):
                values[name] = trim_to_words(values[name], max_chars)
        return values


def variant_of(name: str, module: dspy.Module, threads: ProgramThreads) -> Variant:
    """``module`` with its types worked out.

    Raises:
        ConfigError: its inputs or outputs cannot be told or have no JSON form.
    """
    runner = Runner(module, threads)
    interface = interface_of(module)
    return Variant(
        module, interface, runner, inputs_model(name, interface.inputs), outputs_model(name, interface.outputs)
    )


def shape_of(name: str, level: LevelConfig, full: Variant, threads: ProgramThreads) -> tuple[Shape | None, list[str]]:
    """The shape of ``level`` and what is wrong with it, each problem led by its key; no shape when there is any."""
    problems = [*_drop_problems(level, full), *_limit_problems(level, full)]
    variant = full
    if level.program is not None:
        try:
            variant = _simpler(name, level.program, full, threads)
        except ConfigError as error:
            problems += [f"program: {problem}" for problem in error.problems]
    if problems:
        return None, problems
    fields = variant.interface.inputs
    blanks = tuple((field, _empty(fields[field][0])) for field in level.drop_inputs if field in fields)
    dropped = set(level.drop_inputs)
    limits = tuple((f, most) for f, most in level.max_input_chars.items() if f in fields and f not in dropped)
    return Shape(variant, blanks, limits), []


def outputs_of_any(name: str, full: Variant, variants: Iterable[Variant]) -> type[BaseModel]:
    """Model of an answer at whatever level: an output that the simpler program of one lacks may be missing."""
    everywhere = set(full.interface.outputs).intersection(*(variant.interface.outputs for variant in variants))
    fields = full.interface.outputs
    if everywhere >= fields.keys():
        return full.outputs
    return outputs_model(name, {key: each if key in everywhere else optional(each) for key, each in fields.items()})


def _simpler(name: str, source: str, full: Variant, threads: ProgramThreads) -> Variant:
    module = _inherit_types(source, full.interface) if is_signature(source) else load_module(source)
    interface = interface_of(module)
    problems = [
        f"{source!r} needs input {field!r}, which {name!r} has not{nearest(field, full.interface.inputs)}"
        for field in interface.inputs
        if field not in full.interface.inputs
    ]
    problems += [
        f"{source!r} gives output {field!r}, which {name!r} has not{nearest(field, full.interface.outputs)}"
        for field in interface.outputs
        if field not in full.interface.outputs
    ]
    if problems:
        raise ConfigError(problems)
    # Whatever answers, the caller was promised the full program's types.
    promised = {field: full.interface.outputs[field] for field in interface.outputs}
    return Variant(
        module,
        interface,
        Runner(module, threads),
        inputs_model(name, interface.inputs),
        outputs_model(name, promised),
    )


def _inherit_types(source: str, full: Interface) -> dspy.Module:
    """``Predict`` over a signature string whose untyped fields take the full program's types.

    So ``ticket -> category`` still tells the model which categories there are.
    """
    signature = parse_signature(source)
    known = {**full.inputs, **full.outputs}
    for field in untyped_fields(source):
        if field in known:
            annotation, info = known[field]
            extras = {"desc": info.description} if info.description else {}
            signature = signature.with_updated_fields(field, type_=_bare(annotation), **extras)
    return dspy.Predict(signature)


def _drop_problems(level: LevelConfig, full: Variant) -> list[str]:
    known = full.interface.inputs
    return [f"drop_inputs: there is no input {f!r}{nearest(f, known)}" for f in level.drop_inputs if f not in known]


def _limit_problems(level: LevelConfig, full: Variant) -> list[str]:
    known = full.interface.inputs
    problems = [
        f"max_input_chars: there is no input {field!r}{nearest(field, known)}"
        for field in level.max_input_chars
        if field not in known
    ]
    return problems + [
        f"max_input_chars: input {field!r} is not text"
        for field in level.max_input_chars
        if field in known and not _may_be_text(known[field])
    ]


def _may_be_text(field: FieldDefinition) -> bool:
    annotation = _bare(field[0])
    return annotation in (str, Any) or str in get_args(annotation)


def _empty(annotation: Annotation) -> Callable[[], Any]:
    bare = _bare(annotation)
    return _EMPTY.get(get_origin(bare) or bare, _nothing)


def _nothing() -> None:
    return None


def _bare(annotation: Annotation) -> Annotation:
    origin: Any = get_origin(annotation)
    return get_args(annotation)[0] if origin is Annotated else annotation
