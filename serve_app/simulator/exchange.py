"""One HTTP request and its response, on bare ASGI: the parts that misbehaving needs.

A reset needs the server's help: ``serve_app.simulator.server`` puts ``reset_connection`` into the scope's
``state``. Under any other server (Ray Serve's, for one) there is no such thing. Then a client sees what a
proxy before a resetting provider would show it: 502 where no header was sent yet, and a body that ends early
where one was.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import Receive, Scope, Send

_SHORTEST_PAUSE_S = 0.0005
_RESET_GRACE_S = 5.0


class ClientGoneError(Exception):
    """The client closed the connection before it had its answer."""


class BodyTooLargeError(Exception):
    """The request's body exceeds the bound."""


class CutError(ConnectionError):
    """Raised out of the application to make a server that cannot reset end the connection."""


class Exchange:
    """A request being answered; must be closed.

    Args:
        scope: ASGI scope.
        receive: ASGI receive.
        send: ASGI send.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state: Mapping[str, Any] = scope.get("state") or {}
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        self._alarm: asyncio.Future[None] | None = None
        self._is_gone = False

    async def body(self, max_bytes: int) -> bytes:
        """The request's body.

        Raises:
            BodyTooLargeError: it has more than ``max_bytes``.
            ClientGoneError: it never came to its end.
        """
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > max_bytes:
                raise BodyTooLargeError
            more = message.get("more_body", False)
        return b"".join(parts)

    async def pause(self, delay_s: float) -> None:
        """Wait.

        Raises:
            ClientGoneError: the client left meanwhile.
        """
        if delay_s < _SHORTEST_PAUSE_S:
            return
        loop = asyncio.get_running_loop()
        if self._watch is None:
            self._watch = loop.create_task(self._watch_client())
        if not self._is_gone:
            self._alarm = loop.create_future()
            timer = loop.call_later(delay_s, self._wake)
            try:
                await self._alarm
            finally:
                timer.cancel()
        if self._is_gone:
            raise ClientGoneError

    async def start(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a part of the body; the last one with ``more=False``."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON response."""
        size = str(len(body))
        await self.start(status, {"content-type": "application/json", "content-length": size, **(headers or {})})
        await self.write(body, more=False)

    async def reset(self, *, is_started: bool) -> None:
        """Reset the connection, or come as near to it as the server allows."""
        abort: Callable[[], None] | None = self._state.get("reset_connection")
        if abort is not None:
            abort()
            await self._gone_within(_RESET_GRACE_S)
        elif is_started:
            raise CutError("the simulated connection is cut here on purpose")
        else:
            await self.reply(502, b'{"error": {"message": "upstream reset", "type": "server_error", "code": null}}')

    def close(self) -> None:
        """Stop watching the client."""
        if self._watch is not None:
            self._watch.cancel()

    async def _gone_within(self, delay_s: float) -> None:
        try:
            await self.pause(delay_s)
        except ClientGoneError:
            return

    async def _watch_client(self) -> None:
        try:
            while (await self._receive())["type"] != "http.disconnect":
                pass
        finally:
            self._is_gone = True
            self._wake()

    def _wake(self) -> None:
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)
