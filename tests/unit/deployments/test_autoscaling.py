"""Replicas follow the calls that wait."""

import importlib
from collections import deque
from types import SimpleNamespace

import pytest

from serve_app.config import Replicas
from serve_app.core.clock import ManualClock
from serve_app.core.offered_calls import LEAST_S, MOST_S, OfferedCalls
from serve_app.core.slot_queue import SlotQueue
from serve_app.deployments.autoscaling import (
    BY_ONGOING,
    HELD_BACK,
    IN_HAND,
    LOST,
    RUNNING,
    SLOTS,
    TAKEN,
    WAITING,
    ongoing_policy,
    queue_depth_policy,
    scaling_options,
    stats_of,
)
from serve_app.messages import Priority
from serve_app.reports import ModelLoad


def context(mean, newest=None, current: int = 2, least: int = 1) -> SimpleNamespace:
    """What Ray hands the policy: means by statistic and replica, and the series they come from."""
    raw = mean if newest is None else newest
    series = {name: {key: [SimpleNamespace(value=value)] for key, value in by.items()} for name, by in raw.items()}
    return SimpleNamespace(
        aggregated_metrics=mean or None,
        raw_metrics=series or None,
        current_num_replicas=current,
        target_num_replicas=current,
        capacity_adjusted_min_replicas=least,
        capacity_adjusted_max_replicas=4,
        config=SimpleNamespace(target_ongoing_requests=8),
    )


@pytest.mark.parametrize("mean", [{}, {WAITING: {}}, {RUNNING: {"a": 1.0}}])
def test_the_policy_stays_when_nothing_is_known(mean) -> None:
    assert queue_depth_policy(context(mean)) == (2, {})


@pytest.mark.parametrize(
    ("waiting", "wanted"),
    [({"a": 0.0, "b": 0.0}, 1), ({"a": 17.0, "b": 0.0}, 3), ({"a": 500.0, "b": 500.0}, 4)],
)
def test_the_policy_sums_the_replicas_and_keeps_within_bounds(waiting, wanted) -> None:
    assert queue_depth_policy(context({WAITING: waiting})) == (wanted, {})


def test_the_policy_sees_a_burst_before_the_mean_does() -> None:
    assert queue_depth_policy(context({WAITING: {"a": 0.1}}, {WAITING: {"a": 20.0}}, current=1)) == (4, {})


def test_the_policy_adds_nothing_where_a_replica_is_held_back() -> None:
    readings = {WAITING: {"a": 90.0, "b": 9.0}, HELD_BACK: {"a": 0.0, "b": 1.0}}
    assert queue_depth_policy(context(readings)) == (2, {})


def test_the_last_replica_goes_where_none_is_allowed() -> None:
    idle = {name: {"a": 0.0} for name in (WAITING, RUNNING, SLOTS, HELD_BACK)}
    assert queue_depth_policy(context(idle, current=1, least=0)) == (0, {})
    assert queue_depth_policy(context(idle, current=1, least=1)) == (1, {})


def test_a_replica_records_what_the_policy_reads() -> None:
    queue = SlotQueue(1, 10, clock=ManualClock())
    for _ in range(3):
        queue.join(Priority.DEFAULT, 60, lambda _: None)
    stats = stats_of(queue, None, is_held_back=True)
    assert stats == {WAITING: 2, RUNNING: 1, SLOTS: 1, TAKEN: 1 / LEAST_S, LOST: 0, HELD_BACK: 1}


def test_who_is_refused_here_or_by_routers_is_lost() -> None:
    clock = ManualClock()
    queue = SlotQueue(1, 2, clock=clock)
    place = queue.join(Priority.DEFAULT, 60, lambda _: None)
    clock.advance(4)
    place.leave(served=True)
    for _ in range(7):
        queue.join(Priority.DEFAULT, 60, lambda _: None)
    assert queue.waiting == 1, "the bound"
    stats = stats_of(queue, ModelLoad(replicas=2, lost=3.0), is_held_back=False)
    assert stats[LOST] == pytest.approx(5 * 4 / LEAST_S + 3.0 / 2)
    assert stats[TAKEN] == pytest.approx(2 * 4 / LEAST_S)
    clock.advance(2 * LEAST_S)
    assert stats_of(queue, ModelLoad(replicas=2), is_held_back=False)[LOST] == 0


def test_a_replica_that_has_just_come_goes_by_what_calls_take_on_the_others() -> None:
    queue = SlotQueue(8, 10, clock=ManualClock())
    for _ in range(10):
        queue.offered.lose()
    stats = stats_of(queue, ModelLoad(replicas=2, service_s=0.1), is_held_back=False)
    assert stats[LOST] == pytest.approx(10 * 0.1 / LEAST_S / 8)


@pytest.mark.parametrize(("service_s", "calls"), [(0.0, 4), (0.5, 2), (5.0, 20), (7.5, 20), (600.0, 20)])
def test_calls_count_for_as_long_as_they_run(service_s, calls) -> None:
    clock = ManualClock()
    offered = OfferedCalls(clock=clock)
    for _ in range(20):
        offered.took()
        offered.lose()
    assert offered.running(service_s) == pytest.approx((calls, calls))
    clock.advance(LEAST_S + 1)
    assert offered.running(service_s) == pytest.approx((calls, calls) if service_s > LEAST_S else (0, 0))
    clock.advance(MOST_S)
    assert offered.running(service_s) == (0, 0)


