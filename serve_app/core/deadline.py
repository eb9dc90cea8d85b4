"""How long one attempt may take, so that those after it keep a chance.

    last attempt                      all that is left
    less left than 2 * MIN_USEFUL_S   all that is left: there is no use in two
    any other                         max(left / attempts, HEADROOM * latency), at most MAX_SHARE * left,
                                      and at least MIN_USEFUL_S for it and for those after it

An even share is the start. A model that is known to be slow gets more than its share, since cutting it off just
before its answer wastes both time and money, but never so much that its successor has nothing. An attempt that fails
early leaves its rest to the next ones, because each is computed from what is left then. Another attempt begins only
with time for an answer (``is_worth_asking``): a provider asked for what nobody can wait for is paid for nothing.

Whoever passes a call on keeps a little of its time (``passed_on_s``). A part that left all of it to the part behind
would give up just before that one's answer came, which says what was tried and what was spent. On a loop that is late
it does so all the same.
"""

from __future__ import annotations

from typing import Final

HEADROOM: Final = 3.0
"""Multiples of its usual latency that a model is given, when that is more than an even share."""
MAX_SHARE: Final = 0.75
"""Most of what is left that one attempt gets while another may follow."""
MIN_USEFUL_S: Final = 0.25
"""Seconds below which asking another model is pointless, unless it is known to be quicker."""

REPLY_SHARE: Final = 0.03
"""Of a call's time, what is kept for the way back."""
MAX_REPLY_S: Final = 0.015


def passed_on_s(remaining_s: float) -> float:
    """Seconds that the part behind this one gets of a call that has ``remaining_s`` seconds left."""
    return remaining_s - min(MAX_REPLY_S, REPLY_SHARE * max(0.0, remaining_s))


def attempt_timeout_s(remaining_s: float, attempts_left: int, prior_latency_s: float = 0.0) -> float:
    """Seconds the next attempt may take: between 0 and ``remaining_s``.

    Args:
        remaining_s: seconds left of the call's deadline.
        attempts_left: attempts that may still be made, this one included.
        prior_latency_s: the model's usual seconds per call, 0 when unknown.
    """
    if remaining_s <= 0:
        return 0.0
    if attempts_left <= 1 or remaining_s < 2 * MIN_USEFUL_S:
        return remaining_s
    wanted_s = max(remaining_s / attempts_left, HEADROOM * prior_latency_s)
    return max(MIN_USEFUL_S, min(wanted_s, MAX_SHARE * remaining_s, remaining_s - MIN_USEFUL_S))


def is_worth_asking(remaining_s: float, latency_s: float) -> bool:
    """Whether there is time for another model, which usually takes ``latency_s`` seconds, after one that failed."""
    return remaining_s >= min(MIN_USEFUL_S, latency_s)
