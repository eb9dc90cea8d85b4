"""Faults on a served application, and what its callers notice of them: both graphs, real processes, loopback only.

Each row breaks something on purpose and counts. Where a row compares two latencies, both are measured in turns, so
that whatever else the machine does falls on both; figures are medians over the turns.

    python -m benchmarks.resilience --rows outage slow control flap gone
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.load import Load, Sample, begin, measure, percentile
from benchmarks.serving import replicas, serving, simulator

GRAPHS = {"standard": ("switchyard", ""), "compact": ("compact", "/compact")}
"""Application and path of each graph."""
LATENCY_S = 0.2
SLOWER = 10
TURNS = 5
TURN_S = 4.0
WINDOW_S = 10.0
SETTLE_S = 5.0
OPEN_S = 10.0
HARD = {"complexity": "high", "deadline_s": 10}
FALLBACK_ALONE = {"model": "medium", "deadline_s": 10}


def application(graph: str, provider: str, policy: Mapping[str, Any], slots: int = 64) -> dict[str, Any]:
    """One program over three models of this graph's own, so that graphs can be broken apart."""
    name, path = GRAPHS[graph]
    quality = {"large": 0.95, "medium": 0.92, "small": 0.7}
    models = [
        {
            "name": model,
            "lm": f"openai/{graph}-{model}",
            "api_base": f"{provider}/v1",
            "quality": quality[model],
            "latency_s": LATENCY_S,
            "price": {"output_usd_per_1m_tokens": 1 + index},
            "max_ongoing_requests": slots,
        }
        for index, model in enumerate(quality)
    ]
    levels = {
        "full": {"models": ["large", "medium", "small"]},
        "degraded": {"models": ["medium", "small"]},
        "minimal": {"models": ["small"]},
    }
    return {
        "name": name,
        "route_prefix": path or "/",
        "import_path": f"graphs.{graph}:build",
        "args": {
            "programs": [{"name": "ask", "program": "question -> answer", "levels": levels}],
            "models": models,
            "default_model": "medium",
            "cache": {"redis_url": "embedded" if graph == "standard" else None},
        },
        "deployments": [{"name": "ControlPlane", "user_config": policy}],
    }


def policy(**changes: Any) -> dict[str, Any]:
    """Quality first, so that ``large`` is the primary and ``medium`` its fallback; no level but full."""
    return {
        "routing": {"strategy": "ordered"},
        "breaker": {"window_s": WINDOW_S, "open_s": OPEN_S, "max_open_s": OPEN_S, "slow_call_s": 5 * LATENCY_S},
        "degradation": {"pin": "full"},
    } | changes


class Bench:
    """One graph of the running system, and the provider it asks."""

    def __init__(self, graph: str, base: str, provider: str) -> None:
        self.graph = graph
        self._base = base + GRAPHS[graph][1]
        self._provider = provider

    @property
    def url(self) -> str:
        return f"{self._base}/v1/programs/ask"

    def load(self, seconds: float, options: Mapping[str, Any], **changes: Any) -> list[Sample]:
        return measure(Load(self.url, seconds, options=dict(options), **changes))

    def fault(self, model: str, **fault: Any) -> None:
        httpx.put(f"{self._provider}/faults/{self.graph}-{model}", json=[fault]).raise_for_status()

    @contextmanager
    def broken(self, *models: str, **fault: Any) -> Iterator[None]:
        for model in models:
            self.fault(model, **fault)
        try:
            yield
        finally:
            for model in models:
                httpx.delete(f"{self._provider}/faults/{self.graph}-{model}").raise_for_status()

    def asked(self, model: str) -> int:
        """Requests this model of the provider has seen so far."""
        models = httpx.get(f"{self._provider}/stats").raise_for_status().json()["models"]
        return int(models.get(f"{self.graph}-{model}", {}).get("requests", 0))

    def status(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self._base}/v1/status", timeout=10).raise_for_status().json())

    def breaker(self) -> str:
        return str(self.status().get("models", {}).get("large", {}).get("breaker", "unknown"))

    def breakers(self) -> list[str]:
        return [model["breaker"] for model in self.status()["models"].values()]

    def until(self, condition: Callable[[], bool], bound_s: float = 60) -> float:
        started = time.monotonic()
        while not condition():
            if time.monotonic() - started > bound_s:
                raise TimeoutError(f"{self.graph}: nothing within {bound_s} s")
            time.sleep(0.02)
        return time.monotonic() - started

    def heal(self) -> None:
        """Wait until the primary answers again."""

        def is_back() -> bool:
            body = {"inputs": {"question": f"well? {time.time()}"}, "options": HARD}
            headers = {"cache-control": "no-store"}
            httpx.post(self.url, json=body, timeout=30, headers=headers)
            return self.breaker() == "closed"

        self.until(is_back, 3 * OPEN_S)


