"""A real HTTP server with the face of a Switchyard application, whose answers a test chooses."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Body = dict[str, Any] | str
"""The application's own JSON, or the plain text of a proxy in front of it."""
Answers = Callable[[str, int], tuple[int, Body, dict[str, str]]]
"""From a ticket and how often it was asked, to status, body and headers."""


def answered(ticket: str, tries: int) -> tuple[int, Body, dict[str, str]]:
    return 200, {"outputs": {"category": ticket.upper()}, "meta": {"cost_usd": 0.5}}, {}


def reply(status: int, body: Body, headers: dict[str, str] | None = None) -> web.Response:
    if isinstance(body, str):
        return web.Response(text=body, status=status, headers=headers)
    content_type = "application/json" if status == 200 else "application/problem+json"
    return web.json_response(body, status=status, headers=headers, content_type=content_type)


class BulkServer:
    def __init__(self, answers: Answers = answered) -> None:
        self.answers = answers
        self.description: tuple[int, Body] | tuple[int, Body, dict[str, str]] = 200, {"name": "triage", "inputs": {}}
        self.described = 0
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        self.goes_away_after = 10**9
        self.gate = asyncio.Event()
        self.gate.set()

    async def _call(self, request: web.Request) -> web.Response:
        body = await request.json()
        ticket = body["inputs"]["ticket"]
        self.bodies.append(body)
        self.asked[ticket] += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await self.gate.wait()
        finally:
            self._at_once -= 1
        if len(self.bodies) > self.goes_away_after and request.transport is not None:
            request.transport.abort()
        status, answer, headers = self.answers(ticket, self.asked[ticket])
        return reply(status, answer, headers)

    async def _describe(self, request: web.Request) -> web.Response:
        self.described += 1
        if request.match_info["program"] != "triage":
            return reply(404, {"code": "unknown_program", "detail": "did you mean 'triage'?"})
        if len(self.bodies) > self.goes_away_after and request.transport is not None:
            request.transport.abort()
        return reply(*self.description)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/programs/{program}", self._call)
        app.router.add_get("/v1/programs/{program}", self._describe)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            self.gate.set()
            await runner.cleanup()
