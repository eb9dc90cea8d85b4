from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from redis.asyncio import Redis

from serve_app.adapters import guarded_redis
from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.redis_store import RedisStore, StoredBytes, StoreKey
from serve_app.core.store_health import FIRST_PAUSE_S, MAX_PAUSE_S
from serve_app.errors import ConfigError

TIMEOUT_S = 0.05
FIRST_CONTACT_S = 0.5  # what 50 ms may take on a busy machine
DOWN_S = 0.25  # no wait at all, on a machine that is busy with something else
AT = StoreKey("triage", "k1")


class Clock:
    """Real time, and as much more as a test adds."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added_s


class Proxy:
    """A TCP proxy in front of a Unix socket that can be told to misbehave."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()
        self.fault = ""
        self.delay_s = 0.0
        self.connections = 0
        self.url = ""

    def lead_to(self, url: str) -> None:
        """Where connections go from now on; those that are open stay."""
        self._path = url.removeprefix("unix://")

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()
        for peer in self._peers:
            peer.cancel()
        await asyncio.gather(*self._peers, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = asyncio.current_task()
        self._peers.add(peer)
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._path)
        replies = asyncio.create_task(self._replies(upstream_reader, writer))
        try:
            while data := await reader.read(65536):
                if self.fault == "reset":
                    writer.transport.abort()
                    break
                if self.fault != "blackhole":
                    upstream_writer.write(data)
        except (asyncio.CancelledError, ConnectionError):
            pass
        finally:
            replies.cancel()
            await asyncio.gather(replies, return_exceptions=True)
            for end in (writer, upstream_writer):
                end.transport.abort()
            self._peers.discard(peer)

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await asyncio.sleep(self.delay_s)
            if self.fault == "drip":
                for byte in data:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.03)
                continue
            writer.write(GARBAGE.get(self.fault, data))


GARBAGE = {
    "garbage": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "random": bytes(range(128, 256)) * 4 + b"\r\n",
    "short reply": b"*1\r\n$-1\r\n",
    "wrong shape": b":42\r\n",
    "nested reply": b"*2\r\n*1\r\n:1\r\n:7\r\n",
    "huge length": b"$999999999999\r\nx",
    "negative length": b"*-1\r\n",
    "oom": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "readonly": b"-READONLY You can't write against a read only replica.\r\n",
    "wrong type": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    "loading": b"-LOADING server is loading the dataset in memory\r\n",
    "noauth": b"-NOAUTH Authentication required.\r\n",
    "noperm": b"-NOPERM this user has no permissions\r\n",
    "moved": b"-MOVED 3999 127.0.0.1:6381\r\n",
    "busy": b"-BUSY the server is busy running a script\r\n",
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory="64mb") as running:
        yield running


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client


@pytest.fixture
async def store(server: EmbeddedRedis, client: Redis) -> AsyncIterator[RedisStore]:
    store = RedisStore(server.url, timeout_s=1.0)
    yield store
    await store.aclose()


@pytest.fixture
async def proxy(server: EmbeddedRedis, client: Redis) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.url.removeprefix("unix://"))
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def behind(proxy: Proxy, clock: Clock) -> AsyncIterator[RedisStore]:
    """A store behind the proxy that has an answer and a warm connection."""
    store = RedisStore(proxy.url, timeout_s=TIMEOUT_S, clock=clock)
    assert await until(lambda: is_warm(store, clock))
    yield store
    await store.aclose()


@pytest.fixture
async def patient(proxy: Proxy, clock: Clock) -> AsyncIterator[RedisStore]:
    """The same, for tests where a busy machine must not look like a slow store."""
    store = RedisStore(proxy.url, timeout_s=2.0, clock=clock)
    assert await put(store)
    yield store
    await store.aclose()


async def is_warm(store: RedisStore, clock: Clock) -> bool:
    clock.added_s += FIRST_PAUSE_S
    return await put(store) and await store.get_many([AT]) == [b"answer"]


async def put(store: RedisStore, where: StoreKey = AT, data: bytes = b"answer") -> bool:
    return await store.put_many([StoredBytes(where, data, 60)]) == 1


