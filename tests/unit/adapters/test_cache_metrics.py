"""The cache's figures, once by program for Prometheus and once as a replica's gauges."""

import pytest

from serve_app.adapters.local_store import StoreStats
from serve_app.adapters.redis_store import RedisStats
from serve_app.adapters.telemetry import Telemetry


def samples(telemetry: Telemetry) -> dict:
    return {
        (name, *(value for _, value in labels)): value
        for family in telemetry.samples()
        if family.name.startswith("dspy_cache_")
        for name, labels, value in family.samples
    }


def redis_stats(*, is_up: bool = True, **failures: int) -> RedisStats:
    return RedisStats(is_up, hits=0, misses=0, writes=0, failures=failures)


def test_hits_count_by_tier_and_save_what_the_answer_had_taken() -> None:
    telemetry = Telemetry()
    telemetry.cache.hit("ask", "near", 0.25, 2.0)
    telemetry.cache.hit("ask", "redis", 0.5, 1.0, is_stale=True)
    telemetry.cache.coalesced("ask", 0.25)
    telemetry.cache.missed("ask")
    found = samples(telemetry)
    assert found["dspy_cache_hits_total", "ask", "near"] == found["dspy_cache_hits_total", "ask", "redis"] == 1
    assert found["dspy_cache_saved_cost_usd_total", "ask"] == pytest.approx(1.0)
    assert found["dspy_cache_saved_seconds_total", "ask"] == pytest.approx(3.0)
    assert found["dspy_cache_stale_total", "ask"] == found["dspy_cache_coalesced_total", "ask"] == 1
    assert telemetry.cache.gauges() == {
        "cache_hits_near": 1,
        "cache_hits_redis": 1,
        "cache_stale": 1,
        "cache_misses": 1,
        "cache_coalesced": 1,
        "cache_saved_cost_usd": pytest.approx(1.0),
        "cache_saved_seconds": pytest.approx(3.0),
    }


def test_what_is_held_is_a_gauge_and_what_was_evicted_a_counter() -> None:
    telemetry = Telemetry()
    telemetry.cache.holds("near", StoreStats(entries=3, bytes=300, evictions=2))
    telemetry.cache.holds("near", StoreStats(entries=2, bytes=200, evictions=5))
    found = samples(telemetry)
    assert found["dspy_cache_entries", "near"] == 2
    assert found["dspy_cache_bytes", "near"] == 200
    assert found["dspy_cache_evictions_total", "near"] == 5
    gauges = telemetry.cache.gauges()
    assert (gauges["cache_near_entries"], gauges["cache_near_bytes"], gauges["cache_evictions_near"]) == (2, 200, 5)


def test_the_shared_level_is_up_or_down_and_its_failures_count_by_reason() -> None:
    telemetry = Telemetry()
    assert ("dspy_cache_redis_up",) not in samples(telemetry)
    telemetry.cache.store(redis_stats(timeout=2))
    telemetry.cache.store(redis_stats(is_up=False, timeout=3, skipped=4))
    found = samples(telemetry)
    assert found["dspy_cache_redis_up",] == 0
    assert found["dspy_cache_redis_failures_total", "timeout"] == 3
    assert found["dspy_cache_redis_failures_total", "skipped"] == 4
    gauges = telemetry.cache.gauges()
    assert (gauges["cache_redis_up"], gauges["cache_redis_down"], gauges["cache_redis_failures_timeout"]) == (0, 1, 3)


def test_a_store_made_anew_goes_on_from_where_the_one_before_ended() -> None:
    telemetry = Telemetry()
    telemetry.cache.store(redis_stats(timeout=5))
    telemetry.cache.store(redis_stats(timeout=1))
    assert samples(telemetry)["dspy_cache_redis_failures_total", "timeout"] == 6
