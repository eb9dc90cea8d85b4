"""What a sick Redis costs callers: 32 of them ask a cache for answers nobody has, while Redis fails in each known way.

The cache is the real one over a real Valkey, behind a TCP proxy in a process of its own; the model is a stage that
answers after a fixed time. Every call reads the shared level, takes a lease, and is written. The same load with a well
Redis is the baseline; *added* is what a phase's 99th percentile lies above the baseline's, taken in the same turn.
*First contact* are the calls that were under way when the fault came or began within the next tenth of a second.

    python -m benchmarks.cache_faults --seconds 3
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from redis.asyncio import Redis

from benchmarks.sick_redis import FAULTS, OF_THE_NETWORK, break_server, heal_server, proxy_process
from serve_app.adapters.embedded_redis import EmbeddedRedis
from serve_app.adapters.redis_store import RedisStore, StoredBytes, StoreKey
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig
from serve_app.deployments.cache import Cache
from serve_app.deployments.call_tasks import answer_each
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.stage import Chunks
from serve_app.messages import Call, Result

CALLERS = 32
MODEL_S = 0.1
"""Seconds the model takes: with 32 callers some 300 calls a second, so that no core is the bottleneck."""
PROGRAM = "ask"
FIRST_CONTACT_S = 0.1
TARGET_FIRST_MS, TARGET_AFTER_MS, TARGET_RECOVERY_S = 60, 5, 5

CONFIG = AppConfig.model_validate(
    {
        "programs": [{"name": PROGRAM, "program": "question -> answer", "levels": {"full": {"models": ["m"]}}}],
        "models": [{"name": "m", "lm": "openai/m"}],
        "default_model": "m",
        "cache": {"redis_url": None},
    }
)


class Model:
    """A stage that answers everything after ``MODEL_S``."""

    def run(self, calls: list[Call]) -> Chunks:
        async def answer(call: Call) -> Result:
            await asyncio.sleep(MODEL_S)
            return Result(call.id, {"answer": "fine"}, model="m")

        return answer_each(calls, answer)


@dataclass
class Sample:
    """One call: when it began and ended, on the monotonic clock, and whether it was answered."""

    began: float
    ended: float
    is_answered: bool


@dataclass
class Figures:
    """What one fault cost."""

    fault: str
    failed: int = 0
    calls: int = 0
    first_ms: float = 0.0
    after_ms: float = 0.0
    recovery_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


class Bench:
    """Callers of one cache."""

    def __init__(self) -> None:
        link = ControlLink(None, "Cache", Telemetry())
        self.cache = Cache(CONFIG, Model(), Telemetry(), link)
        self.numbers = itertools.count()

    async def call(self) -> Sample:
        number = next(self.numbers)
        began = time.monotonic()
        call = Call(f"c{number}", "", PROGRAM, {"question": str(number)}, 10.0, key=key(number))
        results = [result async for chunk in self.cache.run([call]) for result in chunk]
        return Sample(began, time.monotonic(), len(results) == 1 and results[0].error is None)

    async def load(self, seconds: float, meanwhile: Callable[[], object] | None = None) -> list[Sample]:
        """Ask for so long; ``meanwhile`` is done in a thread once half of the time is over."""
        until, samples = time.monotonic() + seconds, []

        async def caller() -> None:
            while time.monotonic() < until:
                samples.append(await self.call())

        callers = asyncio.gather(*(caller() for _ in range(CALLERS)))
        if meanwhile is not None:
            await asyncio.sleep(seconds / 2)
            await asyncio.to_thread(meanwhile)
        await callers
        return samples


def key(number: int) -> str:
    return f"{number:064x}"


def p99_ms(samples: list[Sample]) -> float:
    latencies = sorted(sample.ended - sample.began for sample in samples)
    return 1000 * latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))] if latencies else float("nan")


async def recovered(bench: Bench, store: RedisStore) -> float:
    """Seconds until a call's answer is written to and read from the shared level again."""
    began, probe = time.monotonic(), StoreKey(PROGRAM, "probe")
    while time.monotonic() - began < 20:
        await bench.call()
        if await store.put_many([StoredBytes(probe, b"x", 60)]) and await store.get_many([probe]) == [b"x"]:
            return time.monotonic() - began
    return float("inf")


