"""Several nodes on this machine: the application spreads, loses a node without losing calls, and is replaced under load."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest
from running_cluster import NO_STORE, ROOT, free_ports

pytestmark = pytest.mark.timeout(400)

READY_S = 120
ENVIRONMENT = os.environ | {
    "RAY_AUTH_MODE": "disabled",
    "PYTHONWARNINGS": "ignore",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


class Nodes:
    """A Ray cluster of several raylets, each ``ray start --block`` in a session of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []
        gcs, self.dashboard_port, agent, client = free_ports(4)
        self._address = f"127.0.0.1:{gcs}"
        self._start(
            "--head", f"--port={gcs}", f"--dashboard-port={self.dashboard_port}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", "--num-cpus=1",
        )  # fmt: skip
        until(lambda: httpx.get(f"{self.dashboard}/api/version", timeout=2).status_code == 200, "the head")

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def add(self) -> subprocess.Popen[bytes]:
        """One node more; one after the other, for nodes that start at once on one machine get in each other's way."""
        (agent,) = free_ports(1)
        node = self._start(f"--address={self._address}", f"--dashboard-agent-listen-port={agent}", "--num-cpus=1")
        until(lambda: len(self.alive()) == len(self._started), "the new node")
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """The whole node at once, as when its machine loses power."""
        for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(10)

    def deploy(self, document: dict) -> None:
        """What ``serve deploy`` sends; that command takes a busy machine longer to start than its request does."""
        reply = httpx.put(f"{self.dashboard}/api/serve/applications/", json=document, timeout=90)
        assert reply.status_code == 200, reply.text[-4000:]

    def replicas(self) -> dict[str, list[str]]:
        """Node ids of the running replicas, by deployment."""
        shown = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=10).json()
        deployments = shown["applications"].get("switchyard", {}).get("deployments", {})
        return {
            name: [replica["node_id"] for replica in deployment["replicas"] if replica["state"] == "RUNNING"]
            for name, deployment in deployments.items()
        }

    def alive(self) -> set[str]:
        """Ids of the nodes that the cluster counts."""
        summary = httpx.get(f"{self.dashboard}/nodes?view=summary", timeout=10).json()["data"]["summary"]
        return {node["raylet"]["nodeId"] for node in summary if node["raylet"]["state"] == "ALIVE"}

    def close(self) -> None:
        for node in reversed(self._started):
            if node.poll() is None:
                self.kill(node)

    def _start(self, *options: str) -> subprocess.Popen[bytes]:
        temporary = () if "--head" not in options else (f"--temp-dir={self._directory}/ray",)
        command = ray(
            "start", "--block", "--disable-usage-stats", "--object-store-memory=100000000", *options, *temporary
        )
        with (self._directory / f"node{len(self._started)}.log").open("wb") as output:
            node = subprocess.Popen(
                command, env=ENVIRONMENT, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
            )
        self._started.append(node)
        return node


def until(condition: Callable[[], bool], what: str, bound_s: float = READY_S) -> None:
    give_up = time.monotonic() + bound_s
    while True:
        try:
            if condition():
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < give_up, what
        time.sleep(0.2)


def document(port: int, provider_url: str, signature: str) -> dict:
    """Two replicas of each part that may have two; every call takes long enough to be in flight when a node dies."""
    levels = {"full": {"models": ["large", "small"]}}
    models = [
        {
            "name": name,
            "lm": f"openai/sim-{name}",
            "api_base": f"{provider_url}/v1",
            "latency_s": 0.2,
            "replicas": {"min": 2, "max": 2},
        }
        for name in ("large", "small")
    ]
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "switchyard",
                "route_prefix": "/",
                "import_path": "graphs.standard:build",
                "args": {
                    "programs": [{"name": "ask", "program": signature, "levels": levels}],
                    "models": models,
                    "default_model": "small",
                    "ingress": {"min": 2, "max": 2},
                    "router": {"min": 2, "max": 2},
                },
                "deployments": [
                    {"name": "ControlPlane", "user_config": {"degradation": {"pin": "full"}, "breaker": {"open_s": 1}}}
                ],
            }
        ],
    }


class Callers:
    """Calls until told to stop; remembers when each began and ended, and how."""

    def __init__(self, url: str, count: int = 8) -> None:
        self.ended: list[tuple[float, float, int, str]] = []
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(n,)) for n in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a caller hangs"

    def _call(self, caller: int) -> None:
        number = 0
        with httpx.Client(timeout=30) as client:
            while not self._stop.is_set():
                number += 1
                body = {"inputs": {"question": f"{caller} {number} {time.time()}"}, "options": {"deadline_s": 20}}
                began = time.monotonic()
                try:
                    reply = client.post(self._url, json=body, headers=NO_STORE)
                    status = reply.status_code  # Ray's proxy says in plain text that a replica died with a call
                    outputs = json.dumps(sorted(reply.json()["outputs"])) if status == 200 else reply.text
                except httpx.TransportError:
                    status, outputs = 0, ""
                self.ended.append((began, time.monotonic(), status, outputs))

    def statuses(self) -> Counter[int]:
        return Counter(status for _, _, status, _ in self.ended)


@contextmanager
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="sy", dir="/tmp") as directory:  # short: Ray's sockets are below it
        made = Nodes(Path(directory))
        try:
            yield made
        finally:
            made.close()


def test_an_application_spreads_survives_a_node_and_is_replaced_under_load(provider, clusters) -> None:
    clusters.close()
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with nodes() as cluster:
        cluster.add()
        victim = cluster.add()
        cluster.deploy(document(port, provider.url, "question -> answer"))
        until(lambda: httpx.get(f"{url}/ready", timeout=2).status_code == 200, "ready")
        until(lambda: len(cluster.replicas().get("Model-large", [])) == 2, "two replicas of each")
        used = {node for places in cluster.replicas().values() for node in places}
        assert len(used) == 3, "the application spreads"

        with Callers(f"{url}/v1/programs/ask") as callers:
            until(lambda: len(callers.ended) > 50, "a load")
            killed_at = time.monotonic()
            cluster.kill(victim)
            until(lambda: len(cluster.alive()) == 2, "the loss is noticed")
            left = cluster.alive()
            until(
                lambda: all(places and left.issuperset(places) for places in cluster.replicas().values()),
                "every part has a place",
            )
            until(lambda: len(cluster.replicas()["Model-large"]) == len(cluster.replicas()["Ingress"]) == 2, "healed")
            healed = len(callers.ended)
            until(lambda: len(callers.ended) > healed + 100, "the load goes on")
        lost = [call for call in callers.ended if call[2] != 200]
        in_flight = [call for call in callers.ended if call[0] <= killed_at + 1 <= call[1] + 1]
        assert len(lost) <= 8, f"{callers.statuses()}: no more than the calls in flight, one a caller"
        assert len(in_flight) >= len(lost)

        with Callers(f"{url}/v1/programs/ask") as callers:
            until(lambda: len(callers.ended) > 50, "a load")
            cluster.deploy(document(port, provider.url, "question -> answer, reasoning"))
            # Both versions answer for a while; in the end the old one has answered none of many.
            until(
                lambda: all("reasoning" in outputs for *_, outputs in callers.ended[-100:]), "the new version answers"
            )
        failed = [(round(end - began, 3), status, said) for began, end, status, said in callers.ended if status != 200]
        assert not failed, f"{callers.statuses()}: {failed}"
