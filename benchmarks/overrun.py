"""An application that is overrun for a while, and what becomes of it afterwards.

Calls arrive at a steady rate below the capacity; for a while other programs take the cores, so that calls pile up; then
the cores are free again. The generator is on the same cores, and sends what it could not send in one burst. What is
looked at is whether the application comes back by itself, and what it does with what it cannot answer.

    python -m benchmarks.overrun --graph standard
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.application import PATHS, application, upstream, url
from benchmarks.load import OK, Load, Sample, begin, measure
from benchmarks.serving import serving, simulator

CALM_S = 20.0
PERIOD_S = 10.0
CAPACITY_S = 10.0
REFUSED = 429
HOGS = 3


def overrun(graph: str, share: float, busy_s: float, after_s: float) -> None:
    """Measure and print a line for every ten seconds of arrivals."""
    with simulator(upstream()) as provider, serving({"applications": [application(graph, provider)]}) as base:
        at = url(base, graph)
        measure(Load(at, CAPACITY_S / 2, headers={}))
        capacity = sum(sample.status == OK for sample in measure(Load(at, CAPACITY_S, headers={}))) / CAPACITY_S
        end = begin(Load(at, CALM_S + busy_s + after_s, rate=share * capacity, headers={}))
        time.sleep(CALM_S)
        with hogs(HOGS):
            time.sleep(busy_s)
        samples = end()
    print(
        f"\nGraph {graph}: {share * capacity:.0f} calls a second ({share:.0%} of {capacity:.0f}); from second "
        f"{CALM_S:.0f} to {CALM_S + busy_s:.0f} {HOGS} other processes take what they get of the cores. A call waits "
        f"{Load.timeout_s:.0f} s at most.\n"
    )
    print(
        "| arrived in second | answered | refused | failed otherwise | p50 s of the answered |\n|---|---|---|---|---|"
    )
    for line in rows(samples):
        print(line)


def rows(samples: Sequence[Sample]) -> Iterator[str]:
    """What became of the calls of each period."""
    first = min(sample.at_s for sample in samples)
    periods: dict[int, list[Sample]] = {}
    for sample in samples:
        periods.setdefault(int((sample.at_s - first) / PERIOD_S), []).append(sample)
    for number, calls in sorted(periods.items()):
        by_status = Counter(call.status for call in calls)
        answered, refused = by_status.pop(OK, 0), by_status.pop(REFUSED, 0)
        times = [call.latency_s for call in calls if call.status == OK]
        took = f"{statistics.median(times):.1f}" if times else "-"
        others = ", ".join(f"{count} ({status or 'no answer'})" for status, count in sorted(by_status.items()))
        begins = number * PERIOD_S
        yield f"| {begins:.0f}-{begins + PERIOD_S:.0f} | {answered} | {refused} | {others or 0} | {took} |"


@contextmanager
def hogs(number: int) -> Iterator[None]:
    """Other programs that take the cores."""
    processes = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def _spin() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        sum(range(1_000_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", choices=[*PATHS], default="standard")
    parser.add_argument("--share", type=float, default=0.9, help="of capacity that arrives")
    parser.add_argument("--busy", type=float, default=40.0, help="seconds without the cores")
    parser.add_argument("--after", type=float, default=90.0, help="seconds afterwards")
    options = parser.parse_args()
    overrun(options.graph, options.share, options.busy, options.after)


if __name__ == "__main__":
    main()
