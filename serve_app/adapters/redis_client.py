"""A redis-py client for what a URL names: one server, a cluster, or a server that sentinels name.

None of them retries, checks health by itself or greets the server: each would cost a round trip nobody waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

from redis.asyncio import (
    BlockingConnectionPool,
    Connection,
    Redis,
    RedisCluster,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ReadOnlyError

from serve_app.adapters.redis_failures import BadReply, takes_down
from serve_app.errors import ConfigError
from serve_app.redis_url import RedisUrl, Topology, parse_redis_url

Client = Redis | RedisCluster

MAX_CONNECTIONS: Final = 16
"""Most connections to one server; an operation waits for a free one."""
MAX_UNQUEUED_CONNECTIONS: Final = 256
"""The same for clusters and sentinels, whose pools in redis-py fail instead of waiting."""


class Pipeline(Protocol):
    """What redis-py's pipelines have in common here."""

    async def execute(self, *, raise_on_error: bool = True) -> list[Any]:
        """Send what was collected, and return a reply for each command."""
        ...


def open_client(url: str, *, timeout_s: float, socket_timeout_s: float) -> Client:
    """A client that connects at its first command.

    Args:
        url: see ``serve_app.redis_url``.
        timeout_s: most seconds an operation waits for a free connection.
        socket_timeout_s: most seconds for connecting, and for one reply.

    Raises:
        ConfigError: the URL cannot be read.
    """
    try:
        address = parse_redis_url(url)
    except ValueError as error:
        raise ConfigError([f"cache.redis_url: {error}"]) from error
    common: dict[str, Any] = {
        "socket_timeout": socket_timeout_s,
        "socket_connect_timeout": socket_timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    match address.topology:
        case Topology.CLUSTER:
            return _cluster(address, common)
        case Topology.SENTINEL:
            return _behind_sentinels(address, common)
        case Topology.SERVER:
            return _server(address, common, timeout_s)


class _ToPrimary(Connection):
    """Opened anew once the server has said that it is a replica: the same address may lead to another server by now."""

    async def read_response(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - as redis-py has it
        try:
            return await super().read_response(*args, **options)
        except ReadOnlyError:
            # When it is given back, for replies to a whole pipeline may be under way.
            self.mark_for_reconnect()  # type: ignore[no-untyped-call]
            raise


class _ToPrimaryOverTls(_ToPrimary, SSLConnection):
    """The same over TLS."""


def _server(address: RedisUrl, common: dict[str, Any], timeout_s: float) -> Redis:
    kind: type[Connection | UnixDomainSocketConnection] = _ToPrimaryOverTls if address.is_tls else _ToPrimary
    where: dict[str, Any] = {}
    if address.path:
        kind, where = UnixDomainSocketConnection, {"path": address.path}
    else:
        where["host"], where["port"] = address.hosts[0]
    return Redis.from_pool(
        BlockingConnectionPool(
            connection_class=kind,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            db=address.db,
            **where,
            **address.options,
            **common,
        )
    )


def _cluster(address: RedisUrl, common: dict[str, Any]) -> RedisCluster:
    return RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
        max_connections=MAX_UNQUEUED_CONNECTIONS,
        require_full_coverage=False,  # else a cluster with slots that nobody has would not be joined at all
        ssl=address.is_tls,
        **address.options,
        **common,
    )


class _MasterPool(SentinelConnectionPool):
    """Connections to whom the sentinels call the master; closes those to the sentinels as well."""

    async def aclose(self) -> None:
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Sentinels(Sentinel):
    """Asked in turn; one that is silent for as long as an operation may take is the last of them next time."""

    async def discover_master(self, service_name: str) -> Any:  # noqa: ANN401 - as redis-py has it
        first = self.sentinels[0]
        try:
            return await super().discover_master(service_name)
        except asyncio.CancelledError:
            if self.sentinels[0] is first:  # nobody else has put it last meanwhile
                self.sentinels.append(self.sentinels.pop(0))
            raise


def _behind_sentinels(address: RedisUrl, common: dict[str, Any]) -> Redis:
    tls = {name: value for name, value in address.options.items() if name.startswith("ssl_")} | {"ssl": address.is_tls}
    sentinels = _Sentinels(  # type: ignore[no-untyped-call]
        address.hosts,
        sentinel_kwargs=common | address.sentinel_options | (tls if address.is_tls else {}),
        db=address.db,
        ssl=address.is_tls,
        max_connections=MAX_UNQUEUED_CONNECTIONS,
        **address.options,
        **common,
    )
    master: Redis = sentinels.master_for(address.service, connection_pool_class=_MasterPool)
    return master


async def mget(client: Client, names: Sequence[str]) -> list[bytes | None]:
    """One MGET; in a cluster one for each slot, pipelined to all nodes at once.

    Raises:
        BadReply: the reply is no list of that length: such a server is not believed.
    """
    if isinstance(client, RedisCluster):
        await client.initialize()  # the slots must be known before keys can be sorted by them
        reply = await client.mget_nonatomic(names)
    else:
        reply = await client.mget(names)
    return strings(reply, len(names))


async def execute(pipeline: Pipeline) -> list[Any]:
    """A reply for each command, refusals among them as exceptions; what takes the server down is raised."""
    replies = await pipeline.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, Exception) and takes_down(reply):
            raise reply
    return replies


def strings(reply: object, count: int) -> list[bytes | None]:
    """A list of strings, checked; anything else in it is ``None``.

    Raises:
        BadReply: it is no list of that length.
    """
    if not isinstance(reply, list) or len(reply) != count:
        raise BadReply("protocol")
    return [item if isinstance(item, bytes) else None for item in reply]
