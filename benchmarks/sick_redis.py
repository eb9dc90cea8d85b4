"""A real Valkey behind a TCP proxy of our own, and everything that can be wrong with the two."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Final

from redis.asyncio import Redis

SLOW_S: Final = 0.2
GARBAGE: Final = os.urandom(200) + b"\r\n"

OF_THE_NETWORK: Final = ("blackhole", "reset", "slow", "garbage")
OF_THE_SERVER: Final = ("OOM", "READONLY", "wrong type", "corrupt answers", "hostile answers")
FAULTS: Final = (*OF_THE_NETWORK, *OF_THE_SERVER)


class Proxy:
    """Passes connections on to a Unix socket, until ``fault`` names one of the network's faults."""

    def __init__(self, path: str) -> None:
        self.fault = ""
        self.port = 0
        self._path = path
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for peer in self._peers:
            peer.cancel()
        await asyncio.gather(*self._peers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = asyncio.current_task()
        assert peer is not None
        self._peers.add(peer)
        peer.add_done_callback(self._peers.discard)
        behind_reader, behind_writer = await asyncio.open_unix_connection(self._path)
        pumps = [self._pump(reader, behind_writer, writer), self._pump(behind_reader, writer, writer, replies=True)]
        try:
            await asyncio.gather(*pumps)
        except (ConnectionError, asyncio.CancelledError):
            pass  # whoever broke the connection, it ends here
        finally:
            for end in (writer, behind_writer):
                end.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        caller: asyncio.StreamWriter,
        *,
        replies: bool = False,
    ) -> None:
        while data := await reader.read(65536):
            if self.fault == "reset":
                caller.transport.abort()
                return
            if self.fault == "blackhole":
                continue
            if replies and self.fault == "slow":
                await asyncio.sleep(SLOW_S)
            writer.write(GARBAGE if replies and self.fault == "garbage" else data)
        writer.close()


def serve_proxy(pipe: Connection, path: str) -> None:
    """A proxy in a process of its own: sends its port, then takes a fault's name whenever there is one."""

    async def main() -> None:
        proxy = Proxy(path)
        await proxy.start()
        pipe.send(proxy.port)
        while True:
            proxy.fault = await asyncio.to_thread(pipe.recv)
            pipe.send(proxy.fault)

    try:
        asyncio.run(main())
    except (EOFError, KeyboardInterrupt):
        return


@contextmanager
def proxy_process(path: str) -> Iterator[Connection]:
    """The pipe to ``serve_proxy`` in front of a socket."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=serve_proxy, args=(there, path), daemon=True)
    child.start()
    try:
        yield here
    finally:
        child.kill()
        child.join()


async def break_server(client: Redis, fault: str, program: str, keys: Iterable[str]) -> None:
    """Bring one of the server's faults about; ``client`` is connected to it directly."""
    name = f"switchyard:{program}"
    match fault:
        case "OOM":
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", "1")
        case "READONLY":
            await client.config_set("replica-serve-stale-data", "yes")
            await client.replicaof("127.0.0.1", 1)
        case "wrong type":
            await client.delete(name)
            await client.rpush(name, "not ours")
        case "corrupt answers" | "hostile answers":
            generation = await client.get(name) or b""
            bomb = b"\x80\x04cos\nsystem\n(S'true'\ntR." if fault.startswith("hostile") else b"\x01z" + GARBAGE
            async with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.set(f"{name}:{key}", generation + bomb)
                await pipeline.execute()


async def heal_server(client: Redis, program: str) -> None:
    """Undo every fault of the server."""
    await client.replicaof("NO", "ONE")
    await client.config_set("maxmemory", "64mb")
    await client.config_set("maxmemory-policy", "allkeys-lru")
    name = f"switchyard:{program}"
    if await client.type(name) != b"string":
        await client.delete(name)
