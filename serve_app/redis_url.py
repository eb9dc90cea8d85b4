"""Where a shared cache is, as ``cache.redis_url`` says it.

    redis://[user:password@]host[:port][/db]                    one server
    redis+cluster://[user:password@]host[:port][,host…]         a cluster, found through any of these nodes
    redis+sentinel://[user:password@]host[:port][,host…]/service[/db]
                                                                the server that these sentinels call the master
    rediss…                                                     the same three over TLS
    unix://[user:password@]/path                                a socket on this machine

Behind ``?``: ``username``, ``password``, ``db``, ``client_name``; over TLS ``ssl_ca_certs``, ``ssl_certfile``,
``ssl_keyfile`` (paths), ``ssl_cert_reqs`` (none, optional, required), ``ssl_check_hostname`` (true, false); with
sentinels ``sentinel_username`` and ``sentinel_password``, which the sentinels themselves ask for. What is reserved in a
URL is percent-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
MAX_PORT: Final = 65535

_COMMON: Final = frozenset({"username", "password", "client_name"})
_TLS: Final = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"})
_SENTINEL: Final = frozenset({"sentinel_username", "sentinel_password"})
_CHOICES: Final = {
    "ssl_cert_reqs": ("none", "optional", "required"),
    "ssl_check_hostname": ("true", "false"),
}


class Topology(StrEnum):
    """What answers at the address."""

    SERVER = "server"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """A URL taken apart.

    Attributes:
        topology: what is there.
        hosts: of the server, the cluster's nodes or the sentinels; empty for a socket.
        path: of the socket; empty for hosts.
        is_tls: whether connections are encrypted.
        service: what the sentinels call the server.
        db: number of the database.
        options: user, password and TLS settings by redis-py's names.
        sentinel_options: user and password for the sentinels, by the same names.
    """

    topology: Topology
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    is_tls: bool = False
    service: str = ""
    db: int = 0
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: dict[str, Any] = field(default_factory=dict, repr=False)


def parse_redis_url(url: str) -> RedisUrl:
    """The URL taken apart.

    Raises:
        ValueError: it does not follow the grammar above; says where, and never repeats what may be a password.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ValueError("cannot be read as a URL; a host in [brackets] must be an IPv6 address") from error
    scheme, _, kind = parts.scheme.partition("+")
    kinds = {"redis": {"", "cluster", "sentinel"}, "rediss": {"", "cluster", "sentinel"}, "unix": {""}}
    if kind not in kinds.get(scheme, ()):
        raise ValueError("unknown scheme; see cache.redis_url in the configuration's reference")
    topology, is_tls = Topology(kind or "server"), scheme == "rediss"
    if parts.fragment:
        raise ValueError("has a '#'; write %23 in a user or a password")
    options = _options(parts, topology, is_tls=is_tls)
    db = options.pop("db", "")
    if scheme == "unix":
        return _socket(parts, options, db)
    service, path_db = _service_and_db(parts.path, topology)
    sentinel = {name.removeprefix("sentinel_"): options.pop(name) for name in _SENTINEL & options.keys()}
    return RedisUrl(
        topology,
        hosts=_hosts(parts.netloc.rpartition("@")[2], topology),
        is_tls=is_tls,
        service=service,
        db=_db(db or path_db, topology),
        options=_typed(options),
        sentinel_options=_typed(sentinel),
    )


def _socket(parts: SplitResult, options: dict[str, str], db: str) -> RedisUrl:
    if parts.netloc.rpartition("@")[2] or not parts.path:
        raise ValueError("a socket's path begins with a third slash: unix:///path")
    return RedisUrl(Topology.SERVER, path=unquote(parts.path), db=_db(db, Topology.SERVER), options=_typed(options))


def _options(parts: SplitResult, topology: Topology, *, is_tls: bool) -> dict[str, str]:
    """User and password in front of the hosts, and what stands behind ``?``."""
    known = _COMMON | {"db"} | (_TLS if is_tls else set()) | (_SENTINEL if topology is Topology.SENTINEL else set())
    options: dict[str, str] = {}
    if "@" in parts.netloc:
        user, _, password = parts.netloc.rpartition("@")[0].partition(":")
        found = {"username": unquote(user), "password": unquote(password)}
        options = {name: value for name, value in found.items() if value}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            needs_tls = " without rediss" if name in _TLS else ""
            raise ValueError(f"unknown option behind '?'{needs_tls}; valid: {', '.join(sorted(known))}")
        choices = _CHOICES.get(name)
        if choices and value.lower() not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}")
        options[name] = value.lower() if choices else value
    return options


def _hosts(netloc: str, topology: Topology) -> tuple[tuple[str, int], ...]:
    names = netloc.split(",")
    if len(names) > 1 and topology is Topology.SERVER:
        raise ValueError("several hosts need redis+cluster:// or redis+sentinel://")
    return tuple(_host(name, SENTINEL_PORT if topology is Topology.SENTINEL else PORT) for name in names)


def _host(text: str, default_port: int) -> tuple[str, int]:
    name, colon, port = text.rpartition(":") if not text.endswith("]") else (text, "", "")
    name = name if colon else text
    if not name:
        raise ValueError("names no host")
    if not colon:
        return name.strip("[]"), default_port
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= MAX_PORT):
        raise ValueError(f"a port must be a number from 1 to {MAX_PORT}")
    return name.strip("[]"), int(port)


def _service_and_db(path: str, topology: Topology) -> tuple[str, str]:
    parts = [unquote(part) for part in path.split("/") if part]
    service = ""
    if topology is Topology.SENTINEL:
        if not parts:
            raise ValueError("lacks the service's name: redis+sentinel://host:port/service")
        service = parts.pop(0)
    if len(parts) > 1:
        raise ValueError("has more behind the host than a database's number")
    return service, parts[0] if parts else ""


def _db(text: str, topology: Topology) -> int:
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a database must be a number")
    if topology is Topology.CLUSTER and int(text):
        raise ValueError("a cluster has database 0 only")
    return int(text)


def _typed(options: dict[str, str]) -> dict[str, Any]:
    return {name: value == "true" if name == "ssl_check_hostname" else value for name, value in options.items()}
