"""What both graphs bind alike: the deployments' names, sizes and Ray options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

from serve_app.config import AppConfig, Replicas
from serve_app.core.model_load import model_deployment_name
from serve_app.deployments.autoscaling import BY_ONGOING, POLICY, scaling_options
from serve_app.deployments.program_replicas import IngressDeployment, ModelDeployment
from serve_app.deployments.replicas import EMBEDDED_REDIS, ControlPlaneDeployment, EmbeddedRedisDeployment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ray.serve import Application

    from serve_app.deployments.replicas import Wire

LAST_WORDS_S = 10.0
"""Seconds that a replica has to end once no call is there any more."""

OPTIONS: dict[str, Any] = {
    "ray_actor_options": {"num_cpus": 0.1},  # replicas wait on the network, not on a core
    "max_ongoing_requests": 10_000,  # a request between parts is a batch; calls are bounded by the ingress
    "graceful_shutdown_wait_loop_s": 0.2,
    "graceful_shutdown_timeout_s": LAST_WORDS_S,
    "max_surge_percent": 100,  # a new replica is there before the old one goes
    # How soon a dead replica is missed. A busy one still has health_check_timeout_s (Ray's 30 s) for each answer, for
    # no check starts before the one under way has ended, and only three failures in a row count.
    "health_check_period_s": 2,
}


ONE_ONLY = OPTIONS | {"max_surge_percent": 0}


def bind(cls: type, name: str, options: Mapping[str, Any], *args: Any) -> Application:  # noqa: ANN401 - any constructor's
    """A node of the graph: a class, the name and options of its deployment, and its constructor's arguments."""
    return serve.deployment(name=name, **options)(cls).bind(*args)


def scaled(config: AppConfig, replicas: Replicas, policy: str = POLICY) -> dict[str, Any]:
    """Options of a part that holds calls: it grows by ``policy``, and ends when the last of its calls has."""
    longest = {"graceful_shutdown_timeout_s": config.limits.max_deadline_s + LAST_WORDS_S}
    return OPTIONS | scaling_options(replicas, policy) | longest


def deployment_names(config: AppConfig) -> tuple[str, ...]:
    """The deployments that both graphs have."""
    redis = (EMBEDDED_REDIS,) if config.cache.redis_url == "embedded" else ()
    return ("Ingress", "ControlPlane", *redis, *(model_deployment_name(model.name) for model in config.models))


def control_plane(config: AppConfig, redis: Application | None) -> Application:
    """The control plane: always one replica, also during an update."""
    return bind(ControlPlaneDeployment, "ControlPlane", ONE_ONLY, config, redis)


def embedded_redis(config: AppConfig) -> Application | None:
    """The embedded Redis, when the configuration wants it."""
    if config.cache.redis_url != "embedded":
        return None
    return bind(EmbeddedRedisDeployment, EMBEDDED_REDIS, ONE_ONLY)


def models(config: AppConfig, control: Application) -> dict[str, Application]:
    """A deployment for each model by its deployment's name, autoscaled on queue depth."""
    bound = {}
    for model in config.models:
        name = model_deployment_name(model.name)
        bound[name] = bind(ModelDeployment, name, scaled(config, model.replicas), config, model, control)
    return bound


def ingress(config: AppConfig, control: Application, wire: Wire, handles: Mapping[str, Application]) -> Application:
    """The ingress over what ``wire`` makes of ``handles``; Ray's bound lies above ours, so every refusal is ours."""
    bound = {"max_ongoing_requests": 2 * config.limits.max_queued_requests + 100}
    options = scaled(config, config.ingress, BY_ONGOING) | bound
    return bind(serve.ingress()(IngressDeployment), "Ingress", options, config, control, wire, handles)
