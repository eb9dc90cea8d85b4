"""Which ``traceparent`` and ``tracestate`` are taken, and which are as good as none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.trace_context import MAX_TRACESTATE_CHARS, trace_context
from serve_app.messages import TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


def test_a_well_formed_context_is_taken_as_it_is() -> None:
    found = trace_context({"traceparent": GOOD, "tracestate": "congo=t61rcWkgMzE,rojo@vendor=00f067aa0ba902b7"})
    assert found == TraceContext(GOOD, "congo=t61rcWkgMzE,rojo@vendor=00f067aa0ba902b7")
    assert found.trace_id == TRACE


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "nonsense",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-٠١",
        f"{GOOD},{GOOD}",
        "00-" + "a" * 100_000,
    ],
)
def test_a_malformed_traceparent_is_no_trace_and_its_tracestate_is_not_read(malformed) -> None:
    assert trace_context({"traceparent": malformed, "tracestate": "a=1"}) is None
    assert trace_context({"tracestate": "a=1"}) is None


def test_a_later_version_is_read_as_the_one_we_know() -> None:
    assert trace_context({"traceparent": f"cc-{TRACE}-{SPAN}-01"}) == TraceContext(GOOD)
    assert trace_context({"traceparent": f"cc-{TRACE}-{SPAN}-01-what-the-future-adds"}) == TraceContext(GOOD)


@pytest.mark.parametrize(
    "malformed",
    [
        "a",
        "a=",
        "=1",
        "A=1",
        "a=1,a=2",
        "a=1\r\nx-evil: 1",
        "a=ü",
        ",".join(f"k{n}=1" for n in range(33)),
        "a=" + "x" * 511,
    ],
)
def test_a_malformed_or_huge_tracestate_is_left_out_and_the_trace_goes_on(malformed) -> None:
    assert trace_context({"traceparent": GOOD, "tracestate": malformed}) == TraceContext(GOOD)


def test_empty_members_and_spaces_between_them_mean_nothing() -> None:
    assert trace_context({"traceparent": f" {GOOD}\t", "tracestate": " a=1 , ,\tb=2,"}) == TraceContext(GOOD, "a=1,b=2")


@given(
    parent=st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", fullmatch=True),
    state=st.text(),
)
def test_whatever_is_sent_only_what_a_header_may_hold_goes_on(parent, state) -> None:
    found = trace_context({"traceparent": parent, "tracestate": state})
    if found is not None:
        assert len(found.traceparent) == 55
        assert len(found.tracestate) <= MAX_TRACESTATE_CHARS
        assert all(" " <= character <= "~" for character in found.traceparent + found.tracestate)
        assert trace_context({"traceparent": found.traceparent, "tracestate": found.tracestate}) == found
