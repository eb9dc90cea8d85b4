"""Hit ratio of the near cache (S3-FIFO) beside LRU and FIFO of the same size, on traces made here.

    zipf      independent requests, popularity 1 / rank ** alpha: what people ask
    scan      the same requests, between which a crawler asks for keys that nobody asks for again, in runs; only what
              people asked counts, since no cache can answer the crawler

Beside them is what a cache that knew the popularity beforehand would answer: it holds the most popular keys for ever.
Each trace is the same for every cache. Everything is decided by ``--seed``; nothing depends on the machine.

    python -m benchmarks.near_cache --objects 10000 --requests 400000
"""

from __future__ import annotations

import argparse
import itertools
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serve_app.adapters.local_store import LocalStore
from serve_app.core.cache_entry import Entry
from serve_app.core.clock import ManualClock
from serve_app.messages import Level, Usage

Request = tuple[int, bool]
"""A key, and whether a person asked: the crawler's requests are made but not counted."""

SIZES = (0.01, 0.1)
ALPHAS = (0.8, 1.0)
SCAN_SHARE = 0.3
SCAN_RUN = 2_000
CHUNK = 10_000
ENTRY = Entry("ask", {"answer": "yes"}, "small", Level.FULL, Usage(1, 1), 0.0, 1.0, 0.0, 60.0)


class Cache(ABC):
    """Says whether it has a key, and takes it in when it has not."""

    @abstractmethod
    def __init__(self, entries: int) -> None: ...

    @abstractmethod
    def has(self, key: int) -> bool:
        """Whether the key was there; it is afterwards."""


class Near(Cache):
    """The real near cache, with real entries."""

    def __init__(self, entries: int) -> None:
        self._store = LocalStore(entries, 2**40, clock=ManualClock())

    def has(self, key: int) -> bool:
        """Whether the key was there; it is afterwards."""
        name = str(key)
        if self._store.get(name) is not None:
            return True
        self._store.put(name, ENTRY, 60.0)
        return False


class Lru(Cache):
    """Evicts what was asked for least recently."""

    moves_on_hit = True

    def __init__(self, entries: int) -> None:
        self._entries = entries
        self._kept: OrderedDict[int, None] = OrderedDict()

    def has(self, key: int) -> bool:
        """Whether the key was there; it is afterwards."""
        if key in self._kept:
            if self.moves_on_hit:
                self._kept.move_to_end(key)
            return True
        if len(self._kept) >= self._entries:
            self._kept.popitem(last=False)
        self._kept[key] = None
        return False


class Fifo(Lru):
    """Evicts what came first."""

    moves_on_hit = False


CACHES: dict[str, type[Cache]] = {"near": Near, "LRU": Lru, "FIFO": Fifo}


def zipf(objects: int, requests: int, alpha: float, random: Random) -> Iterator[int]:
    weights = list(accumulate(1 / rank**alpha for rank in range(1, objects + 1)))
    keys = range(objects)
    for start in range(0, requests, CHUNK):
        yield from random.choices(keys, cum_weights=weights, k=min(CHUNK, requests - start))


def plain(objects: int, requests: int, alpha: float, random: Random) -> Iterator[Request]:
    return ((key, True) for key in zipf(objects, requests, alpha, random))


def scanned(objects: int, requests: int, alpha: float, random: Random) -> Iterator[Request]:
    """``SCAN_SHARE`` of all requests are a crawler's, in runs of ``SCAN_RUN`` keys never asked for again."""
    between = round(SCAN_RUN * (1 - SCAN_SHARE) / SCAN_SHARE)
    crawled = objects
    for number, key in enumerate(zipf(objects, requests, alpha, random)):
        if number % between == 0:
            yield from ((crawled + step, False) for step in range(SCAN_RUN))
            crawled += SCAN_RUN
        yield key, True


TRACES: dict[str, Callable[[int, int, float, Random], Iterator[Request]]] = {
    "zipf": plain,
    "scan": scanned,
}