def answered(samples: Sequence[Sample]) -> float:
    return sum(sample.status == 200 for sample in samples) / len(samples)


def milliseconds(values: Sequence[float]) -> str:
    return f"{1000 * statistics.median(values):.0f} ({1000 * min(values):.0f}-{1000 * max(values):.0f})"


def against_the_fallback_alone(bench: Bench, share: float) -> tuple[list[float], list[float], list[Sample]]:
    """The percentile with the primary out of order and of the fallback alone, in turns."""
    broken, alone, everything = [], [], []
    for _ in range(TURNS):
        samples = bench.load(TURN_S, HARD)
        everything += samples
        broken.append(percentile(samples, share))
        alone.append(percentile(bench.load(TURN_S, FALLBACK_ALONE), share))
    return broken, alone, everything


def outage(bench: Bench) -> str:
    with bench.broken("large", kind="status", status=500):
        first = bench.load(TURN_S, HARD)
        bench.until(lambda: bench.breaker() != "closed")
        before = bench.asked("large")
        started = time.monotonic()
        broken, alone, rest = against_the_fallback_alone(bench, 0.99)
        probes, seconds = bench.asked("large") - before, time.monotonic() - started
    everything = first + rest
    models = Counter(sample.model for sample in everything)
    difference = 1000 * statistics.median(b - a for b, a in zip(broken, alone, strict=True))
    return (
        f"| {bench.graph} | {answered(everything):.1%} of {len(everything)} ({models['medium']} by the fallback) | "
        f"{milliseconds(broken)} | {milliseconds(alone)} | {difference:+.0f} | {probes} in {seconds:.0f} s |"
    )


def slow(bench: Bench) -> str:
    with bench.broken("large", kind="slow_first_token", delay_s=SLOWER * LATENCY_S):
        end = begin(Load(bench.url, WINDOW_S, options=dict(HARD)))
        opened_s = bench.until(lambda: bench.breaker() != "closed")
        first = end()
        broken, alone, rest = against_the_fallback_alone(bench, 0.95)
    ratio = statistics.median(b / a for b, a in zip(broken, alone, strict=True))
    return (
        f"| {bench.graph} | {opened_s:.1f} | {answered(first + rest):.1%} | {milliseconds(broken)} | "
        f"{milliseconds(alone)} | {ratio:.2f} |"
    )


def control(bench: Bench) -> str:
    name, _ = GRAPHS[bench.graph]
    with bench.broken("large", kind="status", status=401):
        end = begin(Load(bench.url, 15.0, callers=8, options=dict(HARD)))
        bench.until(lambda: bench.breaker() == "open")
        (victim,) = replicas("ControlPlane", name)
        os.kill(victim, signal.SIGKILL)
        back_s = bench.until(lambda: replicas("ControlPlane", name) not in ([], [victim]))
        bench.until(lambda: "models" in bench.status())
        before = bench.asked("large")
        open_again_s = bench.until(lambda: bench.breaker() in ("open", "half_open"), 5)
        samples = end()
        probes, after = bench.asked("large") - before, bench.breaker()
    redis = "with Redis" if bench.graph == "standard" else "without Redis"
    failed = sum(sample.status != 200 for sample in samples)
    return (
        f"| {bench.graph}, {redis} | {failed} of {len(samples)} | {back_s:.1f} | {after}, shown after "
        f"{open_again_s:.2f} s | {probes} |"
    )


