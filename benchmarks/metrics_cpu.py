"""What counting, logging and tracing cost: CPU of one process, measured with the real classes.

    python -m benchmarks.metrics_cpu

Two shares: what each call adds (in the ingress, and in the model's replica), and what the reports add, four a second
from each replica, whatever the load. Shares of a call are of what ``--call-ms`` says it uses in all processes together.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serve_app.adapters import json_log, tracing
from serve_app.adapters.telemetry import MetricsPage, Telemetry
from serve_app.deployments.call_log import Ending
from serve_app.deployments.control_link import EXCHANGE_INTERVAL_S
from serve_app.messages import Attempt, Level, Outcome, Result, Usage

PROGRAMS, MODELS = ("triage", "research", "sentiment"), ("large", "medium", "small")
ATTEMPT = Attempt("small", Outcome.OK, 0.05, Usage(460, 44), 2.652e-05)
RESULT = Result(
    "c1", {"answer": "x"}, model="small", attempts=(ATTEMPT,), usage=ATTEMPT.usage, cost_usd=ATTEMPT.cost_usd
)


def used() -> Telemetry:
    """The metrics of a replica that has met every program on every model."""
    telemetry = Telemetry()
    for program in PROGRAMS:
        for model in MODELS:
            for status in ("success", "no_route", "bad_output"):
                telemetry.call_finished(program, model, status, 0.1)
            telemetry.attempt_finished(program, Attempt(model, Outcome.OK, 0.1, Usage(10, 5), 0.001))
            telemetry.fell_back(program, model, MODELS[0], "timeout")
        telemetry.cache.hit(program, "near", 0.001, 0.5)
        telemetry.cache.missed(program)
    return telemetry


def seconds_each(work: Callable[[], object], repeats: int = 20_000, rounds: int = 5) -> float:
    """CPU seconds of one run: the best of a few rounds, which is what nothing else disturbed."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(repeats):
            work()
        best = min(best, (time.process_time() - started) / repeats)
    return best


def count(telemetry: Telemetry) -> None:
    """All that one call without a stored answer counts, in all parts together."""
    telemetry.batched(4)
    telemetry.cache.missed("triage")
    telemetry.attempt_finished("triage", ATTEMPT)
    telemetry.call_finished("triage", "small", "success", 0.05)


def log_a_call() -> None:
    """The line of one call, to a real file."""
    ending = Ending("triage", "c625b36a-8ba4-4894-ad7a-e1d480b1afb6", Level.FULL)
    ending.answered(RESULT)
    ending.write(0.05)


async def answer() -> Result:
    """Stands for any part's work."""
    return RESULT


def report(telemetry: Telemetry) -> bytes:
    """A replica's samples on their way."""
    return pickle.dumps(telemetry.samples())


def take(page: MetricsPage, data: bytes) -> None:
    """What the control plane does with them."""
    page.update("one", pickle.loads(data))


def log_to(directory: str) -> None:
    """Log as a replica does."""
    handler = json_log.JsonFile(Path(directory) / "replica.jsonl", maxBytes=2**29, backupCount=1)
    handler.setFormatter(json_log.JsonFormatter())
    logger = logging.getLogger("switchyard")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--call-ms", type=float, default=2.0, help="CPU of a whole call, milliseconds")
    call_s = parser.parse_args().call_ms / 1e3
    telemetry, page = used(), MetricsPage()
    data = report(telemetry)
    traced = tracing.traced("cache")(answer)
    with tempfile.TemporaryDirectory() as directory:
        log_to(directory)
        each_call = {
            "metrics of a call": seconds_each(lambda: count(telemetry)),
            "log line of a call": seconds_each(log_a_call),
            "tracing that is off, four parts": 4
            * (seconds_each(lambda: traced().close()) - seconds_each(lambda: answer().close())),
        }
    each_report = {
        "report of a replica": seconds_each(lambda: report(telemetry), 200),
        "its reception": seconds_each(lambda: take(page, data), 200),
    }
    print("| what | CPU | of a call | of a core, for each replica |\n|---|---|---|---|")
    for name, cost_s in each_call.items():
        print(f"| {name} | {cost_s * 1e6:.1f} µs a call | {cost_s / call_s:.2%} | |")
    for name, cost_s in each_report.items():
        print(f"| {name} | {cost_s * 1e6:.0f} µs each | | {cost_s / EXCHANGE_INTERVAL_S:.2%} |")
    print(f"\nA whole call is taken to use {call_s * 1e3:g} ms; reports go out every {EXCHANGE_INTERVAL_S} s.")


if __name__ == "__main__":
    main()
