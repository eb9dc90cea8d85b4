"""A server that looks to the page like Switchyard: its own files, canned answers, real metrics that grow with each poll."""

import asyncio
import contextlib
import copy
import json
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.applications import Starlette
from starlette.routing import Mount

from serve_app.adapters.telemetry import MetricsPage, Telemetry, gauge
from serve_app.core.operator_access import OperatorAccess
from serve_app.deployments.console import add_console
from serve_app.deployments.http_api import _add_errors
from serve_app.deployments.operator_api import add_operator_api, caller_of
from serve_app.messages import Attempt, Level, Outcome, Usage
from serve_app.policy import Policy

MARKUP = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"

STATUS: dict[str, Any] = {
    "ready": True,
    "level": {"level": "full", "reason": "", "since_s": 61.0},
    "models": {
        "large": {
            "breaker": "closed",
            "healthy": True,
            "requests": 412,
            "failures": 0,
            "mean_latency_s": 2.113,
            "cost_usd": 1.2,
        },
        "medium": {"breaker": "closed", "healthy": True, "requests": 1387, "failures": 3, "mean_latency_s": 0.874},
        "small": {"breaker": "closed", "healthy": True, "requests": 0, "failures": 0, "mean_latency_s": None},
    },
    "replicas": {"Ingress": 2, "Router": 1, "Cache": 1, "Model-large": 1, "Model-medium": 3, "Model-small": 1},
    "queues": {"Model-large": 17, "Model-medium": 2, "Model-small": 0},
    "caches": {"near_entries": 1204, "memory_entries": 3371, "in_flight": 4, "redis_failures_skipped": 11_300},
    "cost_usd": 1.2345,
    "quality": {
        "learning": False,
        "programs": {
            "triage": {
                "version": "99c96b92a05c9647",
                "models": {
                    "large": {
                        "prior": 0.95,
                        "scores": [
                            {"level": "full", "metric_type": "confidence", "mean": 0.99, "samples": 400.0},
                            {"level": "full", "metric_type": "reward", "mean": 0.9, "samples": 30.0},
                            {"level": "degraded", "metric_type": "reward", "mean": 0.5, "samples": 10.0},
                        ],
                    },
                    "medium": {
                        "prior": 0.85,
                        "scores": [{"level": "full", "metric_type": "confidence", "mean": 0.91, "samples": 99.0}],
                    },
                },
            }
        },
    },
    "policy": Policy().model_dump(mode="json"),
}

TRIAGE: dict[str, Any] = {
    "name": "triage",
    "description": "Sort a support ticket into a category with a priority and a one-sentence summary.",
    "version": "99c96b92a05c9647",
    "models": ["large", "medium", "small"],
    "inputs": {
        "type": "object",
        "properties": {
            "ticket": {"type": "string", "description": "what the customer wrote", "examples": ["Charged twice."]},
            "urgency": {"type": "integer", "minimum": 1, "maximum": 5},
            "weight": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None},
            "channel": {"$ref": "#/$defs/Channel"},
            "is_customer": {"type": "boolean", "default": True},
            "tags": {"type": "array", "items": {"type": "string"}},
            "context": {"type": "string", "default": ""},
        },
        "required": ["ticket", "urgency", "channel", "tags"],
        "$defs": {"Channel": {"enum": ["mail", "phone"], "type": "string"}},
    },
    "outputs": {},
    "levels": {},
}
HOSTILE = {
    "name": "hostile",
    "description": MARKUP,
    "version": MARKUP,
    "models": [MARKUP],
    "inputs": {"type": "object", "properties": {"text": {"type": "string", "description": MARKUP}}},
}
ANSWER = {
    "outputs": {"category": "billing", "priority": 4, "summary": MARKUP, "parts": [{"a": 1}], "sure": None},
    "meta": {
        "request_id": "abc123",
        "program": "triage",
        "model": "medium",
        "level": "full",
        "cache": "miss",
        "attempts": [
            {"model": "large", "outcome": "server_error", "latency_s": 0.021},
            {"model": "medium", "outcome": "ok", "latency_s": 0.512},
        ],
        "usage": {"input_tokens": 120, "output_tokens": 12},
        "cost_usd": 0.00123,
        "latency_s": 0.54,
    },
}
PROBLEM = {
    "type": "urn:switchyard:problem:no_route",
    "title": "No model available",
    "status": 503,
    "detail": "every model of the route has an open breaker",
    "code": "no_route",
    "request_id": "abc123",
    "retryable": True,
    "retry_after_s": 12.5,
    "attempts": [{"model": "large", "outcome": "timeout", "latency_s": 1.5}],
}
CALLS_A_POLL = 20


