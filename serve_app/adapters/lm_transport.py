"""One pool of HTTP connections under every provider client, in the shape ``dspy.lm15`` asks of a transport.

DSPy's provider clients build requests and read replies; this file moves the bytes. A client calls
``stream(request)`` and gets an async context manager with ``status``, ``reason``, ``headers``, ``http_version``,
``read()`` and async iteration over the body. Leaving the context before the body's end, by an error, a cancelled
task or an abandoned stream, closes the connection, so the provider learns at once that nobody listens.

What a fault becomes (``dspy.lm15`` error; replies with a status of 400 or more are the client's to judge):

==============================================================  ==================
name not found, connection refused, TLS handshake failed         TransportError
no connection within ``connect_s``                               TransportError
reset or closed before the headers, reply is not HTTP            TransportError
body shorter than announced, broken chunking or compression      TransportError
body longer than ``MAX_REPLY_BYTES``                             TransportError
silence longer than ``read_s``, or the call's deadline           TimeoutError
a URL nothing can be sent to, a proxy scheme not supported       ConfigurationError
==============================================================  ==================
"""

from __future__ import annotations

import asyncio
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import aiohttp
from dspy import lm15
from yarl import URL

from serve_app.adapters.call_scope import current_scope
from serve_app.adapters.lm_network import proxy_for, tls_context
from serve_app.adapters.tracing import trace_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType

MAX_REPLY_BYTES = 64 * 2**20
"""Most bytes of one reply: several generated images in base64, and far from a replica's memory."""

_KEEP_ALIVE_S = 15.0
_MAX_REMEMBERED_ROUTES = 1024
_ERROR_STATUS = 400
_USER_AGENT = "dspy-switchyard"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long each wait may last, in seconds; a call's remaining deadline bounds every one of them.

    Attributes:
        connect_s: until the socket is connected, TLS included (``dspy.lm15.Timeouts``' default).
        read_s: between two arrivals of bytes; the first covers the whole of a reply that is not streamed.
        total_s: the whole exchange of a call without a deadline of its own.
    """

    connect_s: float = 10.0
    read_s: float = 600.0
    total_s: float = 600.0

    def within(self, remaining_s: float | None) -> aiohttp.ClientTimeout:
        """These bounds, none longer than ``remaining_s``; the wait for a free connection is part of the total."""
        total_s = self.total_s if remaining_s is None else remaining_s
        return aiohttp.ClientTimeout(
            total=total_s,
            sock_connect=min(self.connect_s, total_s),
            sock_read=min(self.read_s, total_s),
            ceil_threshold=math.inf,
        )


@dataclass(frozen=True, slots=True)
class Route:
    """Where a URL's bytes go: the URL as sent, and the proxy on the way, if any."""

    url: URL
    proxy: URL | None
    proxy_headers: dict[str, str] | None


class WireRequest(Protocol):
    """What a ``dspy.lm15`` client hands to its transport."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes


class AiohttpTransport:
    """A ``dspy.lm15`` transport over pooled aiohttp sessions, one session for each event loop that uses it.

    Proxies (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``) and certificates (``SSL_CERT_FILE``,
    ``SSL_CERT_DIR``, ``REQUESTS_CA_BUNDLE``) come from the environment, read once. Redirects are not followed:
    a key goes only where the configuration says.

    Args:
        max_connections: most connections open at once, to all providers together, for each event loop.
        patience: bounds on the waits.
    """

    def __init__(self, *, max_connections: int = 256, patience: Patience | None = None) -> None:
        self._max_connections = max_connections
        self._patience = patience or Patience()
        self._tls = tls_context()
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}
        self._routes: dict[str, Route] = {}
        self._lock = threading.Lock()
        self._closed = False

    def stream(self, request: WireRequest) -> Exchange:
        """Send ``request`` once; enter the result for the reply."""
        scope = current_scope()
        timeout = self._patience.within(None if scope is None else scope.remaining_s())
        return Exchange(self._session(), request, self._route(request.url), timeout)

    def check(self, url: str) -> None:
        """Prove that ``url`` can be sent to from this environment.

        Raises:
            lm15.ConfigurationError: the URL has no host, or only a proxy of an unsupported scheme leads to it.
        """
        self._route(url)

    async def aclose(self) -> None:
        """Close this event loop's connections and release those of loops that have ended; new requests are refused."""
        self._closed = True
        loop = asyncio.get_running_loop()
        with self._lock:
            ended = [known for known in self._sessions if known is loop or known.is_closed()]
            sessions = [self._sessions.pop(known) for known in ended]
        for session in sessions:
            await session.close()

    def _session(self) -> aiohttp.ClientSession:
        session = self._sessions.get(asyncio.get_running_loop())
        if session is None or self._closed:
            session = self._open()
        return session

    def _open(self) -> aiohttp.ClientSession:
        if self._closed:
            raise lm15.ConfigurationError("the connection pool is closed")
        connector = aiohttp.TCPConnector(limit=self._max_connections, ssl=self._tls, keepalive_timeout=_KEEP_ALIVE_S)
        session = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), headers={"User-Agent": _USER_AGENT}
        )
        with self._lock:
            self._sessions[asyncio.get_running_loop()] = session
        return session

    def _route(self, url: str) -> Route:
        route = self._routes.get(url)
        if route is None:
            if len(self._routes) >= _MAX_REMEMBERED_ROUTES:
                self._routes.clear()
            route = self._routes[url] = _find_route(url)
        return route


