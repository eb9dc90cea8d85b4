"""The deployments as Ray Serve starts them: each builds what its plain class needs in the replica's own process.

Nothing is decided here. A class of this file is its plain class plus a constructor that takes what can be pickled
(configuration and handles), so a test constructs the plain one, and a graph binds this one. Those that hold programs
are in ``program_replicas``, so that the others start without DSPy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.garbage import collect_seldom
from serve_app.adapters.json_log import configure_logging
from serve_app.adapters.redis_store import RedisStore
from serve_app.adapters.serve_address import node_address
from serve_app.adapters.telemetry import Telemetry
from serve_app.adapters.tracing import close_tracing, configure_tracing
from serve_app.config import AppConfig, CacheConfig, Replicas
from serve_app.core.model_load import model_deployment_name
from serve_app.deployments.answer_store import AnswerStore
from serve_app.deployments.autoscaling import IN_HAND
from serve_app.deployments.cache import Cache
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.control_memory import remember
from serve_app.deployments.control_plane import ControlPlane
from serve_app.deployments.exchange_server import ExchangeServer
from serve_app.deployments.remote_stage import RemoteStage
from serve_app.deployments.router import Router
from serve_app.deployments.stage import PICKLED, Chunks, Stage
from serve_app.deployments.stage_server import StageServer
from serve_app.messages import Call
from serve_app.reports import NOWHERE

Handle = DeploymentHandle[Any]
Wire = Callable[[AppConfig, Mapping[str, Handle], Telemetry, ControlLink], Stage]
"""Builds the stage behind the ingress' batches, in the ingress' own process."""

log = logging.getLogger("switchyard.replicas")

EMBEDDED_REDIS = "EmbeddedRedis"
"""Name of the deployment that runs the embedded Redis."""
MODEL_ACCEPT_S = 5.0
"""Seconds within which some replica of a model must take a batch. One that lives does so within milliseconds, but where
a new version starts on a small machine it may wait for a core for seconds."""
REDIS_REFRESH_S = 2.0
"""Seconds between looks at where the embedded Redis is: it may have been started anew."""


class Holding:
    """Gives back what a replica holds, once, when Ray ends it: Ray calls ``__del__`` and awaits what that returns."""

    _held: contextlib.AsyncExitStack | None = None

    async def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            await held.aclose()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        return self._let_go() if self._held is not None else None


def hold(link: ControlLink) -> contextlib.AsyncExitStack:
    """What every replica holds: its line to the control plane, and its traces."""
    held = contextlib.AsyncExitStack()
    held.push_async_callback(link.aclose)
    held.push_async_callback(asyncio.to_thread, close_tracing)
    return held


def link_to(control: Handle, deployment: str, telemetry: Telemetry) -> ControlLink:
    """A replica's line to the control plane."""
    return ControlLink(control.options(**PICKLED), deployment, telemetry)


def has_peers(config: CacheConfig, holders: Replicas) -> bool:
    """Whether others may make the same answers; ``deployments:`` may ask for more replicas than ``holders``."""
    return config.has_peers(holders) or (serve.get_replica_context().world_size or 1) > 1


class Streaming:
    """``run`` and ``leave`` for other processes: over channels, and for Ray, which runs plain methods in a thread."""

    is_remote: ClassVar[bool] = True
    _server: StageServer | None = None

    def take_calls(self, link: ControlLink, held: contextlib.AsyncExitStack) -> None:
        """Listen for channels from now on, and have ``link`` say where, until ``held`` is let go."""
        stage: Stage = self  # type: ignore[assignment]  # with the plain class behind this one
        try:
            server = self._server = StageServer(stage, node_address())
        except OSError as error:  # the address may be a router's, and not of this machine
            log.warning("channels.none", extra={"why": str(error)})
            link.endpoint = NOWHERE
            return
        server.start()
        link.endpoint = server.endpoint

        async def end() -> None:
            link.endpoint = None
            await server.aclose()

        held.push_async_callback(end)

    async def run(self, calls: Sequence[Call]) -> Chunks:
        """Answer each call, each as it is ready."""
        chunks: Chunks = super().run(calls)  # type: ignore[misc]  # of the plain class behind this one
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                yield chunk

    async def leave_calls(self, ids: Sequence[str]) -> None:
        """Give up these calls, if they are here."""
        super().leave(ids)  # type: ignore[misc]  # of the plain class behind this one


class CountingCalls(Streaming):
    """A part that Ray scales by the calls in hand."""

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What ``serve_app.deployments.autoscaling.ongoing_policy`` adds to Ray's own count."""
        return {IN_HAND: float(self._server.calls if self._server else 0)}


