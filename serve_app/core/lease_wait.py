"""How replicas take turns at making one answer: the holder of a lease makes it, the others look for it now and then.

    a look finds          a follower
    ────────────────────  ──────────────────────────────────────────────────────────────────────────────────────
    the answer            takes it
    the lease             waits on: a tenth of what it has waited so far, within ``MIN_PAUSE_S`` and ``MAX_PAUSE_S``
    … of one who asks     goes on as if there were neither: it would wait at the other's place in every queue
    at a worse priority
    neither               claims the lease itself; after ``MAX_LEADERS`` it makes the answer without one
    no store              makes the answer by itself

A holder that died is noticed when its lease ends, ``LEASE_S`` after it was last renewed. A holder that failed gives it
back at once. Answers that may not be stored (low confidence, another level) end leases without an answer, too; going
without a lease then keeps many replicas from standing in a queue.
"""

from __future__ import annotations

from typing import Final

LEASE_S: Final = 2.0
"""Seconds a lease lasts; an event loop that stands still for longer costs one more model call."""
RENEW_S: Final = LEASE_S / 4
"""Seconds between renewals: three in a row must be lost before a lease is."""
MIN_PAUSE_S: Final = 0.01
MAX_PAUSE_S: Final = 0.25
PAUSE_SHARE: Final = 0.1
"""Looking costs a follower at most this share of its wait more."""
MAX_LEADERS: Final = 2
"""Leaders that a follower waits for, one after the other."""


def pause_s(waited_s: float) -> float:
    """Seconds until the next look of a follower that has waited ``waited_s``."""
    return min(max(PAUSE_SHARE * waited_s, MIN_PAUSE_S), MAX_PAUSE_S)


def may_claim(leaders_followed: int) -> bool:
    """Whether a follower whose leader ended without an answer asks for a lease; else it goes without one."""
    return leaders_followed < MAX_LEADERS