def _find_route(url: str) -> Route:
    try:
        target = URL(url, encoded=True)  # as the client wrote it: a signature may cover the exact spelling
        if not target.host:
            raise ValueError("it names no host")  # noqa: TRY301 - both kinds of bad URL get one sentence
        proxy, proxy_headers = proxy_for(target)
    except ValueError as error:
        raise lm15.ConfigurationError(f"nothing can be sent to {url!r}: {error}") from error
    return Route(target, proxy, proxy_headers)


class Exchange:
    """One request and its reply: what a ``dspy.lm15`` client reads."""

    __slots__ = ("_reply", "_request", "_route", "_session", "_timeout")

    def __init__(
        self, session: aiohttp.ClientSession, request: WireRequest, route: Route, timeout: aiohttp.ClientTimeout
    ) -> None:
        self._session = session
        self._request = request
        self._route = route
        self._timeout = timeout
        self._reply: aiohttp.ClientResponse

    async def __aenter__(self) -> Self:
        request, route = self._request, self._route
        headers = [*request.headers, *trace_headers()]
        if route.proxy_headers and route.url.scheme == "http":  # no tunnel to open: the request itself meets the proxy
            headers = [*headers, *route.proxy_headers.items()]
        try:
            self._reply = await self._session.request(
                request.method,
                route.url,
                headers=headers,
                data=request.body or None,
                timeout=self._timeout,
                proxy=route.proxy,
                proxy_headers=route.proxy_headers,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError) as error:
            raise self._fault(error) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # At the body's end the connection went back to the pool by itself; before it, closing is what tells the peer.
        self._reply.close()

    @property
    def status(self) -> int:
        """HTTP status code."""
        return self._reply.status

    @property
    def reason(self) -> str:
        """HTTP reason phrase; may be empty."""
        return self._reply.reason or ""

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Reply headers in the order they came."""
        return list(self._reply.headers.items())

    @property
    def http_version(self) -> str:
        """For example ``HTTP/1.1``."""
        version = self._reply.version
        return f"HTTP/{version.major}.{version.minor}" if version else "HTTP/1.1"

    async def read(self) -> bytes:
        """The whole body; of an error reply cut short, what arrived, because its status and headers still count."""
        chunks: list[bytes] = []
        try:
            async for chunk in self:
                chunks.append(chunk)  # noqa: PERF401 - what arrived before a fault is kept
        except lm15.LM15Error:
            if self.status < _ERROR_STATUS:
                raise
        return b"".join(chunks)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        received = 0
        content = self._reply.content
        try:
            while chunk := await content.readany():
                received += len(chunk)
                if received > MAX_REPLY_BYTES:
                    raise lm15.TransportError(f"{self._peer} sent more than {MAX_REPLY_BYTES} bytes")
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise self._fault(error) from error

    @property
    def _peer(self) -> str:
        return str(self._route.url.origin())

    def _fault(self, error: Exception) -> lm15.LM15Error:
        peer, waits = self._peer, self._timeout
        if isinstance(error, aiohttp.InvalidURL):
            return lm15.ConfigurationError(f"nothing can be sent to {peer}: {error}")
        if isinstance(error, aiohttp.ConnectionTimeoutError) and waits.sock_connect != waits.total:
            return lm15.TransportError(f"no connection to {peer} within {waits.sock_connect:.1f} s")
        if isinstance(error, aiohttp.SocketTimeoutError) and waits.sock_read != waits.total:
            return lm15.TimeoutError(f"nothing arrived from {peer} for {waits.sock_read:.1f} s")
        if isinstance(error, asyncio.TimeoutError):
            return lm15.TimeoutError(f"no whole reply from {peer} within {waits.total:.1f} s")
        return lm15.TransportError(f"{peer}: {error or type(error).__name__}")
