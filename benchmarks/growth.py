"""How cost grows: with callers, with what waits, with replicas; and where the CPU of a call goes.

python -m benchmarks.growth --rows callers cpu memory replicas
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.application import NAMES, PATHS, PROGRAM, application, model, upstream, url
from benchmarks.load import OK, Load, Sample, begin, measure, percentile
from benchmarks.plot import Points, line_plot
from benchmarks.processes import Reading, cpu_between, readings
from benchmarks.serving import serving, simulator

PICTURE = Path(__file__).with_name("throughput.svg")
CALLERS = (1, 8, 32, 128, 512)
SLOTS = 8
"""Calls that one model replica may run at once, where replicas are counted."""
SLOW_S = 0.5
STUCK_S = 30.0
WAITING = 1000
"""Once only in a cluster: afterwards it knows how slow the provider is, and refuses who would wait too long."""
LINEAR_TARGET = 0.9


def answered(samples: Sequence[Sample], seconds: float) -> float:
    """Answers a second."""
    return sum(sample.status == OK for sample in samples) / seconds


def ask(base: str, graph: str, seconds: float, callers: int, **changes: Any) -> list[Sample]:
    return measure(Load(url(base, graph), seconds, callers, headers={}, **changes))


def both_graphs(provider: str, **changes: Any) -> dict[str, Any]:
    return {"applications": [application(graph, provider, **changes) for graph in PATHS]}


def callers(seconds: float, rounds: int) -> None:
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    tails: dict[tuple[str, int], list[float]] = defaultdict(list)
    failed: dict[tuple[str, int], int] = defaultdict(int)
    with simulator(upstream()) as provider, serving(both_graphs(provider)) as base:
        for graph in PATHS:
            ask(base, graph, seconds, 32)
        for _ in range(rounds):
            for number in CALLERS:
                for graph in PATHS:
                    samples = ask(base, graph, seconds, number)
                    rates[graph, number].append(answered(samples, seconds))
                    tails[graph, number].append(1000 * percentile(samples, 0.99))
                    failed[graph, number] += sum(sample.status != OK for sample in samples)
    print(f"\nUpstream 0 ms, unique questions, median of {rounds} rounds of {seconds:g} s (min-max).\n")
    print("| callers | graph | answers a second | p99 ms | failed |\n|---|---|---|---|---|")
    for graph, number in sorted(rates, key=lambda key: key[1]):
        key = graph, number
        print(f"| {number} | {graph} | {_spread(rates[key])} | {_spread(tails[key])} | {failed[key]} |")
    lines: dict[str, Points] = {
        graph: [(number, statistics.median(rates[graph, number])) for number in CALLERS] for graph in PATHS
    }
    line_plot(PICTURE, "Answers a second by callers", "callers (log)", "answers a second", lines)
    print(f"\n![Answers a second by callers]({PICTURE.name})")


def cpu(seconds: float, rounds: int) -> None:
    del rounds
    spent: dict[str, Mapping[str, float]] = {}
    with simulator(upstream()) as provider, serving(both_graphs(provider)) as base:
        for graph in PATHS:
            ask(base, graph, seconds, 32)
            end = begin(Load(url(base, graph), 3 * seconds, 32, headers={}))
            time.sleep(seconds)  # the generator has begun, and will not end before the second reading
            before, count = readings(), _answers(base, graph)
            time.sleep(seconds)
            calls = _answers(base, graph) - count
            after = cpu_between(before, readings())
            end()
            spent[graph] = {role: 1000 * cpu_s / max(1, calls) for role, cpu_s in after.items()}
    print("\n32 callers, upstream 0 ms: CPU milliseconds a call, by process. The other graph idles meanwhile.\n")
    print("| process | standard | compact |\n|---|---|---|")
    own = {graph: _without_application(graph, roles) for graph, roles in spent.items()}
    for name in sorted({name for roles in own.values() for name in roles}, key=lambda name: _most(own, name)):
        if -_most(own, name) >= 0.005:
            print(f"| {name} | {own['standard'].get(name, 0):.3f} | {own['compact'].get(name, 0):.3f} |")
    print(f"| all | {sum(own['standard'].values()):.3f} | {sum(own['compact'].values()):.3f} |")


def memory(seconds: float, rounds: int) -> None:
    del seconds, rounds
    names = ("small",)
    limits = {"max_queued_requests": 10_000, "default_deadline_s": 600}
    print("\nResident memory, MiB: at rest, and with calls that wait on a provider that does not answer.\n")
    print("| graph | process | at rest | a 1,000 waiting calls more |\n|---|---|---|---|")
    for graph in PATHS:
        with simulator(upstream(names=names)) as provider:
            roomy = {"max_ongoing_requests": SLOTS, "max_queued_requests": 10_000, "adaptive_concurrency": False}
            changes = {"models": [model("small", provider, **roomy)], "default_model": "small"}
            changes["programs"] = [_program("ask", ["small"])]
            with serving({"applications": [application(graph, provider, limits=limits, **changes)]}) as base:
                ask(base, graph, 3, 32)
                rest = _by_role(readings())
                waiting, found = _with_waiting(provider, base, graph, WAITING)
                for role in sorted(rest):
                    if role.startswith(f"{NAMES[graph]}:"):
                        slope = 1000 * (found.get(role, math.nan) - rest[role]) / max(1, waiting)
                        print(f"| {graph} | {role.partition(':')[2]} | {rest[role]:.0f} | {slope:+.1f} |", flush=True)


def replicas(seconds: float, rounds: int) -> None:
    counts = (1, 2, 3, 4)
    names = tuple(f"of-{count}" for count in counts)
    print(
        f"\nUpstream {1000 * SLOW_S:.0f} ms, {SLOTS} calls at once in each model replica, so {SLOTS / SLOW_S:.0f} "
        f"calls a second at most from each; twice as many callers as slots. Median of {rounds} rounds (min-max).\n"
    )
    print(f"| graph | model replicas | answers a second | of linear (target: {LINEAR_TARGET:g}) |\n|---|---|---|---|")
    for graph in PATHS:
        with simulator(upstream(SLOW_S, names)) as provider:
            models = [
                model(name, provider, max_ongoing_requests=SLOTS, replicas={"min": count, "max": count})
                for name, count in zip(names, counts, strict=True)
            ]
            programs = [_program(name, [name]) for name in names]
            changes = {"models": models, "programs": programs, "default_model": names[0]}
            with serving({"applications": [application(graph, provider, **changes)]}) as base:
                rates: dict[int, list[float]] = {count: [] for count in counts}
                for turn in range(-1, rounds):
                    for name, count in zip(names, counts, strict=True):
                        load = Load(url(base, graph, name), seconds, 2 * SLOTS * count, headers={})
                        samples = measure(load)
                        if turn >= 0:
                            rates[count].append(_steady(samples, seconds))
        one = statistics.median(rates[1])
        for count in counts:
            share = statistics.median(rates[count]) / (count * one)
            print(f"| {graph} | {count} | {_spread(rates[count], 1)} | {share:.2f} |", flush=True)


def _steady(samples: Sequence[Sample], seconds: float) -> float:
    """Answers a second in the second half, when every caller has its place in the queue."""
    ends = [s.at_s + s.latency_s for s in samples if s.status == OK]
    began = min(sample.at_s for sample in samples)
    half, end = began + seconds / 2, began + seconds
    return sum(half <= at < end for at in ends) / (end - half)


def _with_waiting(provider: str, base: str, graph: str, number: int) -> tuple[int, Mapping[str, float]]:
    """How many calls of that number wait (the rest was refused), and memory by role meanwhile."""
    stuck = [{"kind": "slow_first_token", "delay_s": STUCK_S}]
    httpx.put(f"{provider}/faults/small", json=stuck).raise_for_status()
    patient = {"timeout_s": 300, "options": {"deadline_s": 300}}
    end = begin(Load(url(base, graph), 1, number, headers={}, **patient))
    time.sleep(STUCK_S / 2)
    found = _by_role(readings())
    httpx.delete(f"{provider}/faults/small").raise_for_status()
    waiting = sum(sample.status == OK and sample.latency_s > STUCK_S / 4 for sample in end())
    print(f"{graph}: {waiting} of {number} waited", file=sys.stderr)
    return waiting, found


def _program(name: str, models: list[str]) -> dict[str, Any]:
    return {"name": name, "program": PROGRAM, "levels": {"full": {"models": models}}}


def _answers(base: str, graph: str) -> float:
    """Calls answered so far, from the cluster's own metrics."""
    text = httpx.get(f"{base}{PATHS[graph]}/metrics", timeout=10).raise_for_status().text
    lines = [line for line in text.splitlines() if line.startswith("dspy_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def _without_application(graph: str, roles: Mapping[str, float]) -> dict[str, float]:
    """The graph's own processes under their deployments' names, the shared ones, and the other graph as one."""
    found: dict[str, float] = defaultdict(float)
    for role, value in roles.items():
        application_name, _, deployment = role.partition(":")
        found[(deployment if application_name == NAMES[graph] else "the other graph") if deployment else role] += value
    return dict(found)


def _most(own: Mapping[str, Mapping[str, float]], name: str) -> float:
    return -max(roles.get(name, 0.0) for roles in own.values())


def _by_role(found: Mapping[int, Reading]) -> dict[str, float]:
    memory_mib: dict[str, float] = defaultdict(float)
    for reading in found.values():
        memory_mib[reading.role] += reading.rss_mib
    return dict(memory_mib)


def _spread(values: Sequence[float], digits: int = 0) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


ROWS: dict[str, tuple[str, Callable[[float, int], None]]] = {
    "callers": ("Throughput by callers", callers),
    "cpu": ("CPU of a call, by process", cpu),
    "memory": ("Memory", memory),
    "replicas": ("From one to four model replicas", replicas),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for name in options.rows:
        title, run = ROWS[name]
        print(f"\n### {title}", flush=True)
        run(options.seconds, options.rounds)


if __name__ == "__main__":
    main()
