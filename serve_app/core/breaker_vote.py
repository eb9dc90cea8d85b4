"""Whether the calls of all routers together say that a model is down, and not one router's network.

    opens    the calls of all routers together reach ``minimum_calls`` and a rate's threshold, and
             more than half of the routers that called the model reach that threshold themselves

A router speaks for the threshold with at least its even share of ``minimum_calls``, so that one unlucky call is no
vote. One router of one is enough, one of two is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

from serve_app.core.rolling_window import Counts
from serve_app.policy import BreakerPolicy


def total(counts: Collection[Counts]) -> Counts:
    """All calls together."""
    return Counts(
        sum(each.total for each in counts),
        sum(each.failures for each in counts),
        sum(each.slow for each in counts),
        math.fsum(each.latency_s for each in counts),
    )


def why_open(routers: Collection[Counts], policy: BreakerPolicy) -> str:
    """Why the model's breaker must open, in words; empty when it must not.

    Args:
        routers: each router's calls in the window.
        policy: thresholds.
    """
    callers = [counts for counts in routers if counts.total]
    together = total(callers)
    if together.total < policy.minimum_calls:
        return ""
    if _is_agreed(together, callers, _failure_rate, policy.failure_rate_threshold, policy.minimum_calls):
        return f"{together.failures} of {together.total} calls failed{_of_routers(callers)}"
    if _is_agreed(together, callers, _slow_rate, policy.slow_call_rate_threshold, policy.minimum_calls):
        return f"{together.slow} of {together.total} calls were slow{_of_routers(callers)}"
    return ""


def _failure_rate(counts: Counts) -> float:
    return counts.failure_rate


def _slow_rate(counts: Counts) -> float:
    return counts.slow_rate


def _is_agreed(
    together: Counts, callers: Collection[Counts], rate: Callable[[Counts], float], threshold: float, minimum_calls: int
) -> bool:
    if rate(together) < threshold:
        return False
    share = math.ceil(minimum_calls / len(callers))
    votes = sum(counts.total >= share and rate(counts) >= threshold for counts in callers)
    return votes > len(callers) / 2


def _of_routers(callers: Collection[Counts]) -> str:
    return f" on {len(callers)} routers" if len(callers) > 1 else ""
