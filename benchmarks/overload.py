"""More traffic than there is room for: goodput, refusals, priorities, and replicas that come and go.

A simulated provider with a fixed latency, a real cluster and an open-loop generator share this machine, on loopback.
Capacity is measured first, with as many callers as there are slots; every rate is a multiple of it. Every question is
new, so no cache helps.

    python -m benchmarks.overload --graph compact --phase-s 15
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import psutil

from benchmarks.load import Load, Sample, begin, measure, percentile
from benchmarks.serving import replicas, serving, simulator

LATENCY_S = 0.25
SLOTS = 10
DEADLINE_S = 2.0
FACTORS = (1, 2, 5, 10)
MODEL = "Model-upstream"
MOST_REPLICAS = 3


@dataclass(frozen=True)
class Served:
    """A running application over one model."""

    url: str

    def load(self, seconds: float, *, rate: float | None = None, priority: str = "default") -> Load:
        """Calls at ``rate`` a second; without one, as many callers as there are slots."""
        options = {"deadline_s": DEADLINE_S, "priority": priority}
        return Load(f"{self.url}/v1/programs/ask", seconds, SLOTS, rate, options, headers={})

    def capacity(self, seconds: float = 8) -> float:
        """Answers a second while every slot is in use."""
        measure(self.load(5))  # connections and the engine are warm
        return count(measure(self.load(seconds)), 200) / seconds

    def reporting(self) -> int:
        """Replicas of the model that the control plane hears of."""
        status = httpx.get(f"{self.url}/v1/status", timeout=5).json()
        return int(status["replicas"].get(MODEL, 0))

    def recovered_s(self) -> float:
        """Seconds until a call takes no longer than twice the provider."""
        started = time.monotonic()
        with httpx.Client(timeout=10) as client:
            while (asked := time.monotonic()) - started < 30:
                body = {"inputs": {"question": f"again {asked}?"}, "options": {"deadline_s": DEADLINE_S}}
                reply = client.post(f"{self.url}/v1/programs/ask", json=body)
                if reply.status_code == 200 and time.monotonic() - asked < 2 * LATENCY_S:
                    break
        return asked - started


@contextmanager
def served(graph: str, scaling: dict[str, Any]) -> Iterator[Served]:
    """One program over one model, in a cluster of its own."""
    with simulator({"upstream": {"ttft_s": LATENCY_S, "tokens_per_s": 1e6, "jitter": 0}}) as provider:
        model = {"name": "upstream", "lm": "openai/upstream", "api_base": f"{provider}/v1", "latency_s": LATENCY_S}
        args = {
            "programs": [
                {"name": "ask", "program": "question -> answer", "levels": {"full": {"models": ["upstream"]}}}
            ],
            "models": [model | {"max_ongoing_requests": SLOTS, "replicas": scaling}],
            "default_model": "upstream",
            "cache": {"redis_url": None},
        }
        application = {
            "name": "switchyard",
            "route_prefix": "/",
            "import_path": f"graphs.{graph}:build",
            "args": args,
            "deployments": [{"name": "ControlPlane", "user_config": {"degradation": {"pin": "full"}}}],
        }
        with serving({"applications": [application]}) as url:
            yield Served(url)


def flood(graph: str, phase_s: float) -> None:
    """Arrivals at multiples of capacity, and critical calls in a flood of sheddable ones."""
    with served(graph, {"min": 1, "max": 1}) as app:
        capacity = app.capacity()
        print(f"Capacity: {capacity:.1f} calls/s ({SLOTS} slots, provider {LATENCY_S * 1000:.0f} ms).\n", flush=True)
        print("| arrivals | goodput | answered p50 / p99 ms | refused p50 / p99 ms | 504 | lost | growth | recovered |")
        print("|---|---|---|---|---|---|---|---|")
        for factor in FACTORS:
            before = memory_mb()
            samples = measure(app.load(phase_s, rate=factor * capacity))
            growth = max((mb - before[pid] for pid, mb in memory_mb().items() if pid in before), default=0.0)
            print(row(factor, samples, phase_s, capacity), end="")
            print(f" | {growth:.0f} MB | {app.recovered_s():.1f} s |", flush=True)
        ending = begin(app.load(phase_s, rate=10 * capacity, priority="sheddable"))
        critical, sheddable = measure(app.load(phase_s, rate=0.3 * capacity, priority="critical")), ending()
    print("\nGoodput: answers within the deadline and the phase, of capacity or of what arrived if that is less.")
    print("Growth: of the process that grew most in the phase.\n")
    print(f"Sheddable calls at 10x capacity, critical ones at 0.3x: {in_time(critical) / len(critical):.1%} of")
    print(f"{len(critical)} critical calls answered in time, p99 {milliseconds(critical, 200, 0.99)} ms.")
    print(f"Sheddable: {outcome(sheddable)}.", flush=True)


def step(graph: str, phase_s: float) -> None:
    """Five times the traffic from one moment to the next; a killed replica; less traffic, and replicas that go."""
    scaling = {"min": 1, "max": MOST_REPLICAS, "target_queue_depth": 4, "downscale_delay_s": 5}
    with served(graph, scaling) as app:
        measure(app.load(5))
        capacity = SLOTS / LATENCY_S  # nothing here may add a replica before the step
        measure(app.load(5, rate=0.5 * capacity))
        ending, began = begin(app.load(2 * phase_s + 10, rate=2.5 * capacity)), time.monotonic()
        more_s = until(lambda: app.reporting() > 1, 40)
        time.sleep(max(0.0, began + phase_s - time.monotonic()))
        most = app.reporting()
        os.kill(replicas(MODEL)[0], signal.SIGKILL)
        under_load = ending()
        most_later = app.reporting()
        ending = begin(app.load(40, rate=0.5 * capacity))
        fewer_s = until(lambda: app.reporting() < most_later, 40)
        falling = ending()
    print(f"\nArrivals from 0.5x to 2.5x of one replica's {capacity:.0f} calls/s, at most {MOST_REPLICAS} replicas:")
    print(f"a second one reported {more_s} after the generator started; {most} in the end.")
    print(f"One killed under that load, after {phase_s:.0f} s: {outcome(under_load)}; expired {when(under_load, 504)}.")
    print(f"Back to 0.5x: the first replica went after {fewer_s}; meanwhile {outcome(falling)}.", flush=True)


def row(factor: int, samples: Sequence[Sample], phase_s: float, capacity: float) -> str:
    """The part of a line that a phase's calls tell."""
    arrived = len(samples) / phase_s
    cells = [
        f"| {factor}x ({arrived:.0f}/s)",
        f"{in_time(samples, phase_s) / phase_s / min(capacity, arrived):.0%}",
        f"{milliseconds(samples, 200, 0.5)} / {milliseconds(samples, 200, 0.99)}",
        f"{milliseconds(samples, 429, 0.5)} / {milliseconds(samples, 429, 0.99)}",
        f"{count(samples, 504)}",
        f"{len(samples) - sum(count(samples, status) for status in (200, 429, 504))}",
    ]
    return " | ".join(cells)


