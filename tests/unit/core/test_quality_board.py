"""Scores of all replicas, and what is learned from them."""

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.quality_board import MAX_SOURCES, REFRESH_S, QualityBoard
from serve_app.core.roster import SILENCE_S
from serve_app.messages import Level
from serve_app.policy import LearningPolicy
from serve_app.reports import MetricType, Origin, Report, ScoreSum

POLICY = LearningPolicy(min_samples=0, prior_weight=10, max_change=1, half_life_s=100)


class Board:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.board = QualityBoard({"small": 0.8, "large": 0.9}, clock=self.clock)

    def report(self, source: str, mean: float, weight: float = 10, version: str = "v1", **changes) -> None:
        origin = {"program": "triage", "version": version, "model": "small", "level": Level.FULL} | changes
        metric_type = origin.pop("metric_type", MetricType.REWARD)
        score = ScoreSum(Origin(**origin), metric_type, weight, weight * mean)
        self.board.take(Report(source, "Model-small", versions={"triage": version}, scores=(score,)))

    def learned(self, level: Level = Level.FULL) -> float:
        self.clock.advance(REFRESH_S)
        return self.board.learned(POLICY).get(("triage", level, "small"), 0.8)


def test_replicas_add_up_and_a_report_that_arrives_twice_counts_once() -> None:
    bench = Board()
    bench.report("a", 0.0)
    bench.report("b", 1.0)
    bench.report("a", 0.0)
    ((key, found),) = bench.board.scores(100).items()
    assert (key[0].model, found.weight, found.mean) == ("small", 20, 0.5)


def test_scores_move_the_quality_of_their_program_and_model_alone() -> None:
    bench = Board()
    bench.report("a", 0.0)
    assert bench.learned() == pytest.approx(0.4, abs=1e-2)
    assert {key[0] for key in bench.board.learned(POLICY)} == {"triage"}
    assert {key[2] for key in bench.board.learned(POLICY)} == {"small"}


def test_a_model_that_is_no_longer_asked_drifts_back_to_its_prior() -> None:
    bench = Board()
    bench.report("a", 0.0)
    before = bench.learned()
    bench.clock.advance(100)
    later = bench.learned()
    bench.clock.advance(1000)
    assert before < later < bench.learned() == pytest.approx(0.8)


def test_a_replica_that_is_gone_still_counts_while_its_scores_fade() -> None:
    bench = Board()
    bench.report("a", 0.0)
    bench.clock.advance(100)
    ((_, found),) = bench.board.scores(100).items()
    assert found.weight == pytest.approx(5)


def test_confidence_is_shown_and_teaches_only_if_asked_to() -> None:
    bench = Board()
    bench.report("a", 0.0, metric_type=MetricType.CONFIDENCE)
    assert bench.board.scores(100)
    assert bench.learned() == 0.8
    trusting = POLICY.model_copy(update={"sources": ("confidence",)})
    assert bench.board.learned(trusting)["triage", Level.FULL, "small"] < 0.5


def test_callers_verdicts_teach_like_rewards() -> None:
    bench = Board()
    bench.report("a", 0.0, metric_type=MetricType.FEEDBACK)
    assert bench.learned() < 0.5


def test_only_the_version_that_was_started_last_teaches_also_after_a_step_back() -> None:
    bench = Board()
    bench.report("a", 0.0, version="v1")
    bench.report("b", 1.0, version="v2")
    assert bench.learned() > 0.8
    bench.report("c", 0.0, version="v1")
    assert bench.learned() < 0.8
    assert bench.board.versions() == {"triage": "v1"}


def test_a_board_born_during_an_update_learns_from_the_new_version_once_the_old_one_is_gone() -> None:
    bench = Board()
    bench.report("new", 1.0, version="v2")
    bench.report("old", 0.0, version="v1")
    bench.clock.advance(SILENCE_S + 1)
    bench.report("new", 1.0, version="v2")
    assert bench.board.versions() == {"triage": "v2"}
    assert bench.learned() > 0.8


def test_a_program_that_no_replica_runs_any_more_keeps_its_version() -> None:
    bench = Board()
    bench.report("a", 0.0, version="v1")
    bench.report("b", 1.0, version="v2")
    bench.clock.advance(SILENCE_S + 1)
    assert bench.board.versions() == {"triage": "v2"}


def test_under_pressure_scores_say_nothing_of_the_full_program() -> None:
    bench = Board()
    bench.report("a", 0.0, level=Level.MINIMAL)
    assert bench.learned() == 0.8
    assert bench.learned(Level.MINIMAL) < 0.5


def test_a_model_that_is_not_configured_teaches_nothing() -> None:
    bench = Board()
    bench.report("a", 0.0, model="gone")
    assert bench.board.learned(POLICY) == {}


def test_it_is_bounded() -> None:
    bench = Board()
    for number in range(MAX_SOURCES + 10):
        bench.report(f"s{number}", 1.0)
    assert len(bench.board._sources) == MAX_SOURCES
    ((_, found),) = bench.board.scores(100).items()
    assert found.weight == MAX_SOURCES * 10
