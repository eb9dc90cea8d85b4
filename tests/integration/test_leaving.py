"""Work that nobody waits for ends at the provider: after a disconnect, and at a deadline."""

import asyncio
import time

import aiohttp
import httpx
import pytest
from running_cluster import NO_STORE, Cluster

pytestmark = pytest.mark.usefixtures("calm")

SLOW = {"kind": "slow_first_token", "delay_s": 5}
LEAVING_S = 0.1
"""Seconds within which a provider request ends once its client is gone."""
NOISE_S = 0.05
"""Seconds that asking the simulator, on the same two cores, may add to what is measured."""


def body(text: str, **options) -> dict:
    return {"inputs": {"question": text}, "options": {"model": "large", "complexity": "high"} | options}


async def ask(client: aiohttp.ClientSession, url: str, text: str, **options) -> tuple[int, dict]:
    """Status and reply; cancelling it closes the connection, which httpx leaves open."""
    async with client.post(f"{url}/v1/programs/math", json=body(text, **options), headers=NO_STORE) as reply:
        return reply.status, await reply.json(content_type=None)


async def until(provider, condition, within_s: float) -> float:
    """Seconds until the provider's figures of ``sim-large`` meet the condition."""
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=provider.url) as client:
        while True:
            stats = (await client.get("/stats")).json()["models"].get("sim-large", {})
            if stats and condition(stats):
                return time.monotonic() - started
            assert time.monotonic() - started < within_s, stats
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("neighbours", [0, 3])
@pytest.mark.parametrize("graph", Cluster.GRAPHS)
async def test_a_client_that_disconnects_ends_its_request_and_no_other(
    cluster, provider, unique, graph, neighbours
) -> None:
    provider.fault("sim-large", SLOW)
    provider.reset_stats()
    url = cluster.url(graph)
    async with aiohttp.ClientSession() as client:
        asked = [asyncio.create_task(ask(client, url, unique())) for _ in range(1 + neighbours)]
        await until(provider, lambda stats: stats["in_flight"] == 1 + neighbours, within_s=10)
        asked[0].cancel()
        took_s = await until(provider, lambda stats: stats["cancelled"] == 1, within_s=5)
        assert took_s < LEAVING_S + NOISE_S
        replies = await asyncio.gather(*asked[1:])
    assert [status for status, _ in replies] == [200] * neighbours
    assert provider.stats()["models"]["sim-large"]["cancelled"] == 1


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
async def test_a_deadline_is_kept_on_time_and_at_the_provider(cluster, provider, unique, graph) -> None:
    url = cluster.url(graph)
    async with aiohttp.ClientSession() as client:
        await ask(client, url, unique())  # the connections are there
        provider.fault("sim-large", SLOW)
        provider.reset_stats()
        for number in range(1, 4):
            started = time.monotonic()
            status, problem = await ask(client, url, unique(), deadline_s=0.3)
            took_s = time.monotonic() - started
            assert (status, problem["code"]) == (504, "deadline_exceeded")
            assert took_s == pytest.approx(0.3, abs=0.03 + NOISE_S)
            wanted = number
            await until(provider, lambda stats, wanted=wanted: stats["cancelled"] == wanted, within_s=0.5)
