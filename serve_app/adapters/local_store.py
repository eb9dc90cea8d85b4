"""Answers kept in this process: bounded in entries and bytes, and not flushed by a scan.

S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023): a new key enters a small queue
that holds a tenth of the entries, and leaves for the main queue only if it was asked for twice meanwhile. Keys that
left without that are remembered for a while, without their values; one that comes back goes straight to the main
queue. A crawl over keys asked for once therefore passes through the small queue and takes nothing else with it.

What has expired takes no room for long: each new entry drops those at the heads of the queues whose time is over, a few
at a time. One that expires behind a longer-lived one goes when it gets to the head, or is asked for.

Entries are kept encoded: their size is known exactly, a caller cannot change what another will read, and the garbage
collector has nothing to walk. A hit costs a few microseconds of decoding.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import Final

from serve_app.core.cache_entry import Entry, decode, encode
from serve_app.core.clock import Clock

SMALL_SHARE: Final = 10
"""The small queue holds one in this many entries; the paper's tenth."""
MAX_FREQUENCY: Final = 3
MAX_EXPIRED: Final = 2
"""Most expired entries that a new one drops from each queue: more than come in, and too few to be felt."""
OVERHEAD_BYTES: Final = 512
"""What an entry takes beyond its own bytes: key, slot, places in the queues and among the remembered keys."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds and has done since it was made.

    Attributes:
        bytes: memory taken, overhead included.
        evictions: entries dropped for room; expired and deleted ones are not among them.
    """

    entries: int = 0
    bytes: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0


@dataclass(slots=True)
class _Slot:
    program: str
    data: bytes
    expires_at: float
    frequency: int = 0

    @property
    def size(self) -> int:
        return len(self.data) + OVERHEAD_BYTES


class LocalStore:
    """A cache level in memory.

    Args:
        max_entries: most entries; 0 keeps none.
        max_bytes: most bytes, overhead included; an entry larger than that is not kept.
        clock: monotonic seconds.
    """

    def __init__(self, max_entries: int, max_bytes: int, *, clock: Clock = time.monotonic) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._small: dict[str, _Slot] = {}
        self._main: dict[str, _Slot] = {}
        self._remembered: dict[str, None] = {}
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._evictions = 0

    def get(self, key: str) -> Entry | None:
        """The entry kept under ``key``, fresh or stale; ``None`` when there is none or its time is over."""
        slot = self._small.get(key) or self._main.get(key)
        if slot is not None and slot.expires_at <= self._clock():
            self._drop(key)
            slot = None
        if slot is None:
            self._misses += 1
            return None
        self._hits += 1
        slot.frequency = min(slot.frequency + 1, MAX_FREQUENCY)
        return decode(slot.data)

    def put(self, key: str, entry: Entry, keep_s: float) -> bool:
        """Keep ``entry`` for ``keep_s`` seconds at most; false when it does not fit or has no bytes."""
        data = encode(entry)
        if data is None or keep_s <= 0 or self._max_entries <= 0:
            return False
        slot = _Slot(entry.program, data, self._clock() + keep_s)
        if slot.size > self._max_bytes:
            return False
        self._replace(key, slot)
        return True

    def delete_program(self, program: str) -> int:
        """Forget one program's answers; returns how many there were."""
        gone = [key for queue in (self._small, self._main) for key, slot in queue.items() if slot.program == program]
        for key in gone:
            self._drop(key)
        return len(gone)

    def clear(self) -> int:
        """Forget everything; returns how many entries there were."""
        count = len(self)
        self._small.clear()
        self._main.clear()
        self._remembered.clear()
        self._bytes = 0
        return count

    def stats(self) -> StoreStats:
        """What the store holds and has done."""
        return StoreStats(len(self), self._bytes, self._hits, self._misses, self._evictions)

    def __len__(self) -> int:
        return len(self._small) + len(self._main)

    def _replace(self, key: str, slot: _Slot) -> None:
        """Put ``slot`` where ``key`` belongs; a key already kept keeps its queue and what is known of its use."""
        belongs_in_main = key in self._main or key in self._remembered
        old = self._drop(key)
        slot.frequency = old.frequency if old is not None else 0
        self._drop_expired()
        while len(self) >= self._max_entries or self._bytes + slot.size > self._max_bytes:
            self._evict()
        self._remembered.pop(key, None)
        (self._main if belongs_in_main else self._small)[key] = slot
        self._bytes += slot.size

    def _drop_expired(self) -> None:
        now = self._clock()
        for queue in (self._small, self._main):
            for key in list(islice(queue, MAX_EXPIRED)):
                if queue[key].expires_at > now:
                    break
                self._drop(key)

    def _evict(self) -> None:
        """Make room by one entry; entries in use are moved on meanwhile."""
        evictions = self._evictions
        while self._evictions == evictions:
            if len(self._small) * SMALL_SHARE >= len(self) or not self._main:
                self._evict_from_small()
            else:
                self._evict_from_main()

    def _evict_from_small(self) -> None:
        key = next(iter(self._small))
        if self._small[key].frequency > 1:
            slot = self._small.pop(key)
            slot.frequency = 0
            self._main[key] = slot
            return
        self._drop(key)
        self._evictions += 1
        self._remember(key)

    def _evict_from_main(self) -> None:
        key = next(iter(self._main))
        slot = self._main[key]
        if slot.frequency > 0 and slot.expires_at > self._clock():
            slot.frequency -= 1
            self._main[key] = self._main.pop(key)
            return
        self._drop(key)
        self._evictions += 1

    def _remember(self, key: str) -> None:
        self._remembered[key] = None
        if len(self._remembered) > max(1, len(self)):
            del self._remembered[next(iter(self._remembered))]

    def _drop(self, key: str) -> _Slot | None:
        slot = self._small.pop(key, None) or self._main.pop(key, None)
        if slot is not None:
            self._bytes -= slot.size
        return slot
