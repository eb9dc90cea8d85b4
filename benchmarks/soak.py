"""Ten minutes at 70 % of capacity: does any process grow?

    python -m benchmarks.soak --graph standard

Capacity is measured first, with 32 callers in a closed loop; the load is an open loop. Slopes are least squares over
readings every few seconds, after a warm-up that does not count: until whatever is bounded is full. Answers are kept
for half a minute only; of the calls that may yet get a verdict the control plane keeps the last 100,000
(``serve_app.core.recent_calls``), so that many calls of one question, which the cache answers, come first; then the
load itself for some minutes. What grows then is no data.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping

from benchmarks.application import MODELS, PATHS, PROGRAM, application, upstream, url
from benchmarks.load import OK, Load, begin, measure, percentile
from benchmarks.processes import Reading, readings
from benchmarks.serving import serving, simulator
from serve_app.core.recent_calls import MAX_CALLS

TARGET_MIB_PER_MIN = 1.0
EVERY_S = 5.0
CAPACITY_S = 10.0
SETTLE_S = 300.0
REST_S = 45.0
"""Until connections that nobody uses are closed."""
FILL_S = 5.0
"""Of asking one question, before it is looked whether enough calls were answered."""
FORGETFUL = {
    "name": "ask",
    "program": PROGRAM,
    "levels": {"full": {"models": list(MODELS)}},
    "cache": {"ttl_s": 30, "stale_while_revalidate_s": 0, "stale_if_error_s": 0},
}
OURS = ("switchyard:", "compact:", "Ray Serve", "HAProxy", "Ray's", "embedded")

Series = dict[int, list[tuple[float, Reading]]]


def soak(graph: str, seconds: float, warm_up_s: float, share: float) -> None:
    """Measure and print."""
    with (
        simulator(upstream()) as provider,
        serving({"applications": [application(graph, provider, programs=[FORGETFUL])]}) as base,
    ):
        at = url(base, graph)
        measure(Load(at, CAPACITY_S / 2, headers={}))
        capacity = sum(s.status == OK for s in measure(Load(at, CAPACITY_S, headers={}))) / CAPACITY_S
        fill(at)
        before = at_rest()
        end = begin(Load(at, warm_up_s + seconds, rate=share * capacity, headers={}))
        time.sleep(warm_up_s)
        series = watch(seconds)
        samples = end()
        after = at_rest()
    statuses = Counter(sample.status for sample in samples)
    failed = {status: count for status, count in statuses.items() if status != OK}
    print(
        f"\nGraph {graph}: {share * capacity:.0f} calls a second ({share:.0%} of {capacity:.0f}) for {seconds:.0f} s "
        f"after {MAX_CALLS:,} hits and {warm_up_s:.0f} s of warm-up; "
        f"{statuses[OK]} answered, others by status: {failed or 'none'}; "
        f"p50 {1000 * percentile(samples, 0.5):.1f} ms, p99 {1000 * percentile(samples, 0.99):.1f} ms.\n"
    )
    print(f"| process | MiB, first to last | MiB a minute (target: {TARGET_MIB_PER_MIN:g}) ", end="")
    print("| descriptors under load, medians of the first and the last minute | at rest, before and after |")
    print("|---|---|---|---|---|")
    for line in rows(series, before, after):
        print(line)


def fill(at: str) -> None:
    """Have as many calls answered as the control plane remembers."""
    same, answered = {"inputs": {"question": "Once more?"}}, 0
    while answered < MAX_CALLS:
        samples = measure(Load(at, FILL_S, body=same, headers={}))
        if any(sample.status != OK for sample in samples):
            raise RuntimeError(f"not every call of {at} was answered")
        answered += len(samples)


def at_rest() -> Mapping[int, Reading]:
    """A reading of every process while nobody asks anything, once connections without use are closed."""
    time.sleep(REST_S)
    return readings()


def watch(seconds: float) -> Series:
    """Readings of every process, every few seconds."""
    series: Series = defaultdict(list)
    began = time.monotonic()
    while (at := time.monotonic() - began) < seconds:
        for pid, reading in readings().items():
            series[pid].append((at, reading))
        time.sleep(EVERY_S)
    return series


def rows(series: Series, before: Mapping[int, Reading], after: Mapping[int, Reading]) -> list[str]:
    """A line for each process that was there all the time, the fastest growing first."""
    longest = max(len(points) for points in series.values())
    lines = []
    for pid, points in series.items():
        first, last = points[0][1], points[-1][1]
        if len(points) < longest or len(points) < 2 or not first.role.startswith(OURS):
            continue
        slope = 60 * statistics.linear_regression([at for at, _ in points], [r.rss_mib for _, r in points]).slope
        minute = int(60 / EVERY_S)
        busy = [statistics.median(r.descriptors for _, r in part) for part in (points[:minute], points[-minute:])]
        rest = [str(each[pid].descriptors) if pid in each else "-" for each in (before, after)]
        line = f"| {first.role} | {first.rss_mib:.0f} to {last.rss_mib:.0f} | {slope:+.2f} "
        line += f"| {busy[0]:.0f} to {busy[1]:.0f} | {rest[0]} to {rest[1]} |"
        lines.append((slope, line))
    return [line for _, line in sorted(lines, reverse=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graph", choices=[*PATHS], default="standard")
    parser.add_argument("--seconds", type=float, default=600.0, help="that count")
    parser.add_argument("--warm-up", type=float, default=SETTLE_S, help="seconds of the load before that")
    parser.add_argument("--share", type=float, default=0.7, help="of capacity")
    options = parser.parse_args()
    soak(options.graph, options.seconds, options.warm_up, options.share)


if __name__ == "__main__":
    main()
