"""Load a person's DSPy program once, and run it under a ``Call`` many times at once.

Everything a call needs is worked out when the program is loaded: its types, its adapter, its form at each level of
service. A run then validates, enters its own ``dspy.context`` (never ``dspy.configure``: that is the whole
process'), calls the module and checks the answer against the promised types. What goes wrong leaves as one of
``serve_app.errors``; nothing of DSPy does.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import dspy
from pydantic import BaseModel, ValidationError

from serve_app.adapters import prompt_memo
from serve_app.adapters.call_record import COMMENT
from serve_app.adapters.call_scope import current_journal, current_scope
from serve_app.adapters.program_answer import Answer, NoOutputs, misfits, read_answer
from serve_app.adapters.program_errors import translate, unparsed_reply
from serve_app.adapters.program_levels import Shape, Variant, outputs_of_any, shape_of, variant_of
from serve_app.adapters.program_runner import ProgramThreads, out_of_time
from serve_app.adapters.program_schema import describe_errors, may_say
from serve_app.adapters.program_source import load_module, nearest
from serve_app.adapters.program_state import apply_state, clear_lms
from serve_app.adapters.program_tools import journal_tools
from serve_app.adapters.program_version import version_of
from serve_app.adapters.reward_function import RewardFunction
from serve_app.errors import BadOutput, ConfigError, InvalidInputs, Overloaded, ProgramError, SwitchyardError
from serve_app.messages import Level, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from serve_app.config import ProgramConfig
    from serve_app.messages import Call

__all__ = ["Answer", "Program", "load_program"]

logger = logging.getLogger("switchyard.program")

MAX_CALLS = 64
"""Most calls of one program at once where nobody says how many."""


class Program:
    """One configured program, loaded.

    Attributes:
        config: what the person wrote.
        name: its name in URLs and metrics.
        description: one sentence for people.
        version: changes whenever its answers may; part of every cache key.
        inputs: model that validates a call's inputs; unknown fields are errors.
        outputs: model of the answer at whatever level; fields that a simpler program of one lacks are optional.
        reward: scores its answers; ``None`` when nobody does.
    """

    def __init__(
        self,
        config: ProgramConfig,
        shapes: dict[Level, Shape],
        version: str,
        threads: ProgramThreads,
        reward: RewardFunction | None = None,
    ) -> None:
        """Hold what ``load_program`` worked out."""
        full = shapes[Level.FULL].variant
        self.config = config
        self.name = config.name
        self.description = config.description or _docstring(full.module)
        self.version = version
        self.inputs = full.inputs
        self.outputs = outputs_of_any(config.name, full, [shape.variant for shape in shapes.values()])
        self.reward = reward
        self._shapes = shapes
        self._adapter = _adapter(config.adapter)
        self._threads = threads
        self._is_held = False

    @property
    def stuck_threads(self) -> int:
        """Threads that still run a sync call that was given up."""
        return self._threads.stuck

    async def run(self, call: Call, lm: dspy.LM) -> Answer:
        """Answer ``call`` at its level with ``lm``, in what is left of the current ``call_scope``.

        Raises:
            InvalidInputs: the inputs do not fit the program of this level.
            UpstreamError: the model failed, its share of the deadline is used up (outcome ``timeout``), or there was
                none left to start with (outcome ``rejected``).
            Overloaded: a sync program whose threads are all held.
            UpstreamRefused: the provider refuses this very request.
            BadOutput: the reply does not fit the program's outputs.
            ProgramError: the person's own code raised; logged here, not told to the caller.
        """
        scope = current_scope()
        remaining_s = scope.remaining_s() if scope is not None else call.remaining_s
        if remaining_s <= 0:
            raise out_of_time(Outcome.REJECTED)
        shape = self._shapes[call.level]
        inputs = self._inputs(shape, call)
        with self._running(call, lm):
            prediction = await shape.variant.runner.run(inputs, remaining_s)
        self._is_held = False
        return self._answer(shape.variant, prediction, call)

    def python_inputs(self, call: Call) -> dict[str, Any]:
        """The call's inputs as the Python values that the full program takes."""
        return _python_values(self.inputs, call.inputs)

    def takes_batches(self, level: Level) -> bool:
        """Whether the program of this level answers many calls at once (``aforward_batch``)."""
        return self._shapes[level].variant.runner.takes_batches

    async def run_batch(self, calls: Sequence[Call], lm: dspy.LM) -> list[Answer | SwitchyardError]:
        """Answer calls of one level together, in what is left of the current ``call_scope``; one outcome a call.

        Raises:
            SwitchyardError: as ``run``, when the program failed as a whole.
        """
        shape = self._shapes[calls[0].level]
        outcomes: dict[str, Answer | SwitchyardError] = {}
        inputs: dict[str, dict[str, Any]] = {}
        for call in calls:
            try:
                inputs[call.id] = self._inputs(shape, call)
            except SwitchyardError as error:
                outcomes[call.id] = error
        asked = [call for call in calls if call.id in inputs]
        for call, prediction in zip(asked, await self._predictions(shape, asked, inputs, lm), strict=True):
            outcomes[call.id] = self._outcome(shape.variant, prediction, call)
        return [outcomes[call.id] for call in calls]

    def _inputs(self, shape: Shape, call: Call) -> dict[str, Any]:
        try:
            return shape.apply(_python_values(shape.variant.inputs, call.inputs))
        except Exception as error:  # noqa: BLE001 - validators of a person's own may raise anything
            self._fail(error, call)

    async def _predictions(
        self, shape: Shape, calls: Sequence[Call], inputs: Mapping[str, dict[str, Any]], lm: dspy.LM
    ) -> Sequence[object]:
        if not calls:
            return ()
        scope = current_scope()
        remaining_s = scope.remaining_s() if scope is not None else calls[0].remaining_s
        with self._running(calls[0], lm):
            predictions = await shape.variant.runner.run_batch(list(inputs.values()), remaining_s)
        if not isinstance(predictions, (list, tuple)) or len(predictions) != len(calls):
            logger.error("program.batch_misfit", extra={"program": self.name, "calls": len(calls)})
            raise ProgramError("the program's batch has another length than its inputs")
        return predictions

    def _outcome(self, variant: Variant, prediction: object, call: Call) -> Answer | SwitchyardError:
        """One item of a batch: an answer, or what its own exception comes to."""
        try:
            if isinstance(prediction, Exception):
                self._fail(prediction, call)
            return self._answer(variant, prediction, call)
        except SwitchyardError as error:
            return error

    def close(self) -> None:
        """Give the threads back."""
        self._threads.close()

    @contextmanager
    def _running(self, call: Call, lm: dspy.LM) -> Iterator[None]:
        """DSPy's settings for one run; whatever the program raises leaves as one of ``serve_app.errors``."""
        try:
            with dspy.context(
                lm=lm,
                adapter=self._adapter,
                trace=[],
                disable_history=True,
                max_history_size=0,
                track_usage=False,
                warn_on_type_mismatch=False,  # the warning quotes the value
            ):
                yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self._fail(error, call)  # the program cancelled something of its own and let it escape
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - a person's code may raise anything,
            self._fail(error, call)  # and none of it may cross or end the replica

    def _fail(self, error: BaseException, call: Call) -> NoReturn:
        translated = translate(error)
        if isinstance(translated, ProgramError):
            self._log(error, call)
        if isinstance(translated, BadOutput):
            _blame(reply=unparsed_reply(error))
        if isinstance(translated, Overloaded):
            self._note_held()
        if translated is error:
            raise error
        raise translated from None  # DSPy's errors quote prompts, and do not pickle

    def _answer(self, variant: Variant, prediction: object, call: Call) -> Answer:
        try:
            return read_answer(
                prediction,
                variant.outputs,
                is_declared=variant.interface.is_declared,
                confidence_field=self.config.confidence_field,
            )
        except BadOutput as error:
            _blame(values=misfits(error))
            raise
        except NoOutputs as error:
            self._log(error, call)
            raise ProgramError("the program returned none of its outputs, or no JSON") from None
        except Exception as error:  # noqa: BLE001 - validators of a person's own may raise anything
            self._fail(error, call)

    def _note_held(self) -> None:
        """Log that calls which do not end hold every thread, once until a call is answered again."""
        if not self._is_held:
            logger.warning("program.threads_held", extra={"program": self.name, "threads": self.stuck_threads})
        self._is_held = True

    def _log(self, error: BaseException, call: Call) -> None:
        logger.error(
            "program.raised",
            exc_info=error,
            extra={"program": self.name, "request_id": call.request_id},
        )


