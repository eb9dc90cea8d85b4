"""A spike of three times the capacity with callers that retry, with degradation and retry budget and without.

python -m benchmarks.spike --graph standard
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence

from benchmarks.load import Load, Sample, begin, measure, percentile
from benchmarks.resilience import GRAPHS, HARD, LATENCY_S, Bench, application, policy
from benchmarks.serving import serving, simulator

SLOTS, STEPS = 8, 4
MODELS = ("large", "medium", "small")
CAPACITY = len(MODELS) * SLOTS / (STEPS * LATENCY_S)
"""Calls a second that the models can answer together while a call costs four steps."""
CALM_S, SPIKE_S, AFTER_S = 10.0, 60.0, 40.0
PATIENCE_S = 3.0
NEVER: dict[str, None] = dict.fromkeys(("cpu", "memory", "error_rate", "p95_latency_s", "queue_wait_s"))
SPIKES = {
    "on": policy(degradation={"degraded": {"queue_wait_s": 0.5}, "minimal": NEVER, "dwell_s": 10, "window_s": 5}),
    "off": policy(
        degradation={"degraded": NEVER, "minimal": NEVER}, retry={"budget_ratio": 1, "budget_floor_per_s": 1000}
    ),
}
LEVELS = {
    "full": {"models": [*MODELS]},
    "degraded": {"models": [*MODELS], "program": "question -> answer"},
}


def spike(graph: str = "standard") -> None:
    print(
        f"\n### {SPIKE_S:.0f} s at 3 times the capacity, callers that retry\n\n"
        f"Graph {graph}. A call costs {STEPS} LM calls of {LATENCY_S:g} s, one when degraded; three models of {SLOTS} "
        f"slots answer {CAPACITY:.0f} calls a second at level full; 0.7 of that comes before and after. A caller waits "
        f"{PATIENCE_S:g} s and asks up to four times, 0.2 s apart. Goodput is the share of calls answered within one "
        "such wait.\n\n"
        "| degradation and retry budget | goodput before | during | 0-30 s after | from 30 s after on (target: 95 %) | "
        "tries a call during | p95 ms during |\n|---|---|---|---|---|---|---|"
    )
    quick = {"ttft_s": LATENCY_S, "tokens_per_s": 100_000, "jitter": 0.1}
    with simulator({f"{graph}-{model}": quick for model in MODELS}) as provider:
        for name, chosen in SPIKES.items():
            served = application(graph, provider, chosen, slots=SLOTS)
            program = {"name": "ask", "program": "benchmarks.deliberate:Deliberate", "levels": LEVELS}
            models = [model | {"latency_s": STEPS * LATENCY_S} for model in served["args"]["models"]]
            served["args"] |= {"programs": [program], "models": models}
            with serving({"applications": [served]}) as base:
                print(f"| {name} | {_spike(Bench(graph, base, provider))} |", flush=True)


def _spike(bench: Bench) -> str:
    patient = {"options": HARD | {"deadline_s": PATIENCE_S}, "retries": 3}
    calm = Load(bench.url, CALM_S + SPIKE_S + AFTER_S, rate=0.7 * CAPACITY, **patient)
    end_calm = begin(calm)
    time.sleep(CALM_S)
    extra = measure(Load(bench.url, SPIKE_S, rate=2.3 * CAPACITY, **patient))
    samples = end_calm() + [Sample(s.at_s + CALM_S, s.latency_s, s.status, s.model, s.tries) for s in extra]
    marks = [0.0, CALM_S, CALM_S + SPIKE_S, CALM_S + SPIKE_S + 30, CALM_S + SPIKE_S + AFTER_S]
    spans = [[s for s in samples if a <= s.at_s < b] for a, b in itertools.pairwise(marks)]
    shares = [f"{_goodput(span):.1%}" for span in spans]
    tries = statistics.mean(sample.tries for sample in spans[1])
    return f"{' | '.join(shares)} | {tries:.2f} | {1000 * percentile(spans[1], 0.95):.0f}"


def _goodput(samples: Sequence[Sample]) -> float:
    good = sum(sample.status == 200 and sample.latency_s <= PATIENCE_S for sample in samples)
    return good / len(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graph", choices=[*GRAPHS], default="standard")
    spike(parser.parse_args().graph)


if __name__ == "__main__":
    main()
