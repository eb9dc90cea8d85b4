"""The operations page at ``/``, its assets under ``/console``; addresses in it are relative to where it is mounted.

The page shows what callers and providers said, so its policy runs no script and loads nothing but its own files.
Everything is asked for again each time (an ETag makes that cheap): a browser that kept an old script would show a new
server wrongly.
"""

from __future__ import annotations

from importlib import resources
from typing import Final

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
}


class _Assets(StaticFiles):
    """Static files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_console(api: FastAPI) -> None:
    """Serve the page and its assets."""
    page = (resources.files("serve_app") / "console" / "index.html").read_text(encoding="utf-8")
    api.mount("/console", _Assets(packages=[("serve_app", "console")]), name="console")

    @api.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers=HEADERS)
