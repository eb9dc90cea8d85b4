"""Which ports a run needs, and who holds one that is taken."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from pydantic import TypeAdapter, ValidationError

from serve_app.errors import ConfigError

DEFAULT_HOST: Final = "0.0.0.0"  # noqa: S104 - Ray's own default, used when the file says nothing
DEFAULT_PORT: Final = 8000
MAX_PORT: Final = 65_535

HAPROXY_PORTS: Final = {
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
"""Variables that move the ports taken beside the HTTP port in HAProxy mode, and their defaults in Ray 2.60.

The last is Ray's own proxy, which HAProxy sends calls to while no ingress is up. Its address may be shared, and calls
would reach whichever application of the machine took it first.
"""


@dataclass(frozen=True, slots=True)
class Port:
    """A port that a run will listen on.

    Attributes:
        setting: what a person changes to use another one.
    """

    number: int
    host: str
    setting: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the file says HTTP is served."""

    host: str
    port: int
    is_tls: bool = False

    @property
    def url(self) -> str:
        """Base URL by which this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http{'s' * self.is_tls}://{f'[{host}]' if ':' in host else host}:{self.port}"


def endpoint_of(document: Mapping[str, Any]) -> Endpoint:
    """The file's ``http_options``; what is not valid there is left to the check of the whole file."""
    options = document.get("http_options")
    given = options if isinstance(options, Mapping) else {}
    host, port = given.get("host"), port_number(given.get("port")) or 0
    return Endpoint(
        host if isinstance(host, str) else DEFAULT_HOST,
        port if 0 < port <= MAX_PORT else DEFAULT_PORT,
        bool(given.get("ssl_certfile")),
    )


def port_number(given: object) -> int | None:
    """The port as Ray reads it, which takes ``"8000"`` as well; ``None`` for what is no number."""
    try:
        return TypeAdapter(int).validate_python(given)
    except ValidationError:
        return None


def needed_ports(endpoint: Endpoint, environment: Mapping[str, str]) -> list[Port]:
    """The HTTP port and, in HAProxy mode, those that come with it."""
    ports = [Port(endpoint.port, endpoint.host, "http_options.port")]
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        for variable, default in HAPROXY_PORTS.items():
            given = environment.get(variable, "")
            ports.append(Port(int(given) if given.isdecimal() else default, "", variable))
    return ports


@contextmanager
def reserved(ports: Sequence[Port]) -> Iterator[None]:
    """Hold the ports against other runs of this user while the body lasts, from before anything listens.

    Raises:
        ConfigError: one line that says who holds them and what to do.
    """
    _expect_no_number_twice(ports)
    with ExitStack() as stack:
        for port in ports:
            stack.enter_context(_lock(port))
        taken = [port for port in ports if _is_taken(port)]
        if taken:
            raise ConfigError([_who_holds(taken)])
        yield


def _expect_no_number_twice(ports: Sequence[Port]) -> None:
    first: dict[int, Port] = {}
    for port in ports:
        other = first.setdefault(port.number, port)
        if other is not port:
            raise ConfigError([f"port {port.number} is meant twice, by {other.setting} and {port.setting}; change one"])


@contextmanager
def _lock(port: Port) -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"switchyard-{os.getuid()}-{port.number}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(descriptor, 20, 0).decode(errors="replace")
            raise ConfigError([_another_run(port, pid)]) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _another_run(port: Port, pid: str) -> str:
    return f"port {port.number} is in use by another 'switchyard run' (pid {pid}); end that one, or set {port.setting}"


def _is_taken(port: Port) -> bool:
    try:
        found = socket.getaddrinfo(port.host or None, port.number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise ConfigError([f"http_options.host: cannot listen on '{port.host}': {error.strerror}"]) from None
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise ConfigError([f"{port.setting}: cannot listen on port {port.number}: {error.strerror}"]) from None
    return False


def _who_holds(taken: Sequence[Port]) -> str:
    """One line about the first holder, with all the ports it has."""
    holders = {port: _holder(port.number) for port in taken}
    first = holders[taken[0]]
    same = [port for port in taken if holders[port] == first]
    numbers = ", ".join(str(port.number) for port in same)
    subject = f"port {numbers} is" if len(same) == 1 else f"ports {numbers} are"
    if first is None:
        return f"{subject} in use by a process that this user may not see; end it, or set {same[0].setting}"
    if first.name() == "haproxy" and not _belongs_to_ray(first):
        return f"{subject} held by a HAProxy left over from an earlier run; end it with: kill {first.pid}"
    if first.name() == "haproxy":
        return f"{subject} in use by a running Ray Serve (HAProxy, pid {first.pid}); end that one first"
    return f"{subject} in use by {first.name()} (pid {first.pid}); end it, or set {same[0].setting}"


def _holder(number: int) -> psutil.Process | None:
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr:
                continue
            if connection.laddr.port == number and connection.pid is not None:
                return psutil.Process(connection.pid)
    except (psutil.AccessDenied, psutil.NoSuchProcess):  # macOS shows other processes' sockets to root only
        return None
    return None


def _belongs_to_ray(process: psutil.Process) -> bool:
    """Whether a proxy of a living Ray started it; an orphan's parent is init or whoever adopted it."""
    try:
        parent = process.parent()
        return parent is not None and "".join(parent.cmdline()[:1]).startswith("ray::")
    except psutil.Error:
        return False