async def until(condition: Callable[[], Awaitable[bool]], bound_s: float = 10.0) -> bool:
    give_up = time.monotonic() + bound_s
    while time.monotonic() < give_up:
        if await condition():
            return True
        await asyncio.sleep(0.01)
    return False


async def timed(work: Awaitable[object]) -> tuple[object, float]:
    started = time.perf_counter()
    return await work, time.perf_counter() - started


async def test_what_was_put_comes_back_in_the_order_asked_for(store: RedisStore) -> None:
    places = [StoreKey("triage", "a"), StoreKey("research", "b"), StoreKey("triage", "c")]
    values = [b"1", bytes(range(256)), b""]
    assert await store.put_many([StoredBytes(at, data, 60) for at, data in zip(places, values, strict=True)]) == 3
    assert await store.get_many([places[2], StoreKey("triage", "none"), *places[:2]]) == [b"", None, *values[:2]]
    stats = store.stats()
    assert (stats.hits, stats.misses, stats.writes, stats.failures) == (3, 1, 3, {})


async def test_another_replica_reads_it_too(store: RedisStore, server: EmbeddedRedis) -> None:
    await put(store)
    other = RedisStore(server.url, timeout_s=1.0)
    assert await other.get_many([AT]) == [b"answer"]
    await other.aclose()


async def test_two_replicas_that_write_first_at_once_agree_on_a_generation(
    server: EmbeddedRedis, client: Redis
) -> None:
    stores = [RedisStore(server.url, timeout_s=1.0) for _ in range(8)]
    places = [StoreKey("new", str(number)) for number in range(8)]
    assert all(await asyncio.gather(*(put(store, at) for store, at in zip(stores, places, strict=True))))
    assert await stores[0].get_many(places) == [b"answer"] * 8
    await asyncio.gather(*(store.aclose() for store in stores))


async def test_an_answer_ends_with_its_time(store: RedisStore, client: Redis) -> None:
    await store.put_many([StoredBytes(AT, b"x", 0.5), StoredBytes(StoreKey("triage", "never"), b"x", 0)])
    assert 0 < await client.pttl("switchyard:triage:k1") <= 500
    assert await client.exists("switchyard:triage:never") == 0


async def test_a_batch_is_one_mget(store: RedisStore, client: Redis) -> None:
    await put(store)
    await client.config_resetstat()
    await store.get_many([StoreKey("triage", str(number)) for number in range(32)])
    stats = await client.info("commandstats")
    assert stats["cmdstat_mget"]["calls"] == 1
    assert "cmdstat_get" not in stats


async def test_nothing_asked_for_asks_nothing(store: RedisStore, client: Redis) -> None:
    await client.config_resetstat()
    assert await store.get_many([]) == []
    assert await store.put_many([]) == 0
    assert "cmdstat_mget" not in await client.info("commandstats")


async def test_forgetting_a_program_holds_for_every_replica_and_no_other_program(
    store: RedisStore, server: EmbeddedRedis
) -> None:
    kept = StoreKey("research", "k1")
    other = RedisStore(server.url, timeout_s=1.0)
    await put(store)
    await put(store, kept)
    assert await other.get_many([AT]) == [b"answer"]
    assert await store.delete_program("triage")
    assert await other.get_many([AT, kept]) == [None, b"answer"]
    assert await store.get_many([AT, kept]) == [None, b"answer"]
    assert await put(other)
    assert await store.get_many([AT]) == [b"answer"]
    await other.aclose()


async def test_an_answer_begun_before_the_program_was_forgotten_does_not_come_back(
    store: RedisStore, server: EmbeddedRedis
) -> None:
    other = RedisStore(server.url, timeout_s=1.0)
    await put(store)
    await other.delete_program("triage")
    await put(store)
    assert await other.get_many([AT]) == [None]
    await other.aclose()


async def test_a_lost_generation_takes_its_answers_with_it_and_writing_goes_on(
    store: RedisStore, client: Redis
) -> None:
    await put(store)
    await client.delete("switchyard:triage")
    assert await store.get_many([AT]) == [None]
    assert await put(store, StoreKey("triage", "k2"))
    assert await store.get_many([AT, StoreKey("triage", "k2")]) == [None, b"answer"]


