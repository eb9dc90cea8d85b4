"""Two processes that know a key talk; of anybody else not a byte is unpickled."""

import asyncio
import contextlib
import pickle
import socket
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from serve_app.adapters import channel as channels
from serve_app.adapters.channel import Channel, ChannelClosed, accept, connect, listen
from serve_app.reports import Endpoint

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
LOOPBACK = "127.0.0.1"
unpickled: list[str] = []


def spring(how: str) -> None:
    unpickled.append(how)


class Trap:
    """Tells when it is unpickled."""

    def __reduce__(self):
        return spring, ("sprung",)


class Unreadable:
    """Cannot be unpickled."""

    def __reduce__(self):
        return int, ("no number",)


@pytest.fixture(autouse=True)
def nothing_unpickled() -> None:
    unpickled.clear()


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(channels, "PROOF_TIMEOUT_S", 0.05)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def settle() -> None:
    """Let connections that were closed be closed."""
    for _ in range(10):
        await asyncio.sleep(0)


class Listener:
    """Keeps the channel to each caller, until that has left, and everything heard on it."""

    def __init__(self) -> None:
        self.channels: list[Channel] = []
        self.heard: list[object] = []
        self.let_go = 0

    async def serve(self, channel: Channel) -> None:
        self.channels.append(channel)
        try:
            while True:
                self.heard.append(await channel.receive())
        finally:
            self.let_go += 1


@contextlib.asynccontextmanager
async def listening(listener: Listener, host: str = LOOPBACK) -> AsyncIterator[Endpoint]:
    bound = listen(host)
    server = await accept(bound, KEY, listener.serve)
    try:
        yield Endpoint(host, bound.getsockname()[1], KEY)
    finally:
        server.close()
        for channel in listener.channels:
            channel.close()
        await until(lambda: listener.let_go == len(listener.channels))
        await settle()


@contextlib.asynccontextmanager
async def connected(host: str = LOOPBACK) -> AsyncIterator[tuple[Listener, Channel]]:
    listener = Listener()
    async with listening(listener, host) as endpoint:
        channel = await connect(endpoint)
        try:
            await until(lambda: listener.channels)
            yield listener, channel
        finally:
            channel.close()


@contextlib.asynccontextmanager
async def impostor(behave: Callable) -> AsyncIterator[Endpoint]:
    """Somebody who listens where a caller looks for a listener that knows the key."""
    done: list[asyncio.Task] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done.append(asyncio.current_task())
        with contextlib.closing(writer), contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await behave(reader, writer)

    bound = socket.create_server((LOOPBACK, 0))
    server = await asyncio.start_server(meet, sock=bound)
    try:
        yield Endpoint(LOOPBACK, bound.getsockname()[1], KEY)
    finally:
        server.close()
        for task in done:
            task.cancel()
        await asyncio.gather(*done, return_exceptions=True)
        await settle()


@contextlib.asynccontextmanager
async def stranger(endpoint: Endpoint) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]]:
    """A caller without manners; yields what the listener challenged it with, too."""
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        yield reader, writer, await reader.readexactly(32)
    finally:
        writer.close()


def framed(message: object) -> bytes:
    body = pickle.dumps(message)
    return len(body).to_bytes(4, "little") + body


async def test_messages_arrive_both_ways_and_in_order() -> None:
    async with connected() as (listener, channel):
        for number in range(100):
            channel.send(number)
            listener.channels[0].send(-number)
        assert [await channel.receive() for _ in range(100)] == [-number for number in range(100)]
        await until(lambda: len(listener.heard) == 100)
        assert listener.heard == list(range(100))


async def test_a_message_may_be_larger_than_any_buffer() -> None:
    async with connected() as (listener, channel):
        large = bytes(range(256)) * 20_000
        channel.send(large)
        channel.send("after it")
        await until(lambda: len(listener.heard) == 2)
        assert listener.heard == [large, "after it"]


async def test_two_who_know_the_key_unpickle_what_the_other_says() -> None:
    """Else the tests below, in which nothing is unpickled, would prove nothing."""
    async with connected() as (listener, channel):
        channel.send(Trap())
        await until(lambda: listener.heard)
        assert unpickled == ["sprung"]


async def test_a_message_that_cannot_be_pickled_is_not_sent_and_those_after_it_are() -> None:
    async with connected() as (listener, channel):
        with pytest.raises(Exception, match="pickle"):
            channel.send(lambda: None)
        channel.send("fine")
        await until(lambda: listener.heard)
        assert listener.heard == ["fine"]


@pytest.mark.parametrize("prove", [lambda challenge: challenge, lambda _: bytes(32)], ids=["its echo", "zeros"])
async def test_a_caller_that_proves_nothing_is_let_go_and_nothing_of_it_is_unpickled(prove) -> None:
    listener = Listener()
    async with listening(listener) as endpoint, stranger(endpoint) as (reader, writer, challenge):
        writer.write(prove(challenge) + bytes(32) + framed(Trap()))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 2) == b""
        assert (listener.channels, unpickled) == ([], [])


