"""How busy a model is: what its replicas report as gauges, summed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from serve_app.core.slot_queue import SlotQueue
from serve_app.messages import PRIORITIES
from serve_app.reports import ModelLoad


def model_deployment_name(model: str) -> str:
    """Name of the deployment that serves a model, under which its replicas report."""
    return f"Model-{model}"


SLOTS: Final = "slots"
LOST: Final = "lost_"
"""Before a model's name: calls that would run there, had a router not refused them or sent them elsewhere."""
WAITING: Final = tuple(f"waiting_{priority}" for priority in PRIORITIES)


def gauges_of(queue: SlotQueue) -> dict[str, float]:
    """One replica's part."""
    waiting = dict(zip(WAITING, map(float, queue.waiting_by_priority()), strict=True))
    own = {SLOTS: float(queue.slots), "running": float(queue.running), "service_s": queue.service_s}
    return own | {"queue_depth": float(queue.waiting)} | waiting


def load_of(replicas: Iterable[Mapping[str, float]], lost: float = 0.0) -> ModelLoad:
    """The sum over a model's replicas; service times are averaged over those that have served, by their slots.

    Args:
        replicas: gauges of each.
        lost: calls that would run there, had routers sent them.
    """
    known = [gauges for gauges in replicas if SLOTS in gauges]
    timed = [gauges for gauges in known if gauges["service_s"] > 0]
    timed_slots = sum(gauges[SLOTS] for gauges in timed)
    return ModelLoad(
        slots=sum(gauges[SLOTS] for gauges in known),
        running=sum(gauges["running"] for gauges in known),
        waiting=tuple(sum(gauges[name] for gauges in known) for name in WAITING),
        service_s=sum(gauges["service_s"] * gauges[SLOTS] for gauges in timed) / timed_slots if timed_slots else 0.0,
        replicas=len(known),
        lost=lost,
    )
