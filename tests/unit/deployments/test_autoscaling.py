"""Replicas follow the calls that wait."""

from types import SimpleNamespace

import pytest

from serve_app.config import Replicas
from serve_app.deployments.autoscaling import QUEUE_DEPTH, queue_depth_policy, replicas_for, scaling_options


@pytest.mark.parametrize(
    ("waiting", "current", "wanted"),
    [
        ([0], 1, 0),
        ([0, 0], 2, 1),
        ([1], 1, 1),
        ([8], 1, 1),
        ([9], 1, 2),
        ([16, 0], 2, 3),
        ([20, 20], 2, 6),
    ],
)
def test_each_target_of_waiting_calls_beyond_the_first_asks_for_a_replica(waiting, current, wanted) -> None:
    assert replicas_for(waiting, current, target_queue_depth=8) == wanted


def context(metrics, current: int = 2) -> SimpleNamespace:
    return SimpleNamespace(
        aggregated_metrics=metrics,
        current_num_replicas=current,
        target_num_replicas=current,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        config=SimpleNamespace(target_ongoing_requests=8),
    )


@pytest.mark.parametrize(
    ("metrics", "wanted"),
    [
        (None, 2),
        ({}, 2),
        ({QUEUE_DEPTH: {}}, 2),
        ({QUEUE_DEPTH: {"a": 0.0, "b": 0.0}}, 1),
        ({QUEUE_DEPTH: {"a": 12.0, "b": 0.0}}, 3),
        ({QUEUE_DEPTH: {"a": 500.0, "b": 500.0}}, 4),
    ],
)
def test_the_policy_keeps_within_bounds_and_stays_when_nothing_is_known(metrics, wanted) -> None:
    assert queue_depth_policy(context(metrics)) == (wanted, {})


def test_equal_bounds_are_a_fixed_number() -> None:
    assert scaling_options(Replicas(min=2, max=2)) == {"num_replicas": 2}
    scaled = scaling_options(Replicas(min=1, max=4, target_queue_depth=5))["autoscaling_config"]
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (1, 4, 5)
