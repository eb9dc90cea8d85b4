"""How much load second attempts may add.

In any ``WINDOW_S`` seconds:

    retries <= budget_ratio * calls + budget_floor_per_s * WINDOW_S

With every provider down, upstream traffic grows by the ratio and not by the number of attempts; the floor lets a quiet
service retry at all.

Source: ``RetryBudget`` of Twitter's Finagle (deposits and withdrawals that expire after 10 s, 20 % and a few per
second) and the retry throttling of gRFC A6; "Addressing Cascading Failures" in Google's *Site Reliability Engineering*.
"""

from __future__ import annotations

from typing import Final

from serve_app.core.clock import Clock
from serve_app.core.rolling_window import RollingSums
from serve_app.policy import RetryPolicy

WINDOW_S: Final = 10.0
"""Seconds after which a call no longer pays for a retry, and a retry no longer counts."""

_ROUNDING: Final = 1e-9


class RetryBudget:
    """Admits retries in proportion to recent calls. For one event loop; nothing in it waits.

    Args:
        policy: ratio and floor.
        clock: monotonic seconds.
    """

    def __init__(self, policy: RetryPolicy, *, clock: Clock) -> None:
        self._policy = policy
        self._calls_and_retries = RollingSums(2, WINDOW_S, clock=clock)

    def deposit(self) -> None:
        """Count a call's first attempt."""
        self._calls_and_retries.add(1, 0)

    def withdraw(self) -> bool:
        """True, and counted, when one more attempt is within the budget."""
        if self.balance() + _ROUNDING < 1:
            return False
        self._calls_and_retries.add(0, 1)
        return True

    def balance(self) -> float:
        """Retries that may be made at this moment; none below 1. Negative when calls that paid for some are past."""
        calls, retries = self._calls_and_retries.totals()
        return self._policy.budget_ratio * calls + self._policy.budget_floor_per_s * WINDOW_S - retries

    def reconfigure(self, policy: RetryPolicy) -> None:
        """Judge by another policy from now on; what was counted stays counted."""
        self._policy = policy
