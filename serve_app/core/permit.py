"""What a policy answers to a call that asks: leave, or why not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to ask a model once; given back to its breaker with ``record`` or ``release``.

    Attributes:
        generation: the breaker's when the permit was given.
        probe: True for a half-open breaker's probe.
        lease: number of the probe; 0 for an ordinary call.
    """

    generation: int
    probe: bool = False
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call was not admitted, and nothing was counted for it.

    Attributes:
        retry_after_s: seconds after which asking again may help.
        reason: one of a few fixed words of the policy that refused; fit for a metric's label.
    """

    retry_after_s: float
    reason: str
