from __future__ import annotations

import pytest

from serve_app.core.clock import ManualClock
from serve_app.core.recent_usage import HALF_LIFE_S, MAX_PAIRS, PRIOR_OUTPUT_TOKENS, Expectation, RecentUsage
from serve_app.messages import Usage


def observe(recent: RecentUsage, output_tokens: int, latency_s: float = 1.0, model: str = "m", input_tokens: int = 100):
    recent.observe("p", model, Usage(input_tokens, output_tokens), latency_s, estimated_input_tokens=40)


def test_before_any_answer_the_priors_hold() -> None:
    recent = RecentUsage(clock=ManualClock())
    assert recent.expect("p", "m", prior_latency_s=2.0) == Expectation(PRIOR_OUTPUT_TOKENS, 2.0, 0.0)


def test_the_first_answer_replaces_the_priors() -> None:
    recent = RecentUsage(clock=ManualClock())
    observe(recent, 80, 0.5)
    assert recent.expect("p", "m", prior_latency_s=2.0) == Expectation(80, 0.5, 60)


def test_the_first_answers_count_alike() -> None:
    recent = RecentUsage(clock=ManualClock())
    for tokens in (10, 20, 60):
        observe(recent, tokens)
    assert recent.expect("p", "m", prior_latency_s=1.0).output_tokens == pytest.approx(30)


def test_an_average_follows_a_lasting_change() -> None:
    recent = RecentUsage(clock=ManualClock())
    for _ in range(100):
        observe(recent, 10)
    for _ in range(20):
        observe(recent, 1000)
    assert recent.expect("p", "m", prior_latency_s=1.0).output_tokens == pytest.approx(1000, rel=0.02)


def test_one_odd_answer_moves_it_by_a_fifth() -> None:
    recent = RecentUsage(clock=ManualClock())
    for _ in range(100):
        observe(recent, 100)
    observe(recent, 1100)
    assert recent.expect("p", "m", prior_latency_s=1.0).output_tokens == pytest.approx(300)


def test_what_is_not_seen_again_fades_to_its_prior() -> None:
    clock = ManualClock()
    recent = RecentUsage(clock=clock)
    observe(recent, 6256, latency_s=21.0)
    clock.advance(HALF_LIFE_S)
    assert recent.expect("p", "m", prior_latency_s=1.0) == Expectation(3256, pytest.approx(11.0), 30)
    clock.advance(100 * HALF_LIFE_S)
    priors = Expectation(pytest.approx(PRIOR_OUTPUT_TOKENS), pytest.approx(1.0), pytest.approx(0.0))
    assert recent.expect("p", "m", prior_latency_s=1.0) == priors


def test_programs_and_models_learn_apart() -> None:
    recent = RecentUsage(clock=ManualClock())
    observe(recent, 10, model="a")
    observe(recent, 1000, model="b")
    assert recent.expect("p", "a", prior_latency_s=1.0).output_tokens == 10
    assert recent.expect("q", "a", prior_latency_s=1.0).output_tokens == PRIOR_OUTPUT_TOKENS


def test_fewer_input_tokens_than_estimated_are_no_negative_overhead() -> None:
    recent = RecentUsage(clock=ManualClock())
    observe(recent, 10, input_tokens=5)
    assert recent.expect("p", "m", prior_latency_s=1.0).overhead_tokens == 0


def test_memory_is_bounded() -> None:
    recent = RecentUsage(clock=ManualClock())
    for number in range(MAX_PAIRS + 5):
        observe(recent, 7, model=str(number))
    assert recent.expect("p", "4", prior_latency_s=1.0).output_tokens == PRIOR_OUTPUT_TOKENS
    assert recent.expect("p", "5", prior_latency_s=1.0).output_tokens == 7
