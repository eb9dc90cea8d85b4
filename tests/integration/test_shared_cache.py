"""One cache over many replicas of a real cluster: herds, killed leaders, a Redis that goes away, and restarts."""

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from redis import Redis
from redis_server import RedisServer
from running_cluster import Cluster, Provider

MODELS = ("sim-large", "sim-small")
THINKING_S = 4.0
"""Seconds the model takes: long enough for a whole herd to arrive on two cores."""
HERD = 500


def slow(provider: Provider, thinking_s: float = THINKING_S) -> None:
    for model in MODELS:
        provider.fault(model, {"kind": "slow_first_token", "delay_s": thinking_s})
    provider.reset_stats()


def body(text: str, **options) -> dict:
    return {"inputs": {"question": text}, "options": {"complexity": "low", "deadline_s": 40} | options}


async def ask(client: httpx.AsyncClient, text: str) -> tuple[int, str]:
    """Status and ``meta.cache``; status 0 for a connection that broke."""
    try:
        reply = await client.post("/v1/programs/math", json=body(text))
    except httpx.TransportError:
        return 0, ""
    return reply.status_code, reply.json()["meta"]["cache"] if reply.status_code == 200 else ""


async def herd(cluster: Cluster, graph: str, text: str, count: int, meanwhile: Callable[[], None]) -> list:
    """The answers to ``count`` identical calls at once; ``meanwhile`` runs once a model is asked."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=cluster.url(graph), timeout=60, limits=limits) as client:
        calls = [asyncio.create_task(ask(client, text)) for _ in range(count)]
        await asyncio.sleep(0)
        await asyncio.to_thread(meanwhile)
        return await asyncio.gather(*calls)


def until(condition: Callable[[], object], bound_s: float) -> float:
    """Wait for a condition; returns the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < bound_s, "it did not come about"
        time.sleep(0.02)
    return time.monotonic() - started


def asked(provider: Provider) -> int:
    return provider.stats()["requests"]


def busy_ingresses(cluster: Cluster, graph: str) -> int:
    page = httpx.get(f"{cluster.url(graph)}/metrics").text
    active = [line for line in page.splitlines() if line.startswith('dspy_active_requests{replica="Ingress')]
    return sum(float(line.rpartition(" ")[2]) > 0 for line in active)


def reaches_both(cluster: Cluster, graph: str, text: str) -> bool:
    """Whether calls come in at both ingresses."""
    seen: list[int] = []

    def look() -> None:
        time.sleep(1)  # two exchanges and more
        seen.append(busy_ingresses(cluster, graph))

    asyncio.run(herd(cluster, graph, text, 40, look))
    return seen == [2]


def caches(cluster: Cluster, graph: str) -> dict[str, float]:
    return httpx.get(f"{cluster.url(graph)}/v1/status").json()["caches"]


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_500_identical_misses_over_two_ingresses_are_one_model_call(shared_cluster, provider, unique, graph) -> None:
    slow(provider, 2)
    until(lambda: reaches_both(shared_cluster, graph, unique()), 40)  # a proxy hears of a new replica a moment later
    slow(provider)
    seen: list[int] = []

    def look() -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < THINKING_S - 0.5:
            seen.append(busy_ingresses(shared_cluster, graph))
            time.sleep(0.1)  # more often than replicas report; the herd needs the cores

    answers = asyncio.run(herd(shared_cluster, graph, unique(), HERD, look))
    assert max(seen) == 2
    assert Counter(status for status, _ in answers) == {200: HERD}
    assert asked(provider) == 1, caches(shared_cluster, graph)
    assert Counter(cache for _, cache in answers)["miss"] == 1


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_with_the_leader_killed_the_followers_are_answered_with_two_calls_at_most(
    shared_cluster, provider, redis, unique, graph
) -> None:
    slow(provider)
    with Redis(port=redis.port, password="open") as store:

        def kill_the_leader() -> None:
            until(lambda: asked(provider) and store.keys("*:lease"), 20)
            time.sleep(0.5)  # the rest of the herd arrives; there is nothing to wait on
            (lease,) = store.keys("*:lease")
            os.kill(int(store.get(lease).partition(b"-")[0]), signal.SIGKILL)

        answers = asyncio.run(herd(shared_cluster, graph, unique(), 100, kill_the_leader))
    statuses = Counter(status for status, _ in answers)
    assert asked(provider) <= 2
    if graph == "standard":  # the ingresses live, and ask the other replica of the cache
        assert statuses == {200: 100}
    else:  # whoever was connected to the killed ingress has lost that connection
        assert statuses[200] >= 20, statuses
        assert statuses.keys() <= {0, 200, 500, 502, 503}, statuses
    replicas = "Cache" if graph == "standard" else "Ingress"
    application = "switchyard" if graph == "standard" else "compact"
    until(lambda: len(shared_cluster.pids_of(replicas, application)) == 2, 60)
    provider.heal()
    until(lambda: httpx.get(f"{shared_cluster.url(graph)}/v1/status").json()["replicas"].get(replicas) == 2, 60)


