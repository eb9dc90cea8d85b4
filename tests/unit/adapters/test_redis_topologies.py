"""The shared level over TLS, in a cluster and behind sentinels, each with a real server."""

import asyncio
import itertools
import socket
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis
from valkey_server import certificate, cluster_node, free_port, sentinel_of, tls_in_front_of, valkey

from serve_app.adapters import guarded_redis
from serve_app.adapters.redis_leases import Lease
from serve_app.adapters.redis_store import RedisStore, StoredBytes, StoreKey
from serve_app.core.store_health import MAX_PAUSE_S

PLACES = [StoreKey(program, f"k{number}") for program, number in itertools.product(("triage", "research"), range(10))]


class Clock:
    """Real time, and as much more as a test adds."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.added_s


async def walk(store: RedisStore) -> None:
    """Everything a cache asks of its shared level."""
    entries = [StoredBytes(where, where.key.encode(), 60) for where in PLACES]
    assert await store.put_many(entries) == len(PLACES), store.stats()
    assert await store.get_many(PLACES) == [where.key.encode() for where in PLACES]
    leases = [Lease(where, "ours") for where in PLACES]
    assert all(seen.is_ours and seen.answer for seen in await store.leases.claim(leases, 60))
    assert not any(seen.is_ours for seen in await store.leases.claim([Lease(where, "theirs") for where in PLACES], 60))
    assert all(seen.is_leased and seen.answer for seen in await store.leases.look(PLACES))
    await store.leases.renew(leases, 60)
    await store.leases.release(leases)
    assert not any(seen.is_leased for seen in await store.leases.look(PLACES))
    assert await store.delete_program("triage")
    found = dict(zip(PLACES, await store.get_many(PLACES), strict=True))
    assert [where.program for where, data in found.items() if data is not None] == ["research"] * 10
    assert await store.ping()
    assert store.stats().failures == {}


async def comes_back(store: RedisStore, clock: Clock) -> None:
    give_up = time.monotonic() + 10
    while await store.get_many(PLACES[:1]) != [b"again"]:
        assert time.monotonic() < give_up, store.stats()
        clock.added_s += MAX_PAUSE_S
        await store.put_many([StoredBytes(PLACES[0], b"again", 60)])
        await asyncio.sleep(0.01)


async def test_a_cluster_serves_keys_of_every_slot(tmp_path: Path) -> None:
    with cluster_node(tmp_path) as port:
        store = RedisStore(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{port}", timeout_s=2.0)
        await walk(store)
        await store.aclose()


async def test_a_cluster_that_was_away_is_found_again(tmp_path: Path) -> None:
    clock = Clock()
    with cluster_node(tmp_path) as port:
        store = RedisStore(f"redis+cluster://127.0.0.1:{port}", timeout_s=2.0, clock=clock)
        await walk(store)
    assert await store.get_many(PLACES) == [None] * len(PLACES)
    assert not store.stats().is_up
    with valkey(tmp_path, "--cluster-enabled", "yes", "--cluster-port", str(free_port()), port=port):
        await comes_back(store, clock)
    await store.aclose()


async def test_sentinels_name_the_server_and_the_next_one_after_it(tmp_path: Path) -> None:
    clock = Clock()
    closed = ("--requirepass", "open")
    with valkey(tmp_path, *closed) as first, valkey(tmp_path, *closed) as second:  # noqa: SIM117 - the third needs them
        with sentinel_of(tmp_path, "answers", first) as sentinel:
            url = f"redis+sentinel://:open@127.0.0.1:{free_port()},127.0.0.1:{sentinel}/answers/0"
            store = RedisStore(url, timeout_s=2.0, clock=clock)
            await walk(store)
            async with Redis(port=sentinel) as told:
                await told.execute_command("SENTINEL", "REMOVE", "answers")
                await told.execute_command("SENTINEL", "MONITOR", "answers", "127.0.0.1", second, 1)
            async with Redis(port=first, password="open") as ended:
                await ended.client_kill_filter(_type="normal", skipme=True)
            await comes_back(store, clock)
            async with Redis(port=second, password="open") as now:
                assert await now.exists("switchyard:triage:k0")
            await store.aclose()


async def test_a_sentinel_that_is_silent_keeps_nobody_from_the_next_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(guarded_redis, "LINGER_S", 0.3)
    clock = Clock()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        valkey(tmp_path) as master,
        sentinel_of(tmp_path, "answers", master) as sentinel,
    ):
        first = silent.getsockname()[1]
        store = RedisStore(f"redis+sentinel://127.0.0.1:{first},127.0.0.1:{sentinel}/answers", clock=clock)
        await comes_back(store, clock)
        await store.aclose()


async def test_tls_with_a_password_works_and_an_unknown_certificate_is_a_counted_miss(tmp_path: Path) -> None:
    cert_file, key_file = certificate(tmp_path)
    with valkey(tmp_path, "--requirepass", "open") as behind:
        async with tls_in_front_of(behind, cert_file, key_file) as port:
            trusting = RedisStore(f"rediss://:open@localhost:{port}/0?ssl_ca_certs={cert_file}", timeout_s=2.0)
            await walk(trusting)
            wary = RedisStore(f"rediss://:open@localhost:{port}", timeout_s=2.0)
            assert await wary.get_many(PLACES[:1]) == [None]
            assert wary.stats().failures == {"connection": 1}
            careless = RedisStore(f"rediss://:open@localhost:{port}?ssl_cert_reqs=none", timeout_s=2.0)
            assert await careless.ping()
            for store in (trusting, wary, careless):
                await store.aclose()


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_the_wrong_kind_of_connection_is_a_counted_miss(tmp_path: Path, scheme: str) -> None:
    cert_file, key_file = certificate(tmp_path)
    with valkey(tmp_path) as behind:
        async with tls_in_front_of(behind, cert_file, key_file) as port:
            store = RedisStore(f"{scheme}://localhost:{port if scheme == 'redis' else behind}", timeout_s=0.5)
            assert await store.get_many(PLACES[:1]) == [None]
            assert sum(store.stats().failures.values()) == 1
            await store.aclose()
