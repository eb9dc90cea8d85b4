"""Whatever is wrong with a real Valkey behind a proxy, no call of the cache fails, and the store is used again after."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from deployment_fakes import FakeStage, app_config, call, link, run_all
from redis.asyncio import Redis

from benchmarks.sick_redis import FAULTS, OF_THE_NETWORK, Proxy, break_server, heal_server
from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.redis_store import RedisStore
from serve_app.core.store_health import MAX_PAUSE_S
from serve_app.deployments.cache import Cache

CALLERS, TURNS = 32, 3
READ_WRITE_S = 10.0


class Clock:
    """Real time, and as much more as a test adds."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added_s


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(max_memory="64mb") as running:
        yield running


@pytest.fixture
async def direct(server: EmbeddedRedis) -> AsyncIterator[Redis]:
    async with Redis.from_url(server.url) as client:
        await client.flushall()
        yield client
        await heal_server(client, "ask")


@pytest.fixture
async def proxy(server: EmbeddedRedis) -> AsyncIterator[Proxy]:
    proxy = Proxy(server.url.removeprefix("unix://"))
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_call_fails_while_the_store_is_sick_and_it_is_used_again_when_it_is_well(
    direct: Redis, proxy: Proxy, fault: str
) -> None:
    clock, numbers, own = Clock(), itertools.count(), link()
    cache = Cache(app_config(), FakeStage(), own._telemetry, own)
    store = cache.store.redis = RedisStore(f"redis://127.0.0.1:{proxy.port}", clock=clock)

    async def caller() -> list:
        asked = [call(next(numbers)) for _ in range(TURNS)]
        return [result for each in asked for result in (await run_all(cache, each)).values()]

    async def is_used() -> bool:
        clock.added_s += MAX_PAUSE_S
        writes = store.stats().writes
        await run_all(cache, call(next(numbers)))
        await asyncio.sleep(0.01)
        return store.stats().is_up and store.stats().writes > writes

    async def until_used() -> None:
        give_up = time.monotonic() + READ_WRITE_S
        while not await is_used():
            assert time.monotonic() < give_up, store.stats()

    await until_used()
    before = sum(store.stats().failures.values())
    if fault in OF_THE_NETWORK:
        proxy.fault = fault
    else:
        await break_server(direct, fault, "ask", [f"key{number}" for number in range(1000)])
    results = [result for each in await asyncio.gather(*(caller() for _ in range(CALLERS))) for result in each]
    assert len(results) == CALLERS * TURNS
    assert {result.error for result in results} == {None}
    assert {result.outputs["answer"] for result in results} == {"fine"}
    if "answers" not in fault:  # bytes that are no answer are a miss, and no failure of the store
        assert sum(store.stats().failures.values()) > before
    proxy.fault = ""
    await heal_server(direct, "ask")
    await until_used()
    await cache.aclose()
