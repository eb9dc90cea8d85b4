"""Read what a program returned as the outputs it promised."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import dspy
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from serve_app.adapters.program_schema import describe_errors, json_problem
from serve_app.errors import BadOutput

MAX_MISFITS: Final = 20
"""Most values that did not fit and are looked for in what models said."""


class NoOutputs(Exception):
    """The program returned none of its outputs, or something JSON cannot say: its own mistake, not the model's."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program answered.

    Attributes:
        outputs: the typed outputs in JSON form.
        confidence: how sure the program is, 0..1; ``None`` when it does not say.
        returned: what the program itself returned.
    """

    outputs: dict[str, Any]
    confidence: float | None
    returned: object = None

    @property
    def prediction(self) -> dspy.Prediction:
        """What the program returned, as a reward function takes it."""
        return self.returned if isinstance(self.returned, dspy.Prediction) else dspy.Prediction(**self.outputs)


def read_answer(
    prediction: object, model: type[BaseModel], *, is_declared: bool, confidence_field: str | None
) -> Answer:
    """The answer in ``prediction``, checked against ``model``.

    Args:
        prediction: whatever the program returned: a prediction, a mapping, an object with attributes, or a bare value
            where there is one output.
        model: the promised outputs.
        is_declared: false when the outputs are a guess; those missing are then left out.
        confidence_field: an output, or an attribute of the prediction.

    Raises:
        BadOutput: a value does not fit its type, or cannot travel as JSON; no value is quoted.
        NoOutputs: the program is at fault.
    """
    names = model.model_fields
    found = _values(prediction, names)
    if not found and prediction is not None and len(names) == 1:
        found = {next(iter(names)): prediction} if not isinstance(prediction, (dspy.Prediction, dict)) else {}
    if not found:
        raise NoOutputs(f"returned {type(prediction).__name__} with none of the outputs {', '.join(names)}")
    try:
        answer = model.model_validate(found)
        outputs = answer.model_dump(mode="json", by_alias=True, exclude_unset=not is_declared)
    except ValidationError as error:
        raise BadOutput(f"the answer does not fit: {describe_errors(error.errors())}") from None
    except PydanticSerializationError as error:
        raise NoOutputs(f"returned something that has no JSON form: {error}") from error
    problem = json_problem(outputs)
    if problem:
        raise BadOutput(f"the answer does not fit: {problem}")
    return Answer(outputs, _confidence(prediction, outputs, confidence_field), prediction)


def misfits(error: BadOutput) -> list[str]:
    """The values that did not fit, as a model may have written them; not told to anybody."""
    behind = error.__context__
    found = [item["input"] for item in behind.errors()] if isinstance(behind, ValidationError) else []
    values = dict.fromkeys(str(value) for value in found if isinstance(value, (str, int, float)) and value != "")
    return list(values)[:MAX_MISFITS]


def ratio(value: object) -> float | None:
    """``value`` as a share of one: ``0.8``, ``"0.8"`` and ``"80%"`` are 0.8; what is not in 0..1 is ``None``."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= 1 else None


def _confidence(prediction: object, outputs: dict[str, Any], field: str | None) -> float | None:
    if field is None:
        return None
    return ratio(outputs[field] if field in outputs else _values(prediction, (field,)).get(field))


def _values(prediction: object, names: Iterable[str]) -> dict[str, Any]:
    if isinstance(prediction, (dspy.Prediction, dict)):
        return {name: prediction[name] for name in names if name in prediction}
    return {name: getattr(prediction, name) for name in names if hasattr(prediction, name)}
