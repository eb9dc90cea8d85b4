"""More traffic than there is room for: goodput, refusals, priorities, and replicas that come and go.

A simulated provider with a fixed latency, a real cluster (``switchyard run``) and an open-loop generator share this
machine, all on loopback: arrivals keep their times whatever becomes of the calls before. Capacity is measured first,
with as many callers as fit; every figure is a share of it. Every question is new, so no cache helps.

    python -m benchmarks.overload --graph compact --phase-s 15
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
LATENCY_S = 0.25
SLOTS = 10
DEADLINE_S = 2.0
READY_S = 150
FACTORS = (1, 2, 5, 10)
NAME = "Model-upstream"
TITLE = f"ray::ServeReplica:switchyard:{NAME}"


def free_port() -> int:
    while True:
        port = random.randint(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port


def config(port: int, provider: int, graph: str, replicas: dict[str, Any]) -> dict[str, Any]:
    args = {
        "programs": [
            {"name": "ask", "program": "question -> answer", "levels": {"full": {"models": ["upstream"]}}},
        ],
        "models": [
            {
                "name": "upstream",
                "lm": "openai/upstream",
                "api_base": f"http://127.0.0.1:{provider}/v1",
                "latency_s": LATENCY_S,
                "max_ongoing_requests": SLOTS,
                "replicas": replicas,
            }
        ],
        "default_model": "upstream",
        "cache": {"redis_url": None},
    }
    policy = {"degradation": {"pin": "full"}}
    application = {
        "name": "switchyard",
        "route_prefix": "/",
        "import_path": f"graphs.{graph}:build",
        "args": args,
        "deployments": [{"name": "ControlPlane", "user_config": policy}],
    }
    return {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}


@contextlib.contextmanager
def child(*command: str, log: Path) -> Iterator[psutil.Process]:
    """A process that ends with the body, and everything below it."""
    environment = os.environ | {
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
    }
    with log.open("ab") as output:
        started = subprocess.Popen(
            [sys.executable, "-m", "serve_app.cli", *command],
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    process = psutil.Process(started.pid)
    try:
        yield process
    finally:
        below = process.children(recursive=True)
        started.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(60)
        for each in [*psutil.wait_procs(below, timeout=5)[1], started]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


@dataclass
class Tally:
    """What became of the calls of one phase."""

    sent: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Calls neither answered nor refused."""
        return self.sent - self.statuses[200] - self.statuses[429]

    @property
    def in_time(self) -> int:
        """Calls answered before their deadline."""
        return sum(took <= DEADLINE_S for took in self.answered_s)

    def outcome(self) -> str:
        """The same in a few words."""
        parts = {"answered": self.statuses[200], "refused": self.statuses[429], "expired": self.statuses[504]}
        parts["lost"] = self.lost - parts["expired"]
        return f"of {self.sent} calls " + ", ".join(f"{count} {name}" for name, count in parts.items())