async def test_a_flushed_server_is_a_miss_and_then_used_again(store: RedisStore, client: Redis) -> None:
    await put(store)
    await client.flushall()
    assert await store.get_many([AT]) == [None]
    assert await put(store)
    assert await store.get_many([AT]) == [b"answer"]


HOSTILE = {
    "empty": b"",
    "short": b"short",
    "eight": b"12345678",
    "random": os.urandom(8) + b"answer",
    "pickle": b"\x80\x04." * 100,
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
async def test_bytes_that_someone_else_put_there_are_a_miss(store: RedisStore, client: Redis, hostile: bytes) -> None:
    await put(store)
    await client.set("switchyard:triage:k1", hostile)
    assert await store.get_many([AT]) == [None]


async def test_a_key_of_another_type_is_a_miss_and_is_written_over(store: RedisStore, client: Redis) -> None:
    await put(store)
    await client.delete("switchyard:triage:k1")
    await client.lpush("switchyard:triage:k1", "x")
    assert await store.get_many([AT]) == [None]
    assert await put(store)
    assert await store.get_many([AT]) == [b"answer"]


async def test_a_generation_of_another_type_is_replaced(store: RedisStore, client: Redis) -> None:
    await client.lpush("switchyard:triage", "x")
    assert await store.get_many([AT]) == [None]
    assert not await put(store)
    assert await put(store)
    assert await store.get_many([AT]) == [b"answer"]
    assert store.stats().failures == {"wrong_type": 1}


async def test_replacing_one_programs_generation_leaves_the_others_in_force(
    store: RedisStore, server: EmbeddedRedis, client: Redis
) -> None:
    assert await put(store)
    await client.rpush("switchyard:research", "not a generation")
    late = RedisStore(server.url, timeout_s=1.0)
    strange = StoredBytes(StoreKey("research", "k"), b"x", 60)
    assert await late.put_many([strange, StoredBytes(StoreKey("triage", "k2"), b"y", 60)]) == 0
    assert await store.get_many([AT]) == [b"answer"]
    await late.aclose()


async def test_a_program_is_forgotten_by_a_server_out_of_memory_too(
    store: RedisStore, server: EmbeddedRedis, client: Redis
) -> None:
    assert await put(store)
    before = await client.config_get("maxmemory*")
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", 1)
    late = RedisStore(server.url, timeout_s=1.0)
    try:
        await store.delete_program("triage")
        assert store.stats().failures == {"oom": 1}
        assert await late.get_many([AT]) == [None]
    finally:
        await late.aclose()
        await client.config_set("maxmemory", before["maxmemory"])
        await client.config_set("maxmemory-policy", before["maxmemory-policy"])


async def test_a_server_out_of_memory_refuses_writes_and_still_answers_reads(store: RedisStore, client: Redis) -> None:
    await put(store)
    before = await client.config_get("maxmemory*")
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", 1)
    try:
        assert not await put(store, StoreKey("triage", "k2"))
        assert await store.get_many([AT]) == [b"answer"]
        assert store.stats().failures == {"oom": 1}
        assert store.stats().is_up
    finally:
        await client.config_set("maxmemory", before["maxmemory"])
        await client.config_set("maxmemory-policy", before["maxmemory-policy"])


async def test_a_replica_refuses_writes_and_still_answers_reads(server: EmbeddedRedis) -> None:
    with EmbeddedRedis(max_memory="16mb") as spare:
        store = RedisStore(spare.url, timeout_s=1.0)
        await put(store)
        async with Redis.from_url(spare.url) as client:
            await client.config_set("replica-serve-stale-data", "yes")
            await client.replicaof("127.0.0.1", 1)
            assert not await put(store, StoreKey("triage", "k2"))
            assert await store.get_many([AT]) == [b"answer"]
        assert store.stats().failures == {"read_only": 1}
        await store.aclose()


async def test_writes_go_on_where_the_address_leads_once_its_first_server_is_a_replica(
    patient: RedisStore, proxy: Proxy, client: Redis
) -> None:
    with EmbeddedRedis(max_memory="16mb") as promoted:
        await client.replicaof("127.0.0.1", 1)
        try:
            assert not await put(patient)
            assert await patient.get_many([AT]) == [b"answer"]
            proxy.lead_to(promoted.url)
            assert not await put(patient)
            assert await put(patient)
            assert patient.stats().failures == {"read_only": 2}
        finally:
            await client.replicaof("NO", "ONE")


async def test_a_password_in_the_url_is_used_and_a_wrong_one_is_a_counted_miss() -> None:
    with EmbeddedRedis(max_memory="16mb") as guarded:
        async with Redis.from_url(guarded.url) as client:
            await client.config_set("requirepass", "open")
        right = RedisStore(f"{guarded.url}?password=open", timeout_s=1.0)
        wrong = RedisStore(f"{guarded.url}?password=shut", timeout_s=1.0)
        assert await put(right)
        assert await wrong.get_many([AT]) == [None]
        assert wrong.stats().failures == {"auth": 1}
        assert not wrong.stats().is_up
        await right.aclose()
        await wrong.aclose()


async def test_a_server_that_restarts_empty_is_used_again(clock: Clock) -> None:
    with EmbeddedRedis(max_memory="16mb") as running:
        store = RedisStore(running.url, timeout_s=1.0, clock=clock)
        assert await put(store)
        async with Redis.from_url(running.url) as client:
            await until(lambda: has_run_a_while(client))
            await client.shutdown(nosave=True)
        assert await store.get_many([AT]) == [None]

        async def is_back() -> bool:
            clock.added_s += MAX_PAUSE_S
            return await store.get_many([AT]) == [None] and await put(store)

        assert await until(is_back)
        assert await store.get_many([AT]) == [b"answer"]
        await store.aclose()


async def has_run_a_while(client: Redis) -> bool:
    return (await client.info("server"))["uptime_in_seconds"] >= 2


@pytest.mark.parametrize(
    "fault", ["blackhole", "reset", "drip", "garbage", "random", "huge length", "loading", "noauth"]
)
async def test_a_sick_store_costs_its_timeout_once_and_recovers(
    behind: RedisStore, proxy: Proxy, clock: Clock, fault: str
) -> None:
    proxy.fault = fault
    results = await asyncio.gather(*(timed(behind.get_many([AT])) for _ in range(32)))
    assert [result for result, _ in results] == [[None]] * 32
    assert max(spent for _, spent in results) < FIRST_CONTACT_S
    assert not behind.stats().is_up

    skipped = behind.stats().failures.get("skipped", 0)
    results = await asyncio.gather(*(timed(behind.get_many([AT])) for _ in range(32)))
    assert [result for result, _ in results] == [[None]] * 32
    assert max(spent for _, spent in results) < DOWN_S
    assert behind.stats().failures["skipped"] == skipped + 32

    proxy.fault = ""

    async def is_back() -> bool:
        clock.added_s += FIRST_PAUSE_S
        return await behind.get_many([AT]) == [b"answer"]

    assert await until(is_back)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("oom", "oom"),
        ("readonly", "read_only"),
        ("wrong type", "wrong_type"),
        ("noperm", "denied"),
        ("moved", "moved"),
        ("busy", "refused"),
    ],
)
async def test_a_refusal_is_a_miss_by_its_name_and_the_store_stays_up(
    patient: RedisStore, proxy: Proxy, fault: str, reason: str
) -> None:
    proxy.fault = fault
    assert await patient.get_many([AT]) == [None]
    assert patient.stats().failures == {reason: 1}
    proxy.fault = ""
    assert await patient.get_many([AT]) == [b"answer"]


