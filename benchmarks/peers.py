"""Switchyard beside what a person would serve the same program with: calls a second, in alternating rounds.

Each peer has a virtual environment of its own, made on first use, and runs as its documentation says. Everybody asks
the same simulated provider, with questions that were never asked before; Switchyard has everything on: routing,
breakers, cache, metrics. Only Switchyard and one peer run at a time, and of them only one gets calls.

    python -m benchmarks.peers --peers fastapi-2 litellm
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from benchmarks.application import MODELS, PATHS, application, upstream, url
from benchmarks.load import OK, Body, Load, Sample, measure
from benchmarks.peer import Peer
from benchmarks.peer_environments import NotInstalled
from benchmarks.peer_list import PEERS
from benchmarks.processes import cpu_between, readings
from benchmarks.serving import serving, simulator

WARM_UP_S = 3.0


@dataclass
class Figures:
    """Calls a second of one contestant, a figure a round, and what went wrong."""

    load: Callable[[float], Load]
    rates: list[float] = field(default_factory=list)
    failed: int = 0

    def round(self, seconds: float) -> None:
        load = self.load(seconds)
        samples = measure(load)
        self.rates.append(rate(samples))
        self.failed += sum(sample.status != OK for sample in samples)

    def __str__(self) -> str:
        return f"{statistics.median(self.rates):.0f} ({min(self.rates):.0f}-{max(self.rates):.0f})"


def rate(samples: Sequence[Sample]) -> float:
    """Answers a second, until the last of them."""
    ends = [sample.at_s + sample.latency_s for sample in samples]
    begun = min(sample.at_s for sample in samples)
    return sum(sample.status == OK for sample in samples) / (max(ends) - begun)


def over(ours: Figures, peer: Figures) -> str:
    """The median of the rounds' ratios."""
    ratios = [a / b if b else float("inf") for a, b in zip(ours.rates, peer.rates, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def contest(base: str, peer: Peer, peer_url: str, options: argparse.Namespace) -> list[Figures]:
    """Rounds in turns, forth and back, so that whatever else the machine does falls on all."""
    targets: dict[str, Body | None] = {peer_url: peer.body} | {url(base, graph): None for graph in PATHS}
    everyone = [
        Figures(lambda seconds, at=at, body=body: Load(at, seconds, options.callers, body=body, headers={}))
        for at, body in targets.items()
    ]
    for figures in everyone:
        measure(figures.load(min(WARM_UP_S, options.seconds)))
    for number in range(options.rounds):
        for figures in everyone if number % 2 == 0 else reversed(everyone):
            figures.round(options.seconds)
    return everyone


def delay(provider: str, seconds: float) -> None:
    fault = [{"kind": "slow_first_token", "delay_s": seconds}] if seconds else []
    for name in MODELS:
        httpx.put(f"{provider}/faults/{name}", json=fault).raise_for_status()


def idle_share(seconds: float = 5.0) -> float:
    """CPU that Switchyard takes of one core while nobody calls it: what a peer's round does without."""
    before = readings()
    time.sleep(seconds)
    return sum(cpu_between(before, readings()).values()) / seconds


def row(base: str, provider: str, peer: Peer, options: argparse.Namespace) -> Iterator[tuple[float, str]]:
    """The peer's row in each latency's table."""
    try:
        with peer.running(f"{provider}/v1") as (peer_url, its_version):
            for latency_s in options.latencies:
                delay(provider, latency_s)
                theirs, standard, compact = contest(base, peer, peer_url, options)
                failed = [figures.failed for figures in (theirs, standard, compact)]
                yield (
                    latency_s,
                    f"| {peer.title} | {peer.package} {its_version} | {theirs} | {standard} | {compact} | "
                    f"{over(standard, theirs)} | {over(compact, theirs)} | {', '.join(map(str, failed))} |",
                )
    except NotInstalled as reason:
        for latency_s in options.latencies:
            yield latency_s, f"| {peer.title} | left out: {reason} | | | | | | |"


def peers(options: argparse.Namespace) -> None:
    tables: dict[float, list[str]] = {latency_s: [] for latency_s in options.latencies}
    with (
        simulator(upstream()) as provider,
        serving({"applications": [application(graph, provider) for graph in PATHS]}) as base,
    ):
        for name in options.peers:
            print(f"beside {name} ...", file=sys.stderr)
            delay(provider, 0)
            for latency_s, line in row(base, provider, PEERS[name], options):
                tables[latency_s].append(line)
        idle = idle_share()
    for latency_s, rows in tables.items():
        ceiling = f"; {options.callers / latency_s:.0f} calls a second are all there can be" if latency_s else ""
        print(f"\n### Upstream {1000 * latency_s:.0f} ms, {options.callers} callers{ceiling}\n")
        print("Answers a second: median of the rounds (min-max). Ratios: median of the rounds' own (min-max).\n")
        print(
            "| peer | version | the peer | standard | compact | standard / peer | compact / peer | "
            "failed calls: peer, standard, compact |"
        )
        print("|---|---|---|---|---|---|---|---|\n" + "\n".join(rows))
    print(
        f"\nA call of the program is one LM call, so LiteLLM's figure compares as LM calls a second (targets: 5 times "
        "LiteLLM, 1.3 times FastAPI with 2 workers). Both graphs of Switchyard, idle beside a peer, take "
        f"{idle:.2f} of a core."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--latencies", nargs="+", type=float, default=[0.0, 0.2], help="of the provider, seconds")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=32)
    peers(parser.parse_args())


if __name__ == "__main__":
    main()
