"""What serving adds to a call: one caller over HTTP, beside the same program called in-process on the same engine.

    python -m benchmarks.latency

Rounds alternate. In-process is a bare ``dspy.Predict.acall`` over Switchyard's pooled engine on uvloop, one call after
the other; over HTTP it is one caller of the load generator, whose own time is part of the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from multiprocessing.connection import Connection

import dspy
import uvloop

from benchmarks.application import PATHS, PROGRAM, application, upstream, url
from benchmarks.engine_cpu import answer_of, process
from benchmarks.load import OK, Load, measure, median
from benchmarks.serving import serving, simulator
from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig

TARGET_MS = 3.0


async def ask(lm: dspy.LM, seconds: float) -> float:
    """Median seconds of a call."""
    program, prefix = dspy.Predict(PROGRAM), f"{random.getrandbits(48):x}"
    latencies = []
    end = time.perf_counter() + seconds
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[], disable_history=True, max_history_size=0):
        for number in itertools.count():
            began = time.perf_counter()
            if began > end:
                return statistics.median(latencies)
            with call_scope(60.0, None):
                await program.acall(question=f"{prefix} {number}")
            latencies.append(time.perf_counter() - began)
    raise AssertionError("count() does not end")


def in_process(pipe: Connection, provider: str) -> None:
    """A round for each number of seconds received."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    lm = LMPool().lm(ModelConfig(name="small", lm="openai/small", api_base=f"{provider}/v1"))
    while True:
        pipe.send(loop.run_until_complete(ask(lm, pipe.recv())))


def over_http(base: str, graph: str, seconds: float) -> float:
    """Median seconds of a call."""
    samples = measure(Load(url(base, graph), seconds, callers=1, headers={}))
    failed = sum(sample.status != OK for sample in samples)
    if failed:
        raise RuntimeError(f"{failed} of {len(samples)} calls failed in {graph}")
    return median(samples)


def latency(seconds: float, rounds: int) -> None:
    alone: list[float] = []
    served: dict[str, list[float]] = {graph: [] for graph in PATHS}
    with (
        simulator(upstream()) as provider,
        serving({"applications": [application(graph, provider) for graph in PATHS]}) as base,
        process(in_process, provider) as pipe,
    ):
        for number in range(-1, rounds):  # the first round warms up and does not count
            pipe.send(seconds)
            direct = answer_of(pipe)
            figures = {graph: over_http(base, graph, seconds) for graph in PATHS}
            if number >= 0:
                alone.append(direct)
                for graph, figure in figures.items():
                    served[graph].append(figure)
    print(f"\nOne caller, upstream 0 ms, p50: median of {rounds} rounds of {seconds:g} s (min-max).\n")
    print(f"| | p50 ms | added ms (target: {TARGET_MS:g}) |\n|---|---|---|")
    print(f"| in-process | {_ms(alone)} | |")
    for graph, figures_of in served.items():
        added = [with_http - without for with_http, without in zip(figures_of, alone, strict=True)]
        print(f"| {graph} | {_ms(figures_of)} | {_ms(added)} |")


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.2f} ({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    latency(options.seconds, options.rounds)


if __name__ == "__main__":
    main()
