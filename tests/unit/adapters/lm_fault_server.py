"""A provider on a raw socket that answers well, badly, late or not at all, and remembers what it saw."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

WAIT_S = 5.0

COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "small",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 120, "completion_tokens": 12, "total_tokens": 132},
}


@dataclass(frozen=True)
class Received:
    """One request as it arrived."""

    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


Answer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def reply(status: int = 200, body: bytes | dict | list | None = None, **headers: str) -> Answer:
    """A well-formed HTTP reply; underscores in header names become hyphens."""
    payload = json.dumps(COMPLETION if body is None else body).encode() if not isinstance(body, bytes) else body
    fields = {"content-type": "application/json", "content-length": str(len(payload))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return raw(f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode() + payload, close=False)


def raw(data: bytes, *, close: bool = True) -> Answer:
    """These bytes; then the end of the connection, if ``close``."""

    async def answer(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return answer


def sse(*events: dict | str, close: bool = True) -> Answer:
    """A stream of server-sent events that ends with the connection."""
    lines = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + lines.encode(), close=close)


async def silence(_: Received, writer: asyncio.StreamWriter) -> None:
    """Nothing, until the peer gives up."""
    await writer.wait_closed()


async def reset(_: Received, writer: asyncio.StreamWriter) -> None:
    """A TCP reset."""
    peer = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@dataclass
class FaultServer:
    """Answers every request with ``answer``; use as an async context manager."""

    answer: Answer = field(default_factory=reply)
    tls: ssl.SSLContext | None = None
    requests: list[Received] = field(default_factory=list)
    connections: int = 0
    open_now: int = 0
    most_open: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def until(self, is_true: Callable[[FaultServer], bool], within_s: float = WAIT_S) -> None:
        """Return once ``is_true``; TimeoutError after ``within_s``."""
        async with asyncio.timeout(within_s):
            while not is_true(self):
                self.changed.clear()
                await self.changed.wait()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        self.changed.set()
        try:
            while not writer.is_closing():
                await self._exchange(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            self.open_now -= 1
            self._tasks.discard(task)
            self.changed.set()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        received = Received(head[0].split(" ")[1], headers, body)
        self.requests.append(received)
        self.changed.set()
        answering = asyncio.ensure_future(self.answer(received, writer))
        leaving = asyncio.ensure_future(reader.read(1)) if self.answer is silence else None
        try:
            await asyncio.wait({answering, leaving} - {None}, return_when=asyncio.FIRST_COMPLETED)
            if leaving is not None:
                raise ConnectionError("the peer left")
            await answering
        finally:
            for work in {answering, leaving} - {None}:
                work.cancel()
