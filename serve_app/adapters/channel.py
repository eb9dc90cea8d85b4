"""Messages between two processes over one TCP connection, for those who know a key.

A message is pickled, so nothing is read from a peer that has not proved that it knows the key (challenge and response,
RFC 2104 HMAC-SHA256, both ways; a channel's key never travels on it). Nothing is encrypted: where Ray is to encrypt
what replicas send each other (``RAY_USE_TLS``) they take no calls here (``serve_app.adapters.serve_address``).

On the wire, after the proofs: four bytes of length, little-endian, and as many of pickle.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hmac
import pickle
import secrets
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from serve_app.reports import Endpoint

PROOF_TIMEOUT_S: Final = 5.0
"""Seconds that the proofs may take, for the caller together with connecting."""
DEAD_PEER_S: Final = 10
"""Seconds after which a machine that acknowledges nothing is taken to be gone. A process that is only busy is not: its
kernel answers, until megabytes wait to be read."""
BUFFER_BYTES: Final = 1 << 20
_NONCE_BYTES: Final = 32
_SIZE_BYTES: Final = 4


class ChannelClosed(Exception):
    """The peer is gone, or is none of ours."""


class Channel:
    """One end of the connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, message: object) -> None:
        """Send it, after those before; nothing is said where the peer is gone, which ``receive`` tells.

        Raises:
            Exception: the message cannot be pickled; nothing was sent.
        """
        body = pack(message)
        if not self._writer.is_closing():
            self._writer.write(len(body).to_bytes(_SIZE_BYTES, "little") + body)

    async def receive(self) -> Any:  # noqa: ANN401 - whatever the peer sent
        """The next message.

        Raises:
            ChannelClosed: there will be none.
        """
        try:
            size = int.from_bytes(await self._reader.readexactly(_SIZE_BYTES), "little")
            body = await self._reader.readexactly(size)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ChannelClosed("the peer is gone") from error
        try:
            return unpack(body)
        except Exception as error:  # whatever a message of another version is read with
            raise ChannelClosed(f"the peer cannot be understood: {type(error).__name__}") from error

    def close(self) -> None:
        """End it once all that was sent is on its way."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Return once it has ended after ``close``: all that was sent has left this process, or the peer is gone."""
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


class Listener:
    """Takes callers at a port of its own, once it has been started; until then they wait.

    Args:
        host: address of this machine that callers reach it at.

    Attributes:
        endpoint: where, and with which key.
    """

    def __init__(self, host: str) -> None:
        self._socket = listen(host)
        self.endpoint = Endpoint(host, self._socket.getsockname()[1], secrets.token_bytes(_NONCE_BYTES))
        self._listening: asyncio.Task[None] | None = None

    def start(self, serve: Callable[[Channel], Awaitable[None]]) -> None:
        """Serve every caller that knows the key with ``serve``; needs a running loop."""
        self._listening = asyncio.create_task(self._listen(serve), context=contextvars.Context())

    async def stop(self) -> None:
        """Take no more callers; those there are stay."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)
        self._socket.close()  # where nobody has begun to listen there is no server to do so

    async def _listen(self, serve: Callable[[Channel], Awaitable[None]]) -> None:
        server = await accept(self._socket, self.endpoint.key, serve)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            server.close()


def pack(value: object) -> bytes:
    """A message, or a part of one that is to be read by itself.

    Raises:
        Exception: it cannot be pickled.
    """
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def unpack(data: bytes) -> Any:  # noqa: ANN401 - whatever was packed
    """What ``pack`` was given.

    Raises:
        Exception: it cannot be read here, as where the peer is of another version.
    """
    return pickle.loads(data)  # noqa: S301 - of a peer that knows the key


def listen(host: str) -> socket.socket:
    """A socket that takes connections at any free port of that address, one of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=1024)


async def accept(listening: socket.socket, key: bytes, serve: Callable[[Channel], Awaitable[None]]) -> asyncio.Server:
    """Serve every peer that knows the key with ``serve``, which ends when its peer is to be let go."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            _watch(writer)
            async with asyncio.timeout(PROOF_TIMEOUT_S):
                await _admit(reader, writer, key)
            await serve(Channel(reader, writer))
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ChannelClosed):
            pass  # whoever it was has left, or has no business here
        finally:
            writer.close()

    return await asyncio.start_server(connected, sock=listening, limit=BUFFER_BYTES)


async def connect(endpoint: Endpoint, timeout_s: float | None = None) -> Channel:
    """A channel to whoever listens there, within ``timeout_s``, or ``PROOF_TIMEOUT_S``.

    Raises:
        ChannelClosed: nobody does, or somebody else.
    """
    writer = None
    try:
        async with asyncio.timeout(PROOF_TIMEOUT_S if timeout_s is None else timeout_s):
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, limit=BUFFER_BYTES)
            _watch(writer)
            await _introduce(reader, writer, endpoint.key)
    except BaseException as error:
        if writer is not None:
            writer.close()
        if isinstance(error, OSError | TimeoutError | asyncio.IncompleteReadError | ChannelClosed):
            raise ChannelClosed(f"{type(error).__name__}: {error}") from error
        raise
    return Channel(reader, writer)


async def _admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes) -> None:
    """The listener's part: a challenge out; a proof and a challenge in; a proof out."""
    challenge = secrets.token_bytes(_NONCE_BYTES)
    writer.write(challenge)
    proof, counter = await reader.readexactly(_NONCE_BYTES), await reader.readexactly(_NONCE_BYTES)
    if not hmac.compare_digest(proof, _proof(key, b"caller", challenge)):
        raise ChannelClosed("the peer does not know the key")
    writer.write(_proof(key, b"called", counter))


async def _introduce(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes) -> None:
    """The caller's part."""
    challenge, counter = await reader.readexactly(_NONCE_BYTES), secrets.token_bytes(_NONCE_BYTES)
    writer.write(_proof(key, b"caller", challenge) + counter)
    if not hmac.compare_digest(await reader.readexactly(_NONCE_BYTES), _proof(key, b"called", counter)):
        raise ChannelClosed("the listener does not know the key")


def _proof(key: bytes, role: bytes, challenge: bytes) -> bytes:
    """What only who knows the key can say; the roles keep a challenge from being answered with its own echo."""
    return hmac.digest(key, role + challenge, "sha256")


def _watch(writer: asyncio.StreamWriter) -> None:
    """Have the kernel end the connection when the other machine is gone without a word."""
    peer: socket.socket = writer.get_extra_info("socket")
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", DEAD_PEER_S // 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", DEAD_PEER_S // 2)):
        if option := getattr(socket, name, None):  # not every system has them
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
    if option := getattr(socket, "TCP_USER_TIMEOUT", None):
        peer.setsockopt(socket.IPPROTO_TCP, option, DEAD_PEER_S * 1000)
