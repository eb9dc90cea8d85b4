"""What can go wrong on purpose, and who decides when.

| kind | a client sees |
|---|---|
| ``status`` | that status with OpenAI's error body, ``Retry-After`` if given |
| ``reset`` | the connection reset before any header |
| ``no_answer`` | nothing, until it leaves or ``max_s`` pass; then a reset |
| ``slow_first_token`` | a right answer, ``delay_s`` late |
| ``stream_cut`` | part of the answer, then a reset |
| ``stream_stall`` | part of the answer, then nothing until it leaves or ``max_s`` pass |
| ``malformed_chunk`` | an event (or a body) that is no JSON |
| ``truncated_json`` | a complete HTTP response whose JSON ends early |
| ``unparseable`` | a valid completion whose text no adapter can parse |
| ``context_length`` | 400 ``context_length_exceeded`` |
| ``content_policy`` | 400 ``content_policy_violation`` |

A model may have several faults; the first whose ``rate`` comes up happens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, TypeAdapter

from serve_app.config import Ratio, Section

if TYPE_CHECKING:
    from random import Random


class _Fault(Section):
    rate: Ratio = 1.0
    """Share of the requests that meet it."""
    count: PositiveInt | None = None
    """Times it happens before it ends; null never ends it."""


class StatusFault(_Fault):
    """Answers with an error status."""

    kind: Literal["status"]
    """``status``."""
    status: int = Field(ge=400, le=599)
    """HTTP status."""
    retry_after_s: NonNegativeFloat | None = None
    """Seconds in ``Retry-After``; null leaves the header out."""
    message: str | None = None
    """``error.message``; null is OpenAI's for that status."""
    code: str | None = None
    """``error.code``; null is OpenAI's for that status."""


class SilenceFault(_Fault):
    """Goes silent, before the answer or within it."""

    kind: Literal["no_answer", "stream_stall"]
    """``no_answer`` or ``stream_stall``."""
    max_s: PositiveFloat = 600.0
    """Seconds after which the connection is reset."""


class SlowFault(_Fault):
    """Answers late."""

    kind: Literal["slow_first_token"]
    """``slow_first_token``."""
    delay_s: NonNegativeFloat
    """Seconds added before the first token."""


class PlainFault(_Fault):
    """A fault that needs no further word."""

    kind: Literal[
        "reset",
        "stream_cut",
        "malformed_chunk",
        "truncated_json",
        "unparseable",
        "context_length",
        "content_policy",
    ]
    """What happens."""


Fault = Annotated[StatusFault | SilenceFault | SlowFault | PlainFault, Field(discriminator="kind")]
fault_adapter: TypeAdapter[Fault] = TypeAdapter(Fault)


class FaultBoard:
    """The faults in force, by model.

    Args:
        dice: source of the rates' chances.
    """

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self._faults: dict[str, list[tuple[Fault, int]]] = {}

    def put(self, model: str, faults: list[Fault]) -> None:
        """Replace the model's faults."""
        self._faults[model] = [(fault, 0) for fault in faults]

    def clear(self, model: str | None = None) -> None:
        """End the model's faults, or every model's."""
        if model is None:
            self._faults.clear()
        else:
            self._faults.pop(model, None)

    def take(self, model: str) -> Fault | None:
        """The fault that this request meets; counted."""
        standing = self._faults.get(model)
        for index, (fault, happened) in enumerate(standing or ()):
            if fault.rate >= 1 or self._dice.random() < fault.rate:
                self._count(model, index, fault, happened + 1)
                return fault
        return None

    def listing(self) -> dict[str, list[dict[str, object]]]:
        """Every fault in force, with how often it ``happened``."""
        return {
            model: [{**fault.model_dump(exclude_none=True), "happened": happened} for fault, happened in standing]
            for model, standing in self._faults.items()
        }

    def _count(self, model: str, index: int, fault: Fault, happened: int) -> None:
        standing = self._faults[model]
        if fault.count is not None and happened >= fault.count:
            del standing[index]
        else:
            standing[index] = (fault, happened)
        if not standing:
            del self._faults[model]
