"""What a benchmark measures: a provider and a served application, each in processes of its own, gone afterwards."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from serve_app.launch_ports import HAPROXY_PORTS

ROOT = Path(__file__).parents[1]
READY_S = 120
ENDED_S = 60


def free_port() -> int:
    """A port below the range from which the system gives out its own, so that nobody takes it meanwhile."""
    while True:
        port = random.randint(20_000, 30_000)
        with suppress(OSError), socket.create_server(("", port)):
            return port


def ports_of_its_own() -> dict[str, str]:
    """Variables for a Ray Serve beside others: what HAProxy brings with it listens on free ports."""
    return {variable: str(free_port()) for variable in HAPROXY_PORTS}


@contextmanager
def simulator(models: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The simulated provider with these models (``serve_app.simulator.profile``); the value is its root URL."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        profile = Path(directory, "profile.yaml")
        profile.write_text(yaml.safe_dump({"models": {name: dict(model) for name, model in models.items()}}))
        command = [sys.executable, "-m", "serve_app.cli", "simulate", "--port", str(port), "--profile", str(profile)]
        url = f"http://127.0.0.1:{port}"
        started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        with ending(started):
            wait_for(f"{url}/v1/models", started)
            yield url


@contextmanager
def serving(document: Mapping[str, Any], *options: str) -> Iterator[str]:
    """``switchyard run`` with this serve_config (its port is chosen here); the value is the root URL.

    Args:
        document: the file's content.
        options: of ``switchyard run``, such as ``--plain``.
    """
    port = free_port()
    document = {**document, "http_options": {"host": "127.0.0.1", "port": port}}
    environment = os.environ | ports_of_its_own()
    with tempfile.TemporaryDirectory() as directory:
        file, log = Path(directory, "serve_config.yaml"), Path(directory, "serve.log")
        file.write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "serve_app.cli", "run", str(file), *options, "--log-file", str(log)]
        started = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        with ending(started):
            for application in document["applications"]:
                prefix = application["route_prefix"].rstrip("/")
                if "simulator" not in application["import_path"]:
                    wait_for(f"http://127.0.0.1:{port}{prefix}/ready", started)
            yield f"http://127.0.0.1:{port}"


def replicas(deployment: str, application: str = "switchyard") -> list[int]:
    """Process ids of a deployment's replicas, found by the title that Ray gives them."""
    title = f"ray::ServeReplica:{application}:{deployment}"
    return [p.pid for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [""])[0].startswith(title)]


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a GET of ``url`` is answered well by ``process``.

    Raises:
        TimeoutError: it is not, or the process has ended.
    """
    give_up = time.monotonic() + READY_S
    while time.monotonic() < give_up and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code < 400:
                return
        time.sleep(0.2)
    raise TimeoutError(f"{url} did not get ready within {READY_S} s")


def _exit(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process that understands Ctrl-C, and whatever it leaves; also when this process is told to end."""
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT)
        try:
            process.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            print(f"killed after {ENDED_S} s: {process.args}", file=sys.stderr)
        finally:
            _, alive = psutil.wait_procs(children, timeout=5)
            for child in alive:
                child.kill()
            process.kill()
