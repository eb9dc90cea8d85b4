"""Throughput of hits at 32 callers, beside a bare FastAPI ingress on Ray Serve and FastAPI over DSPy's own cache.

One cluster, started by ``switchyard run`` with both throughput flags, holds our compact graph and a FastAPI ingress
that returns a constant, a replica each; the server of DSPy's tutorial runs under uvicorn. Every caller asks the same
question again and again. Turns alternate, one contestant at a time, and the load comes from a process of its own that
does next to nothing (a bare socket protocol), so that it is not what is measured.

    python -m benchmarks.cache_hits --seconds 4 --rounds 5
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvloop

from benchmarks.serving import ROOT, ending, free_port, serving, simulator, wait_for

CALLERS = 32
BODY = json.dumps({"inputs": {"question": "What is the capital of France?"}}).encode()
OURS, BARE, TUTORIAL = "Switchyard, near cache", "bare FastAPI ingress, a constant", "FastAPI + DSPy's own cache"
TARGETS = {BARE: 0.6, TUTORIAL: 3.0}
WARM_UP_S = 2.0


class Caller(asyncio.Protocol):
    """Asks over one kept-alive connection, again as soon as it is answered."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self._request = request
        self._latencies = latencies
        self._received = b""
        self.failed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count a whole answer, and ask again."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        if len(self._received) < end + 4 + length:
            return
        self._received = b""
        self.failed += not head.startswith(b"http/1.1 200")
        self._latencies.append(time.perf_counter() - self._began)
        self._ask()

    def connection_lost(self, _: Exception | None) -> None:
        """A connection that the server closes counts as a failure while calls go on."""
        self.failed += 1


async def load(url: str, seconds: float) -> tuple[list[float], int]:
    parts = urlsplit(url)
    request = (
        f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY
    latencies: list[float] = []
    callers = [Caller(request, latencies) for _ in range(CALLERS)]
    loop = asyncio.get_running_loop()
    for caller in callers:
        await loop.create_connection(lambda caller=caller: caller, parts.hostname, parts.port)
    await asyncio.sleep(seconds)
    return list(latencies), sum(caller.failed for caller in callers)


def run_load(url: str, seconds: float) -> tuple[list[float], int]:
    return uvloop.run(load(url, seconds))


@dataclass
class Contestant:
    """Somebody who answers, and what came of each turn."""

    name: str
    url: str
    rates: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def turn(self, seconds: float) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            latencies, failed = pool.apply(run_load, (self.url, seconds))
        if failed or not latencies:
            raise RuntimeError(f"{self.name}: {len(latencies)} calls answered, {failed} failed")
        self.rates.append(len(latencies) / seconds)
        self.p99_ms.append(1000 * sorted(latencies)[int(0.99 * len(latencies))])


def ask_once(contestant: Contestant) -> httpx.Response:
    """One call that may take its time: the first one makes the answer that all others get."""
    headers = {"content-type": "application/json"}
    return httpx.post(contestant.url, content=BODY, headers=headers, timeout=60).raise_for_status()


def document(provider: str) -> dict[str, Any]:
    ours = {
        "programs": [{"name": "ask", "program": "question -> answer", "levels": {"full": {"models": ["m"]}}}],
        "models": [{"name": "m", "lm": "openai/m", "api_base": f"{provider}/v1"}],
        "default_model": "m",
        "cache": {"redis_url": None},
    }
    pinned = {"name": "ControlPlane", "user_config": {"degradation": {"pin": "full"}}}
    return {
        "applications": [
            {
                "name": "switchyard",
                "route_prefix": "/",
                "import_path": "graphs.compact:build",
                "args": ours,
                "deployments": [pinned],
            },
            {"name": "bare", "route_prefix": "/bare", "import_path": "benchmarks.hit_servers:bare", "args": {}},
        ]
    }


@contextmanager
def tutorial(provider: str) -> Iterator[str]:
    port = free_port()
    code = (
        "import uvicorn; from benchmarks.hit_servers import tutorial_api; "
        f"uvicorn.run(tutorial_api('{provider}/v1'), port={port}, log_level='warning')"
    )
    started = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    with ending(started):
        wait_for(f"http://127.0.0.1:{port}/ready", started)
        yield f"http://127.0.0.1:{port}"


def measure(seconds: float, rounds: int) -> list[Contestant]:
    model = {"m": {"ttft_s": 0.01, "tokens_per_s": 10_000}}
    with simulator(model) as provider, serving(document(provider)) as base, tutorial(provider) as tutorial_base:
        contestants = [
            Contestant(OURS, f"{base}/v1/programs/ask"),
            Contestant(BARE, f"{base}/bare/ask"),
            Contestant(TUTORIAL, f"{tutorial_base}/ask"),
        ]
        for contestant in contestants:
            ask_once(contestant)
            contestant.turn(WARM_UP_S)
            contestant.rates.clear()
            contestant.p99_ms.clear()
        if ask_once(contestants[0]).json()["meta"]["cache"] != "hit":
            raise RuntimeError("what is measured is no hit")
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                contestant.turn(seconds)
    return contestants


def report(contestants: list[Contestant]) -> None:
    rates = {contestant.name: statistics.median(contestant.rates) for contestant in contestants}
    print("| answered by | requests/s | min-max | p99 | Switchyard's rate, of this one's |")
    print("|---|---|---|---|---|")
    for contestant in contestants:
        print(
            f"| {contestant.name} | {rates[contestant.name]:.0f} | {min(contestant.rates):.0f}-"
            f"{max(contestant.rates):.0f} | {statistics.median(contestant.p99_ms):.1f} ms "
            f"| {rates[OURS] / rates[contestant.name]:.2f} |"
        )
    ratios = {name: [a / b for a, b in _pairs(contestants, name)] for name in TARGETS}
    print()
    for name, target in TARGETS.items():
        found = statistics.median(ratios[name])
        print(f"Beside {name}: {found:.2f} (median over the rounds; target: at least {target:g}).  ")


def _pairs(contestants: list[Contestant], name: str) -> Iterator[tuple[float, float]]:
    by_name = {contestant.name: contestant for contestant in contestants}
    return zip(by_name[OURS].rates, by_name[name].rates, strict=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    options = parser.parse_args()
    report(measure(options.seconds, options.rounds))


if __name__ == "__main__":
    main()