def hit_ratio(cache: Cache, trace: Iterator[Request], warm_up: int) -> float:
    """Share of the people's requests that the cache answers, after ``warm_up`` of them."""
    asked = hits = 0
    for key, is_asked in trace:
        is_hit = cache.has(key)
        asked += is_asked
        hits += is_asked and is_hit and asked > warm_up
    return hits / (asked - warm_up)


def best_possible(objects: int, entries: int, alpha: float) -> float:
    """Share of requests that go to the ``entries`` most popular keys."""
    weights = [1 / rank**alpha for rank in range(1, objects + 1)]
    return sum(weights[:entries]) / sum(weights)


def side_by_side(name: str, alpha: float, share: float, options: argparse.Namespace) -> dict[str, float]:
    """The hit ratio of each cache on one trace."""
    entries, warm_up = round(options.objects * share), options.requests // 4
    print(f"{name} alpha={alpha} size={share}", file=sys.stderr)
    return {
        kind: hit_ratio(
            cache(entries), TRACES[name](options.objects, options.requests, alpha, Random(options.seed)), warm_up
        )
        for kind, cache in CACHES.items()
    }


def report(options: argparse.Namespace) -> None:
    print(
        "| trace | alpha | entries, of keys | near (S3-FIFO) | LRU | FIFO | knows popularity | LRU's misses avoided |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, alpha, share in itertools.product(TRACES, ALPHAS, SIZES):
        ratios = side_by_side(name, alpha, share, options)
        best = best_possible(options.objects, round(options.objects * share), alpha)
        avoided = (ratios["near"] - ratios["LRU"]) / (1 - ratios["LRU"])
        shown = " | ".join(f"{ratio:.1%}" for ratio in (*ratios.values(), best, avoided))
        print(f"| {name} | {alpha} | {share:.0%} | {shown} |")
    print(NOTE.format(objects=options.objects, requests=options.requests, scan=SCAN_SHARE, run=SCAN_RUN))
    print("\n| entries, of keys | near (S3-FIFO) | LRU | TinyUFO, published | LRU, published |")
    print("|---|---|---|---|---|")
    for share, (tiny_ufo, lru) in PUBLISHED.items():
        ratios = side_by_side("zipf", 1.0, share, options)
        print(f"| {share:.1%} | {ratios['near']:.1%} | {ratios['LRU']:.1%} | {tiny_ufo:.1%} | {lru:.1%} |")


PUBLISHED = {
    0.005: (0.4526, 0.3105),
    0.01: (0.5235, 0.3916),
    0.05: (0.6889, 0.5875),
    0.1: (0.7598, 0.6759),
    0.25: (0.8534, 0.7995),
}
"""Hit ratios of TinyUFO, and of LRU beside it, by size (README of the crate TinyUFO 0.4, docs.rs/TinyUFO, zipf=1)."""

NOTE = """
Hit ratios of {requests:,} requests over {objects:,} keys, the first quarter left out. `scan`: {scan:.0%} of all are
a crawler's requests, in runs of {run:,} keys, and only the others are counted.

What is published. Yang et al., "FIFO queues are all you need for cache eviction" (SOSP 2023,
doi:10.1145/3600006.3613147) find, on 6,594 measured traces of 14 datasets, lower miss ratios than those of the
state-of-the-art algorithms they compare, and the lowest mean miss ratio on 10 of the 14. Those traces are not these,
so only the direction can be compared, and the reason that they give: most keys of a skewed trace are asked for once
in a while, and a small queue is soon rid of them.

TinyUFO, a library that joins S3-FIFO with TinyLFU, publishes hit ratios for zipf = 1 without the number of keys.
LRU's ratios tell how near its trace is to this one; TinyLFU's counters remember more than S3-FIFO's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=10_000, help="keys that people ask for")
    parser.add_argument("--requests", type=int, default=400_000, help="their requests in each trace")
    parser.add_argument("--seed", type=int, default=1, help="of every trace")
    report(parser.parse_args())


if __name__ == "__main__":
    main()
