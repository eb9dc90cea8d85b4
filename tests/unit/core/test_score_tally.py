"""Sums of scores that fade."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.clock import ManualClock
from serve_app.core.score_tally import MAX_SUMS, ScoreTally
from serve_app.messages import Level
from serve_app.reports import MetricType, Origin, ScoreSum

HERE = Origin("triage", "v1", "small", Level.FULL)


def tally(half_life_s: float = 100.0) -> tuple[ScoreTally, ManualClock]:
    clock = ManualClock()
    return ScoreTally(half_life_s, clock=clock), clock


def test_fresh_scores_count_in_full_and_by_origin_and_type() -> None:
    made, _ = tally()
    elsewhere = Origin("triage", "v1", "small", Level.MINIMAL)
    made.add(HERE, MetricType.REWARD, 1.0)
    made.add(HERE, MetricType.REWARD, 0.5)
    made.add(HERE, MetricType.FEEDBACK, 0.0)
    made.add(elsewhere, MetricType.REWARD, 0.25)
    assert set(made.sums()) == {
        ScoreSum(HERE, MetricType.REWARD, 2.0, 1.5),
        ScoreSum(HERE, MetricType.FEEDBACK, 1.0, 0.0),
        ScoreSum(elsewhere, MetricType.REWARD, 1.0, 0.25),
    }


def test_after_a_half_life_a_score_counts_half() -> None:
    made, clock = tally()
    made.add(HERE, MetricType.REWARD, 1.0)
    clock.advance(100)
    made.add(HERE, MetricType.REWARD, 0.0)
    (found,) = made.sums()
    assert (found.weight, found.total) == (pytest.approx(1.5), pytest.approx(0.5))


def test_what_no_longer_counts_is_forgotten() -> None:
    made, clock = tally()
    made.add(HERE, MetricType.REWARD, 1.0)
    clock.advance(500)
    assert made.sums() == ()
    assert made._sums == {}


def test_another_half_life_holds_from_now_on() -> None:
    made, clock = tally(100)
    made.add(HERE, MetricType.REWARD, 1.0)
    clock.advance(100)
    made.reconfigure(10)
    clock.advance(10)
    assert made.sums()[0].weight == pytest.approx(0.25)


def test_it_is_bounded() -> None:
    made, _ = tally()
    for number in range(MAX_SUMS + 5):
        made.add(Origin("triage", f"v{number}", "small", Level.FULL), MetricType.REWARD, 1.0)
    assert len(made.sums()) == MAX_SUMS


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 300)), min_size=1, max_size=30))
def test_sums_are_those_of_every_score_faded_by_its_own_age(scores) -> None:
    made, clock = tally(100)
    ages: list[tuple[float, float]] = []
    for score, pause_s in scores:
        made.add(HERE, MetricType.REWARD, score)
        ages.append((score, clock()))
        clock.advance(pause_s)
    weights = [(score, 0.5 ** ((clock() - at) / 100)) for score, at in ages]
    expected = sum(weight for _, weight in weights)
    found = made.sums()
    if found:
        assert found[0].weight == pytest.approx(expected)
        assert found[0].total == pytest.approx(sum(score * weight for score, weight in weights))
    else:
        assert expected < 0.0500001
