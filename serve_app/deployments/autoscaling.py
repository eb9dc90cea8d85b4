"""How a model's replicas grow: with the calls that wait for a slot, not with those that wait on the provider."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serve_app.config import Replicas

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

QUEUE_DEPTH = "queue_depth"
"""Name under which a replica records the calls waiting in it."""


BY_ONGOING = "ray.serve.autoscaling_policy:replica_queue_length_autoscaling_policy"
"""Ray's own policy, on what a replica has in hand: for parts that hold no queue."""
POLICY = "serve_app.deployments.autoscaling:queue_depth_policy"


def replicas_for(queue_depths: Iterable[float], current: int, target_queue_depth: float) -> int:
    """Replicas that bring the calls waiting per replica to the target.

    ``current`` serve what runs now; each ``target_queue_depth`` waiting calls beyond one target's worth ask for one
    replica more. With nothing waiting, one replica may go.
    """
    waiting = sum(queue_depths)
    if waiting <= 0:
        return current - 1
    return current + max(0, math.ceil(waiting / target_queue_depth) - 1)


def queue_depth_policy(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Ray Serve autoscaling policy: ``replicas_for`` over what the replicas recorded."""
    recorded = (ctx.aggregated_metrics or {}).get(QUEUE_DEPTH)
    target = ctx.config.target_ongoing_requests if ctx.config else None
    if not recorded or not target:
        return ctx.target_num_replicas, {}
    wanted = replicas_for(recorded.values(), ctx.current_num_replicas, target)
    return max(ctx.capacity_adjusted_min_replicas, min(ctx.capacity_adjusted_max_replicas, wanted)), {}


def scaling_options(replicas: Replicas, policy: str = POLICY) -> dict[str, Any]:
    """Deployment options for that many replicas: fixed, or autoscaled by ``policy`` (by default on queue depth)."""
    if replicas.min == replicas.max:
        return {"num_replicas": replicas.min}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=replicas.min,
            max_replicas=replicas.max,
            target_ongoing_requests=replicas.target_queue_depth,
            upscale_delay_s=2,
            downscale_delay_s=60,
            look_back_period_s=11,  # Ray wants it longer than its default interval between readings
            policy=AutoscalingPolicy(policy_function=policy),  # type: ignore[no-untyped-call]
        )
    }
