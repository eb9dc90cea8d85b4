"""Every part its own deployment: ``Ingress → Cache → Router → Model-…``, beside them ``ControlPlane``.

For teams that scale parts apart, or run several ingress replicas over one shared cache.
"""

from collections.abc import Mapping
from typing import Any

from ray.serve import Application

from graphs import parts
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.config_check import load_app_config
from serve_app.deployments.autoscaling import BY_ONGOING
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.remote_stage import RemoteStage
from serve_app.deployments.replicas import CacheDeployment, Handle, RouterDeployment
from serve_app.deployments.stage import Stage


def build(args: dict[str, Any]) -> Application:
    """The application for ``serve run`` and ``serve deploy``; ``args`` is an ``AppConfig``.

    Raises:
        ConfigError: one line for each thing that is wrong, as ``switchyard check`` words it.
    """
    config = load_app_config(args)
    redis = parts.embedded_redis(config)
    control = parts.control_plane(config, redis)
    models = parts.models(config, control)
    routing = parts.scaled(config, config.router, BY_ONGOING)
    router = parts.bind(RouterDeployment, "Router", routing, config, control, models)
    caching = parts.scaled(config, config.cache.replicas, BY_ONGOING)
    cache = parts.bind(CacheDeployment, "Cache", caching, config, control, router, redis)
    return parts.ingress(config, control, wire, {"Cache": cache})


def deployment_names(config: AppConfig) -> tuple[str, ...]:
    """What ``deployments:`` in the configuration may name."""
    return ("Cache", "Router", *parts.deployment_names(config))


def wire(config: AppConfig, handles: Mapping[str, Handle], telemetry: Telemetry, link: ControlLink) -> Stage:
    """Behind the ingress' batches: the cache, one hop away."""
    del config, telemetry
    return RemoteStage(handles["Cache"], link)