class Caller:
    """Sends calls to the application."""

    def __init__(self, session: aiohttp.ClientSession, base: str) -> None:
        self._session = session
        self._base = base
        self._numbers = itertools.count()

    async def ask(self, tally: Tally, priority: str = "default") -> None:
        """One new question."""
        tally.sent += 1
        text = f"{next(self._numbers)} of {time.time()}?"
        body = {"inputs": {"question": text}, "options": {"deadline_s": DEADLINE_S, "priority": priority}}
        started = time.monotonic()
        try:
            async with self._session.post(f"{self._base}/v1/programs/ask", json=body) as reply:
                await reply.read()
                status = reply.status
        except (aiohttp.ClientError, TimeoutError):
            tally.statuses[0] += 1
            return
        took_s = time.monotonic() - started
        tally.statuses[status] += 1
        if status == 200:
            tally.answered_s.append(took_s)
        elif status == 429:
            tally.refused_s.append(took_s)

    async def replicas(self) -> int:
        """Replicas of the model that report."""
        async with self._session.get(f"{self._base}/v1/status") as reply:
            status: dict[str, Any] = await reply.json()
        return int(status["replicas"].get(NAME, 0))

    async def open_loop(self, rate: float, seconds: float, priority: str = "default") -> Tally:
        """Calls at ``rate`` a second, at times that do not depend on the answers."""
        tally, loop = Tally(), asyncio.get_running_loop()
        dice, begun, due_s, tasks = random.Random(1), loop.time(), 0.0, set()
        while (due_s := due_s + dice.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, begun + due_s - loop.time()))
            task = asyncio.create_task(self.ask(tally, priority))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        return tally

    async def capacity(self, callers: int, seconds: float) -> float:
        """Answers a second with that many callers, each asking again at once."""
        tally, until = Tally(), time.monotonic() + seconds

        async def call() -> None:
            while time.monotonic() < until:
                await self.ask(tally)

        started = time.monotonic()
        await asyncio.gather(*(call() for _ in range(callers)))
        return tally.statuses[200] / (time.monotonic() - started)

    async def normal_after_s(self) -> float:
        """Seconds until three calls in a row take no longer than twice the provider."""
        started, good = time.monotonic(), 0
        while good < 3 and time.monotonic() - started < 30:
            tally = Tally()
            await self.ask(tally)
            good = good + 1 if tally.answered_s and tally.answered_s[0] < 2 * LATENCY_S else 0
        return max(0.0, time.monotonic() - started - 3 * LATENCY_S)


@contextlib.asynccontextmanager
async def running(graph: str, replicas: dict[str, Any]) -> AsyncIterator[tuple[Caller, psutil.Process]]:
    """A cluster over a provider, ready to be called."""
    with tempfile.TemporaryDirectory() as directory:
        port, provider = free_port(), free_port()
        here = Path(directory)
        (here / "serve.yaml").write_text(yaml.safe_dump(config(port, provider, graph, replicas)))
        profile = {"models": {"upstream": {"ttft_s": LATENCY_S, "tokens_per_s": 1e6, "jitter": 0}}}
        (here / "profile.yaml").write_text(yaml.safe_dump(profile))
        log = here / "log"
        simulate = ("simulate", "--profile", str(here / "profile.yaml"), "--port", str(provider))
        with child(*simulate, log=log), child("run", str(here / "serve.yaml"), "--verbose", log=log) as process:
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=30)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                caller = Caller(session, f"http://127.0.0.1:{port}")
                await ready(session, port, process, log)
                for _ in range(10):
                    await caller.ask(Tally())
                yield caller, process


async def ready(session: aiohttp.ClientSession, port: int, process: psutil.Process, log: Path) -> None:
    give_up = time.monotonic() + READY_S
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with session.get(f"http://127.0.0.1:{port}/ready") as reply:
                if reply.status == 200:
                    return
        if time.monotonic() > give_up or not process.is_running():
            raise SystemExit(log.read_text()[-3000:])  # noqa: ASYNC240 - the end
        await asyncio.sleep(0.5)


def memory_mb(process: psutil.Process) -> dict[int, float]:
    found = {}
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            found[each.pid] = each.memory_info().rss / 2**20
    return found


def quantile_ms(values: list[float], q: float) -> str:
    return f"{sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1000:.0f}" if values else "-"


