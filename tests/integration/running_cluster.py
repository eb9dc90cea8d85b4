"""A real cluster for the tests: ``switchyard run`` in a process of its own, with ports of its own."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.launch_ports import HAPROXY_PORTS

ROOT = Path(__file__).parents[2]
NO_STORE = {"cache-control": "no-store"}
OPERATOR_KEY = "k3y-of-the-tests"
"""Of the cluster in plain mode; the others have none."""
READY_S = 150
ENDED_S = 60


@dataclass
class Provider:
    """The simulator that every model of the cluster asks."""

    url: str

    def fault(self, model: str, *faults: dict[str, Any]) -> None:
        httpx.put(f"{self.url}/faults/{model}", json=list(faults)).raise_for_status()

    def heal(self) -> None:
        for model in ("sim-large", "sim-medium", "sim-small"):
            httpx.delete(f"{self.url}/faults/{model}")

    def stats(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/stats").raise_for_status().json()

    def reset_stats(self) -> None:
        httpx.delete(f"{self.url}/stats").raise_for_status()


@dataclass
class Cluster:
    """A running cluster with both graphs: ``standard`` at ``/`` and ``compact`` at ``/compact``."""

    base: str
    process: psutil.Process
    log: Path
    file: Path
    graphs: tuple[str, ...] = ("standard", "compact")

    GRAPHS = ("standard", "compact")

    def url(self, graph: str = "standard") -> str:
        return self.base if graph == "standard" else f"{self.base}/compact"

    def client(self, graph: str = "standard") -> httpx.Client:
        return httpx.Client(base_url=self.url(graph), timeout=60)

    def pids_of(self, deployment: str, application: str = "switchyard") -> list[int]:
        """Replicas of a deployment, found by the title that Ray gives their processes."""
        title = f"ray::ServeReplica:{application}:{deployment}"
        return [p.pid for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith(title)]


def free_ports(count: int) -> list[int]:
    """Ports below the range from which the system gives out its own, so that nobody takes them meanwhile."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randint(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            ports.append(port)
    return ports


def config(port: int, provider_url: str) -> dict[str, Any]:
    """Both graphs over the same programs and models; thresholds small enough for tests to see them act.

    Graph ``compact`` has no Redis.
    """
    document = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    application = document["applications"][0]
    args = application["args"]
    for model in args["models"]:
        model["api_base"] = f"{provider_url}/v1"
        model["latency_s"] = 0.2
        model["context_window"] = {"large": 64_000, "medium": 128_000, "small": 8_192}[model["name"]]
    levels = {"full": {"models": ["large", "medium", "small"]}}
    args["programs"] += [
        {"name": "math", "program": "examples.math_word_problem:MathWordProblem", "levels": levels},
        {"name": "summarize", "program": "examples.summarize_sync:Summarize", "levels": levels},
    ]
    policy = application["deployments"][0]["user_config"]
    policy["breaker"] |= {"window_s": 3, "open_s": 1, "max_open_s": 2, "minimum_calls": 5}
    policy["retry"] = {"budget_ratio": 1.0, "budget_floor_per_s": 100}
    policy["degradation"]["pin"] = "full"
    compact = application | {
        "name": "compact",
        "args": args | {"cache": args.get("cache", {}) | {"redis_url": None}},
        "route_prefix": "/compact",
        "import_path": "graphs.compact:build",
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application, compact]}


def with_models(document: dict[str, Any], *names: str) -> None:
    """Leave both graphs these models alone, the first of them where a level would have none: each costs a process."""
    for application in document["applications"]:
        if application["import_path"].startswith("graphs."):
            args = application["args"]
            models = [model for model in args["models"] if model["name"] in names]
            programs = [program | {"levels": levels_with(program["levels"], names)} for program in args["programs"]]
            application["args"] = args | {"models": models, "programs": programs, "default_model": names[0]}


def levels_with(levels: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The same levels, of whose models these are left."""
    return {
        level: options | {"models": [name for name in options["models"] if name in names] or [names[0]]}
        for level, options in levels.items()
    }


def share(document: dict[str, Any], redis_url: str, *, replicas: int = 2) -> None:
    """Give both graphs so many replicas of ingress and cache over one Redis, and two models.

    It has half a second to answer: these tests are about sharing, on machines that may be busy with much else.
    """
    with_models(document, "large", "small")
    for application in document["applications"]:
        if application["import_path"].startswith("graphs."):
            many = {"min": replicas, "max": replicas}
            args = dict(application["args"], ingress=many)
            args["cache"] = {"redis_url": redis_url, "redis_timeout_s": 0.5, "replicas": many}
            application["args"] = args


def replicated(document: dict[str, Any]) -> dict[str, Any]:
    """The same with graph ``standard`` alone: two ingresses, two routers, two replicas of one model, one of another."""
    application = document["applications"][0]
    args = application["args"]
    twice = {"min": 2, "max": 2}
    large, small = (model for model in args["models"] if model["name"] in {"large", "small"})
    levels = {"full": {"models": ["large", "small"]}}
    programs = [program | {"levels": levels} for program in args["programs"] if program["name"] == "math"]
    changed = {"programs": programs, "models": [large, small | {"replicas": twice}], "default_model": "large"}
    scaled = {"ingress": twice, "router": twice}
    return document | {"applications": [application | {"args": args | changed | scaled}]}


@contextmanager
def running(
    file: Path, port: int, *options: str, log: Path, variables: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """Serve ``file`` until the body ends, and leave no process behind."""
    ports = map(str, free_ports(len(HAPROXY_PORTS)))
    environment = os.environ | dict(variables or {}) | dict(zip(HAPROXY_PORTS, ports, strict=True))
    command = [sys.executable, "-m", "serve_app.cli", "run", str(file), "--verbose", *options]
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    process = psutil.Process(started.pid)
    names = [application["name"] for application in yaml.safe_load(file.read_text())["applications"]]
    graphs = Cluster.GRAPHS if "compact" in names else ("standard",)
    cluster = Cluster(f"http://127.0.0.1:{port}", process, log, file, graphs)
    try:
        wait_until_ready(cluster)
        yield cluster
    finally:
        children = process.children(recursive=True)
        started.send_signal(signal.SIGINT)
        try:
            started.wait(ENDED_S)
        finally:
            _, alive = psutil.wait_procs(children, timeout=5)
            for child in alive:
                child.kill()
            started.kill()
    assert not alive, f"processes outlived switchyard run: {alive}"


def wait_until_ready(cluster: Cluster) -> None:
    give_up = time.monotonic() + READY_S
    pending = list(cluster.graphs)
    while pending:
        try:
            if httpx.get(f"{cluster.url(pending[0])}/ready", timeout=5).status_code == 200:
                pending.pop(0)
                continue
        except httpx.TransportError:
            pass
        assert cluster.process.is_running(), cluster.log.read_text()[-4000:]
        assert cluster.process.status() != psutil.STATUS_ZOMBIE, cluster.log.read_text()[-4000:]
        assert time.monotonic() < give_up, cluster.log.read_text()[-4000:]
        time.sleep(0.2)
