"""One provider and one cluster at a time for the whole run."""

import time
import uuid
from collections.abc import Callable, Iterator

import pytest
import yaml
from otlp_collector import Collector
from recorded import COLUMNS, RECORDED
from redis_server import RedisServer
from running_cluster import (
    NO_STORE,
    OPERATOR_KEY,
    Cluster,
    Provider,
    config,
    free_ports,
    replicated,
    running,
    share,
    with_models,
)

from serve_app.simulator.profile import ModelProfile, Profile, Replay
from serve_app.simulator.server import background


class Clusters:
    """Starts the cluster a test wants, after ending the one before."""

    def __init__(self, provider: Provider, redis: RedisServer, collector: Collector, directory) -> None:
        self._provider = provider
        self._redis = redis
        self._tracing = collector.variables
        self._directory = directory
        self._mode = ""
        self._open = None

    def use(self, mode: str) -> Cluster:
        if mode != self._mode:
            self.close()
            (port,) = free_ports(1)
            file = self._directory / f"{mode}.yaml"
            document = config(port, self._provider.url)
            if mode == "open":
                document["http_options"]["host"] = "0.0.0.0"
                share(document, self._redis.url, replicas=1)
            if mode == "shared":
                share(document, self._redis.url)
            if mode == "plain":
                with_models(document, "large")
            if mode == "replicated":
                document = replicated(document)
            file.write_text(yaml.safe_dump(document))
            variables = {"plain": {"SWITCHYARD_OPERATOR_KEY": OPERATOR_KEY}, "replicated": self._tracing}.get(mode)
            options = ["--plain"] if mode == "plain" else []
            self._open = running(file, port, *options, log=self._directory / f"{mode}.log", variables=variables)
            self._cluster = self._open.__enter__()
            self._mode = mode
        return self._cluster

    def close(self) -> None:
        opened, self._open, self._mode = self._open, None, ""
        if opened is not None:
            opened.__exit__(None, None, None)


CLUSTERS = ("cluster", "plain_cluster", "shared_cluster", "open_cluster", "replicated_cluster")
"""In the order in which they are started: ``open`` while the Redis still has what ``shared`` stored."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a cluster come one after the other, so that each starts once; first those that share none."""
    items.sort(key=lambda item: [name in getattr(item, "fixturenames", ()) for name in reversed(CLUSTERS)])
    for item in items:
        if "integration" in item.nodeid:
            item.add_marker(pytest.mark.timeout(400))


@pytest.fixture(scope="session")
def profile() -> Profile:
    quick = {"ttft_s": 0.005, "tokens_per_s": 20_000, "jitter": 0}
    models = {name: ModelProfile(**quick) for name in ("sim-large", "sim-medium", "sim-small")}
    if RECORDED.exists():
        for name, column in COLUMNS.items():
            replay = Replay(csv=RECORDED, prompt_column="prompt", answer_column=f"{column}_response")
            models[name] = ModelProfile(**quick, replay=replay)
    return Profile(models=models)


@pytest.fixture(scope="session")
def provider(profile: Profile) -> Iterator[Provider]:
    with background(profile) as url:
        yield Provider(url)


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="session")
def clusters(
    provider: Provider, redis: RedisServer, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Clusters]:
    clusters = Clusters(provider, redis, collector, tmp_path_factory.mktemp("clusters"))
    yield clusters
    clusters.close()


@pytest.fixture
def cluster(clusters: Clusters) -> Cluster:
    """Both throughput flags."""
    return clusters.use("throughput")


@pytest.fixture
def shared_cluster(clusters: Clusters, redis: RedisServer, provider: Provider) -> Iterator[Cluster]:
    """Two replicas of ingress and cache in each graph, over one Redis that the tests may stop."""
    redis.start()
    provider.heal()
    yield clusters.use("shared")
    provider.heal()


@pytest.fixture
def replicated_cluster(clusters: Clusters) -> Cluster:
    """Several replicas of each part, whose spans go to ``collector``."""
    return clusters.use("replicated")


@pytest.fixture
def plain_cluster(clusters: Clusters) -> Cluster:
    """Ray Serve as it comes, with an operator key."""
    return clusters.use("plain")


@pytest.fixture
def open_cluster(clusters: Clusters) -> Cluster:
    """Both throughput flags, listening at every address of this machine, over the Redis of ``shared_cluster``."""
    return clusters.use("open")


@pytest.fixture
def calm(cluster: Cluster, provider: Provider) -> Iterator[None]:
    """Heals every fault afterwards, and waits until each model answers again in both graphs."""
    yield
    provider.heal()
    give_up = time.monotonic() + 30
    for graph in Cluster.GRAPHS:
        with cluster.client(graph) as client:
            for model in ("large", "medium", "small"):
                body = {"inputs": {"question": "Are you well?"}, "options": {"model": model, "deadline_s": 5}}
                while client.post("/v1/programs/math", json=body, headers=NO_STORE).status_code != 200:
                    assert time.monotonic() < give_up, f"{model} did not come back in {graph}"
                    time.sleep(0.1)


@pytest.fixture
def unique() -> Callable[[], str]:
    """Text that no cache has seen."""
    return lambda: f"My invoice is wrong, case {uuid.uuid4().hex}."
