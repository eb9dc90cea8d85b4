"""What both graphs bind alike: the deployments' names, sizes and Ray options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

from serve_app.config import AppConfig
from serve_app.deployments.autoscaling import scaling_options
from serve_app.deployments.replicas import (
    EMBEDDED_REDIS,
    ControlPlaneDeployment,
    EmbeddedRedisDeployment,
    ModelDeployment,
    model_deployment_name,
)

if TYPE_CHECKING:
    from ray.serve import Application

OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.1},  # replicas wait on the network, not on a core
    "max_ongoing_requests": 10_000,  # a request between parts is a batch; calls are bounded by the ingress
    "graceful_shutdown_wait_loop_s": 0.2,
    "graceful_shutdown_timeout_s": 10,
    "max_surge_percent": 100,  # a new replica is there before the old one goes
}


def control_plane() -> Any:  # noqa: ANN401 - Ray's deployments are not typed
    """The control plane's deployment; exactly one replica, which two at once during an update would not be."""
    return serve.deployment(ControlPlaneDeployment, name="ControlPlane").options(**OPTIONS | {"max_surge_percent": 0})


def embedded_redis(config: AppConfig) -> Application | None:
    """The embedded Redis, when the configuration wants it."""
    if config.cache.redis_url != "embedded":
        return None
    options = OPTIONS | {"max_surge_percent": 0}
    return serve.deployment(EmbeddedRedisDeployment, name=EMBEDDED_REDIS).options(**options).bind()


def models(config: AppConfig, control: Application) -> dict[str, Application]:
    """A deployment for each model by its deployment's name, autoscaled on queue depth."""
    bound = {}
    for model in config.models:
        name = model_deployment_name(model.name)
        options = OPTIONS | scaling_options(model.replicas)
        bound[name] = serve.deployment(ModelDeployment, name=name).options(**options).bind(config, model, control)
    return bound


def ingress_options(config: AppConfig) -> dict[str, Any]:
    """The ingress' options; Ray's bound on calls lies above ours, so that every refusal is ours."""
    bound = 2 * config.limits.max_queued_requests + 100
    return OPTIONS | scaling_options(config.ingress) | {"max_ongoing_requests": bound}
