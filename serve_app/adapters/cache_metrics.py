"""What the levels of the cache do, counted once and told twice: to ``/metrics``, and as ``caches`` in ``/v1/status``.

A hit is counted by adding to a few numbers; only whoever asks for samples pays for Prometheus' types. In ``/metrics``
the counts are by program; the gauges that a report carries are of the whole replica, and the control plane adds them
up over the replicas that live.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve_app.adapters.local_store import StoreStats
from serve_app.adapters.redis_store import RedisStats

_COUNTERS: Final = {
    "hits": ("Calls answered from a cache.", ("program", "tier")),
    "misses": ("Calls no cache could answer.", ("program",)),
    "coalesced": ("Calls that shared another's answer in flight.", ("program",)),
    "stale": ("Calls answered with a stale answer.", ("program",)),
    "saved_cost_usd": ("USD not spent, by hits and shared answers.", ("program",)),
    "saved_seconds": ("Seconds of models' time that hits saved.", ("program",)),
    "evictions": ("Answers dropped for room.", ("tier",)),
    "redis_failures": ("Operations of the shared level that failed.", ("reason",)),
}
_GAUGES: Final = {
    "entries": ("Answers in memory.", ("tier",)),
    "bytes": ("Bytes they take, overhead included.", ("tier",)),
    "redis_up": ("1 while the shared level is asked.", ()),
}
_TOLD_AS: Final = {
    "hits": "hits_{1}",
    "evictions": "evictions_{0}",
    "entries": "{0}_entries",
    "bytes": "{0}_bytes",
    "redis_failures": "redis_failures_{0}",
}
"""What a replica's own gauges keep apart, by label; all others are sums."""

_Values = defaultdict[tuple[str, ...], float]


class CacheMetrics(Collector):
    """The cache's part of a replica's metrics; tiers are ``near``, ``memory`` and ``redis``."""

    def __init__(self) -> None:
        self._values: dict[str, _Values] = {name: defaultdict(float) for name in (*_COUNTERS, *_GAUGES)}
        self._known: dict[tuple[str, str], int] = {}

    def hit(self, program: str, tier: str, cost_usd: float, latency_s: float, *, is_stale: bool = False) -> None:
        """Count an answer from a tier, and what it cost and took when it was made."""
        values = self._values
        values["hits"][program, tier] += 1
        values["saved_cost_usd"][program,] += cost_usd
        values["saved_seconds"][program,] += latency_s
        if is_stale:
            values["stale"][program,] += 1

    def missed(self, program: str) -> None:
        """Count a call that no level could answer."""
        self._values["misses"][program,] += 1

    def coalesced(self, program: str, cost_usd: float) -> None:
        """Count a call that took the answer of an identical one in flight, and what that one cost."""
        self._values["coalesced"][program,] += 1
        self._values["saved_cost_usd"][program,] += cost_usd

    def holds(self, tier: str, stats: StoreStats) -> None:
        """Take what a level in memory holds and has evicted."""
        self._values["entries"][tier,] = stats.entries
        self._values["bytes"][tier,] = stats.bytes
        self._values["evictions"][tier,] += self._grown("evictions", tier, stats.evictions)

    def store(self, stats: RedisStats) -> None:
        """Take how the shared level does."""
        self._values["redis_up"][()] = stats.is_up
        for reason, count in stats.failures.items():
            self._values["redis_failures"][reason,] += self._grown("redis_failures", reason, count)

    def gauges(self) -> dict[str, float]:
        """Everything counted so far and held now, by names that begin with ``cache_``."""
        told: defaultdict[str, float] = defaultdict(float)
        for name, values in self._values.items():
            for labels, value in values.items():
                told["cache_" + _TOLD_AS.get(name, name).format(*labels)] += value
        if is_up := self._values["redis_up"]:
            told["cache_redis_down"] = 1 - is_up[()]
        return dict(told)

    def collect(self) -> Iterator[Metric]:
        """Yield the families with a value (the interface of a ``prometheus_client`` collector)."""
        kinds = ((_COUNTERS, CounterMetricFamily), (_GAUGES, GaugeMetricFamily))
        for descriptions, family in kinds:
            for name, (documentation, labels) in descriptions.items():
                metric = family(f"dspy_cache_{name}", documentation, labels=labels)
                for key, value in self._values[name].items():
                    metric.add_metric(key, value)
                yield metric

    def _grown(self, name: str, label: str, total: int) -> int:
        """By how much a total has grown since the last look; all of it when it began anew."""
        before, self._known[name, label] = self._known.get((name, label), 0), total
        return total - before if total >= before else total
