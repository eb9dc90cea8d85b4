"""How far scores move a quality."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.core.learned_quality import Evidence, learned_quality
from serve_app.policy import LearningPolicy

POLICY = LearningPolicy(min_samples=20, prior_weight=20, max_change=0.5)
ratios = st.floats(0, 1)
evidence = st.builds(lambda weight, mean: Evidence(weight, weight * mean), st.floats(0, 1e6), ratios)
policies = st.builds(
    LearningPolicy, min_samples=st.floats(0, 1000), prior_weight=st.floats(0.1, 1000), max_change=ratios
)


def learn(prior: float, weight: float, mean: float, policy: LearningPolicy = POLICY) -> float:
    return learned_quality(prior, [Evidence(weight, weight * mean)], policy)[0]


def test_too_few_scores_say_nothing() -> None:
    assert learn(0.9, 20, 0.0) == 0.9
    assert learned_quality(0.9, [Evidence()] * 3, POLICY) == (0.9, 0.9, 0.9)


def test_as_many_more_as_the_prior_weighs_go_half_the_way() -> None:
    assert learn(0.9, 40, 0.5) == pytest.approx(0.7)


def test_many_scores_go_all_the_way_up_to_the_bound() -> None:
    assert learn(0.9, 1e6, 0.6) == pytest.approx(0.6, abs=1e-3)
    assert learn(0.9, 1e6, 0.0) == pytest.approx(0.4)
    assert learn(0.3, 1e6, 1.0) == pytest.approx(0.8)


def test_a_level_without_scores_takes_over_what_the_better_one_learned() -> None:
    full, degraded, minimal = learned_quality(0.9, [Evidence(60, 30), Evidence(), Evidence(1e6, 0)], POLICY)
    assert degraded == full < 0.9
    assert minimal == pytest.approx(0.4)


@given(ratios, st.lists(evidence, min_size=1, max_size=3), policies)
def test_it_stays_in_0_to_1_and_near_the_prior(prior, levels, policy) -> None:
    for quality in learned_quality(prior, levels, policy):
        assert 0 <= quality <= 1
        assert abs(quality - prior) <= policy.max_change + 1e-9


@given(ratios, evidence, policies)
def test_it_lies_between_the_prior_and_the_mean(prior, scored, policy) -> None:
    (quality,) = learned_quality(prior, [scored], policy)
    low, high = sorted((prior, scored.mean if scored.weight else prior))
    assert low - 1e-9 <= quality <= high + 1e-9


@given(ratios, st.floats(0, 1000), st.floats(0, 1000), ratios, policies)
def test_more_scores_of_the_same_kind_never_move_it_back(prior, weight, more, mean, policy) -> None:
    before, after = learn(prior, weight, mean, policy), learn(prior, weight + more, mean, policy)
    assert abs(after - prior) >= abs(before - prior) - 1e-9


@given(ratios, st.floats(0, 1000), ratios, ratios, policies)
def test_better_scores_never_make_it_worse(prior, weight, one, other, policy) -> None:
    low, high = sorted((one, other))
    assert learn(prior, weight, low, policy) <= learn(prior, weight, high, policy) + 1e-9


@given(ratios, st.floats(0.5, 1000), ratios)
def test_one_score_more_is_no_jump(prior, weight, mean) -> None:
    change = abs(learn(prior, weight + 1, mean) - learn(prior, weight, mean))
    assert change <= 1 / (POLICY.prior_weight + 1) + 1e-9
