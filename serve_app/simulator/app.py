"""The simulated provider as an ASGI application.

| | |
|---|---|
| ``POST /v1/chat/completions`` | OpenAI's chat completions, whole or streamed |
| ``POST /v1/responses`` | OpenAI's responses, whole |
| ``GET /v1/models``, ``GET /v1/models/{id}`` | the profile's models |
| ``PUT /faults/{model}`` | set the model's faults: one object, or a list of them |
| ``GET /faults``, ``DELETE /faults``, ``DELETE /faults/{model}`` | see them, end them |
| ``GET /stats``, ``DELETE /stats`` | requests by model and outcome; count anew |
| ``GET /health`` | alive |

Bare Starlette: the simulator shares its cores with the server under test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from serve_app.simulator.endpoints import CHAT, RESPONSES, Endpoint
from serve_app.simulator.faults import Fault, fault_adapter
from serve_app.simulator.openai_errors import RequestError, unknown_model_error
from serve_app.simulator.provider import Provider

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from starlette.requests import Request

    from serve_app.simulator.profile import Profile

_CREATED = 1_700_000_000


def create_app(profile: Profile) -> Starlette:
    """The application for a profile.

    Raises:
        ConfigError: a model's recordings cannot be read.
    """
    provider = Provider(profile)
    control = _Control(provider)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", Endpoint(provider, CHAT), methods=["POST"]),
            Route("/v1/responses", Endpoint(provider, RESPONSES), methods=["POST"]),
            Route("/v1/models", control.models),
            Route("/v1/models/{model:path}", control.model),
            Route("/faults", control.faults, methods=["GET", "DELETE"]),
            Route("/faults/{model:path}", control.fault, methods=["PUT", "DELETE"]),
            Route("/stats", control.stats, methods=["GET", "DELETE"]),
            Route("/health", control.health),
        ],
        exception_handlers={RequestError: _refused, HTTPException: _unrouted},
    )


class _Control:
    """Everything but the completions."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider

    async def models(self, _request: Request) -> Response:
        return _json({"object": "list", "data": [_model(name) for name in self._provider.models]})

    async def model(self, request: Request) -> Response:
        return _json(_model(self._known(request)))

    async def faults(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._provider.faults.clear()
        return _json(self._provider.faults.listing())

    async def fault(self, request: Request) -> Response:
        model = self._known(request)
        if request.method == "DELETE":
            self._provider.faults.clear(model)
        else:
            self._provider.faults.put(model, _read_faults(await request.body()))
        return _json(self._provider.faults.listing())

    async def stats(self, request: Request) -> Response:
        if request.method == "DELETE":
            self._provider.stats.reset()
        return _json(self._provider.stats.report())

    async def health(self, _request: Request) -> Response:
        return _json({"status": "ok"})

    def _known(self, request: Request) -> str:
        model = str(request.path_params["model"])
        if model not in self._provider.models:
            raise unknown_model_error(model)
        return model


def _read_faults(body: bytes) -> list[Fault]:
    """The faults in a body: one, or a list.

    Raises:
        RequestError: 422 with one sentence for each thing wrong.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(422, f"The body is not JSON: {error}") from None
    try:
        return [fault_adapter.validate_python(part) for part in (data if isinstance(data, list) else [data])]
    except ValidationError as error:
        raise RequestError(422, "; ".join(_sentence(problem) for problem in error.errors())) from None


def _sentence(problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "simulator"}


def _json(data: object) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101 - Starlette dispatches by type
    return Response(error.body, error.status, error.headers, media_type="application/json")


async def _unrouted(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - Starlette dispatches by type
    message = f"Unknown request URL: {request.method} {request.url.path}."
    return await _refused(request, RequestError(error.status_code, message, code="unknown_url"))
