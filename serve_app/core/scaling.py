"""How many replicas a model should have, by the calls that wait for a slot in them.

    waiting                            replicas wanted
    held back *                        no more than now
    newest >= BURST targets a replica  now + one for each target of waiting calls: at once
    mean   >  one target               now + one for each further target
    lost   >= LEAST_LOST of them       as many as what was taken and what was lost would fill
    none, and the calls that run fit   one fewer
    into the others' slots with room
    none, nothing ran, min is 0        none
    otherwise                          as now

    * a replica says that more of them would not help: the breaker is open, the provider said 429, or the adaptive
      limit lies below ``max_ongoing_requests``

*Lost* are calls that were refused for want of slots, *taken* those of the same time that got one, both in replicas
that they fill (``serve_app.core.offered_calls``). Of several rows that ask for more, the one that asks for most counts.
Calls that wait *on the provider* ask for nothing: a second replica would wait as long. How long one fewer must be
wanted before one goes is the autoscaler's delay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

BURST: Final = 2.0
"""Targets of waiting calls per replica, at the newest reading, that are answered without waiting for the mean."""
LEAST_LOST: Final = 0.1
"""Share of the replicas, in calls that were refused, that asks for more of them."""
SPARE: Final = 0.7
"""Share of the other replicas' slots that the calls in hand may fill for one replica to go."""


@dataclass(frozen=True, slots=True)
class Readings:
    """What a deployment's replicas recorded, summed.

    Attributes:
        waiting: calls waiting for a slot, averaged over the autoscaler's window.
        newest_waiting: the same at the newest reading.
        running: calls that hold a slot, averaged.
        slots: slots of all of them.
        taken: replicas that the calls which got slots fill, at the newest reading.
        lost: replicas that those would fill which were refused, at the newest reading.
        is_held_back: whether any of them says that more replicas would not help.
    """

    waiting: float
    newest_waiting: float
    running: float = 0.0
    slots: float = 0.0
    taken: float = 0.0
    lost: float = 0.0
    is_held_back: bool = False


def replicas_wanted(readings: Readings, current: int, target: float, *, min_replicas: int = 1) -> int:
    """Replicas to aim at; the bounds are the caller's to keep.

    Args:
        readings: what the replicas recorded.
        current: replicas there are.
        target: waiting calls per replica to aim at.
        min_replicas: 0 allows the last one to go.
    """
    if more := _more(readings, current, target):
        return current if readings.is_held_back else current + more
    is_short = readings.lost >= LEAST_LOST * current
    if readings.waiting > 0 or readings.newest_waiting > 0 or is_short:
        return current
    if current == 1:
        return min_replicas if readings.running <= 0 else 1
    fits = readings.running <= SPARE * readings.slots * (current - 1) / current
    return current - 1 if fits else current


def _more(readings: Readings, current: int, target: float) -> int:
    newest, mean, lost = readings.newest_waiting, readings.waiting, readings.lost
    at_once = math.ceil(newest / target) if newest >= BURST * target * current else 0
    trend = math.ceil(mean / target) - current if mean > target * current else 0
    refused = math.ceil(readings.taken + lost) - current if lost >= LEAST_LOST * current else 0
    return max(at_once, trend, refused)