@pytest.mark.parametrize("fault", ["short reply", "wrong shape", "negative length"])
async def test_a_reply_of_the_wrong_shape_is_not_believed(patient: RedisStore, proxy: Proxy, fault: str) -> None:
    proxy.fault = fault
    assert await patient.get_many([AT]) == [None]
    assert patient.stats().failures == {"protocol": 1}


async def test_a_reply_with_the_wrong_elements_is_a_miss(patient: RedisStore, proxy: Proxy) -> None:
    proxy.fault = "nested reply"
    assert await patient.get_many([AT]) == [None]


async def test_a_store_that_stays_slow_is_not_taken_back(behind: RedisStore, proxy: Proxy, clock: Clock) -> None:
    proxy.delay_s = 0.2
    await behind.get_many([AT])
    for _ in range(5):
        clock.added_s += MAX_PAUSE_S
        before = behind.stats().failures["timeout"]
        assert await behind.get_many([AT]) == [None]
        assert await until(lambda before=before: failed_since(behind, before))
        assert not behind.stats().is_up


async def test_an_operation_has_all_the_time_that_its_caller_waits(
    proxy: Proxy, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_redis, "LINGER_S", 0.1)
    store = RedisStore(proxy.url, timeout_s=2.0, clock=clock)
    proxy.delay_s = 0.2
    assert await put(store)
    assert await store.get_many([AT]) == [b"answer"]
    assert store.stats().failures == {}
    await store.aclose()


