"""The policy over several lives of the control plane: what is in force outlives the process, whatever was deployed."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from deployment_fakes import app_config, settle

from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.deployments import control_plane, replicas
from serve_app.deployments.control_memory import ControlMemory
from serve_app.deployments.control_plane import ControlPlane
from serve_app.deployments.replicas import ControlPlaneDeployment
from serve_app.errors import ConfigError
from serve_app.messages import Level
from serve_app.reports import Report

GOOD = {"routing": {"strategy": "quality"}, "degradation": {"pin": "degraded"}}
BETTER = {"routing": {"strategy": "latency"}}
BAD = {"routing": {"stratgy": "cost"}}
PROBLEM = r"routing\.stratgy: unknown key"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedRedis() as server:
        yield server.url


@pytest.fixture(autouse=True)
def application(request, monkeypatch) -> str:
    """A Serve application for each test, so that none finds what another wrote."""
    name = request.node.name
    monkeypatch.setattr(replicas, "configure_logging", lambda _: None)
    monkeypatch.setattr(replicas, "collect_seldom", lambda: None)
    monkeypatch.setattr(replicas.serve, "get_replica_context", lambda: SimpleNamespace(app_name=name))
    return name


@asynccontextmanager
async def life(redis_url: str | None) -> AsyncIterator[ControlPlaneDeployment]:
    """A control plane as Ray has it, from its constructor to its end."""
    others = asyncio.all_tasks()
    plane = ControlPlaneDeployment(app_config(cache={"redis_url": redis_url}), None)
    try:
        yield plane
    finally:
        await plane.__del__()
        async with asyncio.timeout(5):
            await asyncio.gather(*asyncio.all_tasks() - others, return_exceptions=True)


async def until_written(url: str, application: str, strategy: str) -> None:
    memory = ControlMemory(url, application)
    async with asyncio.timeout(5):
        while ((await memory.load() or {}).get("policy") or {}).get("routing", {}).get("strategy") != strategy:
            await asyncio.sleep(0.01)
    await memory.aclose()


def written(policy: object = GOOD) -> dict:
    """What an earlier life left, with a policy as it is given."""
    plane = ControlPlane(app_config())
    return json.loads(json.dumps(plane.state())) | {"policy": policy}


async def strategy_of(plane: ControlPlane) -> str:
    return (await plane.exchange(Report("Router-1", "Router"))).policy.routing.strategy


async def test_a_life_that_begins_with_a_bad_policy_goes_on_under_the_one_that_was_in_force(url, application) -> None:
    async with life(url) as first:
        await first.reconfigure(GOOD)
        await first.reconfigure(BAD)
        await until_written(url, application, "quality")
    for _ in range(2):
        async with life(url) as next_life:
            await next_life.reconfigure(BAD)
            assert (await next_life.exchange(Report("Router-1", "Router"))).level is Level.DEGRADED
            status = await next_life.status()
            assert status["policy"] == (await first.status())["policy"]
            assert "routing.stratgy: unknown key" in status["policy_problems"][0]


async def test_a_policy_that_is_taken_out_is_the_default_again() -> None:
    assert "rank" in inspect.signature(ControlPlaneDeployment.reconfigure).parameters  # else Ray does not tell
    async with life(None) as plane:
        await plane.reconfigure(GOOD, rank=0)
        await plane.reconfigure(None, rank=0)
        snapshot = await plane.exchange(Report("Router-1", "Router"))
        assert (snapshot.policy.routing.strategy, snapshot.policy.degradation.pin) == ("cost", None)


async def test_a_policy_is_written_also_when_nothing_else_changed(url, application) -> None:
    async with life(url) as plane:
        await plane.reconfigure(GOOD)
        await until_written(url, application, "quality")
        await plane.reconfigure(BETTER)
        await until_written(url, application, "latency")


async def test_a_valid_policy_wins_over_the_remembered_one_and_waits_for_nothing(tmp_path) -> None:
    async with life(f"unix://{tmp_path}/nobody.sock") as plane:
        async with asyncio.timeout(1):
            await plane.reconfigure(BETTER)
        assert plane.restore(written())
        assert await strategy_of(plane) == "latency"
        assert plane.state()["policy"]["routing"]["strategy"] == "latency"
        await plane.reconfigure(BAD)
        assert await strategy_of(plane) == "latency"


async def test_a_bad_first_policy_does_not_start_where_nothing_is_remembered(url) -> None:
    for redis_url in (url, None):
        async with life(redis_url) as plane:
            async with asyncio.timeout(control_plane.RECALL_S / 2):
                with pytest.raises(ConfigError, match=PROBLEM):
                    await plane.reconfigure(BAD)


async def test_a_memory_that_says_nothing_is_not_waited_for_for_ever(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(control_plane, "RECALL_S", 0.05)
    async with life(f"unix://{tmp_path}/nobody.sock") as plane:
        with pytest.raises(ConfigError, match=PROBLEM):
            await plane.reconfigure(BAD)


async def test_a_bad_first_policy_waits_for_what_is_remembered() -> None:
    plane = ControlPlane(app_config())
    waiting = asyncio.create_task(plane.recall(BAD))
    await settle()
    assert not waiting.done()
    assert plane.restore(written())
    plane.recalled.set()
    await waiting
    plane.reconfigure(BAD)
    assert await strategy_of(plane) == "quality"
    plane.reconfigure(BETTER)
    assert await strategy_of(plane) == "latency"
    assert (await plane.status())["policy_problems"] == []


@pytest.mark.parametrize("policy", [None, BAD, {"breaker": {"minimum_calls": -1}}, [], "x", 7])
async def test_a_remembered_policy_that_is_not_valid_counts_as_none_and_costs_nothing_else(policy) -> None:
    state = written(policy)
    state["level"] = "minimal"
    plane = ControlPlane(app_config())
    assert plane.restore(state)
    assert (await plane.status())["level"]["level"] == "minimal"
    with pytest.raises(ConfigError, match=PROBLEM):
        plane.reconfigure(BAD)


async def test_a_state_from_before_policies_were_kept_is_read() -> None:
    state = written()
    del state["policy"]
    plane = ControlPlane(app_config())
    assert plane.restore(state)
    with pytest.raises(ConfigError, match=PROBLEM):
        plane.reconfigure(BAD)


async def test_a_life_that_got_no_policy_yet_writes_the_remembered_one_again() -> None:
    plane = ControlPlane(app_config())
    assert plane.state()["policy"] is None
    assert plane.restore(written())
    assert plane.state()["policy"]["routing"]["strategy"] == "quality"
    assert await strategy_of(plane) == "cost", "remembered is not in force"


async def test_every_part_of_a_policy_comes_back() -> None:
    policy = {
        "routing": {"strategy": "latency", "learn_quality": True},
        "breaker": {"minimum_calls": 7, "open_s": 3.5},
        "retry": {"budget_ratio": 0.3},
        "degradation": {"pin": "minimal", "degraded": {"cpu": 0.7}},
        "batching": {"max_batch_size": 3},
    }
    first, second = ControlPlane(app_config()), ControlPlane(app_config())
    first.reconfigure(policy)
    assert second.restore(json.loads(json.dumps(first.state())))
    second.reconfigure(BAD)
    assert (await second.status())["policy"] == (await first.status())["policy"]


async def test_only_another_policy_is_worth_writing_down() -> None:
    plane = ControlPlane(app_config())
    for policy, is_news in ((GOOD, True), (GOOD, False), (BAD, False), (BETTER, True)):
        plane.changed.clear()
        plane.reconfigure(policy)
        assert plane.changed.is_set() is is_news, policy
