"""Cache and router inside the ingress: ``Ingress → Model-…``, one hop to a model.

The fastest graph, and the right one for a single machine or many equal ingress replicas.
"""

from collections.abc import Mapping
from typing import Any

from ray.serve import Application

from graphs import parts
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.config_check import load_app_config
from serve_app.deployments.cache import Cache
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.replicas import EMBEDDED_REDIS, Handle, follow_redis, has_peers, model_stages
from serve_app.deployments.router import Router
from serve_app.deployments.stage import Stage


def build(args: dict[str, Any]) -> Application:
    """The application for ``serve run`` and ``serve deploy``; ``args`` is an ``AppConfig``.

    Raises:
        ConfigError: one line for each thing that is wrong, as ``switchyard check`` words it.
    """
    config = load_app_config(args)
    redis = parts.embedded_redis(config)
    control = parts.control_plane(config, redis)
    handles = parts.models(config, control)
    if redis:
        handles[EMBEDDED_REDIS] = redis
    return parts.ingress(config, control, wire, handles)


def deployment_names(config: AppConfig) -> tuple[str, ...]:
    """What ``deployments:`` in the configuration may name."""
    return parts.deployment_names(config)


def wire(config: AppConfig, handles: Mapping[str, Handle], telemetry: Telemetry, link: ControlLink) -> Stage:
    """Behind the ingress' batches: cache and router in the same process, the models one hop away."""
    router = Router(config, model_stages(config, handles, link), telemetry, link)
    cache = Cache(config, router, telemetry, link)
    cache.store.has_peers = has_peers(config.cache, config.ingress)
    cache.store.spawn(follow_redis(cache.store, config.cache, handles.get(EMBEDDED_REDIS)))
    return cache