def test_an_operator_has_a_program_forgotten_in_every_cache_within_a_second(shared_cluster, unique) -> None:
    text = unique()
    cached_only = {"cache-control": "only-if-cached"}
    with shared_cluster.client() as client:
        for _ in range(10):  # both ingresses, both replicas of the cache
            assert client.post("/v1/programs/math", json=body(text)).status_code == 200
        assert client.delete("/v1/cache/math").status_code == 200
        time.sleep(1)  # the promise is a second
        statuses = {
            client.post("/v1/programs/math", json=body(text), headers=cached_only).status_code for _ in range(20)
        }
        assert statuses == {504}
        assert client.post("/v1/programs/math", json=body(text)).json()["meta"]["cache"] == "miss"


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_without_redis_each_replica_of_the_cache_asks_once_and_nothing_breaks_when_it_comes_back(
    shared_cluster, provider, redis: RedisServer, unique, graph
) -> None:
    text = unique()
    with shared_cluster.client(graph) as client:
        assert client.post("/v1/programs/math", json=body(text)).status_code == 200
        redis.stop()
        slow(provider)
        answers = asyncio.run(herd(shared_cluster, graph, unique(), 200, lambda: None))
        assert Counter(status for status, _ in answers) == {200: 200}
        assert asked(provider) <= 2
        provider.heal()
        redis.start()

        def is_back() -> bool:
            for _ in range(4):  # a probe comes with a call
                assert client.post("/v1/programs/math", json=body(unique())).status_code == 200
            seen = caches(shared_cluster, graph)
            return seen["redis_up"] == 2 and seen["redis_down"] == 0

        until(is_back, 20)  # how fast is a figure of benchmarks/cache_faults.py


def test_answers_outlive_everything_but_redis(shared_cluster, clusters, provider, redis, unique) -> None:
    texts = {graph: unique() for graph in Cluster.GRAPHS}
    for graph, text in texts.items():
        with shared_cluster.client(graph) as client:
            assert client.post("/v1/programs/math", json=body(text)).json()["meta"]["cache"] == "miss"
    with Redis(port=redis.port, password="open") as store:
        until(lambda: len(store.keys("switchyard:math:*")) >= 2, 10)
    again = clusters.use("open")  # ends the other one
    provider.reset_stats()
    for graph, text in texts.items():
        with again.client(graph) as client:
            until(lambda client=client: caches_redis(client), 20)
            reply = client.post("/v1/programs/math", json=body(text))
            assert reply.json()["meta"]["cache"] == "hit"
            assert reply.headers["cache-status"].startswith("Switchyard; hit; ttl=")
            assert reply.headers["cache-status"].endswith("; detail=redis")
    assert asked(provider) == 0


def caches_redis(client: httpx.Client) -> bool:
    return client.get("/v1/status").json().get("caches", {}).get("redis_up", 0) == 1
