"""Switchyard beside what a person would serve the same program with: answers a second, in alternating rounds.

Each peer has a virtual environment of its own, made on first use, and runs as its documentation says. Everybody asks
the same simulated provider, with questions that were never asked before; Switchyard has everything on: routing,
breakers, cache, metrics. Both graphs and one peer are there at a time, each in processes of its own, and whoever is
not being asked stands still (SIGSTOP), so that a round's machine belongs to one of them, the provider and the load.

    python -m benchmarks.peers --peers fastapi-2 litellm
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx

from benchmarks.application import MODELS, PATHS, application, upstream, url
from benchmarks.load import OK, Body, Load, measure
from benchmarks.peer import Peer
from benchmarks.peer_environments import NotInstalled
from benchmarks.peer_list import PEERS
from benchmarks.processes import direct_children, signal_trees
from benchmarks.serving import serving, simulator

WELL_WITHIN_S = 60.0
WARM_UP_S = 1.0
HEADER = (
    "| peer | version | the peer | standard | compact | standard / peer | compact / peer | "
    "failed calls: peer, standard, compact |\n|---|---|---|---|---|---|---|---|"
)


@dataclass
class Contestant:
    """One server, in processes of its own that stand still unless it is its turn.

    Attributes:
        url: that is called.
        body: of a call; ``None`` is Switchyard's own.
        processes: the roots of its process trees.
        rates: answers a second, a figure a round.
        failed: calls without a good answer.
    """

    url: str
    body: Body | None
    processes: frozenset[int]
    rates: list[float] = field(default_factory=list)
    failed: int = 0

    def round(self, callers: int, seconds: float) -> None:
        self.wake()
        try:
            self._wait_until_well()
            samples = measure(self._load(WARM_UP_S + seconds, callers))
        finally:
            self.pause()
        first = min(sample.at_s for sample in samples) + WARM_UP_S
        ends = [sample.at_s + sample.latency_s for sample in samples if sample.status == OK]
        self.rates.append(sum(first <= at < first + seconds for at in ends) / seconds)
        self.failed += len(samples) - len(ends)

    def pause(self) -> None:
        signal_trees(self.processes, signal.SIGSTOP)

    def wake(self) -> None:
        signal_trees(self.processes, signal.SIGCONT)

    def _wait_until_well(self) -> None:
        """Wait until it has noticed that it stood still: health checks that were under way then may have failed."""
        give_up = time.monotonic() + WELL_WITHIN_S
        while not all(sample.status == OK for sample in measure(self._load(0.5, 4))):
            if time.monotonic() > give_up:
                raise TimeoutError(f"{self.url} does not answer well within {WELL_WITHIN_S:g} s after it stood still")

    def _load(self, seconds: float, callers: int) -> Load:
        return Load(self.url, seconds, callers, body=self.body, headers={})

    def __str__(self) -> str:
        return f"{statistics.median(self.rates):.0f} ({min(self.rates):.0f}-{max(self.rates):.0f})"


@contextmanager
def contestant(started: AbstractContextManager[str], path: str, body: Body | None = None) -> Iterator[Contestant]:
    """A server of which everything that it starts is known."""
    before = direct_children()
    with started as base:
        yield Contestant(base + path, body, direct_children() - before)


def over(ours: Contestant, peer: Contestant) -> str:
    """The median of the rounds' ratios."""
    ratios = [a / b if b else float("inf") for a, b in zip(ours.rates, peer.rates, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def contest(everyone: Sequence[Contestant], options: argparse.Namespace) -> None:
    """Rounds in turns, forth and back, so that whatever else the machine does falls on all."""
    for each in everyone:
        each.rates, each.failed = [], 0
        each.pause()
    try:
        for number in range(options.rounds):
            for each in everyone if number % 2 == 0 else reversed(everyone):
                each.round(options.callers, options.seconds)
    finally:
        for each in everyone:
            each.wake()  # nobody stands still for longer than a turn of the others, and everybody can end


def delay(provider: str, seconds: float) -> None:
    fault = [{"kind": "slow_first_token", "delay_s": seconds}] if seconds else []
    for name in MODELS:
        httpx.put(f"{provider}/faults/{name}", json=fault).raise_for_status()


def rows(
    ours: Sequence[Contestant], provider: str, peer: Peer, options: argparse.Namespace
) -> Iterator[tuple[float, str]]:
    """The peer's row in each latency's table."""
    try:
        with contestant(peer.running(f"{provider}/v1"), peer.path, peer.body) as theirs:
            for latency_s in options.latencies:
                delay(provider, latency_s)
                contest([theirs, *ours], options)
                cells = [peer.title, peer.version(), theirs, *ours, *(over(each, theirs) for each in ours)]
                failed = ", ".join(str(each.failed) for each in (theirs, *ours))
                yield latency_s, f"| {' | '.join(map(str, cells))} | {failed} |"
    except NotInstalled as reason:
        yield from (
            (latency_s, f"| {peer.title} | left out: {reason} | | | | | | |") for latency_s in options.latencies
        )
    finally:
        delay(provider, 0)


def peers(options: argparse.Namespace) -> None:
    tables: dict[float, list[str]] = {latency_s: [] for latency_s in options.latencies}
    with ExitStack() as stack:
        provider = stack.enter_context(simulator(upstream()))
        ours = [
            stack.enter_context(contestant(serving({"applications": [application(graph, provider)]}), url("", graph)))
            for graph in PATHS
        ]
        for name in options.peers:
            print(f"beside {name} ...", file=sys.stderr)
            for latency_s, row in rows(ours, provider, PEERS[name], options):
                print(f"{latency_s:g} s: {row}", file=sys.stderr, flush=True)
                tables[latency_s].append(row)
    for latency_s, table in tables.items():
        ceiling = f"; {options.callers / latency_s:.0f} answers a second are all there can be" if latency_s else ""
        print(f"\n### Upstream {1000 * latency_s:.0f} ms, {options.callers} callers{ceiling}\n")
        print(
            f"Answers a second: median of {options.rounds} rounds of {options.seconds:g} s (min-max). Ratios likewise."
        )
        print("\n".join(["", HEADER, *table]))
    print(
        "\nA call of the program is one LM call, so LiteLLM's figure compares as LM calls a second. Targets: 5 times "
        "LiteLLM, 1.3 times FastAPI with 2 workers."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--latencies", nargs="+", type=float, default=[0.0, 0.2], help="of the provider, seconds")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=int, default=32)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end by force would leave others standing still
    peers(parser.parse_args())


if __name__ == "__main__":
    main()
