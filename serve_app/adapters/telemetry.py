"""What a replica counts, and how the counts of many replicas become one page.

Each replica keeps its own ``prometheus_client`` registry and reports plain samples; ``MetricsPage`` in the
control plane sums counters and histograms over all replicas that ever reported (a total never goes backwards
when a replica leaves) and keeps gauges by replica while the replica lives.

Sums are rounded once, whoever has left: Prometheus takes a total that is less by its last bit for a counter that began
anew, and adds all of it once more.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric

from serve_app.adapters.cache_metrics import CacheMetrics
from serve_app.core.clock import Clock
from serve_app.messages import Attempt

_LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
MAX_SILENT = 256
"""Most replicas that went silent and are remembered one by one, since they may yet go on."""
SILENT_S = 600.0
"""Seconds for which they are: each costs as much memory, and time at every scrape, as one that lives."""
_SCORE_BUCKETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


Labels = tuple[tuple[str, str], ...]


class Family(NamedTuple):
    """One metric of one replica: ``samples`` are ``(name, sorted label pairs, value)``."""

    name: str
    kind: str
    documentation: str
    samples: tuple[tuple[str, Labels, float], ...]


def gauge(name: str, documentation: str, values: Mapping[Labels, float]) -> Family:
    """A gauge of the whole cluster, one value for each set of labels."""
    return Family(name, "gauge", documentation, tuple((name, labels, value) for labels, value in values.items()))


class Telemetry:
    """The metrics of one replica. Label values come from the configuration, never from a caller."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, doc: str, *labels: str) -> Counter:
            return Counter(name, doc, labels, registry=registry)

        self._requests = counter("dspy_requests", "Calls answered.", "program", "model", "status")
        self._tokens = counter("dspy_tokens", "Tokens spent, failed attempts included.", "model", "kind")
        self._cost = counter("dspy_cost_usd", "USD spent, failed attempts included.", "program", "model")
        self._fallbacks = counter(
            "dspy_fallbacks", "Attempts handed to the next model.", "program", "from_model", "to_model", "reason"
        )
        self._shed = counter("dspy_shed", "Calls refused before any work.", "reason", "priority")
        self._bad_output = counter("dspy_bad_output", "Answers that the program could not parse.", "program", "model")
        self._reward_failures = counter(
            "dspy_reward_failures", "Answers that were to be scored and were not.", "program", "reason"
        )
        self._record_lost = counter("dspy_record_lost", "Lines of a record that were not written.", "program", "reason")
        self._duration = Histogram(
            "dspy_request_duration_seconds",
            "Time to answer a call.",
            ("program", "model"),
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self._quality = Histogram(
            "dspy_quality_score",
            "Scores of answers, 0 to 1.",
            ("program", "metric_type"),
            buckets=_SCORE_BUCKETS,
            registry=registry,
        )
        self._batch_size = Histogram("dspy_batch_size", "Calls in a batch.", buckets=_BATCH_BUCKETS, registry=registry)
        self.cache = CacheMetrics()
        """The cache's part."""
        registry.register(self.cache)
        self._active = Gauge("dspy_active_requests", "Calls being answered.", registry=registry)
        self._memory = Gauge("dspy_memory_usage_mb", "Resident memory of the process, MiB.", registry=registry)

    def call_finished(self, program: str, model: str, status: str, latency_s: float) -> None:
        """Count an answered call; ``status`` is ``success`` or an error's code."""
        self._requests.labels(program, model, status).inc()
        self._duration.labels(program, model).observe(latency_s)

    def attempt_finished(self, program: str, attempt: Attempt) -> None:
        """Count what an attempt spent."""
        self._tokens.labels(attempt.model, "input").inc(attempt.usage.input_tokens)
        self._tokens.labels(attempt.model, "output").inc(attempt.usage.output_tokens)
        self._cost.labels(program, attempt.model).inc(attempt.cost_usd)

    def fell_back(self, program: str, from_model: str, to_model: str, reason: str) -> None:
        """Count an attempt that goes to the next model."""
        self._fallbacks.labels(program, from_model, to_model, reason).inc()

    def scored(self, program: str, metric_type: str, score: float) -> None:
        """Count a quality score in 0..1."""
        self._quality.labels(program, metric_type).observe(score)

    def bad_output(self, program: str, model: str) -> None:
        """Count an answer that the program could not parse."""
        self._bad_output.labels(program, model).inc()

    def reward_failed(self, program: str, reason: str) -> None:
        """Count an answer that was to be scored and was not."""
        self._reward_failures.labels(program, reason).inc()

    def record_lost(self, program: str, reason: str, lines: int) -> None:
        """Count lines of a record that were not written."""
        self._record_lost.labels(program, reason).inc(lines)

    def shed(self, reason: str, priority: str) -> None:
        """Count a call refused before any work."""
        self._shed.labels(reason, priority).inc()

    def batched(self, size: int) -> None:
        """Count a batch."""
        self._batch_size.observe(size)

    def set_active(self, calls: int) -> None:
        """Calls being answered now."""
        self._active.set(calls)

    def set_memory_mb(self, mebibytes: float) -> None:
        """Resident memory of this process."""
        self._memory.set(mebibytes)

    def samples(self) -> tuple[Family, ...]:
        """Everything with a value, as plain tuples."""
        return tuple(
            Family(
                metric.name,
                metric.type,
                metric.documentation,
                tuple(
                    (sample.name, tuple(sorted(sample.labels.items())), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ),
            )
            for metric in self._registry.collect()
            if metric.samples
        )


class MetricsPage:
    """The whole cluster's metrics from the last samples of every replica.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._latest: dict[str, tuple[Family, ...]] = {}
        self._silent: dict[str, tuple[float, tuple[Family, ...]]] = {}
        self._departed: tuple[Family, ...] = ()
        self._cluster: tuple[Family, ...] = ()
        self.changes = 0
        """How often ``departed`` has become another: a replica was let go, or came back."""

    def update(self, source: str, families: Iterable[Family]) -> None:
        """Take a replica's newest samples; no samples keep the ones before."""
        if families := tuple(families):
            if self._silent.pop(source, None):  # its samples go on from there; kept as well, they would count twice
                self.changes += 1
            self._latest[source] = families
        self._let_go_of_the_silent()

    def depart(self, source: str) -> None:
        """Let a replica go: its totals stay, its gauges vanish."""
        totals = tuple(family for family in self._latest.pop(source, ()) if family.kind != "gauge")
        if totals:
            self._silent[source] = self._clock(), totals
            self.changes += 1
        self._let_go_of_the_silent()

    def departed(self) -> tuple[Family, ...]:
        """The totals of all replicas that were let go: what nobody will report again.

        A sample may be there several times: only together its values are the exact total.
        """
        return _exact([*self._departed, *self._of_the_silent()])

    def restore(self, departed: Iterable[Family]) -> None:
        """Take over what the page of an earlier life knew of replicas that were let go."""
        self._departed = _exact([*self._departed, *departed])

    def render(self, cluster: Iterable[Family] = ()) -> bytes:
        """The page in Prometheus' text format, with what only the control plane knows."""
        self._cluster = tuple(cluster)
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def total(self, name: str) -> float:
        """Sum over all labels of the samples of that name."""
        return sum(sample.value for metric in self.collect() for sample in metric.samples if sample.name == name)

    def totals(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The samples of that name, added up by the values of these labels."""
        totals: dict[tuple[str, ...], float] = {}
        for sample in (sample for metric in self.collect() for sample in metric.samples if sample.name == name):
            key = tuple(sample.labels[label] for label in labels)
            totals[key] = totals.get(key, 0.0) + sample.value
        return totals

    def collect(self) -> Iterator[Metric]:
        """Yield merged families (the interface of a ``prometheus_client`` collector)."""
        replicas = [_by_replica(family, source) for source, latest in self._latest.items() for family in latest]
        for family in (*_sum([*self._departed, *self._of_the_silent(), *replicas]), *self._cluster):
            metric = Metric(family.name, family.documentation, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, dict(labels), value)
            yield metric

    def _let_go_of_the_silent(self) -> None:
        """Add to those that left whoever is silent for too long, and the longest silent of too many."""
        gone: list[Family] = []
        while self._silent:
            source, (since, totals) = next(iter(self._silent.items()))
            if len(self._silent) <= MAX_SILENT and self._clock() - since <= SILENT_S:
                break
            del self._silent[source]
            gone += totals
        if gone:
            self._departed = _exact([*self._departed, *gone])

    def _of_the_silent(self) -> Iterator[Family]:
        return (family for _, totals in self._silent.values() for family in totals)


def _by_replica(family: Family, source: str) -> Family:
    if family.kind != "gauge":
        return family
    samples = tuple((name, (*labels, ("replica", source)), value) for name, labels, value in family.samples)
    return family._replace(samples=samples)


def _sum(families: Iterable[Family]) -> tuple[Family, ...]:
    """Add up samples of the same name and labels, and round each sum once."""
    return tuple(
        family._replace(samples=tuple((*key, _total(values)) for key, values in gathered.items()))
        for family, gathered in _gathered(families)
    )


def _exact(families: Iterable[Family]) -> tuple[Family, ...]:
    """The same sums unrounded: of each name and labels a few samples, which add up to it."""
    return tuple(
        family._replace(samples=tuple((*key, part) for key, values in gathered.items() for part in _parts(values)))
        for family, gathered in _gathered(families)
    )


def _gathered(families: Iterable[Family]) -> Iterator[tuple[Family, dict[tuple[str, Labels], list[float]]]]:
    """Each family by name, and its values by the names and labels of samples."""
    newest: dict[str, Family] = {}
    gathered: dict[str, dict[tuple[str, Labels], list[float]]] = {}
    for family in families:
        newest[family.name] = family
        found = gathered.setdefault(family.name, {})
        for name, labels, value in family.samples:
            found.setdefault((name, labels), []).append(value)
    return ((family, gathered[name]) for name, family in newest.items())


def _parts(values: Sequence[float]) -> list[float]:
    """As few numbers as add up to exactly the sum of ``values``: the sum, what rounding took from it, and so on."""
    parts: list[float] = []
    while math.isfinite(part := _total([*values, *(-known for known in parts)])) and part:
        parts.append(part)
    return parts or [part]


def _total(values: Sequence[float]) -> float:
    """Their sum, rounded once; infinite where it is more than a float holds."""
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):
        return sum(values)
