"""A load generator in a process of its own: closed loop (so many callers) or open loop (so many calls a second).

Written here and not taken from wrk, oha or Locust, because a benchmark needs each call's body to be new, the model
that answered, callers who retry, and arrivals that do not wait for answers (open loop), in one pip-installed thing;
aiohttp does the rest. Each call's latency counts from when it was due, not from when the generator got around to it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import uvloop

Body = dict[str, Any]
OK = 200
TEXT = "$TEXT"


@dataclass(frozen=True)
class Sample:
    """One call: when it began (seconds after ``Load.zero``), how long it took with all its tries, and its end."""

    at_s: float
    latency_s: float
    status: int
    model: str = ""
    tries: int = 1


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        url: of the program.
        options: of every call.
        input_field: the program's input that receives a text that was never sent before.
        body: of every call, where it is not Switchyard's own; ``TEXT`` in it becomes that text.
        callers: closed loop: callers that ask one call after the other.
        rate: open loop: calls a second, at random times, whatever becomes of them; goes before ``callers``.
        seconds: how long calls are begun.
        retries: how often a caller asks again after 429, 5xx or a broken connection.
        retry_wait_s: how long it waits before.
        timeout_s: seconds after which a call without an end counts as failed.
        zero: Unix time from which samples count; the generator's process begins a moment later.
    """

    url: str
    seconds: float
    callers: int = 32
    rate: float | None = None
    options: Body = field(default_factory=dict)
    input_field: str = "question"
    body: Body | None = None
    retries: int = 0
    retry_wait_s: float = 0.2
    timeout_s: float = 60.0
    zero: float = field(default_factory=time.time)
    headers: dict[str, str] = field(default_factory=lambda: {"cache-control": "no-store"})


def measure(load: Load) -> list[Sample]:
    """Send the load from another process, and wait for all of its ends."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run, (load,))


def begin(load: Load) -> Callable[[], list[Sample]]:
    """Begin to send the load from another process; the value waits for its end."""
    pool = multiprocessing.get_context("spawn").Pool(1)
    pending = pool.apply_async(_run, (load,))

    def end() -> list[Sample]:
        with pool:
            return pending.get(timeout=load.seconds + load.timeout_s + 60)

    return end


def percentile(samples: Sequence[Sample], share: float) -> float:
    """Latency in seconds that this share of the samples stays under."""
    latencies = sorted(sample.latency_s for sample in samples)
    return latencies[min(len(latencies) - 1, int(share * len(latencies)))] if latencies else float("nan")


def median(samples: Sequence[Sample]) -> float:
    """Median latency in seconds."""
    return statistics.median(sample.latency_s for sample in samples)


def _run(load: Load) -> list[Sample]:
    return uvloop.run(_Generator(load).run())


class _Generator:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._prefix = f"{random.getrandbits(48):x}"
        self._numbers = itertools.count()
        own = {"inputs": {load.input_field: TEXT}, "options": load.options}
        self._body = json.dumps(own if load.body is None else load.body)  # written once: the generator must be cheap
        self._headers = {"content-type": "application/json"} | load.headers
        self._samples: list[Sample] = []

    async def run(self) -> list[Sample]:
        timeout = aiohttp.ClientTimeout(total=self._load.timeout_s)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            self._session, self._began = session, time.perf_counter()
            await (self._closed() if self._load.rate is None else self._open(self._load.rate))
        return self._samples

    @property
    def _now(self) -> float:
        return time.perf_counter() - self._began

    async def _closed(self) -> None:
        async def caller() -> None:
            while self._now < self._load.seconds:
                await self._call()

        await asyncio.gather(*(caller() for _ in range(self._load.callers)))

    async def _open(self, rate: float) -> None:
        at, calls = 0.0, set()
        while (at := at + random.expovariate(rate)) < self._load.seconds:
            await asyncio.sleep(max(0.0, at - self._now))
            call = asyncio.create_task(self._call(due=at))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.gather(*calls)

    async def _call(self, due: float | None = None) -> None:
        started = self._now if due is None else due
        at = time.time() - self._load.zero - (self._now - started)
        body = self._body.replace(TEXT, f"{self._prefix} {next(self._numbers)}").encode()
        for tries in range(1, self._load.retries + 2):
            status, model = await self._ask(body)
            if status not in (0, 429) and status < 500:
                break
            if tries <= self._load.retries:
                await asyncio.sleep(self._load.retry_wait_s)
        self._samples.append(Sample(at, self._now - started, status, model, tries))

    async def _ask(self, body: bytes) -> tuple[int, str]:
        try:
            async with self._session.post(self._load.url, data=body, headers=self._headers) as reply:
                return reply.status, _model(await reply.read()) if reply.status == OK else ""
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""


def _model(answer: bytes) -> str:
    """The model that Switchyard says has answered; of others, nothing."""
    body = orjson.loads(answer)
    return body.get("meta", {}).get("model", "") if isinstance(body, dict) else ""
