"""What a result looks like to a caller."""

import pytest
from deployment_fakes import call, ok

from serve_app.deployments.reply import cache_headers, cache_status_header, reply
from serve_app.messages import CacheStatus, Level, Result, Usage


def test_a_reply_has_the_documented_members_and_no_other() -> None:
    body = reply("ask", "r1", ok(call(1)), 0.1234567)
    assert body.keys() == {"outputs", "meta"}
    assert body["meta"].keys() == {
        "request_id",
        "program",
        "model",
        "level",
        "cache",
        "attempts",
        "usage",
        "cost_usd",
        "latency_s",
    }
    assert body["meta"]["latency_s"] == 0.123457


def test_values_are_plain_json() -> None:
    result = Result("c", {"a": 1}, level=Level.MINIMAL, cache=CacheStatus.STALE, usage=Usage(3, 4), cost_usd=0.5)
    meta = reply("ask", "r1", result, 0.0)["meta"]
    assert (type(meta["level"]), meta["level"], type(meta["cache"]), meta["cache"]) == (str, "minimal", str, "stale")
    assert meta["usage"] == {"input_tokens": 3, "output_tokens": 4}


@pytest.mark.parametrize(
    ("result", "header"),
    [
        (Result("c", cache=CacheStatus.HIT, tier="near", fresh_for_s=59.9), "Switchyard; hit; ttl=59; detail=near"),
        (Result("c", cache=CacheStatus.HIT, tier="redis", fresh_for_s=0.5), "Switchyard; hit; ttl=0; detail=redis"),
        (
            Result("c", cache=CacheStatus.STALE, tier="memory", fresh_for_s=-0.5),
            "Switchyard; hit; ttl=-1; detail=memory",
        ),
        (Result("c", cache=CacheStatus.MISS), "Switchyard; fwd=miss"),
        (Result("c", cache=CacheStatus.MISS, fresh_for_s=60.0), "Switchyard; fwd=miss; stored; ttl=60"),
        (
            Result("c", cache=CacheStatus.MISS, forwarded="stale", fresh_for_s=60.0),
            "Switchyard; fwd=stale; stored; ttl=60",
        ),
        (Result("c", cache=CacheStatus.MISS, forwarded="request"), "Switchyard; fwd=request"),
        (Result("c", cache=CacheStatus.BYPASS), "Switchyard; fwd=bypass"),
        (Result("c", cache=CacheStatus.COALESCED), "Switchyard; fwd=miss; collapsed"),
        (Result("c", cache=CacheStatus.COALESCED, fresh_for_s=60.0), "Switchyard; fwd=miss; collapsed; stored; ttl=60"),
    ],
)
def test_the_cache_status_is_a_member_of_rfc_9211(result, header) -> None:
    assert cache_status_header(result) == header


@pytest.mark.parametrize("status", CacheStatus)
def test_no_answer_is_both_a_hit_and_forwarded(status) -> None:
    header = cache_status_header(Result("c", cache=status, tier="near"))
    assert ("; hit" in header) != ("; fwd=" in header)


def test_only_a_stored_answer_has_an_age_in_whole_seconds() -> None:
    assert cache_headers(Result("c", cache=CacheStatus.HIT, age_s=12.9))["Age"] == "12"
    assert cache_headers(Result("c", cache=CacheStatus.STALE, age_s=0.2))["Age"] == "0"
    assert "Age" not in cache_headers(Result("c", cache=CacheStatus.MISS))
    assert "Age" not in cache_headers(Result("c", cache=CacheStatus.COALESCED))