def outcome(samples: Sequence[Sample]) -> str:
    """What became of calls, in a few words."""
    words = {200: "answered", 429: "refused", 504: "expired"}
    counts = Counter(words.get(sample.status, f"lost ({sample.status})") for sample in samples)
    return f"of {len(samples)} calls " + ", ".join(f"{number} {word}" for word, number in counts.most_common())


def when(samples: Sequence[Sample], status: int, bin_s: int = 5) -> str:
    """When calls that ended so were begun: how many in which seconds of the phase."""
    zero = min(sample.at_s for sample in samples)
    bins = Counter(int((sample.at_s - zero) // bin_s) * bin_s for sample in samples if sample.status == status)
    return ", ".join(f"{number} of {at}-{at + bin_s} s" for at, number in sorted(bins.items())) or "none"


def count(samples: Sequence[Sample], status: int) -> int:
    return sum(sample.status == status for sample in samples)


def in_time(samples: Sequence[Sample], phase_s: float = float("inf")) -> int:
    """Calls answered before their deadline, and before the phase was over."""
    over_s = min(sample.at_s for sample in samples) + phase_s
    good = [sample for sample in samples if sample.status == 200 and sample.latency_s <= DEADLINE_S]
    return sum(sample.at_s + sample.latency_s <= over_s for sample in good)


def milliseconds(samples: Sequence[Sample], status: int, share: float) -> str:
    found = [sample for sample in samples if sample.status == status]
    return f"{percentile(found, share) * 1000:.0f}" if found else "-"


def memory_mb() -> dict[int, float]:
    """Resident memory of every process below this one."""
    found = {}
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found[each.pid] = each.memory_info().rss / 2**20
    return found


def until(is_so: Callable[[], bool], within_s: float) -> str:
    started = time.monotonic()
    while time.monotonic() - started < within_s:
        with suppress(httpx.HTTPError):
            if is_so():
                return f"{time.monotonic() - started:.1f} s"
        time.sleep(0.25)
    return f"more than {within_s:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--graph", choices=("standard", "compact"), default="compact")
    parser.add_argument("--phase-s", type=float, default=15)
    parser.add_argument("--only", choices=("flood", "step"))
    chosen = parser.parse_args()
    if chosen.only != "step":
        flood(chosen.graph, chosen.phase_s)
    if chosen.only != "flood":
        step(chosen.graph, chosen.phase_s)


if __name__ == "__main__":
    main()
