"""What a replica holds is given back when Ray ends it; and where the shared cache level is, is followed."""

import asyncio
import contextlib
import gc
from pathlib import Path
from types import SimpleNamespace

import pytest
from deployment_fakes import FakeHandle, app_config, link, settle
from ray.exceptions import RayActorError
from redis.asyncio import Redis

from serve_app.config import CacheConfig
from serve_app.deployments import replicas
from serve_app.deployments.autoscaling import IN_HAND
from serve_app.errors import ConfigError
from serve_app.reports import NOWHERE


class Holder(replicas.Holding):
    """Holds one thing, and says in which order it let go."""

    def __init__(self) -> None:
        self.let_go: list[str] = []
        self._held = contextlib.AsyncExitStack()
        self._held.callback(self.let_go.append, "first held")
        self._held.push_async_callback(self._slowly)

    async def _slowly(self) -> None:
        await asyncio.sleep(0)
        self.let_go.append("last held")


async def end(holder) -> None:
    """As Ray ends a replica: it calls the destructor and awaits what that returns."""
    work = holder.__del__()
    if work is not None:
        await work


async def test_everything_is_given_back_last_held_first_and_once() -> None:
    holder = Holder()
    await end(holder)
    await end(holder)
    assert holder.let_go == ["last held", "first held"]


def test_a_replica_whose_constructor_failed_has_nothing_to_give_back() -> None:
    assert replicas.Holding().__del__() is None


async def test_the_garbage_collector_finds_nothing_left_to_do() -> None:
    holder = Holder()
    await end(holder)
    del holder
    gc.collect()  # a coroutine nobody awaits would be a warning, and so an error


class Server:
    def __init__(self, error=None) -> None:
        self.error = error
        self.url = "unix:///a"
        self.stopped = 0

    def start(self) -> None:
        if self.error:
            raise self.error

    def stop(self) -> None:
        self.stopped += 1


async def test_the_embedded_server_ends_with_its_replica(monkeypatch) -> None:
    server = Server()
    monkeypatch.setattr(replicas, "EmbeddedRedis", lambda: server)
    monkeypatch.setattr(replicas, "configure_logging", lambda _: None)
    made = replicas.EmbeddedRedisDeployment()
    assert await made.url() == "unix:///a"
    made.__del__()
    assert server.stopped == 1


async def test_an_embedded_server_that_has_ended_for_good_is_started_anew_for_who_asks_where_it_is(monkeypatch) -> None:
    monkeypatch.setattr(replicas, "configure_logging", lambda _: None)
    made = replicas.EmbeddedRedisDeployment()
    first, watch = await made.url(), made._server._watch
    assert await made.url() == first
    watch.kill()
    watch.wait()
    async with Redis.from_url(await made.url()) as client:
        assert await client.ping()
    assert not Path(first.removeprefix("unix://")).parent.exists()
    made.__del__()


def test_a_server_that_does_not_start_fails_its_deployment_in_its_own_words(monkeypatch) -> None:
    monkeypatch.setattr(replicas, "EmbeddedRedis", lambda: Server(ConfigError(["no server"])))
    monkeypatch.setattr(replicas, "configure_logging", lambda _: None)
    with pytest.raises(ConfigError, match="no server"):
        replicas.EmbeddedRedisDeployment()


class Store:
    """Stands for the shared level at one address."""

    made: list["Store"]

    def __init__(self, url, *, timeout_s) -> None:
        self.url = url
        self.is_closed = False
        self.made.append(self)

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.fixture
def stores(monkeypatch):
    Store.made = []
    monkeypatch.setattr(replicas, "RedisStore", Store)
    monkeypatch.setattr(replicas, "REDIS_REFRESH_S", 0.0)
    return Store.made


class EmbeddedHandle:
    """Answers where the server is, or raises; the last answer for ever."""

    def __init__(self, *answers) -> None:
        self._answers = list(answers)
        self.url = self

    async def remote(self):
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


@contextlib.asynccontextmanager
async def following(*answers):
    cache = SimpleNamespace(redis=None)
    task = asyncio.create_task(replicas.follow_redis(cache, CacheConfig(), EmbeddedHandle(*answers)))
    try:
        yield cache
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_server_that_moved_is_found_and_the_old_connections_are_closed(stores) -> None:
    async with following("unix:///a", "unix:///a", RayActorError(), "unix:///b") as cache:
        await settle(40)
        assert [store.url for store in stores] == ["unix:///a", "unix:///b"]
        assert cache.redis is stores[1]
        assert [store.is_closed for store in stores] == [True, False]


