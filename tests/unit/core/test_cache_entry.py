from __future__ import annotations

import math
import pickle
import tracemalloc
import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.cache_entry import COMPRESS_FROM_BYTES, MAX_JSON_BYTES, Entry, decode, encode
from serve_app.messages import CacheStatus, Level, Result, Usage

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def entry(outputs: object = None, **changes: object) -> Entry:
    fields = {
        "program": "triage",
        "outputs": outputs or {"category": "billing"},
        "model": "large",
        "level": Level.DEGRADED,
        "usage": Usage(10, 5),
        "cost_usd": 0.01,
        "latency_s": 1.5,
        "created_at": 1_700_000_000.25,
        "ttl_s": 60.0,
        "confidence": 0.5,
    }
    return Entry(**(fields | changes))


@given(st.dictionaries(st.text(), JSON, min_size=1))
def test_an_entry_comes_back_as_it_was(outputs: dict[str, object]) -> None:
    original = entry(outputs)
    back = decode(encode(original))
    assert back == original
    assert repr(back) == repr(original)


def test_a_long_answer_is_compressed_and_a_short_one_is_not() -> None:
    long = entry({"text": "the quick brown fox " * 1000})
    assert len(encode(long)) < COMPRESS_FROM_BYTES
    assert decode(encode(long)) == long
    assert b"billing" in encode(entry())


@pytest.mark.parametrize(
    "outputs",
    [{"a": "\ud800"}, {"a": 2**70}, {"a": {1, 2}}, {1: "a"}, {"a": b"x"}, {"a": object()}, {"a": "x" * MAX_JSON_BYTES}],
)
def test_outputs_that_cannot_be_kept_exactly_are_not_kept(outputs: dict[str, object]) -> None:
    assert encode(entry(outputs)) is None


def altered(**changes: object) -> bytes:
    fields = orjson.loads(encode(entry())[2:])
    return b"\x01j" + orjson.dumps(fields | changes)


GOOD = encode(entry())


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x01", b"\x01j", b"\x01z", b"\x01zabc", b"\x02" + GOOD[1:], b"\x01k" + GOOD[2:], GOOD[:-1], GOOD + b"x", GOOD[2:],
        b"\x01jnull", b"\x01j[]", b"\x01j{}", b"\x01j" + b"[" * 100_000, b"\x01j\xff\xfe", bytes(range(256)),
        pickle.dumps(entry()), b"\x01j" + pickle.dumps(entry()),
        b"\x01z" + zlib.compress(GOOD[2:])[:-3], b"\x01z" + zlib.compress(GOOD[2:]) + b"tail", b"\x01z" + zlib.compress(b"{}"),
        altered(outputs=None), altered(outputs=[1]), altered(outputs="x"), altered(program=1), altered(model=None),
        altered(level="best"), altered(level=0), altered(usage=None), altered(usage={"input_tokens": "1", "output_tokens": 1}),
        altered(usage={"input_tokens": -1, "output_tokens": 1}), altered(cost_usd="1"), altered(cost_usd=-1), altered(ttl_s=True),
        altered(created_at=-1), altered(confidence="high"), altered(latency_s=None),
        GOOD.replace(b"0.01", b"1e999"), GOOD.replace(b"0.01", b"NaN"), GOOD.replace(b"60.0", b"Infinity"), GOOD.replace(b"0.5", b"NaN"),
    ],
)  # fmt: skip
def test_corrupt_or_hostile_bytes_are_a_miss(data: bytes) -> None:
    assert decode(GOOD) == entry()
    assert decode(data) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_an_entry_or_a_miss(data: bytes) -> None:
    assert decode(data) is None
    assert decode(b"\x01j" + data) is None
    assert decode(b"\x01z" + data) is None


def test_a_decompression_bomb_stays_small() -> None:
    squeezer = zlib.compressobj(9)
    bomb = b"\x01z" + b"".join(squeezer.compress(bytes(2**20)) for _ in range(256)) + squeezer.flush()
    assert len(bomb) < 2**20
    tracemalloc.start()
    try:
        assert decode(bomb) is None
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_JSON_BYTES
    finally:
        tracemalloc.stop()


def test_an_entry_of_a_later_version_with_more_fields_is_read() -> None:
    assert decode(altered(more=1)) == entry()


def test_an_answer_from_the_cache_costs_nothing_and_says_where_it_was() -> None:
    result = entry().answer("7", status=CacheStatus.STALE, tier="redis", unix_now=entry().created_at + 61.5)
    assert result == Result(
        "7",
        {"category": "billing"},
        model="large",
        level=Level.DEGRADED,
        cache=CacheStatus.STALE,
        tier="redis",
        age_s=61.5,
        confidence=0.5,
        saved_cost_usd=0.01,
        saved_s=1.5,
        fresh_for_s=60.0 - 61.5,
    )
    assert (result.cost_usd, result.usage, result.attempts) == (0.0, Usage(), ())


def test_age_is_counted_on_the_wall_clock_and_never_negative() -> None:
    assert math.isclose(entry(created_at=100.0).age_s(160.5), 60.5)
    assert entry(created_at=100.0).age_s(50.0) == 0.0
