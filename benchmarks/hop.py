"""What one message between two replicas costs, by Ray's handle and over a connection of their own.

    python -m benchmarks.hop

Two deployments in Ray Serve's fast mode: one sends a batch of one call, the other answers it in one chunk. Both ways
are those of ``serve_app.deployments``, in turns. CPU is of both processes together, divided by the messages.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence

from benchmarks.serving import free_port, ports_of_its_own
from serve_app.launcher import THROUGHPUT_FLAGS

PAUSE_S = 0.01
CASES = ((1, 0.0), (1, PAUSE_S), (8, 0.0))
"""Senders at a time, and seconds that each waits before it sends again."""
WAYS = ("handle", "connection")


def hop(seconds: float, rounds: int) -> None:
    import ray  # noqa: PLC0415 - after the flags
    from ray import serve  # noqa: PLC0415

    from benchmarks.hop_replicas import application  # noqa: PLC0415

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": free_port()})
        sender = serve.run(application(), route_prefix=None)
        sender._init(_run_router_in_separate_loop=True)  # noqa: SLF001 - as of a handle outside of a replica
        sender.connect.remote().result()
        found: dict[tuple[int, float, str], list[tuple[float, float]]] = {}
        for number in range(rounds + 1):
            for senders, pause_s in CASES:
                for way in WAYS:
                    figures = sender.measure.remote(way, senders, pause_s, seconds).result()
                    if number:
                        found.setdefault((senders, pause_s, way), []).append(figures)
    finally:
        serve.shutdown()
        ray.shutdown()
    print(f"\nA message and its answer: median of {rounds} rounds of {seconds:g} s (min-max).\n")
    print("| senders | pause before each, ms | by | round trip, ms | CPU of both sides, ms |\n|---|---|---|---|---|")
    for (senders, pause_s, way), each in found.items():
        print(f"| {senders} | {pause_s * 1000:g} | {way} | {_ms([s for s, _ in each])} | {_ms([c for _, c in each])} |")


def _ms(values: Sequence[float]) -> str:
    low, middle, high = (1000 * each for each in (min(values), statistics.median(values), max(values)))
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THROUGHPUT_FLAGS, "1") | ports_of_its_own())
    hop(arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
