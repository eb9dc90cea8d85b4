"""What of the control plane outlives its process, and how it is written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from serve_app.adapters.telemetry import Family
from serve_app.messages import Level
from serve_app.policy import Policy
from serve_app.reports import Orders


def _none_unless_valid(value: object, validate: ValidatorFunctionWrapHandler) -> object:
    """What ``validate`` makes of a value, or nothing: an older version's policy costs no other part of the state."""
    try:
        return validate(value)
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True)
class ControlState:
    """What the next life should know; ``written_at`` is Unix time, ``since_s`` counts up to it.

    ``policy`` is ``None`` when nobody gave one yet, and in what was written by versions that did not keep it.
    """

    written_at: float
    breakers: dict[str, Any]
    level: Level
    reason: str
    since_s: float
    orders: Orders
    departed: tuple[Family, ...] = ()
    policy: Annotated[Policy | None, WrapValidator(_none_unless_valid)] = None

    def dump(self) -> dict[str, Any]:
        """The state as JSON's own types."""
        plain: dict[str, Any] = _STATE.dump_python(self, mode="json")
        return plain

    @staticmethod
    def read(plain: object) -> ControlState | None:
        """What ``dump`` wrote, also another version's; ``None`` when no control plane could have written it."""
        try:
            return _STATE.validate_python(plain)
        except ValidationError:
            return None


_STATE: Final = TypeAdapter(ControlState)
