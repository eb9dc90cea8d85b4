"""``kill -9`` of the control plane while a breaker is open: no call fails, and the breaker is still open after."""

import os
import signal
import time

import pytest
from running_cluster import NO_STORE, Cluster

LISTENS_S = 7

pytestmark = pytest.mark.usefixtures("calm")


def ask(cluster: Cluster, text: str):
    body = {"inputs": {"question": text}, "options": {"complexity": "high", "deadline_s": 10}}
    with cluster.client() as client:
        return client.post("/v1/programs/math", json=body, headers=NO_STORE)


def breaker(cluster: Cluster) -> str:
    with cluster.client() as client:
        models = client.get("/v1/status").json().get("models", {})
    return models.get("large", {}).get("breaker", "unknown")


def wait_until_it_votes(cluster: Cluster) -> None:
    """A new control plane listens for a few seconds before it opens a breaker by vote."""
    give_up = time.monotonic() + 30
    with cluster.client() as client:
        while client.get("/v1/status").json()["level"]["since_s"] < LISTENS_S:
            assert time.monotonic() < give_up
            time.sleep(0.2)


def test_an_open_breaker_outlives_the_control_plane(cluster, provider, unique) -> None:
    wait_until_it_votes(cluster)
    provider.fault("sim-large", {"kind": "status", "status": 500})
    give_up = time.monotonic() + 20
    while breaker(cluster) != "open":
        assert ask(cluster, unique()).status_code == 200
        assert time.monotonic() < give_up, "the cluster's breaker did not open"

    (victim,) = cluster.pids_of("ControlPlane")
    os.kill(victim, signal.SIGKILL)
    provider.reset_stats()
    statuses = []
    until = time.monotonic() + 12
    while time.monotonic() < until:
        statuses.append(ask(cluster, unique()).status_code)
    assert set(statuses) == {200}
    assert breaker(cluster) in {"open", "half_open"}
    assert cluster.pids_of("ControlPlane") != [victim]
    # Probes only: with open_s 1 and max_open_s 2 there is at most about one a second.
    assert provider.stats()["models"]["sim-large"]["requests"] <= 20 < len(statuses)
