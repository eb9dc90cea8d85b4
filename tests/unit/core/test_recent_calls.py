"""Which call a verdict is about."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.recent_calls import RecentCalls
from serve_app.messages import Level
from serve_app.reports import AnsweredCall, Claim, Origin

ORIGIN = Origin("triage", "v1", "small", Level.FULL)


def answered(request_id: str, call_id: str = "c") -> AnsweredCall:
    return AnsweredCall(request_id, call_id, ORIGIN)


def test_a_call_is_handed_out_to_one_verdict() -> None:
    calls = RecentCalls()
    calls.remember([answered("r1")])
    assert calls.claim("r1", "good") == Claim(answered("r1"), is_known=True)
    assert calls.claim("r1", "bad") == Claim(None, is_known=True)
    assert calls.claim("r2", "good") == Claim(None, is_known=False)


def test_the_same_verdict_gets_the_call_again_until_it_is_settled() -> None:
    calls = RecentCalls()
    calls.remember([answered("r", "c1")])
    for _ in range(3):
        assert calls.claim("r", "good").call == answered("r", "c1")
    assert [calls.settle("c1"), calls.settle("c1")] == [True, False]
    assert calls.claim("r", "good") == Claim(None, is_known=True)


def test_of_a_repeated_request_id_the_newest_call_is_meant() -> None:
    calls = RecentCalls()
    calls.remember([answered("r", "c1")])
    calls.claim("r", "good")
    calls.remember([answered("r", "c2")])
    claim = calls.claim("r", "bad")
    assert claim.call is not None
    assert claim.call.call_id == "c2"


@pytest.mark.parametrize("report", [["c1"], ["c0", "c1"], ["c1", "c0", "c1"]])
def test_a_report_that_arrives_twice_gives_no_second_verdict(report) -> None:
    calls = RecentCalls()
    told = [answered("r", call_id) for call_id in report]
    calls.remember(told)
    assert calls.claim("r", "good").call == answered("r", "c1")
    assert calls.settle("c1")
    calls.remember(told)
    assert calls.claim("r", "good") == calls.claim("r", "bad") == Claim(None, is_known=True)


def test_memory_is_bounded() -> None:
    calls = RecentCalls(3)
    for number in range(10):
        calls.remember([answered(f"r{number}", f"c{number}")])
        calls.claim(f"r{number}", "good")
    for number in range(10):
        calls.settle(f"c{number}")
    assert len(calls._calls) == len(calls._claims) == 3


@given(st.lists(st.text(max_size=2), max_size=60), st.integers(1, 10))
def test_the_newest_are_kept_and_never_more_than_the_bound(request_ids, bound) -> None:
    calls = RecentCalls(bound)
    for number, request_id in enumerate(request_ids):
        calls.remember([answered(request_id, f"c{number}")])
    newest = list(dict.fromkeys(reversed(request_ids)))
    assert [name for name in newest if calls.claim(name, "good").is_known] == newest[:bound]