def test_who_waited_in_vain_was_refused() -> None:
    clock = ManualClock()
    queue = SlotQueue(1, 10, clock=clock)
    first = queue.join(Priority.DEFAULT, 60, lambda _: None)
    queue.join(Priority.DEFAULT, 5, lambda _: None)
    clock.advance(6)
    first.leave(served=True)
    assert queue.offered.running(LEAST_S)[1] == 1


@pytest.mark.parametrize(
    ("slots", "service_s", "deadline_s"),
    [(8, 5.0, 10.0), (4, 2.0, 5.0), (8, 20.0, 60.0), (8, 5.0, 6.0), (64, 0.5, 0.6), (1, 30.0, 40.0)],
)
def test_where_a_third_of_all_calls_is_refused_there_is_soon_another_replica(slots, service_s, deadline_s) -> None:
    """Half as many calls again as one replica can answer; deadlines keep its queue shorter than what it aims at."""
    clock, wanted = ManualClock(), 1
    queue, running = SlotQueue(slots, 512, clock=clock), deque[tuple[float, list]]()
    step_s = service_s / slots / 1.5
    for _ in range(int(6 * service_s / step_s)):
        clock.advance(step_s)
        while running and running[0][0] <= clock():
            running.popleft()[1][0].leave(served=True)
        place: list = []

        def begins(refusal, place=place) -> None:
            if refusal is None:
                running.append((clock() + service_s, place))

        place.append(queue.join(Priority.SHEDDABLE, deadline_s, begins))
        stats = stats_of(queue, None, is_held_back=False)
        recorded = {name: {"a": value} for name, value in stats.items()}
        wanted = max(wanted, queue_depth_policy(context(recorded, current=1))[0])
    assert wanted > 1


def test_equal_bounds_are_a_fixed_number() -> None:
    assert scaling_options(Replicas(min=2, max=2)) == {"num_replicas": 2}


def test_bounds_that_differ_are_scaled_at_once_upwards_and_slowly_down() -> None:
    wanted = Replicas(min=0, max=4, target_queue_depth=5, downscale_delay_s=30)
    scaled = scaling_options(wanted)["autoscaling_config"]
    assert (scaled.min_replicas, scaled.max_replicas, scaled.target_ongoing_requests) == (0, 4, 5)
    assert (scaled.upscale_delay_s, scaled.downscale_delay_s) == (0, 30)
    assert scaling_options(wanted, BY_ONGOING)["autoscaling_config"].upscale_delay_s == 2


def in_hand(by_ray: float, over_channels: dict[str, float] | None = None, **bounds: int) -> SimpleNamespace:
    """A context in which Ray counts so many requests, and replicas so many calls."""
    ctx = context({IN_HAND: over_channels} if over_channels is not None else {}, **bounds)
    ctx.total_num_requests = by_ray
    return ctx


@pytest.mark.parametrize(
    ("by_ray", "over_channels", "wanted"),
    [
        (16.0, None, 2),
        (16.1, None, 3),
        (0.0, {"a": 8.0, "b": 9.0}, 3),
        (7.0, {"a": 8.0, "b": 9.0}, 3),
        (8.0, {"a": 8.0, "b": 9.0}, 4),
    ],
)
def test_parts_without_a_queue_grow_with_what_ray_brought_and_what_came_over_channels(
    by_ray, over_channels, wanted
) -> None:
    assert ongoing_policy(in_hand(by_ray, over_channels)) == (wanted, {})


@pytest.mark.parametrize(("least", "wanted"), [(0, 0), (1, 1), (3, 3)])
def test_parts_without_a_queue_shrink_to_their_least_number(least, wanted) -> None:
    assert ongoing_policy(in_hand(0.0, {"a": 0.0}, least=least)) == (wanted, {})


def test_parts_without_a_queue_grow_to_their_greatest_number_and_no_further() -> None:
    assert ongoing_policy(in_hand(500.0, {"a": 500.0})) == (4, {})


def test_parts_without_a_queue_stay_where_no_target_is_configured() -> None:
    ctx = in_hand(500.0)
    ctx.target_num_replicas = 3
    ctx.config = None
    assert ongoing_policy(ctx) == (3, {})
    ctx.config = SimpleNamespace(target_ongoing_requests=None)
    assert ongoing_policy(ctx) == (3, {})


def test_parts_without_a_queue_whose_replicas_are_all_gone_are_to_be_as_many_again() -> None:
    ctx = in_hand(0.0)
    ctx.current_num_replicas, ctx.target_num_replicas = 0, 3
    assert ongoing_policy(ctx) == (3, {})


def test_the_policy_for_parts_without_a_queue_is_found_by_its_name() -> None:
    module, name = BY_ONGOING.split(":")
    assert getattr(importlib.import_module(module), name) is ongoing_policy
