"""Which call a verdict is about."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.recent_calls import RecentCalls
from serve_app.messages import AnsweredCall, Claim, Level, Origin

ORIGIN = Origin("triage", "v1", "small", Level.FULL)


def answered(request_id: str, call_id: str = "c") -> AnsweredCall:
    return AnsweredCall(request_id, call_id, ORIGIN)


def test_a_call_is_handed_out_once() -> None:
    calls = RecentCalls()
    calls.remember([answered("r1")])
    assert calls.claim("r1") == Claim(answered("r1"), is_known=True)
    assert calls.claim("r1") == Claim(None, is_known=True)
    assert calls.claim("r2") == Claim(None, is_known=False)


def test_of_a_repeated_request_id_the_newest_call_is_meant() -> None:
    calls = RecentCalls()
    calls.remember([answered("r", "c1")])
    calls.claim("r")
    calls.remember([answered("r", "c2")])
    claim = calls.claim("r")
    assert claim.call is not None
    assert claim.call.call_id == "c2"


def test_a_report_that_arrives_twice_gives_no_second_verdict() -> None:
    calls = RecentCalls()
    calls.remember([answered("r", "c1")])
    calls.claim("r")
    calls.remember([answered("r", "c1")])
    assert calls.claim("r") == Claim(None, is_known=True)


def test_what_is_forgotten_leaves_nothing_behind() -> None:
    calls = RecentCalls(1)
    calls.remember([answered("r", "c1")])
    calls.claim("r")
    calls.remember([answered("s", "c2")])
    assert (len(calls._calls), calls._claimed) == (1, set())


@given(st.lists(st.text(max_size=2), max_size=60), st.integers(1, 10))
def test_the_newest_are_kept_and_never_more_than_the_bound(request_ids, bound) -> None:
    calls = RecentCalls(bound)
    for number, request_id in enumerate(request_ids):
        calls.remember([answered(request_id, f"c{number}")])
    newest = list(dict.fromkeys(reversed(request_ids)))
    assert [name for name in newest if calls.claim(name).is_known] == newest[:bound]