async def one(fault: str, server: EmbeddedRedis, proxy: Connection, port: int, seconds: float) -> Figures:
    bench = Bench()
    store = bench.cache.redis = RedisStore(f"redis://127.0.0.1:{port}")
    await recovered(bench, store)
    await bench.load(1.0)  # connections are open, whatever was slow at first is over
    baseline = await bench.load(2 * seconds)
    before, began = dict(store.stats().failures), []
    async with Redis.from_url(server.url) as direct:
        loop = asyncio.get_running_loop()

        def begin() -> None:
            began.append(time.monotonic())
            if fault in OF_THE_NETWORK:
                proxy.send(fault)
                proxy.recv()
            else:
                here = next(bench.numbers)
                ahead = int(2 * seconds * CALLERS / MODEL_S)  # what is asked from now on, and some more
                keys = [key(number) for number in range(here, here + ahead)]
                asyncio.run_coroutine_threadsafe(break_server(direct, fault, PROGRAM, keys), loop).result()

        samples = await bench.load(2 * seconds, begin)
        proxy.send("")
        proxy.recv()
        await heal_server(direct, PROGRAM)
    recovery_s = await recovered(bench, store)
    at = began[0]
    first = [sample for sample in samples if sample.ended > at and sample.began < at + FIRST_CONTACT_S]
    after = [sample for sample in samples if sample.began >= at + FIRST_CONTACT_S]
    reasons = {name: count - before.get(name, 0) for name, count in store.stats().failures.items()}
    await bench.cache.aclose()
    return Figures(
        fault,
        sum(not sample.is_answered for sample in samples),
        len(samples),
        p99_ms(first) - p99_ms(baseline),
        p99_ms(after) - p99_ms(baseline),
        recovery_s,
        {name: count for name, count in reasons.items() if count},
    )


@asynccontextmanager
async def sick_server() -> AsyncIterator[tuple[EmbeddedRedis, Connection, int]]:
    with EmbeddedRedis(max_memory="64mb") as server, proxy_process(server.url.removeprefix("unix://")) as proxy:
        yield server, proxy, await asyncio.to_thread(proxy.recv)


async def measure(seconds: float, rounds: int) -> list[list[Figures]]:
    async with sick_server() as (server, proxy, port):
        return [[await one(fault, server, proxy, port, seconds) for fault in FAULTS] for _ in range(rounds)]


def report(rounds: list[list[Figures]]) -> None:
    print("| fault | calls | failed | added p99, first contact | added p99, after | back in use after | counted as |")
    print("|---|---|---|---|---|---|---|")
    for figures in zip(*rounds, strict=True):
        reasons = ", ".join(sorted({reason for each in figures for reason in each.reasons})) or "a miss"
        print(
            f"| {figures[0].fault} | {sum(each.calls for each in figures)} | {sum(each.failed for each in figures)} "
            f"| {statistics.median(each.first_ms for each in figures):.1f} ms "
            f"| {statistics.median(each.after_ms for each in figures):.1f} ms "
            f"| {max(each.recovery_s for each in figures):.1f} s | {reasons} |"
        )
    print(
        f"\nMedians of {len(rounds)} rounds with {CALLERS} callers; the slowest recovery. Targets: 0 failed, at most "
        f"{TARGET_FIRST_MS} ms, {TARGET_AFTER_MS} ms and {TARGET_RECOVERY_S} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2, help="of load before a fault, and half of those with it")
    parser.add_argument("--rounds", type=int, default=3, help="medians are taken over them")
    options = parser.parse_args()
    report(asyncio.run(measure(options.seconds, options.rounds)))


if __name__ == "__main__":
    main()