async def test_a_caller_with_another_key_is_let_go() -> None:
    listener = Listener()
    async with listening(listener) as endpoint:
        with pytest.raises(ChannelClosed):
            await connect(endpoint._replace(key=OTHER_KEY))
        assert listener.channels == []


async def test_the_key_itself_does_not_travel() -> None:
    said: list[bytes] = []

    async def behave(reader, writer) -> None:
        writer.write(bytes(32))
        said.append(await reader.read(1000))

    async with impostor(behave) as endpoint:
        with pytest.raises(ChannelClosed):
            await connect(endpoint)
    assert KEY not in said[0]


@pytest.mark.parametrize("part", [slice(32), slice(32, 64)], ids=["the caller's proof", "its own challenge"])
async def test_a_listener_that_only_says_back_what_it_heard_is_refused_and_nothing_of_it_is_unpickled(part) -> None:
    async def behave(reader, writer) -> None:
        writer.write(bytes(32))
        writer.write((await reader.readexactly(64))[part] + framed(Trap()))
        await reader.read()

    async with impostor(behave) as endpoint:
        with pytest.raises(ChannelClosed, match="does not know the key"):
            await connect(endpoint)
    assert unpickled == []


async def test_what_a_caller_proves_to_an_impostor_does_not_help_that_with_the_caller() -> None:
    """It has the second connection of a caller answer what the first one asks; the roles differ, so it is no answer."""
    to_prove: asyncio.Queue[bytes] = asyncio.Queue()
    proofs: asyncio.Queue[bytes] = asyncio.Queue()
    is_first = True

    async def behave(reader, writer) -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            writer.write(bytes(32))
            to_prove.put_nowait((await reader.readexactly(64))[32:])
            writer.write(await proofs.get())
            await reader.read()
        else:
            writer.write(await to_prove.get())
            proofs.put_nowait((await reader.readexactly(64))[:32])

    async with impostor(behave) as endpoint:
        first = asyncio.create_task(connect(endpoint))
        await until(lambda: not is_first)
        second = asyncio.create_task(connect(endpoint))
        with pytest.raises(ChannelClosed, match="does not know the key"):
            await first
        with pytest.raises(ChannelClosed):
            await second


@pytest.mark.usefixtures("impatient")
async def test_a_listener_that_says_nothing_is_given_up() -> None:
    async with impostor(lambda reader, _: reader.read()) as endpoint:
        with pytest.raises(ChannelClosed, match="TimeoutError"):
            await asyncio.wait_for(connect(endpoint), 2)


@pytest.mark.usefixtures("impatient")
async def test_a_caller_that_says_nothing_is_let_go() -> None:
    listener = Listener()
    async with listening(listener) as endpoint, stranger(endpoint) as (reader, _, _):
        assert await asyncio.wait_for(reader.read(), 2) == b""


async def test_connecting_to_where_nobody_listens_says_so() -> None:
    bound = listen(LOOPBACK)
    port = bound.getsockname()[1]
    bound.close()
    with pytest.raises(ChannelClosed, match="ConnectionRefused"):
        await connect(Endpoint(LOOPBACK, port, KEY))


async def test_who_waits_for_a_peer_that_leaves_is_told() -> None:
    async with connected() as (listener, channel):
        listener.channels[0].close()
        with pytest.raises(ChannelClosed):
            await asyncio.wait_for(channel.receive(), 2)
        channel.send("to nobody")


async def test_what_was_said_before_leaving_is_heard() -> None:
    async with connected() as (listener, channel):
        large = b"x" * 5_000_000
        channel.send(large)
        channel.close()
        await until(lambda: listener.let_go)
        assert listener.heard == [large]


async def test_a_peer_that_breaks_off_in_the_middle_of_a_message_is_gone() -> None:
    async with connected() as (listener, channel):
        channel._writer.write((1000).to_bytes(4, "little") + b"and no more")
        channel.close()
        await until(lambda: listener.let_go)
        assert listener.heard == []


async def test_a_message_that_cannot_be_read_ends_the_channel() -> None:
    async with connected() as (listener, channel):
        listener.channels[0].send(Unreadable())
        with pytest.raises(ChannelClosed, match="cannot be understood: ValueError"):
            await asyncio.wait_for(channel.receive(), 2)


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])  # Ray's replicas run on the former
def test_a_machine_that_is_gone_without_a_word_is_noticed_by_the_kernel(run) -> None:
    async def look() -> None:
        async with connected() as (listener, channel):
            for end in (channel, listener.channels[0]):
                peer = end._writer.get_extra_info("socket")
                assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    timeout_ms = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                    assert timeout_ms == channels.DEAD_PEER_S * 1000

    run(look())


@pytest.mark.parametrize("run", [uvloop.run, asyncio.run])
def test_messages_cross_on_either_kind_of_loop(run) -> None:
    async def talk() -> None:
        async with connected() as (listener, channel):
            channel.send(bytes(5_000_000))
            await until(lambda: listener.heard)
            listener.channels[0].close()
            with pytest.raises(ChannelClosed):
                await channel.receive()

    run(talk())


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_an_address_may_be_of_the_newer_kind() -> None:
    async with connected("::1") as (listener, channel):
        channel.send("hello")
        await until(lambda: listener.heard)
        assert listener.heard == ["hello"]
