from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from itertools import accumulate

import pytest
from cachetools import LRUCache
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from serve_app.adapters.local_store import OVERHEAD_BYTES, LocalStore
from serve_app.core.cache_entry import Entry, encode
from serve_app.core.clock import ManualClock
from serve_app.messages import Level, Usage

PLENTY = 2**30


def entry(text: str = "x", program: str = "triage") -> Entry:
    return Entry(program, {"text": text}, "large", Level.FULL, Usage(1, 1), 0.0, 1.0, 1000.0, 60.0)


def size(of: Entry) -> int:
    return len(encode(of)) + OVERHEAD_BYTES


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def store_of(entries: int, clock: ManualClock | None = None, max_bytes: int = PLENTY) -> LocalStore:
    return LocalStore(entries, max_bytes, clock=clock or ManualClock())


def fill(store: LocalStore, keys: str) -> None:
    for key in keys:
        assert store.put(key, entry(key), 60)


def kept(store: LocalStore, keys: Iterable[str]) -> str:
    """Which of the keys are kept, without asking for them: asking would change what stays."""
    return "".join(key for key in keys if key in store._small or key in store._main)


def test_what_was_put_comes_back() -> None:
    store = store_of(10)
    assert store.put("k", entry("hello"), 60)
    assert store.get("k") == entry("hello")
    assert store.get("other") is None
    assert (store.stats().hits, store.stats().misses, len(store)) == (1, 1, 1)


def test_what_a_caller_does_to_an_answer_does_not_reach_the_next_one() -> None:
    store = store_of(10)
    store.put("k", entry("hello"), 60)
    store.get("k").outputs["text"] = "changed"
    assert store.get("k").outputs == {"text": "hello"}


def test_an_entry_ends_with_its_time(clock: ManualClock) -> None:
    store = store_of(10, clock)
    store.put("k", entry(), 60)
    clock.advance(59.9)
    assert store.get("k") is not None
    clock.advance(0.1)
    assert store.get("k") is None
    assert (len(store), store.stats().bytes, store.stats().evictions) == (0, 0, 0)


def test_expired_entries_make_room_without_being_asked_for(clock: ManualClock) -> None:
    store = store_of(1000, clock)
    for second in range(500):
        store.put(f"k{second}", entry(), 10)
        clock.advance(1)
    assert len(store) <= 10 + 1
    assert store.stats().bytes == len(store) * size(entry())
    assert store.stats().evictions == 0


def test_an_expired_entry_behind_a_longer_lived_one_goes_once_that_has_gone(clock: ManualClock) -> None:
    store = store_of(1000, clock)
    store.put("long", entry(), 100)
    store.put("short", entry(), 10)
    clock.advance(50)
    store.put("new", entry(), 100)
    assert kept(store, ["long", "short", "new"]) == "longshortnew"
    clock.advance(50)
    store.put("newer", entry(), 100)
    assert kept(store, ["long", "short", "new", "newer"]) == "newnewer"


def test_writing_again_replaces_the_entry_and_its_size(clock: ManualClock) -> None:
    store = store_of(10, clock)
    store.put("k", entry("a" * 1000), 60)
    clock.advance(30)
    store.put("k", entry("b"), 60)
    clock.advance(59)
    assert store.get("k") == entry("b")
    assert store.stats().bytes == size(entry("b"))
    assert len(store) == 1


def test_no_entries_keeps_none() -> None:
    store = store_of(0)
    assert not store.put("k", entry(), 60)
    assert store.get("k") is None


def test_what_cannot_be_kept_leaves_the_rest_alone() -> None:
    store = store_of(10, max_bytes=10_000)
    store.put("k", entry(), 60)
    unpressable = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=40_000))
    assert not store.put("big", entry(unpressable), 60)
    assert not store.put("odd", entry("\ud800"), 60)
    assert not store.put("gone", entry(), 0)
    assert store.get("k") is not None
    assert store.stats().evictions == 0


def test_bytes_are_bounded_and_counted() -> None:
    one = size(entry("0"))
    store = store_of(1000, max_bytes=5 * one)
    fill(store, "01234567")
    assert len(store) == 5
    assert store.stats().bytes == 5 * one
    assert store.stats().evictions == 3


def test_one_large_entry_makes_as_much_room_as_it_needs() -> None:
    store = store_of(1000, max_bytes=5 * size(entry("0")))
    fill(store, "01234")
    large = entry("y" * 3 * OVERHEAD_BYTES)
    assert store.put("large", large, 60)
    assert store.get("large") == large
    assert store.stats().bytes <= 5 * size(entry("0"))


def test_a_program_is_forgotten_and_the_others_are_not() -> None:
    store = store_of(10)
    fill(store, "abc")
    store.put("z", entry("z", "research"), 60)
    assert store.delete_program("triage") == 3
    assert (kept(store, "abcz"), store.stats().bytes) == ("z", size(entry("z", "research")))
    assert store.delete_program("unknown") == 0


