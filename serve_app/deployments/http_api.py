"""The HTTP face of the ingress: one typed route a program, and the pages an operator needs."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from serve_app.adapters.json_log import about_call
from serve_app.adapters.tracing import join
from serve_app.core.cache_control import parse_cache_control
from serve_app.core.operator_access import OperatorAccess
from serve_app.core.trace_context import trace_context
from serve_app.deployments.console import add_console
from serve_app.deployments.feedback_api import add_feedback
from serve_app.deployments.http_body import read_body
from serve_app.deployments.http_problems import problem, problem_response, to_json
from serve_app.deployments.openapi import add_operator_types, add_program_types, describe, describe_in_full
from serve_app.deployments.operator_api import add_operator_api, caller_of
from serve_app.deployments.reply import cache_headers, reply
from serve_app.errors import SwitchyardError

if TYPE_CHECKING:
    from serve_app.deployments.ingress import Ingress

log = logging.getLogger("switchyard.http")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_CONFIGURATION = frozenset({"policy", "policy_problems"})
"""What of the status is for operators only; what the system does is for everybody."""
NO_PROGRAM = "none"
"""Under which calls of programs that there are not are counted: a label's values never come from a caller."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Api(FastAPI):
    """The ASGI application; calls of programs go straight to their handler.

    The middleware that FastAPI puts around every request resolves dependencies, keeps exit stacks and asks for a
    tracer: a tenth of an ingress' work, and nothing of it is used here.
    """

    def __init__(self, ingress: Ingress, **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        super().__init__(**options)
        self._ingress = ingress
        self._programs = {f"/v1/programs/{name}": name for name in ingress.programs}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name = self._programs.get(_path(scope)) if scope.get("method") == "POST" else None
        if name is None:
            await super().__call__(scope, receive, send)
            return
        response = await _answer(self._ingress, name, Request(scope, receive))
        await response(scope, receive, send)


def _path(scope: Scope) -> str:
    """The path below the application's own prefix, as Starlette routes it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def build_api(ingress: Ingress, access: OperatorAccess | None = None) -> FastAPI:
    """The ASGI application over one ingress; made on the replica, from its configuration.

    Operators are whom ``access`` lets through: nobody unless it is given.

    ``X-Request-ID`` is Ray Serve's: it takes the caller's or makes one, hands it to us and sets it on the response.
    """
    version = metadata.version("dspy-switchyard")
    api = Api(ingress, title="Switchyard", version=version, docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(api)
    _add_programs(api, ingress)
    add_feedback(api, ingress)
    access = access or OperatorAccess()
    _add_operations(api, ingress, access)
    add_operator_api(api, ingress, access)
    _add_docs(api, ingress)
    return api


def request_id_of(request: Request) -> str:
    """The caller's ``X-Request-ID`` when it is printable and short, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _add_errors(api: FastAPI) -> None:
    @api.exception_handler(SwitchyardError)
    async def _(request: Request, error: SwitchyardError) -> Response:
        return problem_response(error, request_id_of(request))

    @api.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        known = SwitchyardError(str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        members = problem(known, request_id_of(request)) | {
            "type": f"urn:switchyard:problem:{code}",
            "title": str(error.detail),
            "status": error.status_code,
            "code": code,
        }
        return Response(to_json(members), error.status_code, error.headers, "application/problem+json")


def _add_programs(api: FastAPI, ingress: Ingress) -> None:
    def route(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            return await _answer(ingress, name, request)

        return call

    for name, program in ingress.programs.items():
        api.post(  # for the document; ``Api`` answers
            f"/v1/programs/{name}",
            operation_id=f"call_{name}",
            summary=f"Call {name}",
            description=program.description,
            tags=["programs"],
        )(route(name))

    @api.post("/v1/programs/{program:path}", include_in_schema=False)
    async def unknown(program: str, request: Request) -> Response:
        return await _answer(ingress, program, request)

    @api.get("/v1/programs", summary="What is served", tags=["programs"])
    async def programs() -> Response:
        return _json({"programs": [describe(program) for program in ingress.programs.values()]})

    @api.get("/v1/programs/{program:path}", summary="One program's types and levels", tags=["programs"])
    async def one(program: str) -> Response:
        return _json(describe_in_full(ingress.reader.program(program)))


async def _answer(ingress: Ingress, name: str, request: Request) -> Response:
    started = time.monotonic()
    request_id = request_id_of(request)
    about_call(request_id)
    join(trace_context(request.headers))
    try:
        inputs, options = await _read(ingress, name, request, request_id)
        freshness = parse_cache_control(", ".join(request.headers.getlist("cache-control")))
        result = await ingress.answer(name, inputs, options, request_id, freshness)
        body = reply(name, request_id, result, time.monotonic() - started)
        return Response(to_json(body), 200, cache_headers(result), "application/json")
    except SwitchyardError as error:
        return problem_response(error, request_id)
    except Exception:  # a defect of ours: logged with its call, and told to nobody
        log.exception("http.failed", extra={"request_id": request_id, "program": name})
        return problem_response(SwitchyardError("internal failure"), request_id)


async def _read(
    ingress: Ingress, program: str, request: Request, request_id: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The call's inputs and options; a body that cannot be read is counted here, since it never becomes a call."""
    started, counted = time.monotonic(), NO_PROGRAM
    try:
        counted = ingress.reader.program(program).name
        return ingress.reader.body(await read_body(request, ingress.config.limits.max_body_bytes))
    except SwitchyardError as error:
        ingress.refused(counted, error, request_id, time.monotonic() - started)
        raise


def _add_operations(api: FastAPI, ingress: Ingress, access: OperatorAccess) -> None:
    @api.get("/health", summary="Alive", tags=["operations"])
    async def health() -> Response:
        return _json({"status": "ok"})

    @api.get("/ready", summary="Able to answer", tags=["operations"])
    async def ready() -> Response:
        is_ready = ingress.link.is_ready
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    @api.get("/v1/status", summary="What the system is doing", tags=["operations"])
    async def status(request: Request) -> Response:
        shown = await ingress.status()
        if not access.allows(caller_of(request)):
            shown = {name: value for name, value in shown.items() if name not in _CONFIGURATION}
        return _json(shown)

    @api.get("/metrics", summary="Prometheus metrics of the whole cluster", tags=["operations"])
    async def metrics() -> Response:
        return Response(await ingress.metrics(), media_type=METRICS_TYPE)

    add_console(api)


def _add_docs(api: FastAPI, ingress: Ingress) -> None:
    api.mount("/docs/assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
    document = add_program_types(get_openapi(title=api.title, version=api.version, routes=api.routes), ingress.programs)
    add_operator_types(document)

    @api.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return _json(document)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Switchyard",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon.png",
        )


def _json(payload: Any, status: int = 200) -> Response:  # noqa: ANN401 - whatever JSON can hold
    return Response(to_json(payload), status, media_type="application/json")
