"""Connections are taken as they come, however slow the turns of the loop."""

import asyncio
import errno
import gc
import socket
import ssl
import time
from contextlib import asynccontextmanager, suppress

import pytest
import uvloop

from serve_app.adapters.eager_accept import EVERY_S, EagerAccept, _Listening

COUNT = 200


class Greeter(asyncio.Protocol):
    """Greets; remembers whom."""

    def __init__(self, met: list) -> None:
        self._met = met

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._met.append(transport.get_extra_info("peername"))
        transport.write(b"hello")


@asynccontextmanager
async def serving(met: list, *, eagerly: bool, tls: ssl.SSLContext | None = None):
    loop = asyncio.get_running_loop()
    complaints: list = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    accepting = EagerAccept(loop) if eagerly else None
    task = asyncio.create_task(accepting.run()) if accepting else None
    sock = socket.create_server(("127.0.0.1", 0), backlog=2 * COUNT)
    server = await loop.create_server(lambda: Greeter(met), sock=sock, backlog=2 * COUNT, ssl=tls)
    try:
        yield sock.getsockname(), server
        gc.collect()
        assert complaints == []
        assert task is None or not task.done(), "it goes on"
    finally:
        server.close()
        if task:
            task.cancel()


async def turns_until_met(met: list, clients: int) -> int:
    turns = 0
    while len(met) < clients:
        time.sleep(0.002)  # noqa: ASYNC251 - a busy turn
        await asyncio.sleep(0)
        turns += 1
        assert turns < 50 * clients
    return turns


def connected(address, count: int) -> list[socket.socket]:
    return [socket.create_connection(address) for _ in range(count)]


def greeting(client: socket.socket) -> bytes:
    client.settimeout(5)
    with client:
        return client.recv(5)


def turns(*, eagerly: bool) -> int:
    async def measure() -> int:
        met: list = []
        async with serving(met, eagerly=eagerly) as (address, _):
            clients = connected(address, COUNT)
            needed = await turns_until_met(met, COUNT)
            greetings = await asyncio.to_thread(lambda: [greeting(client) for client in clients])
            assert greetings == [b"hello"] * COUNT
            assert len(set(met)) == COUNT, "nobody is met twice"
            return needed

    return uvloop.run(measure())


def test_connections_that_wait_are_taken_at_once() -> None:
    assert turns(eagerly=True) < COUNT / 4 < turns(eagerly=False), "one a turn, without it"


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_a_server_that_is_closed_takes_nobody(run) -> None:
    async def close() -> None:
        met: list = []
        async with serving(met, eagerly=True) as (address, server):
            (client,) = connected(address, 1)
            await turns_until_met(met, 1)
            server.close()
            await asyncio.sleep(3 * EVERY_S)
            with pytest.raises(ConnectionRefusedError):
                connected(address, 1)
            assert await asyncio.to_thread(greeting, client) == b"hello", "who is there stays"

    run(close())


def test_who_left_before_being_taken_harms_nobody() -> None:
    async def leave() -> None:
        met: list = []
        async with serving(met, eagerly=True) as (address, _):
            for client in connected(address, 20):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
                client.close()  # with a reset
            (client,) = connected(address, 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while client.getsockname() not in met:
                        await asyncio.sleep(0.01)
            assert await asyncio.to_thread(greeting, client) == b"hello"

    uvloop.run(leave())


def test_a_handshake_that_fails_harms_nobody() -> None:
    """Callers that speak no TLS to a server that does, taken in busy turns."""

    async def fail() -> None:
        met: list = []
        async with serving(met, eagerly=True, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as (address, _):
            clients = connected(address, COUNT)
            for client in clients:
                client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            for _ in range(COUNT // 4):
                time.sleep(0.002)  # noqa: ASYNC251 - a busy turn
                await asyncio.sleep(0)
            await asyncio.sleep(3 * EVERY_S)
            for client in clients:
                client.close()
        assert met == []

    uvloop.run(fail())


class Quiet(asyncio.Protocol):
    """As uvicorn's: says nothing, and ends when it is told that the server does."""

    def __init__(self, alive: set) -> None:
        self._alive = alive

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._alive.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._alive.discard(self)

    def shutdown(self) -> None:
        self._transport.close()


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_those_taken_as_a_server_closes_are_told_so(run) -> None:
    """A server tells the connections it knows; of the ones that are not made yet it does not."""

    async def close() -> None:
        alive: set = set()
        loop = asyncio.get_running_loop()
        accepting = EagerAccept(loop)
        sock = socket.create_server(("127.0.0.1", 0), backlog=2 * COUNT)
        server = await loop.create_server(lambda: Quiet(alive), sock=sock, backlog=2 * COUNT)
        clients = connected(sock.getsockname(), COUNT)
        accepting._take(accepting._listening[0])
        assert accepting._taking, "on their way"
        server.close()
        for protocol in list(alive):
            protocol.shutdown()
        async with asyncio.timeout(5):
            while accepting._taking or alive:
                await asyncio.sleep(0.01)
        for client in clients:
            client.settimeout(5)
            with client, suppress(ConnectionResetError):
                assert client.recv(1) == b""

    run(close())


def test_no_descriptors_left_is_told_once_and_passes(caplog) -> None:
    async def fill() -> None:
        met: list = []
        async with serving(met, eagerly=True) as (address, server):
            first = EagerAccept(asyncio.get_running_loop())
            listening = Failing()
            first._listening.append(_Listening(server, listening, lambda: Greeter(met), None))
            for _ in range(3):
                first._take(first._listening[0])
            listening.error = BlockingIOError()
            first._take(first._listening[0])
            listening.error = OSError(errno.EMFILE, "Too many open files")
            first._take(first._listening[0])
            (client,) = connected(address, 1)
            assert await asyncio.to_thread(greeting, client) == b"hello"

    asyncio.run(fill())
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["accept.failed"] * 2


class Failing:
    """A socket that accepts nobody."""

    error: OSError = OSError(errno.EMFILE, "Too many open files")

    def accept(self) -> None:
        raise self.error
