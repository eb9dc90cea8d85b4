"""Runs the simulated provider by itself: in the foreground, or in a thread beside a test."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve_app.errors import ConfigError
from serve_app.simulator.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from serve_app.simulator.profile import Profile

_BACKLOG = 2048
_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol, plus a way for the application to reset its connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # narrowed as uvicorn does
        """A client has connected."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "reset_connection": self._reset}

    def shutdown(self) -> None:
        """Close at once: a request that waits for nothing must not hold up the end."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.abort()

    def _reset(self) -> None:
        """Close without the farewell of TCP: a linger time of zero makes the kernel send RST."""
        if self.transport.is_closing():
            return
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def run(host: str, port: int, profile: Profile) -> None:
    """Serve until interrupted (SIGINT or SIGTERM).

    Raises:
        ConfigError: the address cannot be used, or a recording cannot be read.
    """
    server = _server(profile)
    listener = _listen(host, port)
    with suppress(KeyboardInterrupt), listener:
        _serve(server, listener)


@contextmanager
def background(profile: Profile, port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1 from a thread of its own; the value is the root URL, without ``/v1``.

    Port 0 takes a free one.

    Raises:
        ConfigError: the port cannot be used, or a recording cannot be read.
    """
    server = _server(profile)
    with _listen("127.0.0.1", port) as listener:
        thread = threading.Thread(target=_serve, args=(server, listener), name="simulator", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(_STOP_TIMEOUT_S)


def _server(profile: Profile) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(profile),
        http=_Protocol,
        lifespan="off",
        ws="none",
        access_log=False,
        log_config=None,
        log_level="warning",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415 - not installed on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: connections wait in its backlog until the server runs."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError) as error:
        raise ConfigError([f"{host}:{port}: {error}"]) from None
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        reason = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError([f"{host}:{port}: {reason}"]) from None
    return listener