def flap(bench: Bench) -> str:
    """A call a second: the primary is down for a minute, then well."""
    down_s = 60.0
    load = Load(bench.url, down_s + 45, rate=1, options=dict(HARD))
    end = begin(load)
    with bench.broken("large", kind="status", status=500):
        time.sleep(down_s)
    recovered_at = time.time() - load.zero
    samples = end()
    back = [sample.at_s for sample in samples if sample.at_s > recovered_at and sample.model == "large"]
    returned = f"{min(back) - recovered_at:.1f} s after its recovery" if back else "never"
    return f"| {bench.graph} | {answered(samples):.1%} of {len(samples)} | {returned} |"


def gone(bench: Bench) -> str:
    """Every model is down for a minute, then all are well."""
    down_s, models = 60.0, ("large", "medium", "small")
    load = Load(bench.url, down_s + 40, rate=20, options=dict(HARD))
    end = begin(load)
    time.sleep(SETTLE_S)
    before, broken_at = sum(bench.asked(model) for model in models), time.time() - load.zero
    with bench.broken(*models, kind="status", status=500):
        began = time.monotonic()
        opened_s = bench.until(lambda: "closed" not in bench.breakers())
        opening = sum(bench.asked(model) for model in models) - before
        time.sleep(max(0.0, down_s - (time.monotonic() - began)))
        probing = sum(bench.asked(model) for model in models) - before - opening
    samples = end()
    calls = sum(broken_at <= sample.at_s < broken_at + opened_s for sample in samples)
    recovered_at = broken_at + down_s
    good = [sample.at_s for sample in samples if sample.at_s > recovered_at and sample.status == 200]
    first = f"{min(good) - recovered_at:.1f}" if good else "never"
    return (
        f"| {bench.graph} | {opening} for {calls} calls in {opened_s:.1f} s ({opening / max(1, calls):.2f}) | "
        f"{probing} in {down_s - opened_s:.0f} s | {first} |"
    )


TOGETHER = ("flap", "gone")
"""Rows with so little load that both graphs are measured at once."""
HEADERS: dict[str, tuple[str, Callable[[Bench], str], str]] = {
    "outage": (
        "The primary answers 500 for everything, 32 callers",
        outage,
        "| graph | answered | p99 ms, primary broken | p99 ms, fallback alone | difference ms (target: 10) | "
        "requests to the primary, breaker open |",
    ),
    "slow": (
        f"The primary is {SLOWER} times slower, 32 callers",
        slow,
        f"| graph | opened after s (window: {WINDOW_S:g}) | answered | p95 ms once open | p95 ms, fallback alone | "
        "ratio (target: 1.5) |",
    ),
    "control": (
        "`kill -9` of the control plane while a breaker is open, 8 callers",
        control,
        "| graph | failed calls (target: 0) | new process after s | breaker afterwards | probes meanwhile |",
    ),
    "flap": (
        "The primary is down for 60 s, then well; a call a second",
        flap,
        "| graph | answered | back on the primary (target: 30 s) |",
    ),
    "gone": (
        "Everything is down for 60 s, then well; 20 calls a second",
        gone,
        "| graph | upstream requests until every breaker opened (target: 1.2 a call) | requests while open | "
        f"first good answer, s after recovery (target: {OPEN_S:g}) |",
    ),
}


def faults(rows: Sequence[str]) -> None:
    quick = {"ttft_s": LATENCY_S, "tokens_per_s": 100_000, "jitter": 0.1}
    models = {f"{graph}-{model}": quick for graph in GRAPHS for model in ("large", "medium", "small")}
    with simulator(models) as provider:
        document = {"applications": [application(graph, provider, policy()) for graph in GRAPHS]}
        with serving(document) as base:
            for row in rows:
                title, run, header = HEADERS[row]
                print(f"\n### {title}\n\n{header}\n{'|---' * (header.count('|') - 1)}|", flush=True)
                with ThreadPoolExecutor(len(GRAPHS) if row in TOGETHER else 1) as pool:
                    rows_done = pool.map(lambda graph, run=run: _row(run, Bench(graph, base, provider)), GRAPHS)
                    for line in rows_done:
                        print(line, flush=True)


def _row(run: Callable[[Bench], str], bench: Bench) -> str:
    bench.until(lambda: bench.status().get("level", {}).get("since_s", 0) > 6)
    line = run(bench)
    bench.heal()
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=[*HEADERS], default=[*HEADERS])
    faults(parser.parse_args().rows)


if __name__ == "__main__":
    main()
