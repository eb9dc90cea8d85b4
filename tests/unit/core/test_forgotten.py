"""What a replica drops, and what it keeps from then on, when an operator forgets a program."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.clock import ManualClock
from serve_app.core.forgotten import Forgotten


def test_what_was_ordered_before_the_replica_began_is_no_news() -> None:
    forgotten = Forgotten(clock=ManualClock())
    assert forgotten.update({"triage": 5.0}) == set()
    assert forgotten.update({"triage": 5.0}) == set()
    assert forgotten.outlives("triage", -1e9)


def test_a_later_order_is_news_once_and_for_its_program_only() -> None:
    clock = ManualClock(100.0)
    forgotten = Forgotten(clock=clock)
    forgotten.update({})
    assert forgotten.update({"triage": 7.0}) == {"triage"}
    assert forgotten.update({"triage": 7.0}) == set()
    assert not forgotten.outlives("triage", 99.0)
    assert not forgotten.outlives("triage", 100.0)
    assert forgotten.outlives("triage", 100.1)
    assert forgotten.outlives("research", 1.0)


def test_a_control_plane_that_lost_its_orders_and_learns_them_again_forgets_nothing_anew() -> None:
    forgotten = Forgotten(clock=ManualClock())
    forgotten.update({"triage": 7.0})
    assert forgotten.update({}) == set()
    assert forgotten.update({"triage": 7.0}) == set()
    assert forgotten.update({"triage": 8.0}) == {"triage"}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.floats(1, 9)), min_size=1))
def test_a_program_is_news_exactly_when_its_time_is_the_latest_so_far(orders: list[dict[str, float]]) -> None:
    forgotten, latest = Forgotten(clock=ManualClock()), dict(orders[0])
    forgotten.update(orders[0])
    for order in orders[1:]:
        assert forgotten.update(order) == {name for name, at in order.items() if at > latest.get(name, 0.0)}
        latest |= {name: max(at, latest.get(name, 0.0)) for name, at in order.items()}
