"""The control plane's state on a real server: written when it changes, there for the next life, harmless when sick."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from deployment_fakes import app_config
from redis.asyncio import Redis

from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.telemetry import Telemetry
from serve_app.core import store_health
from serve_app.core.clock import ManualClock
from serve_app.core.roster import SILENCE_S
from serve_app.deployments import control_memory
from serve_app.deployments.control_memory import ControlMemory, remember
from serve_app.deployments.control_plane import ControlPlane
from serve_app.deployments.replicas import redis_addresses
from serve_app.messages import Level
from serve_app.reports import Report


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedRedis() as server:
        yield server.url


async def only(url: str) -> AsyncIterator[str]:
    yield url


@asynccontextmanager
async def remembering(plane: ControlPlane, url: str, application: str = "app") -> AsyncIterator[None]:
    task = asyncio.create_task(remember(plane, only(url), application))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def stored(url: str, application: str = "app") -> object:
    memory = ControlMemory(url, application)
    try:
        return await memory.load()
    finally:
        await memory.aclose()


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_a_new_life_goes_on_where_the_one_before_was_killed(url) -> None:
    first, second = ControlPlane(app_config()), ControlPlane(app_config())
    async with remembering(first, url):
        await first.isolate("large", "testing")
        await first.pin(Level.DEGRADED)

        async def is_written() -> bool:
            state = await stored(url)
            return isinstance(state, dict) and state["orders"]["pin"] == "degraded"

        await until(is_written)

    async with remembering(second, url):

        async def is_restored() -> bool:
            return (await second.status())["level"]["level"] == "degraded"

        await until(is_restored)
    assert (await second.status())["models"]["large"]["reason"] == "isolated: testing"


async def test_what_many_programs_on_many_models_have_counted_is_remembered(url) -> None:
    clock, counted = ManualClock(), Telemetry()
    for program, model in itertools.product(range(60), range(15)):
        counted.call_finished(f"program-{program}", f"model-{model}", "success", 0.1)
    first, second = ControlPlane(app_config(), clock=clock), ControlPlane(app_config())
    await first.exchange(Report("Ingress-1", "Ingress", metrics=counted.samples()))
    clock.advance(SILENCE_S + 1)
    await first.exchange(Report("Ingress-2", "Ingress"))
    await first.pin(Level.DEGRADED)
    memory = ControlMemory(url, "large")
    assert await memory.save(first.state())
    assert second.restore(await memory.load())
    assert (await second.status())["level"]["level"] == "degraded"
    await memory.aclose()


async def test_applications_on_one_server_do_not_share_a_state(url) -> None:
    plane = ControlPlane(app_config())
    await plane.pin(Level.MINIMAL)
    async with remembering(plane, url, "one"):
        await until(lambda: _is_there(url, "one"))
    assert await stored(url, "two") is None


async def test_the_totals_of_many_programs_on_many_models_are_remembered_with_everything_else(url) -> None:
    clock, counted = ManualClock(), Telemetry()
    for program in range(60):
        for model in range(8):
            counted.call_finished(f"customer-support-{program}", f"gpt-4o-mini-{model}", "success", 0.2)
            counted.call_finished(f"customer-support-{program}", f"gpt-4o-mini-{model}", "no_route", 0.2)
    first, second = ControlPlane(app_config(), clock=clock), ControlPlane(app_config())
    await first.pin(Level.MINIMAL)
    await first.exchange(Report("gone", "Ingress", metrics=counted.samples()))
    clock.advance(SILENCE_S + 1)
    await first.exchange(Report("there", "Ingress"))
    async with remembering(first, url, "many"):
        await until(lambda: _is_there(url, "many"))
    async with remembering(second, url, "many"):
        await second.recalled.wait()
    assert (await second.status())["level"]["level"] == "minimal"
    assert second._page.total("dspy_requests_total") == 960


async def _is_there(url: str, application: str) -> bool:
    return await stored(url, application) is not None


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"{", b"[1]", b"x" * 2_000_000])
async def test_strange_bytes_are_no_state(url, data) -> None:
    memory = ControlMemory(url, "strange")
    await memory._redis.run(lambda redis: redis.set("switchyard-control:strange", data))
    plane = ControlPlane(app_config())
    assert plane.restore(await memory.load()) is False
    await memory.aclose()


async def test_a_server_that_is_not_there_is_no_memory_and_no_failure(tmp_path) -> None:
    plane = ControlPlane(app_config())
    async with remembering(plane, f"unix://{tmp_path}/nobody.sock"):
        await plane.pin(Level.MINIMAL)
        assert (await plane.status())["level"]["level"] == "minimal"


async def test_a_server_that_comes_back_is_told(url, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(control_memory, "RETRY_S", 0.05)
    plane, door = ControlPlane(app_config()), tmp_path / "valkey.sock"
    async with remembering(plane, f"unix://{door}", "late"):
        await plane.pin(Level.MINIMAL)
        await asyncio.sleep(0.1)
        door.symlink_to(url.removeprefix("unix://"))
        await until(lambda: _is_there(url, "late"))


async def test_a_state_that_the_server_lost_is_written_again_though_nothing_changed(url, monkeypatch) -> None:
    monkeypatch.setattr(control_memory, "REWRITE_S", 0.05)
    plane = ControlPlane(app_config())
    await plane.pin(Level.MINIMAL)
    async with remembering(plane, url, "lost"), Redis.from_url(url) as client:
        await until(lambda: _is_there(url, "lost"))
        await client.delete("switchyard-control:lost")
        await until(lambda: _is_there(url, "lost"))


async def test_a_server_that_is_slow_to_come_loses_no_memory(url, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(control_memory, "READ_PAUSE_S", 0.02)
    monkeypatch.setattr(store_health, "FIRST_PAUSE_S", 0.02)
    first, second = ControlPlane(app_config()), ControlPlane(app_config())
    await first.pin(Level.MINIMAL)
    async with remembering(first, url, "slow"):
        await until(lambda: _is_there(url, "slow"))
    door = tmp_path / "valkey.sock"
    async with remembering(second, f"unix://{door}", "slow"):
        await asyncio.sleep(0.05)
        assert not second.recalled.is_set()
        door.symlink_to(url.removeprefix("unix://"))
        async with asyncio.timeout(5):
            await second.recalled.wait()
    assert (await second.status())["level"]["level"] == "minimal"


async def test_a_server_that_does_not_answer_is_told_apart_from_one_that_remembers_nothing(url, tmp_path) -> None:
    assert await stored(url, "nobody") is None
    with pytest.raises(ConnectionError):
        await stored(f"unix://{tmp_path}/nobody.sock")


async def test_where_there_is_nothing_to_ask_all_is_known_at_once() -> None:
    plane = ControlPlane(app_config())
    await remember(plane, redis_addresses(None, None), "app")
    assert plane.recalled.is_set()
