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
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

if TYPE_CHECKING:
    import socket
    import ssl

EVERY_S: Final = 0.02
MOST: Final = 512
"""Connections taken from one socket at once."""

Factory = Callable[[], asyncio.BaseProtocol]


class EagerAccept:
    """Accepts for the servers that are started on a loop from now on.

    Args:
        loop: whose ``create_server`` is noted from now on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._servers: list[tuple[socket.socket, Factory, ssl.SSLContext | None]] = []
        self._taking: set[asyncio.Task[Any]] = set()
        create_server: Any = loop.create_server

        async def create(factory: Factory, *args: Any, **options: Any) -> asyncio.AbstractServer:  # noqa: ANN401
            server: asyncio.AbstractServer = await create_server(factory, *args, **options)
            if sock := options.get("sock"):
                self._servers.append((sock, factory, options.get("ssl")))
            return server

        loop.create_server = create  # type: ignore[method-assign,assignment]

    async def run(self) -> NoReturn:
        """Take what waits, up to ``MOST`` at once, for ever."""
        while True:
            await asyncio.sleep(EVERY_S)
            for server in self._servers:
                self._take(*server)

    def _take(self, sock: socket.socket, factory: Factory, tls: ssl.SSLContext | None) -> None:
        for _ in range(MOST):
            try:
                connection, _ = sock.accept()
            except OSError:  # none waits, or the server listens no more
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._connect(factory, connection, tls))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _connect(self, factory: Factory, connection: socket.socket, tls: ssl.SSLContext | None) -> None:
        try:
            await self._loop.connect_accepted_socket(factory, connection, ssl=tls)
        except OSError:  # it is gone already, or its TLS handshake failed
            connection.close()