def test_clearing_forgets_everything() -> None:
    store = store_of(10)
    fill(store, "abc")
    assert store.clear() == 3
    assert (len(store), store.stats().bytes, store.get("a")) == (0, 0, None)


def test_the_small_queue_gives_up_its_oldest_first() -> None:
    store = store_of(4)
    fill(store, "abcde")
    assert kept(store, "abcde") == "bcde"


def test_an_entry_asked_for_twice_moves_to_the_main_queue() -> None:
    store = store_of(4)
    fill(store, "abcd")
    store.get("a")
    store.get("a")
    store.get("b")
    fill(store, "e")
    assert kept(store, "abcde") == "acde"
    assert list(store._main) == ["a"]


def test_a_key_that_comes_back_soon_goes_straight_to_the_main_queue() -> None:
    store = store_of(4)
    fill(store, "abcde")
    fill(store, "a")
    assert list(store._main) == ["a"]


def test_the_main_queue_gives_up_what_was_not_asked_for_since_and_spares_the_rest_once() -> None:
    store = store_of(10)
    fill(store, "abcdefghij")
    for key in "abcdefghij":
        store.get(key)
        store.get(key)
    fill(store, "k")  # all move to the main queue; its oldest goes
    assert kept(store, "abcdefghijk") == "bcdefghijk"
    store.get("b")
    fill(store, "l")  # the small queue holds a tenth: k goes
    assert kept(store, "bckl") == "bcl"


def zipf_keys(count: int, keys: int, seed: int) -> list[str]:
    """A Zipf(1.0) trace: what popular questions look like."""
    weights = list(accumulate(1 / rank for rank in range(1, keys + 1)))
    return [str(key) for key in random.Random(seed).choices(range(keys), cum_weights=weights, k=count)]


def hit_ratio(store: LocalStore | LRUCache, trace: list[str]) -> float:
    hits = 0
    for key in trace:
        if store.get(key) is not None:
            hits += not key.startswith("scan")
        elif isinstance(store, LocalStore):
            store.put(key, entry(), 60)
        else:
            store[key] = True
    return hits / sum(not key.startswith("scan") for key in trace)


def test_on_a_zipf_trace_it_hits_more_than_lru() -> None:
    trace = zipf_keys(40_000, 5000, seed=7)
    assert hit_ratio(store_of(250), trace) > hit_ratio(LRUCache(250), trace) + 0.03


def test_a_scan_does_not_flush_what_is_in_use() -> None:
    trace = []
    for number, key in enumerate(zipf_keys(40_000, 5000, seed=8)):
        trace.append(key)
        if number % 4000 >= 3000:  # a crawler comes by, three new keys for each of the others'
            trace.extend(f"scan{number}-{index}" for index in range(3))
    clean = [key for key in trace if not key.startswith("scan")]
    lost = hit_ratio(store_of(250), clean) - hit_ratio(store_of(250), trace)
    assert lost < 0.03
    assert lost < hit_ratio(LRUCache(250), clean) - hit_ratio(LRUCache(250), trace)


def test_the_counted_bytes_are_not_less_than_the_memory_taken() -> None:
    keys = [f"{number:064x}" for number in range(20_000)]
    tracemalloc.start()
    try:
        store = store_of(5000)
        before = tracemalloc.get_traced_memory()[0]
        for key in keys:
            store.put(key, entry(), 60)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(store) == 5000
    assert taken <= store.stats().bytes


class Bounded(RuleBasedStateMachine):
    """Whatever happens, both bounds hold and the count of bytes is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.store = store_of(7, self.clock, max_bytes=5 * 600)

    @rule(key=st.integers(0, 20), length=st.integers(0, 2500), keep_s=st.just(0.0) | st.floats(0.1, 20))
    def put(self, key: int, length: int, keep_s: float) -> None:
        value = entry("y" * length, f"p{key % 2}")
        if self.store.put(str(key), value, keep_s):
            assert self.store.get(str(key)) == value

    @rule(key=st.integers(0, 20))
    def get(self, key: int) -> None:
        self.store.get(str(key))

    @rule(seconds=st.floats(0, 10))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def delete(self) -> None:
        self.store.delete_program("p1")

    @invariant()
    def the_bounds_hold(self) -> None:
        slots = [*self.store._small.values(), *self.store._main.values()]
        assert len(slots) == len(self.store) <= 7
        assert sum(slot.size for slot in slots) == self.store.stats().bytes <= 5 * 600
        assert not set(self.store._small) & set(self.store._main)
        assert len(self.store._remembered) <= 7


TestBounded = Bounded.TestCase
TestBounded.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 8))
def test_any_order_of_questions_keeps_the_bound(keys: list[int], entries: int) -> None:
    store = store_of(entries)
    for key in keys:
        if store.get(str(key)) is None:
            assert store.put(str(key), entry(), 60)
        assert store.get(str(key)) is not None
        assert len(store) <= entries
