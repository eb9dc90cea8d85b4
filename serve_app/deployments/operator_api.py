"""What an operator orders over HTTP; each order is the control plane's, and holds for the whole cluster.

Without a key, requests of this machine count as an operator's, so each order takes what a page of another site cannot
send without asking first: a JSON content type, or DELETE. Nothing here answers such a question (CORS preflight).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from serve_app.core.operator_access import Caller, OperatorAccess
from serve_app.deployments.http_body import read_body
from serve_app.deployments.http_problems import to_json
from serve_app.deployments.requests import read_object
from serve_app.errors import ControlPlaneUnreachable, Forbidden, KeyRequired
from serve_app.messages import Level

if TYPE_CHECKING:
    from serve_app.deployments.ingress import Ingress

log = logging.getLogger("switchyard.operator")

MAX_BODY_BYTES: Final = 4096
RETRY_S: Final = 1.0
_PROXY_HEADERS: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


class IsolateBody(BaseModel):
    """Why a model is taken out of service."""

    model_config = ConfigDict(extra="forbid", title="Isolate")

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)] = Field(
        description="Shown in the status and written to the log."
    )


class ResetBody(BaseModel):
    """Nothing."""

    model_config = ConfigDict(extra="forbid", title="Reset")


class PinBody(BaseModel):
    """Which level of service is held."""

    model_config = ConfigDict(extra="forbid", title="Pin")

    pin: Level | None = Field(description="A level to hold, or null to follow the policy and the readings again.")


BODIES: Final[dict[tuple[str, str], type[BaseModel]]] = {
    ("/v1/models/{model}/isolate", "post"): IsolateBody,
    ("/v1/models/{model}/reset", "post"): ResetBody,
    ("/v1/level", "put"): PinBody,
}
"""The bodies of the orders, by path and method; for the OpenAPI document."""


def caller_of(request: Request) -> Caller:
    """What a request says of whom it is from."""
    headers = request.headers
    is_forwarded = any(name in headers for name in _PROXY_HEADERS)
    return Caller(headers.get("authorization"), headers.get("host"), headers.get("origin"), is_forwarded)


class Orders:
    """Orders on their way from HTTP to the control plane.

    Args:
        ingress: whose names are known and whose link is used.
        access: who may give orders.
    """

    def __init__(self, ingress: Ingress, access: OperatorAccess) -> None:
        self._ingress = ingress
        self._access = access

    async def isolate(self, model: str, request: Request) -> Response:
        """Keep calls away from a model."""
        self._admit(request)
        reason = read_object(IsolateBody, await _body(request)).reason
        return await self._give("isolate", self._ingress.reader.model(model), reason)

    async def reset(self, model: str, request: Request) -> Response:
        """Give a model a fresh start."""
        self._admit(request)
        read_object(ResetBody, await _body(request) or b"{}")
        return await self._give("reset", self._ingress.reader.model(model))

    async def pin(self, request: Request) -> Response:
        """Hold a level, or none."""
        self._admit(request)
        return await self._give("pin", read_object(PinBody, await _body(request)).pin)

    async def forget_all(self, request: Request) -> Response:
        """Forget every stored answer."""
        self._admit(request)
        return await self._give("forget", None)

    async def forget(self, program: str, request: Request) -> Response:
        """Forget one program's stored answers."""
        self._admit(request)
        return await self._give("forget", self._ingress.reader.program(program).name)

    def _admit(self, request: Request) -> None:
        try:
            self._access.check(caller_of(request))
        except (KeyRequired, Forbidden) as error:
            log.warning("operator.refused", extra={"code": error.code, "path": request.url.path[:200]})
            raise

    async def _give(self, order: str, *details: str | None) -> Response:
        done: Any = await self._ingress.link.ask(order, *details)
        if done is None:
            raise ControlPlaneUnreachable("the control plane cannot be asked; give the order again", RETRY_S)
        return Response(to_json(done), media_type="application/json")


async def _body(request: Request) -> bytes:
    return await read_body(request, MAX_BODY_BYTES)


def add_operator_api(api: FastAPI, ingress: Ingress, access: OperatorAccess) -> None:
    """Serve the orders."""
    orders = Orders(ingress, access)
    tags: list[Any] = ["operator"]
    # A model or program that is unknown may have any name, so slashes are taken, too.
    api.post("/v1/models/{model:path}/isolate", summary="Keep every call away from a model", tags=tags)(orders.isolate)
    api.post("/v1/models/{model:path}/reset", summary="Close a model's breaker, forget its failures", tags=tags)(
        orders.reset
    )
    api.put("/v1/level", summary="Hold a level of service", tags=tags)(orders.pin)
    api.delete("/v1/cache", summary="Forget every stored answer", tags=tags)(orders.forget_all)
    api.delete("/v1/cache/{program:path}", summary="Forget one program's stored answers", tags=tags)(orders.forget)
