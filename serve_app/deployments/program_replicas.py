"""The deployments that hold programs, the ingress and the models, as Ray Serve starts them."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

from fastapi import FastAPI
from ray import serve

from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.dspy_program import MAX_CALLS, Program, load_program
from serve_app.adapters.eager_accept import EagerAccept
from serve_app.adapters.garbage import collect_seldom
from serve_app.adapters.inline_executor import use_inline_executor
from serve_app.adapters.json_log import configure_logging
from serve_app.adapters.operator_key import read_operator_key
from serve_app.adapters.serve_address import listening_host
from serve_app.adapters.telemetry import Telemetry
from serve_app.adapters.tracing import configure_tracing
from serve_app.adapters.type_memo import use_type_memo
from serve_app.config import AppConfig, BatchingConfig, ModelConfig
from serve_app.core.model_load import model_deployment_name
from serve_app.core.operator_access import OperatorAccess, is_loopback
from serve_app.deployments.autoscaling import stats_of
from serve_app.deployments.cache import Cache
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.http_api import build_api
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.replicas import Handle, Holding, Streaming, Wire, hold, link_to
from serve_app.messages import Call, Result

log = logging.getLogger("switchyard.replicas")

F = TypeVar("F", bound=Callable[..., Any])


def _load_programs(config: AppConfig, max_calls: int = MAX_CALLS) -> dict[str, Program]:
    return {program.name: load_program(program, max_calls=max_calls) for program in config.programs}


def _for_ever(work: Coroutine[Any, Any, NoReturn]) -> asyncio.Task[NoReturn]:
    """Run it; its end, which nobody waits for, is logged."""

    def ended(task: asyncio.Task[NoReturn]) -> None:
        if not task.cancelled():
            log.error("work.ended", exc_info=task.exception(), extra={"work": str(task.get_coro())})

    task: asyncio.Task[NoReturn] = asyncio.create_task(work)
    task.add_done_callback(ended)
    return task


def _holding(link: ControlLink, programs: Mapping[str, Program]) -> contextlib.AsyncExitStack:
    held = hold(link)
    for program in programs.values():
        held.callback(program.close)
    return held


def _signed(function: F) -> F:
    """A function that carries its signature: ``@serve.batch`` looks at it for every call."""
    function.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return function


class IngressDeployment(Holding, Ingress):
    """The ingress over HTTP and handles.

    Args:
        config: the application's topology.
        control: handle of the control plane.
        wire: builds the stage behind the batches from ``handles``.
        handles: of the deployments behind, by name.
    """

    def __init__(self, config: AppConfig, control: Handle, wire: Wire, handles: Mapping[str, Handle]) -> None:
        configure_logging("Ingress")
        collect_seldom()
        configure_tracing("Ingress")
        accepting = EagerAccept(asyncio.get_running_loop())
        telemetry = Telemetry()
        link = link_to(control, "Ingress", telemetry)
        stage = wire(config, handles, telemetry, link)
        super().__init__(config, _load_programs(config), stage, telemetry, link)
        self._access = OperatorAccess(read_operator_key(os.environ), is_local=is_loopback(listening_host() or ""))
        self._held = _holding(link, self.programs)
        self._held.push_async_callback(self.feedback.aclose)
        if isinstance(stage, Cache):
            self._held.push_async_callback(stage.aclose)
        self._held.push_async_callback(self.near.aclose)
        for work in (self.watch_loop(), accepting.run()):
            self._held.callback(_for_ever(work).cancel)
        self.set_batching(config.batching)
        link.on_snapshot(lambda snapshot: self.set_batching(snapshot.policy.batching or config.batching))
        link.start()

    async def __del__(self) -> None:  # Ray's HTTP wrapper awaits this only if it is a coroutine function
        await self._let_go()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP application; called by Ray Serve after the constructor."""
        return build_api(self, self._access)

    def set_batching(self, batching: BatchingConfig) -> None:
        """As the ingress does, and Ray's collector with it."""
        Ingress.set_batching(self, batching)
        batched: Any = self._batched  # Ray adds the two setters to the method
        batched.set_max_batch_size(batching.max_batch_size)
        batched.set_batch_wait_timeout_s(batching.batch_wait_timeout_s)

    async def _collect(self, call: Call) -> asyncio.Future[Result]:
        future: asyncio.Future[Result] = await self._batched(call)
        return future

    @serve.batch
    @_signed
    async def _batched(self, calls: list[Call]) -> list[asyncio.Future[Result]]:
        return self.start_batch(calls)


class ModelDeployment(Holding, Streaming, ModelReplica):
    """One model's replica.

    Args:
        config: the application's topology.
        model: the model.
        control: handle of the control plane.
    """

    def __init__(self, config: AppConfig, model: ModelConfig, control: Handle) -> None:
        name = model_deployment_name(model.name)
        configure_logging(name)
        collect_seldom()
        configure_tracing(name)
        use_inline_executor()
        use_type_memo()
        telemetry = Telemetry()
        link = link_to(control, name, telemetry)
        programs, pool = _load_programs(config, model.max_ongoing_requests), LMPool()
        super().__init__(model, programs, pool, telemetry, link)
        self._held = _holding(link, programs)
        self._held.push_async_callback(pool.aclose)
        self._held.push_async_callback(self.scoring.aclose)
        self.take_calls(link, self._held)
        link.start()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What ``serve_app.deployments.autoscaling`` decides by."""
        return stats_of(self.slots.queue, self.load, is_held_back=self.is_held_back)
