"""How replicas grow: a model's with the calls that wait for a slot, the other parts' with the calls in hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.config import Replicas
from serve_app.core.scaling import Readings, replicas_wanted
from serve_app.core.slot_queue import SlotQueue
from serve_app.reports import ModelLoad

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

WAITING: Final = "waiting"
RUNNING: Final = "running"
SLOTS: Final = "slots"
TAKEN: Final = "taken"
LOST: Final = "lost"
HELD_BACK: Final = "held_back"
IN_HAND: Final = "in_hand"

BY_ONGOING = "serve_app.deployments.autoscaling:ongoing_policy"
"""On what a replica has in hand: for parts that hold no queue."""
POLICY = "serve_app.deployments.autoscaling:queue_depth_policy"
PUSH_INTERVAL_S: Final = 1.0
"""Seconds between a replica's, or a handle's, messages to the controller. Ray 2.60 sends them every 10 s whatever its
``RAY_SERVE_*_AUTOSCALING_METRIC_PUSH_INTERVAL_S`` say, and knows only this deprecated field."""
LOOK_BACK_S: Final = 6.0
"""Seconds over which readings are averaged."""


def stats_of(queue: SlotQueue, load: ModelLoad | None, *, is_held_back: bool) -> dict[str, float]:
    """What a model's replica records for ``queue_depth_policy``.

    Args:
        queue: the replica's.
        load: of the model's replicas together, as last told; routers refuse for all of them.
        is_held_back: whether more replicas would not help.
    """
    taken, lost = queue.offered.running(queue.service_s or (load.service_s if load else 0.0))
    elsewhere = load.lost / max(1, load.replicas) if load else 0.0
    return {
        WAITING: float(queue.waiting),
        RUNNING: float(queue.running),
        SLOTS: float(queue.slots),
        TAKEN: taken / queue.slots,
        LOST: (lost + elsewhere) / queue.slots,
        HELD_BACK: float(is_held_back),
    }


def queue_depth_policy(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Ray Serve autoscaling policy: ``replicas_wanted`` over what the replicas recorded; runs in the controller."""
    recorded = ctx.aggregated_metrics or {}
    target = ctx.config.target_ongoing_requests if ctx.config else None
    if not recorded.get(WAITING) or not target:
        return ctx.target_num_replicas, {}
    newest = _newest(ctx.raw_metrics or {})
    readings = Readings(
        waiting=_sum(recorded, WAITING),
        newest_waiting=newest.get(WAITING, _sum(recorded, WAITING)),
        running=_sum(recorded, RUNNING),
        slots=_sum(recorded, SLOTS),
        taken=newest.get(TAKEN, 0.0),
        lost=newest.get(LOST, 0.0),
        is_held_back=newest.get(HELD_BACK, _sum(recorded, HELD_BACK)) > 0,
    )
    floor, ceiling = ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas
    wanted = replicas_wanted(readings, max(1, ctx.current_num_replicas), target, min_replicas=floor)
    return max(floor, min(ceiling, wanted)), {}


def ongoing_policy(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Ray Serve autoscaling policy: as many replicas as hold a target each of what is in hand; runs in the controller.

    In hand is what Ray has brought, be it HTTP requests or batches by handle, and the calls that came over channels,
    which replicas record as ``IN_HAND``.
    """
    target = ctx.config.target_ongoing_requests if ctx.config else None
    if not target or not ctx.current_num_replicas:
        return ctx.target_num_replicas, {}
    in_hand = ctx.total_num_requests + _sum(ctx.aggregated_metrics or {}, IN_HAND)
    floor, ceiling = ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas
    return max(floor, min(ceiling, math.ceil(in_hand / target))), {}


def scaling_options(replicas: Replicas, policy: str = POLICY) -> dict[str, Any]:
    """Deployment options for that many replicas: fixed, or autoscaled by ``policy`` (by default on queue depth)."""
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `metrics_interval_s` field", DeprecationWarning)
        config = AutoscalingConfig(
            min_replicas=replicas.min,
            max_replicas=replicas.max,
            target_ongoing_requests=replicas.target_queue_depth,
            upscale_delay_s=0 if policy == POLICY else 2,  # ours tells a burst from a trend itself
            downscale_delay_s=replicas.downscale_delay_s,
            metrics_interval_s=PUSH_INTERVAL_S,
            look_back_period_s=LOOK_BACK_S,
            policy=AutoscalingPolicy(policy_function=policy),  # type: ignore[no-untyped-call]
        )
    return {"autoscaling_config": config}


def _sum(recorded: Mapping[str, Mapping[Any, float]], name: str) -> float:
    return sum(recorded.get(name, {}).values())


def _newest(raw: Mapping[str, Mapping[Any, Any]]) -> dict[str, float]:
    """Each statistic's newest readings, summed over the replicas."""
    series = {name: [points[-1].value for points in by_replica.values() if points] for name, by_replica in raw.items()}
    return {name: sum(values) for name, values in series.items() if values}