class CacheDeployment(Holding, CountingCalls, Cache):
    """The shared cache level as a replica of its own.

    Args:
        config: the application's topology.
        control: handle of the control plane.
        downstream: handle of the stage behind the cache.
        redis: handle of the embedded Redis, when there is one.
    """

    def __init__(self, config: AppConfig, control: Handle, downstream: Handle, redis: Handle | None) -> None:
        configure_logging("Cache")
        collect_seldom()
        configure_tracing("Cache")
        telemetry = Telemetry()
        link = link_to(control, "Cache", telemetry)
        super().__init__(config, RemoteStage(downstream, link), telemetry, link)
        self.store.has_peers = has_peers(config.cache, config.cache.replicas)
        self._held = hold(link)
        self._held.push_async_callback(self.aclose)
        self.store.spawn(follow_redis(self.store, config.cache, redis))
        self.take_calls(link, self._held)
        link.start()


class RouterDeployment(Holding, CountingCalls, Router):
    """The router as a replica of its own.

    Args:
        config: the application's topology.
        control: handle of the control plane.
        handles: of the model deployments, by their names.
    """

    def __init__(self, config: AppConfig, control: Handle, handles: Mapping[str, Handle]) -> None:
        configure_logging("Router")
        collect_seldom()
        configure_tracing("Router")
        telemetry = Telemetry()
        link = link_to(control, "Router", telemetry)
        stages = model_stages(config, handles, link)
        super().__init__(config, stages, telemetry, link)
        self._held = hold(link)
        self.take_calls(link, self._held)
        link.start()


class ControlPlaneDeployment(Holding, ControlPlane):
    """The control plane; ``user_config`` is its policy.

    Args:
        config: the application's topology.
        redis: handle of the embedded Redis, when there is one.
    """

    def __init__(self, config: AppConfig, redis: Handle | None) -> None:
        configure_logging("ControlPlane")
        collect_seldom()
        super().__init__(config)
        held = self._held = contextlib.AsyncExitStack()
        application = serve.get_replica_context().app_name
        remembering = remember(self, redis_addresses(config.cache.redis_url, redis), application)
        held.callback(asyncio.get_running_loop().create_task(remembering).cancel)
        self._take_reports(held)

    def _take_reports(self, held: contextlib.AsyncExitStack) -> None:
        try:
            server = ExchangeServer(self.exchange, node_address())
        except OSError as error:
            log.warning("channels.none", extra={"why": str(error)})
            return
        server.start()
        self.endpoint = server.endpoint
        held.push_async_callback(server.aclose)

    async def reconfigure(  # type: ignore[override]  # Ray awaits it
        self, user_config: Mapping[str, Any] | None, rank: object = None
    ) -> None:
        """Take a policy, once it is known what to fall back on: the first one comes right after the constructor.

        Ray tells of a ``user_config`` that was taken out only to who asks for a ``rank``.
        """
        del rank
        await self.recall(user_config)
        super().reconfigure(user_config)


class EmbeddedRedisDeployment:
    """A Redis-compatible server of our own, for a machine that has none."""

    def __init__(self) -> None:
        configure_logging("EmbeddedRedis")
        self._server = EmbeddedRedis()
        self._server.start()

    async def url(self) -> str:
        """Where it is; one that has ended for good is started anew, at another address."""
        self._server.start()
        return self._server.url

    def __del__(self) -> None:
        self._server.stop()


def model_stages(config: AppConfig, handles: Mapping[str, Handle], link: ControlLink) -> dict[str, Stage]:
    """A stage for each model; one whose replicas are all gone is given up quickly, so that a call can go elsewhere."""
    return {
        model.name: RemoteStage(
            handles[model_deployment_name(model.name)],
            link,
            accept_timeout_s=MODEL_ACCEPT_S if model.replicas.min else None,  # from zero, a replica has to start first
        )
        for model in config.models
    }


async def follow_redis(store: AnswerStore, config: CacheConfig, embedded: Handle | None) -> None:
    """Give the store its shared level, and again when the embedded server has moved."""
    async for found in redis_addresses(config.redis_url, embedded):
        retired, store.redis = store.redis, RedisStore(found, timeout_s=config.redis_timeout_s)
        if retired is not None:
            await asyncio.sleep(REDIS_REFRESH_S)  # by then no call waits for it
            await retired.aclose()


async def redis_addresses(url: str | None, embedded: Handle | None) -> AsyncIterator[str]:
    """Where the Redis is: nothing for none, one URL for a server of the team's, each new one of the embedded server."""
    if embedded is None:
        if url:
            yield url
        return
    known = ""
    while True:
        try:
            found: str = await embedded.url.remote()
        except (RayError, RayServeException) as error:
            log.warning("embedded_redis.unknown", extra={"why": type(error).__name__})
        else:
            if found != known:
                known = found
                yield found
        await asyncio.sleep(REDIS_REFRESH_S)
