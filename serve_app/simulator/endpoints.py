"""The ASGI endpoints that speak OpenAI's two dialects to one provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve_app.simulator.exchange import Exchange
from serve_app.simulator.openai_responses import ResponsesReply, read_responses_request
from serve_app.simulator.openai_wire import Completion, read_request
from serve_app.simulator.provider import Dialect, Provider

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

CHAT = Dialect(read_request, Completion, "chatcmpl-")
RESPONSES = Dialect(read_responses_request, ResponsesReply, "resp_")


class Endpoint:
    """``POST`` requests of one dialect.

    Args:
        provider: who answers.
        dialect: how requests and replies are written.
    """

    def __init__(self, provider: Provider, dialect: Dialect) -> None:
        self._provider = provider
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._provider.serve(Exchange(scope, receive, send), self._dialect)
