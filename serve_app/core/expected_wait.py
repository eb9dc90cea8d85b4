"""How long a call would wait for a slot, and whether that is too long for it.

    ahead  = calls running + calls waiting that go before it
    wait   = max(0, ahead - slots + 1) * service / slots          Little's law; 0 while a slot is free
    late   : wait > share * (remaining - run)

``service`` is what the calls of all programs take on the average, ``run`` what those of this call's program do: a
quick call waits as long as others for a slow one's slot, but needs less of its deadline for itself. The time that the
answer itself takes is no time for waiting. Each priority may spend its ``SHARES`` of the rest, so that under growing
load sheddable calls are refused first and critical ones last.

Sources: J. Little, "A Proof for the Queuing Formula L = λW", 1961; "Handling Overload" in Google's *Site Reliability
Engineering* (criticality).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from serve_app.core.permit import Refusal
from serve_app.messages import Priority
from serve_app.reports import ModelLoad

SHARES: Final[Mapping[Priority, float]] = MappingProxyType(
    {Priority.SHEDDABLE: 0.5, Priority.DEFAULT: 0.9, Priority.CRITICAL: 1.0}
)
"""Share of the room, and of its own spare time in waiting, that a call of each priority may use."""
BUSY: Final = "busy"
"""Reason of a refusal for a model whose queue is too long for the call."""
MIN_RETRY_AFTER_S: Final = 0.1
"""Least that a refusal asks for."""
MAX_RETRY_AFTER_S: Final = 30.0
"""Most that a refusal asks for: an estimate is not worth more."""
UNKNOWN_RETRY_AFTER_S: Final = 1.0
"""What a refusal asks for before any service time is known."""


def expected_wait_s(ahead: float, slots: float, service_s: float) -> float:
    """Seconds until a slot is free for a call with ``ahead`` calls running or waiting before it."""
    return max(0.0, ahead - slots + 1) * service_s / slots if slots > 0 else 0.0


def too_late(priority: Priority, remaining_s: float, wait_s: float, run_s: float) -> Refusal | None:
    """A refusal when the expected wait leaves too little of the deadline; it asks for what is missing.

    Args:
        priority: whose share counts.
        remaining_s: seconds left of the call's deadline.
        wait_s: seconds it is expected to wait.
        run_s: seconds it is expected to run.
    """
    patience_s = SHARES[priority] * max(0.0, remaining_s - run_s)
    if remaining_s > 0 and (wait_s <= 0 or wait_s <= patience_s):
        return None
    return refuse(wait_s - patience_s, "deadline")


def room_for(priority: Priority, bound: int) -> int:
    """How many calls may be there when one of this priority still comes in; at least one place."""
    return max(1, int(SHARES[priority] * bound))


def refuse(seconds: float | None, reason: str) -> Refusal:
    """A refusal that asks for ``seconds`` of patience, within what an estimate is worth; ``None`` when unknown."""
    wanted_s = UNKNOWN_RETRY_AFTER_S if seconds is None else seconds
    return Refusal(min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wanted_s)), reason)


def refusal_at(
    load: ModelLoad, priority: Priority, remaining_s: float, sent: int, *, run_s: float = 0.0
) -> Refusal | None:
    """Whether a model under ``load`` is too busy for a call, as far as one router knows.

    Args:
        load: the sum over the model's replicas, as last reported; without slots nothing is known.
        priority: the call's.
        remaining_s: seconds left of the call's deadline.
        sent: calls that this router has sent since that report and not got back.
        run_s: seconds that the call's program usually runs on this model, as this router saw; 0 when it saw none. What
            is more than the load's own mean counts as that: it may be old, the replica's queue knows better, and who
            never gets there has no answer to show that it is.
    """
    ahead = load.running + load.waiting_before(priority) + sent
    wait_s = expected_wait_s(ahead, load.slots, load.service_s)
    return too_late(priority, remaining_s, wait_s, min(run_s or load.service_s, load.service_s))
