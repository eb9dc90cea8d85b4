"""The control plane of a real cluster: killed while a breaker is open, and given another policy under load."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest
import yaml
from running_cluster import NO_STORE, ROOT, Cluster

pytestmark = pytest.mark.usefixtures("calm")

LISTENS_S = 5
"""Seconds for which a new control plane takes no votes."""
APPLICATIONS = {"standard": "switchyard", "compact": "compact"}


class Callers:
    """A steady load; counts what it is told, by status and by level."""

    def __init__(self, cluster: Cluster, graph: str, text: str, count: int = 4) -> None:
        self.statuses: Counter[int] = Counter()
        self.levels: list[tuple[float, str]] = []
        self._cluster, self._graph, self._text = cluster, graph, text
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a caller hangs"

    def _call(self, caller: int) -> None:
        number = 0
        with self._cluster.client(self._graph) as client:
            while not self._ended.is_set():
                number += 1
                body = {
                    "inputs": {"question": f"{self._text} {caller} {number}"},
                    "options": {"complexity": "high", "deadline_s": 10},
                }
                reply = client.post("/v1/programs/math", json=body, headers=NO_STORE)
                self.statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    self.levels.append((time.monotonic(), reply.json()["meta"]["level"]))


def until(condition: Callable[[], bool], bound_s: float, what: str) -> float:
    """Seconds until the condition held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < bound_s, what
        time.sleep(0.02)
    return time.monotonic() - started


def status(cluster: Cluster, graph: str) -> dict:
    with cluster.client(graph) as client:
        return client.get("/v1/status").raise_for_status().json()


def breaker(cluster: Cluster, graph: str) -> str:
    return status(cluster, graph).get("models", {}).get("large", {}).get("breaker", "unknown")


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_a_killed_control_plane_loses_no_call_and_no_open_breaker(cluster, provider, unique, graph) -> None:
    """Graph standard writes its state to Redis; compact has none and learns it from its routers."""
    until(lambda: status(cluster, graph)["level"]["since_s"] > LISTENS_S + 1, 30, "the control plane listens")
    provider.fault("sim-large", {"kind": "status", "status": 401})  # stays open for as long as the fault is there
    (victim,) = cluster.pids_of("ControlPlane", APPLICATIONS[graph])
    with Callers(cluster, graph, unique()) as callers:
        until(lambda: breaker(cluster, graph) == "open", 10, "the breaker opens")
        assert "HTTP 401" in status(cluster, graph)["models"]["large"]["reason"]
        os.kill(victim, signal.SIGKILL)
        until(
            lambda: cluster.pids_of("ControlPlane", APPLICATIONS[graph]) not in ([], [victim]), 60, "another one runs"
        )
        until(lambda: "models" in status(cluster, graph), 60, "the control plane answers")
        until(lambda: breaker(cluster, graph) in ("open", "half_open"), 2, "the breaker is still open")
        provider.reset_stats()
        asked_until = time.monotonic() + 3
        while time.monotonic() < asked_until:
            assert breaker(cluster, graph) in ("open", "half_open")
            time.sleep(0.1)
        probes = provider.stats()["models"].get("sim-large", {"requests": 0})["requests"]
    assert callers.statuses.keys() == {200}, callers.statuses
    assert probes <= 5, "one second and more between probes"


@contextmanager
def deployable(cluster: Cluster) -> Iterator[Callable[[dict], float]]:
    """Deploys a change of the policy of graph standard; returns when the command ended. Undone afterwards."""
    file = cluster.file
    document = yaml.safe_load(file.read_text())

    def deploy(policy: dict, name: str = "changed.yaml") -> float:
        changed = yaml.safe_load(file.read_text())
        user_config = changed["applications"][0]["deployments"][0]["user_config"]
        for section, values in policy.items():
            user_config[section] = user_config.get(section, {}) | values
        target = file.with_name(name)
        target.write_text(yaml.safe_dump(changed))
        found = re.search(r"View the dashboard at \S*?(http://[\d.:]+)", cluster.log.read_text())
        assert found
        serve = [sys.executable, "-m", "ray.serve.scripts", "deploy", "-a", found[1], str(target)]
        environment = os.environ | {"RAY_AUTH_MODE": "token", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(serve, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-4000:]
        return time.monotonic()

    try:
        yield deploy
    finally:
        deploy({})
        pin = document["applications"][0]["deployments"][0]["user_config"]["degradation"]["pin"]
        until(lambda: status(cluster, "standard")["policy"]["degradation"]["pin"] == pin, 10, "the policy is undone")


def test_another_policy_holds_within_a_second_restarts_nothing_and_loses_no_call(cluster, unique) -> None:
    parts = ("ControlPlane", "Ingress", "Cache", "Router", "Model-large", "Model-medium", "Model-small")
    before = {part: cluster.pids_of(part) for part in parts}
    with deployable(cluster) as deploy, Callers(cluster, "standard", unique()) as callers:
        deployed = deploy({"degradation": {"pin": "minimal"}})
        until(lambda: any(level == "minimal" for _, level in callers.levels), 10, "a call is answered at the new level")
        took_s = next(moment for moment, level in callers.levels if level == "minimal") - deployed
        time.sleep(0.5)  # for calls under the new policy; the load is what is waited for
        deploy({"degradation": {"pin": "minimal", "exit_ratio": 7}})
        until(lambda: status(cluster, "standard")["policy_problems"] != [], 10, "the bad policy is refused")
        shown = status(cluster, "standard")
        assert "exit_ratio" in shown["policy_problems"][0]
        assert shown["policy"]["degradation"]["pin"] == "minimal"
    assert took_s < 1
    assert callers.statuses.keys() == {200}, callers.statuses
    assert {part: cluster.pids_of(part) for part in parts} == before
