"""Which calls of a batch that failed are run again together, so that the one that broke it fails alone.

    fault of the provider                      none: it failed for each of them, and the next model may do better
    fault of inputs or program, of 1 call      none: it is that call's own
    fault of inputs or program, of more        all that still wait, in ``PARTS`` parts at once; what fails then, again

In quarters: one poisoned call costs as many runs as in halves, in about half the rounds, and far fewer than one run a
call. Of 32 calls:

    parts       one poisoned              all poisoned
    single      33 runs, 2 rounds         33 runs
    halves      11 runs, 6 rounds         63 runs
    quarters    11 runs, 4 rounds         53 runs

Parts share no call, so never more of them run at once than there are calls, each of which holds a slot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, TypeVar

from serve_app.core.outcomes import MEANINGS, BreakerEffect
from serve_app.messages import Outcome

PARTS: Final = 4

AnyCall = TypeVar("AnyCall")


def is_perhaps_one_calls_fault(outcome: Outcome, size: int) -> bool:
    """Whether a batch of ``size`` calls that ended so may do better without one of them."""
    return size > 1 and MEANINGS[outcome].breaker is BreakerEffect.IGNORE


def parts(calls: Sequence[AnyCall]) -> list[Sequence[AnyCall]]:
    """At most ``PARTS`` runs of neighbours, who are poisoned together where one caller sent them; none of no calls."""
    length = math.ceil(len(calls) / PARTS)
    return [calls[at : at + length] for at in range(0, len(calls), length or 1)]
