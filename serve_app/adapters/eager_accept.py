"""Take the connections that wait, not one in a turn of the loop.

libuv, and so uvloop, accepts one connection a turn. A server with plenty to do has slow turns and many new connections,
for whoever keeps one open still waits on it: the others queue in the kernel, where nobody counts them, refuses them or
knows when they came. Standing there is worse than being refused: at 1.5 times what an ingress could do, callers waited
20 to 30 s, refused ones as well, of which the ingress knew of 3.

Ray starts the HTTP server of a replica on the replica's own loop, after the constructor; it is found by noting what
``create_server`` is asked for. The server's own accepting goes on, and what it does first is not there to be taken.

Source: "linux: don't accept() connections in a loop", libuv's pull request 3696 (since 1.45).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import socket
    import ssl

log = logging.getLogger("switchyard.ingress")

EVERY_S: Final = 0.02
MOST: Final = 512
"""Connections taken from one socket at once."""

Factory = Callable[[], asyncio.BaseProtocol]


@dataclass(slots=True)
class _Listening:
    """One server of the loop; ``is_failing`` while accepting for it ends in an error that was told already."""

    server: asyncio.AbstractServer
    sock: socket.socket
    factory: Factory
    tls: ssl.SSLContext | None
    is_failing: bool = False


class EagerAccept:
    """Accepts for the servers that are started on a loop from now on.

    Args:
        loop: whose ``create_server`` is noted from now on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._listening: list[_Listening] = []
        self._taking: set[asyncio.Task[Any]] = set()
        create_server: Any = loop.create_server

        async def create(factory: Factory, *args: Any, **options: Any) -> asyncio.AbstractServer:  # noqa: ANN401
            server: asyncio.AbstractServer = await create_server(factory, *args, **options)
            if sock := options.get("sock"):
                self._listening.append(_Listening(server, sock, factory, options.get("ssl")))
                log.info("accept.eager", extra={"address": str(sock.getsockname())})
            return server

        loop.create_server = create  # type: ignore[method-assign,assignment]

    async def run(self) -> NoReturn:
        """Take what waits, up to ``MOST`` at once, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            for listening in self._listening:
                self._take(listening)
            self._listening = [each for each in self._listening if each.server.is_serving()]

    def _take(self, listening: _Listening) -> None:
        for _ in range(MOST):
            if not listening.server.is_serving():
                return
            try:
                connection, _ = listening.sock.accept()
            except BlockingIOError:  # none waits
                listening.is_failing = False
                return
            except ConnectionError:  # it left before it was taken
                continue
            except OSError as error:  # of descriptors there are none left, say; the server's own accepting goes on
                if not listening.is_failing:
                    log.warning("accept.failed", extra={"error": str(error)})
                listening.is_failing = True
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(listening, connection))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _connect(self, listening: _Listening, connection: socket.socket) -> None:
        try:
            transport, protocol = await self._loop.connect_accepted_socket(
                listening.factory, connection, ssl=listening.tls
            )
        except OSError:  # it is gone already, or its TLS handshake failed
            connection.close()
            return
        if not listening.server.is_serving():  # those the server had when it closed are told so by it
            getattr(protocol, "shutdown", transport.close)()