class Names:
    """Knows every name."""

    def model(self, name: str) -> str:
        return name

    def program(self, name: str) -> Any:
        return type("Program", (), {"name": name})


@dataclass
class ConsoleServer:
    """Serves the page below ``prefix``, on a port that stays the same when it is stopped and started again.

    Attributes:
        reply: status, content type and body of a called program.
        posts: what was posted: ``(program, body, headers)``.
        paths: every path that was asked for.
        access: who may give orders; the real thing, behind the real routes.
        orders: what was ordered: ``(method, *details)``, as the control plane would be asked.
        obeys: whether the control plane answers.
        trouble: ``""``, ``"silent"`` (status requests hang) or ``"failing"`` (they get 503, as from a proxy).
    """

    prefix: str = ""
    status: dict[str, Any] = field(default_factory=lambda: copy.deepcopy(STATUS))
    programs: list[dict[str, Any]] = field(default_factory=lambda: [TRIAGE, HOSTILE])
    reply: tuple[int, str, str] = (200, "application/json", json.dumps(ANSWER))
    posts: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    access: OperatorAccess = field(default_factory=lambda: OperatorAccess(is_local=True))
    orders: list[tuple[Any, ...]] = field(default_factory=list)
    obeys: bool = True
    trouble: str = ""
    port: int = 0

    def __post_init__(self) -> None:
        self._telemetry = Telemetry()
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.prefix}/"

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        app = Starlette(routes=[Mount(self.prefix or "/", app=self._api())])
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve(sockets=[listener])))
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join(timeout=10)
            assert not self._thread.is_alive()
            self._thread = None

    @property
    def reader(self) -> Names:
        return Names()

    @property
    def link(self) -> Any:
        """To the control plane: this very object."""
        return self

    async def ask(self, method: str, *details: Any) -> dict[str, Any] | None:
        if not self.obeys:
            return None
        self.orders.append((method, *details))
        return {"done": True}

    def check(self, caller: Any) -> None:
        self.access.check(caller)

    def _api(self) -> FastAPI:
        api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        _add_errors(api)
        add_console(api)
        add_operator_api(api, self, self)  # type: ignore[arg-type]

        @api.middleware("http")
        async def note(request: Request, call_next: Any) -> Response:
            self.paths.append(request.url.path)
            return await call_next(request)

        @api.get("/v1/status")
        async def status(request: Request) -> Response:
            shown = dict(self.status)
            if not self.access.allows(caller_of(request)):
                shown.pop("policy", None)
            if self.trouble == "silent":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(30):
                        while self.trouble:
                            await asyncio.sleep(0.05)
            return json_response(shown) if not self.trouble else Response("down", 503)

        @api.get("/metrics")
        async def metrics() -> Response:
            return Response(self._grown_metrics(), media_type="text/plain")

        @api.get("/v1/programs")
        async def programs() -> Response:
            return json_response({"programs": self.programs})

        @api.get("/v1/programs/{name}")
        async def program(name: str) -> Response:
            return json_response(next(known for known in self.programs if known["name"] == name))

        @api.post("/v1/programs/{name}")
        async def call(name: str, request: Request) -> Response:
            self.posts.append((name, await request.json(), dict(request.headers)))
            status, media_type, text = self.reply
            return Response(text, status, media_type=media_type)

        return api

    def _grown_metrics(self) -> bytes:
        for number in range(CALLS_A_POLL):
            self._telemetry.call_finished("triage", "medium", "success", 0.02 * (1 + number))
        self._telemetry.call_finished("triage", "medium", "no_route", 1.5)
        self._telemetry.cache.hit("triage", "near", 0.0, 0.0)
        self._telemetry.cache.missed("triage")
        self._telemetry.attempt_finished("triage", Attempt("medium", Outcome.OK, 0.1, Usage(100, 10), 0.0004))
        page = MetricsPage()
        page.update("ingress", self._telemetry.samples())
        rank = Level(self.status["level"]["level"]).rank
        return page.render([gauge("dspy_degradation_level", "0 full, 1 degraded, 2 minimal.", {(): rank})])


def json_response(value: object) -> Response:
    return Response(json.dumps(value), media_type="application/json")