async def flood(graph: str, phase_s: float) -> None:
    """Arrivals at multiples of capacity, and critical calls in a flood of sheddable ones."""
    async with running(graph, {"min": 1, "max": 1}) as (caller, process):
        await caller.capacity(SLOTS, 5)
        capacity = await caller.capacity(SLOTS, 8)
        print(f"\n### Graph `{graph}`\n")
        print(f"Capacity: {capacity:.1f} calls/s ({SLOTS} slots, provider {LATENCY_S * 1000:.0f} ms).\n")
        print(
            "| arrivals | goodput | answered p50 / p99 ms | refused p50 / p99 ms | 504 | other | growth | recovered |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for factor in FACTORS:
            before = memory_mb(process)
            tally = await caller.open_loop(factor * capacity, phase_s)
            growth = max((mb - before[pid] for pid, mb in memory_mb(process).items() if pid in before), default=0.0)
            print(row(factor, tally, phase_s, capacity), end="")
            print(f" | {growth:.0f} MB | {await caller.normal_after_s():.1f} s |", flush=True)
        critical, sheddable = await asyncio.gather(
            caller.open_loop(0.3 * capacity, phase_s, "critical"),
            caller.open_loop(10 * capacity, phase_s, "sheddable"),
        )
    print("\nGoodput: answers within the deadline, of capacity or of what arrived when that is less.")
    print("Growth: of the process that grew most, during the phase.\n")
    print(f"Sheddable calls at 10x capacity, critical ones at 0.3x: {critical.in_time / critical.sent:.1%} of")
    print(f"{critical.sent} critical calls answered in time (p99 {quantile_ms(critical.answered_s, 0.99)} ms).")
    print(f"Sheddable: {sheddable.outcome()}.")


def row(factor: int, tally: Tally, phase_s: float, capacity: float) -> str:
    """The part of a line that a phase's calls tell."""
    arrived = tally.sent / phase_s
    goodput = tally.in_time / phase_s / min(capacity, arrived)
    answered, refused = tally.answered_s, tally.refused_s
    return (
        f"| {factor}x ({arrived:.0f}/s) | {goodput:.0%} | {quantile_ms(answered, 0.5)} / {quantile_ms(answered, 0.99)} "
        f"| {quantile_ms(refused, 0.5)} / {quantile_ms(refused, 0.99)} "
        f"| {tally.statuses[504]} | {tally.lost - tally.statuses[504]}"
    )


async def step(graph: str, phase_s: float) -> None:
    """A step of five times the traffic; then a killed replica; then less traffic, and replicas that go."""
    replicas = {"min": 1, "max": 3, "target_queue_depth": 4, "downscale_delay_s": 5}
    async with running(graph, replicas) as (caller, process):
        capacity = await caller.capacity(SLOTS, 5)
        low, high = 0.5 * capacity, 2.5 * capacity
        await caller.open_loop(low, 5)
        began = time.monotonic()
        stepped = asyncio.create_task(caller.open_loop(high, 2 * phase_s + 10))
        more_s = await until(caller, lambda count: count > 1, 40)
        await asyncio.sleep(max(0.0, began + phase_s - time.monotonic()))
        most = await caller.replicas()
        next(each for each in process.children(recursive=True) if title(each).startswith(TITLE)).kill()
        under_load = await stepped
        falling = asyncio.create_task(caller.open_loop(low, 40))
        fewer_s = await until(caller, lambda count: count < most, 40)
        down = await falling
    print(f"\nArrivals from 0.5x to 2.5x of one replica's capacity ({capacity:.1f}/s), at most three replicas:")
    print(f"a second one reported after {more_s}; {most} at most.")
    print(f"One killed under that load: {under_load.outcome()}.")
    print(f"Back to 0.5x: a replica went after {fewer_s}; meanwhile {down.outcome()}.")


def title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return (process.cmdline() or [""])[0]
    return ""


async def until(caller: Caller, is_so: Callable[[int], bool], within_s: float) -> str:
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        if is_so(await caller.replicas()):
            return f"{time.monotonic() - started:.1f} s"
        await asyncio.sleep(0.25)
    return f"more than {within_s:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", choices=("standard", "compact"), default="compact")
    parser.add_argument("--phase-s", type=float, default=15)
    parser.add_argument("--only", choices=("flood", "step"))
    chosen = parser.parse_args()
    if chosen.only != "step":
        asyncio.run(flood(chosen.graph, chosen.phase_s))
    if chosen.only != "flood":
        asyncio.run(step(chosen.graph, chosen.phase_s))


if __name__ == "__main__":
    main()
