"""The two replicas of ``benchmarks.hop``, which reads Ray's flags first."""

from __future__ import annotations

import asyncio
import resource
import statistics
import time
from collections.abc import Sequence
from typing import Any

from ray import serve

from serve_app.adapters.channel import connect
from serve_app.adapters.serve_address import node_address
from serve_app.deployments.remote_stage import ReplicaStage
from serve_app.deployments.stage import HandleStage, drive
from serve_app.deployments.stage_server import StageServer
from serve_app.messages import Call, Result

OPTIONS: dict[str, Any] = {"max_ongoing_requests": 1000, "ray_actor_options": {"num_cpus": 0.1}}


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Echo:
    """Answers at once."""

    def __init__(self) -> None:
        self._server = StageServer(self, node_address())
        self._server.start()

    async def run(self, calls: Sequence[Call]) -> Any:
        await asyncio.sleep(0)
        yield [Result(call.id, call.inputs) for call in calls]

    def leave(self, ids: Sequence[str]) -> None:
        pass

    async def endpoint(self) -> Any:
        return self._server.endpoint

    async def cpu_s(self) -> float:
        return cpu_s()


class Sender:
    """Asks, one way or the other."""

    def __init__(self, echo: Any) -> None:
        self._echo = echo
        self._stages: dict[str, Any] = {"handle": HandleStage(echo)}

    async def connect(self) -> None:
        replica = ReplicaStage(await connect(await self._echo.endpoint.remote()), "Echo")
        self._listening = asyncio.create_task(replica.listen())
        self._stages["connection"] = replica

    async def measure(self, way: str, senders: int, pause_s: float, seconds: float) -> tuple[float, float]:
        """Median seconds of a round trip, and CPU seconds of one; the first ones do not count."""
        taken: list[float] = []
        end = time.perf_counter() + seconds

        async def send(sender: int) -> None:
            while time.perf_counter() < end:
                await asyncio.sleep(pause_s)
                began = time.perf_counter()
                call = Call(f"{sender}-{len(taken)}", "request", "ask", {"question": "x" * 300}, 60.0)
                await drive(self._stages[way], [call], lambda _: None)
                taken.append(time.perf_counter() - began)

        before = cpu_s() + await self._echo.cpu_s.remote()
        await asyncio.gather(*map(send, range(senders)))
        used_s = cpu_s() + await self._echo.cpu_s.remote() - before
        return statistics.median(taken), used_s / len(taken)


def application() -> serve.Application:
    echo = serve.deployment(name="Echo", **OPTIONS)(Echo).bind()
    return serve.deployment(name="Sender", **OPTIONS)(Sender).bind(echo)