def load_program(config: ProgramConfig, base_dir: Path | None = None, *, max_calls: int = MAX_CALLS) -> Program:
    """Load what ``config`` names, with its state and the programs of its levels.

    Args:
        config: the program's configuration.
        base_dir: where a relative ``state`` path starts; the working directory by default.
        max_calls: most calls that will run at once.

    Raises:
        ConfigError: a line for each problem, ``programs.<name>.<key>: <what is wrong>``.
    """
    where = f"programs.{config.name}"
    problems: list[str] = []
    threads = ProgramThreads(max_calls, config.name)
    with _located(f"{where}.program"):
        module = load_module(config.program)
        full = variant_of(config.name, module, threads)
    state = b""
    with _collected(problems, f"{where}.state"):
        state = apply_state(module, (base_dir or Path()) / config.state) if config.state is not None else b""
    shapes = _shapes(config, full, threads, problems)
    problems += _confidence_problems(config, full)
    problems += _rule_problems(config, full)
    problems += [f"programs.{config.name}.record.{problem}" for problem in _record_problems(config, full)]
    reward = None
    with _collected(problems, f"{where}.reward"):
        reward = RewardFunction(config.reward) if config.reward else None
    if problems:
        raise ConfigError(problems)
    variants = _distinct([full, *(shape.variant for shape in shapes.values())])
    for variant in variants:
        clear_lms(variant.module)
    models = [model for variant in variants for model in (variant.inputs, variant.outputs)]
    version = version_of(config, [variant.module for variant in variants], models, state)
    if config.resume:
        for variant in variants:
            journal_tools(variant.module)
    return Program(config, shapes, version, threads, reward)


