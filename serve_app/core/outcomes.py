"""What the end of an attempt means: for the call, for the model's breaker, for the operator.

    outcome          next route      breaker     noted
    ok               none            success
    slow             none            slow
    unreachable      any             failure
    timeout          any             failure
    cut_short        any             release
    server_error     any             failure
    malformed        any             failure
    rate_limited     any             cool_down
    denied           any             open        operator error
    context_window   larger_window   ignore
    content_policy   none            ignore
    bad_request      none            ignore
    bad_output       once            ignore      bad quality
    program_error    none            ignore
    cancelled        none            release
    rejected         any             release

``slow`` is an answer like ``ok``: it is given to the caller and costs the model its standing. ``cut_short`` is an
attempt that ended before answers usually come, since its deadline was near, it waited for a slot, a replica had to
start, the one that had it is gone, it ran again after another call had broken their batch, or the program took the
time with no LM call under way: that says nothing of the model. Counted as failures, the calls of one impatient caller,
of one killed replica, or of one program that hangs would open the breaker for everybody. ``rejected`` never ran: the
replica had no slot or no thread for it in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from serve_app.messages import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping


SPENT: Final = 0.95
"""Share of its time from which on an attempt has used it up: clocks and timers differ by milliseconds."""


class NextRoute(StrEnum):
    """Which models may be asked after this one."""

    NONE = "none"
    """No other: the call is answered, or no model would do better."""
    ANY = "any"
    """The next of the route."""
    LARGER_WINDOW = "larger_window"
    """The next whose context window is larger than this model's."""
    ONCE = "once"
    """The next of the route, but only once in a call."""


class BreakerEffect(StrEnum):
    """What the attempt says about the model's health."""

    SUCCESS = "success"
    """Counts as a good call."""
    FAILURE = "failure"
    """Counts as a failed call."""
    SLOW = "slow"
    """Counts as a slow call."""
    IGNORE = "ignore"
    """Counts as no call: the fault is not the provider's."""
    OPEN = "open"
    """Opens at once: asking again fails until somebody acts."""
    COOL_DOWN = "cool_down"
    """Counts as no call, but the model is not asked before its ``Retry-After``."""
    RELEASE = "release"
    """Nothing was learned; a held probe is given back."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table.

    Attributes:
        next_route: which models may still be asked for the same call.
        breaker: what the model's breaker makes of it.
        is_operator_error: only a person can mend it (key, bill, name of the model): logged as such.
        is_bad_quality: counted against the quality of program and model.
    """

    next_route: NextRoute
    breaker: BreakerEffect
    is_operator_error: bool = False
    is_bad_quality: bool = False


_FAILED: Final = Meaning(NextRoute.ANY, BreakerEffect.FAILURE)
_NOT_THE_MODEL: Final = Meaning(NextRoute.NONE, BreakerEffect.IGNORE)
_NEVER_JUDGED: Final = Meaning(NextRoute.ANY, BreakerEffect.RELEASE)

MEANINGS: Final[Mapping[Outcome, Meaning]] = MappingProxyType(
    {
        Outcome.OK: Meaning(NextRoute.NONE, BreakerEffect.SUCCESS),
        Outcome.SLOW: Meaning(NextRoute.NONE, BreakerEffect.SLOW),
        Outcome.UNREACHABLE: _FAILED,
        Outcome.TIMEOUT: _FAILED,
        Outcome.CUT_SHORT: _NEVER_JUDGED,
        Outcome.SERVER_ERROR: _FAILED,
        Outcome.MALFORMED: _FAILED,
        Outcome.RATE_LIMITED: Meaning(NextRoute.ANY, BreakerEffect.COOL_DOWN),
        Outcome.DENIED: Meaning(NextRoute.ANY, BreakerEffect.OPEN, is_operator_error=True),
        Outcome.CONTEXT_WINDOW: Meaning(NextRoute.LARGER_WINDOW, BreakerEffect.IGNORE),
        Outcome.CONTENT_POLICY: _NOT_THE_MODEL,
        Outcome.BAD_REQUEST: _NOT_THE_MODEL,
        Outcome.BAD_OUTPUT: Meaning(NextRoute.ONCE, BreakerEffect.IGNORE, is_bad_quality=True),
        Outcome.PROGRAM_ERROR: _NOT_THE_MODEL,
        Outcome.CANCELLED: Meaning(NextRoute.NONE, BreakerEffect.RELEASE),
        Outcome.REJECTED: _NEVER_JUDGED,
    }
)
"""The table; every ``Outcome`` has its row."""


def classify_timeout(outcome: Outcome, *, ran_s: float, took_s: float, given_s: float, usual_s: float) -> Outcome:
    """``CUT_SHORT`` for an attempt that ended with its time, after less than usual; any other outcome as it is.

    Args:
        outcome: of the attempt.
        ran_s: seconds that the model's replica worked on it, its wait for a slot not included.
        took_s: seconds that it took altogether.
        given_s: seconds that it was given.
        usual_s: seconds that the replica usually works on an answer; 0 counts every timeout.
    """
    is_spent = took_s >= SPENT * given_s  # a timeout of the provider's own says something at any time
    return Outcome.CUT_SHORT if outcome is Outcome.TIMEOUT and is_spent and ran_s < usual_s else outcome


def classify_latency(outcome: Outcome, latency_s: float, slow_call_s: float) -> Outcome:
    """``SLOW`` for an answer that took ``slow_call_s`` seconds or more; any other outcome as it is."""
    return Outcome.SLOW if outcome is Outcome.OK and latency_s >= slow_call_s else outcome