async def failed_since(store: RedisStore, before: int) -> bool:
    return store.stats().failures["timeout"] > before


async def test_probes_of_a_dead_store_are_one_at_a_time(behind: RedisStore, proxy: Proxy, clock: Clock) -> None:
    proxy.fault = "blackhole"
    await behind.get_many([AT])
    clock.added_s += MAX_PAUSE_S
    connections = proxy.connections
    await asyncio.gather(*(behind.get_many([AT]) for _ in range(100)))
    assert proxy.connections <= connections + 1


async def test_nobody_listening_is_a_miss_at_once(proxy: Proxy) -> None:
    await proxy.stop()
    store = RedisStore(proxy.url, timeout_s=TIMEOUT_S)
    (found, spent) = await timed(store.get_many([AT]))
    assert found == [None]
    assert spent < FIRST_CONTACT_S
    assert store.stats().failures == {"connection": 1}
    assert await store.put_many([StoredBytes(AT, b"x", 60)]) == 0
    assert not await store.ping()
    assert not await store.delete_program("triage")
    await store.aclose()


async def test_forgetting_while_the_store_is_away_is_caught_up_when_it_is_back(
    behind: RedisStore, proxy: Proxy, server: EmbeddedRedis, clock: Clock
) -> None:
    other = RedisStore(server.url, timeout_s=1.0)
    proxy.fault = "blackhole"
    assert not await behind.delete_program("triage")
    assert await other.get_many([AT]) == [b"answer"]
    proxy.fault = ""

    async def is_forgotten() -> bool:
        clock.added_s += FIRST_PAUSE_S
        await behind.get_many([AT])
        return await other.get_many([AT]) == [None]

    assert await until(is_forgotten)
    await other.aclose()


async def test_a_caller_that_leaves_never_gets_another_ones_reply(patient: RedisStore, proxy: Proxy) -> None:
    places = [StoreKey("triage", str(number)) for number in range(20)]
    for at in places:
        assert await put(patient, at, at.key.encode())
    proxy.delay_s = 0.01
    leaving = [asyncio.create_task(patient.get_many([at])) for at in places]
    await asyncio.sleep(0.005)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    proxy.delay_s = 0.0
    for at in places:
        assert await patient.get_many([at]) in ([at.key.encode()], [None])
    assert patient.stats().is_up
    assert patient.stats().hits > 1


async def test_a_loop_that_stood_still_longer_than_the_timeout_still_takes_the_reply(
    server: EmbeddedRedis, client: Redis
) -> None:
    store = RedisStore(server.url, timeout_s=TIMEOUT_S)
    assert await until(lambda: put(store))
    asking = asyncio.create_task(store.get_many([AT]))
    for _ in range(20):
        await asyncio.sleep(0)
    time.sleep(4 * TIMEOUT_S)  # noqa: ASYNC251 - stalls the loop on purpose, as a garbage collection would
    assert await asking == [b"answer"]
    await store.aclose()


async def test_connections_are_bounded(patient: RedisStore, proxy: Proxy) -> None:
    proxy.delay_s = 0.005
    await asyncio.gather(*(patient.get_many([AT]) for _ in range(200)))
    assert proxy.connections <= 16


@pytest.mark.parametrize(
    "url", ["redis://localhost:port", "redis://localhost?max_connections=many", "http://localhost"]
)
def test_a_url_that_cannot_be_read_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url"):
        RedisStore(url)