async def test_the_old_connections_stay_open_for_the_calls_that_still_use_them(stores, monkeypatch) -> None:
    def moved() -> str:
        monkeypatch.setattr(replicas, "REDIS_REFRESH_S", 60.0)
        return "unix:///b"

    async with following("unix:///a", moved) as cache:
        await settle(40)
        assert cache.redis is stores[1]
        assert not stores[0].is_closed


async def test_a_server_that_cannot_be_found_leaves_what_there_is(stores) -> None:
    async with following("unix:///a", RayActorError()) as cache:
        await settle(40)
        assert cache.redis is stores[0]
        assert not stores[0].is_closed


@pytest.mark.parametrize(("url", "wanted"), [(None, None), ("redis://h:1", "redis://h:1")])
async def test_a_server_of_ones_own_is_taken_as_it_is(stores, url, wanted) -> None:
    cache = SimpleNamespace(redis=None)
    await replicas.follow_redis(cache, CacheConfig(redis_url=url), None)
    assert (cache.redis.url if cache.redis else None) == wanted


def test_a_batch_is_offered_to_a_model_for_a_bounded_time() -> None:
    config = app_config()
    handles = {replicas.model_deployment_name(model.name): FakeHandle() for model in config.models}
    stages = replicas.model_stages(config, handles, link())
    assert stages.keys() == {"large", "medium", "small"}
    assert {stage._accept_timeout_s for stage in stages.values()} == {replicas.MODEL_ACCEPT_S}


class Ended:
    """For a replica that a test ends itself."""

    def __del__(self) -> None:
        pass


class CacheOnItsOwn(Ended, replicas.CacheDeployment):
    pass


class RouterOnItsOwn(Ended, replicas.RouterDeployment):
    pass


def handles(*names: str) -> dict[str, FakeHandle]:
    made = {name: FakeHandle() for name in names}
    for name, handle in made.items():
        handle.deployment_name = name
    return made


@pytest.fixture
def line(monkeypatch):
    """A process that Ray started for a replica, and its line to the control plane."""
    made = link()
    monkeypatch.setattr(replicas, "configure_logging", lambda _: None)
    monkeypatch.setattr(replicas, "collect_seldom", lambda: None)
    monkeypatch.setattr(replicas, "configure_tracing", lambda _: None)
    monkeypatch.setattr(replicas, "has_peers", lambda *_: False)
    monkeypatch.setattr(replicas, "node_address", lambda: "127.0.0.1")
    monkeypatch.setattr(replicas, "link_to", lambda *_: made)
    return made


def cache_on_its_own():
    return CacheOnItsOwn(app_config(), None, handles("Router")["Router"], None)


def router_on_its_own():
    names = [replicas.model_deployment_name(model.name) for model in app_config().models]
    return RouterOnItsOwn(app_config(), None, handles(*names))


@pytest.mark.parametrize(
    ("make", "callees"),
    [(cache_on_its_own, {"Router"}), (router_on_its_own, {"Model-large", "Model-medium", "Model-small"})],
)
async def test_a_part_says_where_it_takes_calls_and_whom_it_asks_until_it_ends(line, make, callees) -> None:
    replica = make()
    assert line.endpoint == replica._server.endpoint
    assert set(line._followers) == callees
    _, writer = await asyncio.open_connection(line.endpoint.host, line.endpoint.port)
    writer.close()
    await replica._let_go()
    assert line.endpoint is None
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", replica._server.endpoint.port)


@pytest.mark.parametrize("make", [cache_on_its_own, router_on_its_own])
async def test_a_part_is_scaled_by_the_calls_that_came_over_channels(line, make) -> None:
    replica = make()
    assert replica.record_autoscaling_stats() == {IN_HAND: 0.0}
    replica._server.calls = 3
    assert replica.record_autoscaling_stats() == {IN_HAND: 3.0}
    await replica._let_go()


@pytest.mark.parametrize("address", ["203.0.113.7", OSError("RAY_USE_TLS is set")])
@pytest.mark.parametrize("make", [cache_on_its_own, router_on_its_own])
async def test_a_part_that_cannot_listen_is_there_all_the_same(line, make, address, monkeypatch) -> None:
    def node_address() -> str:
        if isinstance(address, OSError):
            raise address
        return address

    monkeypatch.setattr(replicas, "node_address", node_address)
    replica = make()
    assert line.endpoint is NOWHERE
    assert replica.record_autoscaling_stats() == {IN_HAND: 0.0}
    await replica._let_go()
