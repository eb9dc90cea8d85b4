import random

import pytest
from pydantic import ValidationError

from serve_app.simulator.faults import FaultBoard, fault_adapter
from serve_app.simulator.limits import Limiter
from serve_app.simulator.stats import Stats


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def fault(**data):
    return fault_adapter.validate_python(data)


def test_a_bound_on_requests_at_once_refuses_until_one_is_released():
    limiter = Limiter(2, None, clock=Clock())
    assert [limiter.admit(), limiter.admit()] == [None, None]
    assert limiter.admit() is not None
    limiter.release()
    assert limiter.admit() is None


def test_a_minute_admits_its_number_and_says_when_the_next_may_come():
    clock = Clock()
    limiter = Limiter(None, 2, clock=clock)
    limiter.admit()
    clock.now = 10.0
    limiter.admit()
    clock.now = 15.0
    assert limiter.admit() == pytest.approx(45.0)
    clock.now = 60.0
    assert limiter.admit() is None
    assert limiter.admit() == pytest.approx(10.0)


def test_a_refused_request_does_not_count_against_the_minute():
    clock = Clock()
    limiter = Limiter(1, 2, clock=clock)
    limiter.admit()
    for _ in range(5):
        assert limiter.admit() is not None
    limiter.release()
    assert limiter.admit() is None


def test_a_fault_with_a_count_ends_after_it_and_the_next_takes_over():
    board = FaultBoard(random.Random(0))
    board.put("m", [fault(kind="reset", count=2), fault(kind="status", status=500, count=1)])
    assert [taken.kind if (taken := board.take("m")) else None for _ in range(4)] == ["reset", "reset", "status", None]
    assert board.listing() == {}


def test_a_rate_is_the_share_of_requests_that_meet_the_fault():
    board = FaultBoard(random.Random(0))
    board.put("m", [fault(kind="reset", rate=0.25)])
    met = sum(board.take("m") is not None for _ in range(4000))
    assert 900 < met < 1100
    board.put("m", [fault(kind="reset", rate=0)])
    assert all(board.take("m") is None for _ in range(100))


def test_faults_belong_to_their_model_until_cleared():
    board = FaultBoard(random.Random(0))
    board.put("a", [fault(kind="reset")])
    assert board.take("b") is None
    board.clear("a")
    assert board.take("a") is None
    board.put("a", [fault(kind="reset")])
    board.clear()
    assert board.take("a") is None


def test_the_listing_says_how_often_a_fault_happened():
    board = FaultBoard(random.Random(0))
    board.put("a", [fault(kind="status", status=503, retry_after_s=2)])
    board.take("a")
    assert board.listing() == {
        "a": [{"kind": "status", "status": 503, "retry_after_s": 2.0, "rate": 1.0, "happened": 1}]
    }


@pytest.mark.parametrize(
    "data",
    [
        {"kind": "explode"}, {"kind": "status"}, {"kind": "status", "status": 200}, {"kind": "reset", "rate": 1.5},
        {"kind": "reset", "count": 0}, {"kind": "slow_first_token"}, {"kind": "reset", "status": 500}, {},
    ],
)  # fmt: skip
def test_a_fault_that_makes_no_sense_is_refused(data):
    with pytest.raises(ValidationError):
        fault_adapter.validate_python(data)


def test_statistics_count_by_model_and_outcome_and_know_what_is_in_flight():
    stats = Stats()
    stats.began("a")
    stats.began("a")
    stats.began("b")
    stats.ended("a", "ok")
    stats.ended("b", "cancelled")
    report = stats.report()
    assert (report["requests"], report["in_flight"], report["max_in_flight"], report["cancelled"]) == (3, 1, 3, 1)
    assert report["models"]["a"] == {
        "requests": 2, "in_flight": 1, "max_in_flight": 2, "cancelled": 0, "outcomes": {"ok": 1},
    }  # fmt: skip
    stats.reset()
    assert stats.report()["requests"] == 1
    stats.ended("a", "ok")
    assert stats.report()["in_flight"] == 0
