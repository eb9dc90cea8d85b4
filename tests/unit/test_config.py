"""Rules between fields, and what a section refuses by itself."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config import (
    CacheConfig,
    LevelConfig,
    Levels,
    LimitsConfig,
    ModelConfig,
    Price,
    ProgramCache,
    ProgramConfig,
    Replicas,
    RewardConfig,
    Section,
)
from serve_app.messages import Level
from serve_app.policy import BreakerPolicy, ComplexityThresholds, DegradationPolicy, Policy

LEVELS = {"full": {"models": ["a"]}}

RULES: list[tuple[type[Section], dict[str, Any], str]] = [
    (Replicas, {"min": 2, "max": 1}, "max (1) is below min (2)"),
    (LimitsConfig, {"default_deadline_s": 700}, "default_deadline_s (700) is above max_deadline_s (600)"),
    (BreakerPolicy, {"open_s": 60, "max_open_s": 30}, "max_open_s (30) is below open_s (60)"),
    (ComplexityThresholds, {"high": 0.5, "medium": 0.8}, "high (0.5), medium (0.8), low (0): must not rise"),
    (
        DegradationPolicy,
        {"degraded": {"memory": 0.95}, "minimal": {"memory": 0.9}},
        "minimal.memory (0.9) is below degraded.memory (0.95)",
    ),
    (
        ProgramConfig,
        {"name": "p", "program": "a -> b", "levels": LEVELS, "cache": {"low_confidence": {"below": 0.5, "ttl_s": 1}}},
        "cache.low_confidence needs confidence_field, which is not set",
    ),
    (
        ProgramCache,
        {"ttl_s": 0, "rules": [{"field": "a", "equals": "x", "ttl_s": 1}]},
        "rules have no effect while ttl_s is 0, which turns caching off",
    ),
]


@pytest.mark.parametrize(("section", "values", "says"), RULES)
def test_fields_that_contradict_each_other_are_refused(
    section: type[Section], values: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        section.model_validate(values)
    assert [error["msg"] for error in refused.value.errors()] == [f"Value error, {says}"]


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (ModelConfig, {"name": "m", "lm": "gpt-4o"}),
        (ModelConfig, {"name": "m", "lm": "openai/gpt-4o", "api_base": "ftp://x"}),
        (ModelConfig, {"name": "m", "lm": "openai/gpt-4o", "api_key_env": "sk-123"}),
        (ModelConfig, {"name": "m m", "lm": "openai/gpt-4o"}),
        (ModelConfig, {"name": "m", "lm": "openai/gpt-4o", "quality": 1.01}),
        (ModelConfig, {"name": "m", "lm": "openai/gpt-4o", "latency_s": float("inf")}),
        (ModelConfig, {"name": "m", "lm": "openai/gpt-4o", "latency_s": float("nan")}),
        (ModelConfig, {"name": "m", "lm": "openai/gpt-4o", "max_tokens": 0}),
        (LevelConfig, {"models": []}),
        (ProgramCache, {"rules": [{"field": "a", "equals": ["x"], "ttl_s": 1}]}),
        (ProgramCache, {"rules": [{"field": "a", "ttl_s": 1}]}),
        (ProgramCache, {"rules": [{"field": "a", "equals": "x", "ttl_s": -1}]}),
        (ProgramCache, {"early_refresh_beta": -1}),
        (Price, {"input_usd_per_1m_tokens": -1}),
        (Policy, {"routin": {}}),
    ],
)
def test_values_out_of_range_are_refused(section: type[Section], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_a_level_left_out_is_the_next_better_one() -> None:
    full, minimal = LevelConfig(models=("a",)), LevelConfig(models=("b",))
    levels = Levels(full=full, minimal=minimal)
    assert levels.at(Level.DEGRADED) is full
    assert levels.at(Level.MINIMAL) is minimal
    assert Levels(full=full).at(Level.MINIMAL) is full
    assert Levels(full=full, degraded=minimal).at(Level.MINIMAL) is minimal


def test_a_price_is_per_million_tokens() -> None:
    assert Price(input_usd_per_1m_tokens=2, output_usd_per_1m_tokens=10).cost_usd(500_000, 100_000) == pytest.approx(
        2.0
    )


def test_the_default_policy_is_valid_and_cannot_be_changed_in_place() -> None:
    policy = Policy()
    with pytest.raises(ValidationError):
        policy.routing.max_attempts = 5  # type: ignore[misc]


@pytest.mark.parametrize("value", ["rewards:exact", {"function": "rewards:exact"}])
def test_a_reward_may_be_named_alone(value: Any) -> None:
    program = ProgramConfig.model_validate({"name": "p", "program": "a -> b", "levels": LEVELS, "reward": value})
    assert program.reward == RewardConfig(function="rewards:exact", share=1.0, timeout_s=5.0)


@pytest.mark.parametrize("value", ["exact", "a -> b", {"function": "rewards.exact"}, {"share": 0.5}, {}, 3])
def test_what_names_no_reward_function_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        ProgramConfig.model_validate({"name": "p", "program": "a -> b", "levels": LEVELS, "reward": value})


@pytest.mark.parametrize(
    ("redis_url", "holders", "has_peers"),
    [
        ("embedded", Replicas(), False),
        ("embedded", Replicas(max=2), True),
        (None, Replicas(), False),
        ("redis://elsewhere:6379", Replicas(), True),  # other applications may use it
    ],
)
def test_who_may_store_under_the_same_keys(redis_url, holders, has_peers) -> None:
    assert CacheConfig(redis_url=redis_url).has_peers(holders) is has_peers
