"""What serving adds to a call: one caller over HTTP, beside the same program called in-process on the same engine.

    python -m benchmarks.latency

Rounds alternate, one server after the other, each alone on the machine as a person would run it. In-process is a bare
``dspy.Predict.acall`` on uvloop, one call after the other, over the engine that the server has: Switchyard's pooled
one, or DSPy's own for the peers. With pauses it is the same a few milliseconds after the call before, as in a server:
the process has slept, and its core has done other things. Over HTTP it is one caller of the load generator, whose own
time is part of the figure.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection

import dspy
import uvloop

from benchmarks.application import PATHS, PROGRAM, application, upstream, url
from benchmarks.engine_cpu import answer_of, language_model, process
from benchmarks.load import OK, Body, Load, measure, median
from benchmarks.peer_list import PEERS
from benchmarks.serving import serving, simulator
from serve_app.adapters.call_scope import call_scope

TARGET_MS = 3.0
PAUSE_S = 0.005


async def ask(lm: dspy.LM, seconds: float, pause_s: float) -> float:
    """Median seconds of a call."""
    program, prefix = dspy.Predict(PROGRAM), f"{random.getrandbits(48):x}"
    latencies = []
    end = time.perf_counter() + seconds
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[], disable_history=True, max_history_size=0):
        for number in itertools.count():
            if pause_s:
                await asyncio.sleep(pause_s)
            began = time.perf_counter()
            if began > end:
                return statistics.median(latencies)
            with call_scope(60.0, None):
                await program.acall(question=f"{prefix} {number}")
            latencies.append(time.perf_counter() - began)
    raise AssertionError("count() does not end")


def in_process(pipe: Connection, engine: str, provider: str) -> None:
    """A round for each pair of seconds received: how long it takes, and how long a pause is."""
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    lm = language_model(engine, f"{provider}/v1")
    while True:
        pipe.send(loop.run_until_complete(ask(lm, *pipe.recv())))


def over_http(at: str, body: Body | None, seconds: float) -> float:
    """Median seconds of a call."""
    samples = measure(Load(at, seconds, callers=1, body=body, headers={}))
    failed = sum(sample.status != OK for sample in samples)
    if failed:
        raise RuntimeError(f"{failed} of {len(samples)} calls of {at} failed")
    return median(samples)


def latency(seconds: float, rounds: int, peers: Sequence[str]) -> None:
    print(f"\nOne caller, upstream 0 ms, p50: median of {rounds} rounds of {seconds:g} s (min-max).\n")
    print("| served by | engine | in-process, ms | with pauses, ms | over HTTP, ms ", end="")
    print(f"| added, ms (target: {TARGET_MS:g}) | to that with pauses, ms |\n|---|---|---|---|---|---|---|")
    with simulator(upstream()) as provider:
        for title, engine, started, path, body in servers(provider, peers):
            with process(in_process, engine, provider) as pipe, started as base:
                found = [figures(pipe, base + path, body, seconds) for _ in range(rounds + 1)][1:]  # the first warms up
            added = [(served - alone, served - rested) for alone, rested, served in found]
            cells = (_ms(each) for each in (*zip(*found, strict=True), *zip(*added, strict=True)))
            print(f"| {title} | {engine} | {' | '.join(cells)} |", flush=True)


def servers(
    provider: str, peers: Sequence[str]
) -> Iterator[tuple[str, str, AbstractContextManager[str], str, Body | None]]:
    """Title, engine, the server, the path that is called and the body of a call."""
    for graph in PATHS:
        served = serving({"applications": [application(graph, provider)]})
        yield f"Switchyard, {graph}", "pooled", served, url("", graph), None
    for peer in map(PEERS.__getitem__, peers):
        yield peer.title, "built-in", peer.running(f"{provider}/v1"), peer.path, peer.body


def figures(pipe: Connection, at: str, body: Body | None, seconds: float) -> tuple[float, float, float]:
    """A round of each: median seconds of a call in-process, with pauses and over HTTP."""
    alone = []
    for pause_s in (0.0, PAUSE_S):
        pipe.send((seconds, pause_s))
        alone.append(answer_of(pipe))
    return alone[0], alone[1], over_http(at, body, seconds)


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * statistics.median(seconds):.2f} ({1000 * min(seconds):.2f}-{1000 * max(seconds):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", nargs="*", choices=[*PEERS], default=["ray-serve", "fastapi-1"])
    options = parser.parse_args()
    latency(options.seconds, options.rounds, options.peers)


if __name__ == "__main__":
    main()