def _blame(reply: str | None = None, values: Sequence[str] = ()) -> None:
    """Keep an unusable reply, or the one that unusable values are from, from the next model: it is asked anew."""
    journal = current_journal()
    if journal is not None:
        journal.blame(reply, values)


def _shapes(config: ProgramConfig, full: Variant, threads: ProgramThreads, problems: list[str]) -> dict[Level, Shape]:
    """The shape of each level; levels that share their configuration share it."""
    shapes: dict[int, Shape] = {}
    for level in Level:
        settings = config.levels.at(level)
        if id(settings) in shapes:
            continue
        shape, found = shape_of(config.name, settings, full, threads)
        shapes[id(settings)] = shape or Shape(full)
        problems += [f"programs.{config.name}.levels.{level}.{problem}" for problem in found]
    return {level: shapes[id(config.levels.at(level))] for level in Level}


def _distinct(variants: list[Variant]) -> list[Variant]:
    return list({id(variant): variant for variant in variants}.values())


def _confidence_problems(config: ProgramConfig, full: Variant) -> list[str]:
    """A bare predictor's prediction has its outputs and nothing else; other programs may add attributes."""
    field, outputs = config.confidence_field, full.interface.outputs
    if field is None or field in outputs or not isinstance(full.module, dspy.Predict):
        return []
    return [f"programs.{config.name}.confidence_field: there is no output {field!r}{nearest(field, outputs)}"]


def _record_problems(config: ProgramConfig, full: Variant) -> list[str]:
    """A name that leads nowhere would leave what it meant in the record."""
    if config.record is None:
        return []
    known = {*full.interface.inputs, *full.interface.outputs, COMMENT}
    problems = [
        f"redact: there is no input or output {name!r}{nearest(name, known)}"
        for name in config.record.redact
        if name not in known
    ]
    if Path(config.record.path).exists() and not Path(config.record.path).is_dir():
        problems.append(f"path: {config.record.path!r} is a file; a directory is needed")
    return problems


def _rule_problems(config: ProgramConfig, full: Variant) -> list[str]:
    """Each rule names an output, and something that this output may say."""
    problems = []
    for position, rule in enumerate(config.cache.rules):
        where = f"programs.{config.name}.cache.rules.{position}"
        if rule.field not in full.interface.outputs:
            near = nearest(rule.field, full.interface.outputs)
            problems.append(f"{where}.field: there is no output {rule.field!r}{near}")
        elif not may_say(full.outputs, rule):
            problems.append(f"{where}.equals: output {rule.field!r} never says {json.dumps(rule.equals)}")
    return problems


def _python_values(model: type[BaseModel], inputs: dict[str, Any]) -> dict[str, Any]:
    """JSON-form ``inputs`` as the Python values the program takes; inputs it does not know are left out."""
    try:
        known = {name: value for name, value in inputs.items() if name in model.model_fields}
        typed = model.model_validate(known, by_alias=False, by_name=True)  # as ``RequestReader.inputs`` writes them
    except ValidationError as error:
        raise InvalidInputs(describe_errors(error.errors())) from None
    return {name: typed.__dict__[name] for name in model.model_fields}


def _adapter(name: str) -> dspy.Adapter:
    if name == "json":
        return prompt_memo.JSONAdapter()
    adapter = prompt_memo.XMLAdapter if name == "xml" else prompt_memo.ChatAdapter
    return adapter(use_json_adapter_fallback=False)  # a second LM call that nobody counted


def _docstring(module: dspy.Module) -> str:
    """First paragraph of what the program says of itself."""
    own = vars(type(module)).get("__doc__") if not type(module).__module__.startswith("dspy.") else None
    signature = getattr(module, "signature", None)
    text = str(own or getattr(signature, "instructions", ""))
    return " ".join(inspect.cleandoc(text).split("\n\n")[0].split())


@contextmanager
def _located(where: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error


@contextmanager
def _collected(problems: list[str], where: str) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        problems.extend(f"{where}: {problem}" for problem in error.problems)
