"""Counts of many replicas become one page whose totals never go backwards."""

import json
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serve_app.adapters.telemetry import MAX_SILENT, SILENT_S, Family, MetricsPage, Telemetry, gauge
from serve_app.core.clock import ManualClock
from serve_app.messages import Attempt, Outcome, Usage


def busy(calls: int = 1, active: int = 0) -> Telemetry:
    telemetry = Telemetry()
    for _ in range(calls):
        telemetry.call_finished("ask", "large", "success", 0.2)
        telemetry.attempt_finished("ask", Attempt("large", Outcome.OK, 0.2, Usage(10, 5), 0.25))
    telemetry.set_active(active)
    return telemetry


def values(page: MetricsPage, name: str) -> dict[tuple, float]:
    families = text_string_to_metric_families(page.render().decode())
    return {
        tuple(sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name == name
    }


def test_counters_and_histograms_add_up_and_gauges_stay_apart() -> None:
    page = MetricsPage()
    page.update("one", busy(2, active=3).samples())
    page.update("two", busy(5, active=4).samples())
    assert list(values(page, "dspy_requests_total").values()) == [7]
    assert list(values(page, "dspy_request_duration_seconds_count").values()) == [7]
    assert values(page, "dspy_active_requests") == {(("replica", "one"),): 3, (("replica", "two"),): 4}
    assert page.total("dspy_cost_usd_total") == 7 * 0.25


def test_newer_samples_replace_older_ones_of_the_same_replica() -> None:
    page, telemetry = MetricsPage(), busy(2)
    page.update("one", telemetry.samples())
    telemetry.call_finished("ask", "large", "success", 0.2)
    page.update("one", telemetry.samples())
    page.update("one", ())
    assert list(values(page, "dspy_requests_total").values()) == [3]


def test_a_replica_that_leaves_takes_its_gauges_and_leaves_its_totals() -> None:
    page = MetricsPage()
    for number in range(5):
        page.update(f"r{number}", busy(2, active=1).samples())
        page.depart(f"r{number}")
    page.update("last", busy(1, active=9).samples())
    assert list(values(page, "dspy_requests_total").values()) == [11]
    assert values(page, "dspy_active_requests") == {(("replica", "last"),): 9}


def test_leaving_twice_or_unknown_changes_nothing() -> None:
    page = MetricsPage()
    page.update("one", busy(2).samples())
    page.depart("one")
    page.depart("one")
    page.depart("stranger")
    assert list(values(page, "dspy_requests_total").values()) == [2]


def test_tokens_are_counted_by_kind() -> None:
    page = MetricsPage()
    page.update("one", busy(2).samples())
    assert values(page, "dspy_tokens_total") == {
        (("kind", "input"), ("model", "large")): 20,
        (("kind", "output"), ("model", "large")): 10,
    }


def test_what_only_the_control_plane_knows_has_no_replica() -> None:
    page = MetricsPage()
    text = page.render([gauge("dspy_degradation_level", "Level.", {(): 2.0})]).decode()
    assert "dspy_degradation_level 2.0" in text


def test_a_replica_that_was_only_silent_is_not_counted_twice() -> None:
    page, telemetry = MetricsPage(), busy(5, active=1)
    page.update("slow", telemetry.samples())
    page.depart("slow")
    telemetry.call_finished("ask", "large", "success", 0.2)
    page.update("slow", telemetry.samples())
    assert list(values(page, "dspy_requests_total").values()) == [6]
    page.depart("slow")
    assert list(values(page, "dspy_requests_total").values()) == [6]


def test_totals_never_go_backwards_through_any_coming_and_going() -> None:
    page = MetricsPage()
    replicas = {f"r{number}": busy(1) for number in range(200)}
    seen = 0.0
    for turn in range(3):
        for name, telemetry in replicas.items():
            telemetry.call_finished("ask", "large", "success", 0.2)
            page.update(name, telemetry.samples())
            if turn < 2:
                page.depart(name)
            total = page.total("dspy_requests_total")
            assert total >= seen
            seen = total


def spent(usd: float) -> tuple[Family, ...]:
    return (Family("dspy_cost_usd", "counter", "USD.", (("dspy_cost_usd_total", (("model", "large"),), usd),)),)


USD = st.floats(0, 1e6, allow_subnormal=False)


@given(st.lists(USD, min_size=1, max_size=8), st.data())
def test_a_total_is_the_same_to_the_last_bit_whoever_leaves_or_is_remembered_by_the_next_life(costs, data) -> None:
    clock = ManualClock()
    page, total = MetricsPage(clock=clock), float(sum(map(Fraction, costs)))
    for number, usd in enumerate(costs):
        page.update(f"r{number}", spent(usd))
    leaving = data.draw(st.permutations(range(len(costs))))
    for number in leaving:
        page.depart(f"r{number}")
        clock.advance(data.draw(st.sampled_from([0, SILENT_S])))
        assert page.total("dspy_cost_usd_total") == total
    again = MetricsPage()
    again.restore(Family(*family[:3], tuple(map(tuple, family[3]))) for family in told(page.departed()))
    assert again.total("dspy_cost_usd_total") == total


@pytest.mark.parametrize("values", [[math.inf], [1e308] * 3, [math.inf, 1.0, math.inf]])
def test_a_total_that_is_more_than_a_number_holds_hinders_nobody(values) -> None:
    page = MetricsPage()
    for number, usd in enumerate(values):
        page.update(f"r{number}", spent(usd))
    for number in range(len(values)):
        assert page.total("dspy_cost_usd_total") == math.inf
        page.depart(f"r{number}")
    again = MetricsPage()
    again.restore(page.departed())
    assert again.total("dspy_cost_usd_total") == math.inf


def told(families: tuple[Family, ...]) -> list[tuple]:
    """What Redis gives back of them, its lists as tuples where they are keys."""
    read = json.loads(json.dumps(families))
    return [
        (*family, [(name, tuple(map(tuple, labels)), value) for name, labels, value in samples])
        for *family, samples in read
    ]


def test_those_who_were_silent_for_long_cost_no_more_than_their_sum() -> None:
    clock = ManualClock()
    page = MetricsPage(clock=clock)
    for number in range(20):
        page.update(f"r{number}", busy(1).samples())
        page.depart(f"r{number}")
        clock.advance(SILENT_S + 1)
    assert list(page._silent) == ["r19"]
    page.update("last", busy(1).samples())
    assert not page._silent
    assert page.total("dspy_requests_total") == 21


def test_what_is_kept_of_the_departed_is_bounded() -> None:
    page = MetricsPage()
    for number in range(1000):
        page.update(f"r{number}", busy(1).samples())
        page.depart(f"r{number}")
    assert page.total("dspy_requests_total") == 1000
    assert len(page._silent) == MAX_SILENT


def test_a_page_is_valid_text_with_whatever_label_values_a_configuration_has() -> None:
    page, telemetry = MetricsPage(), Telemetry()
    telemetry.call_finished('a"b', "back\\slash", "success", 0.2)
    telemetry.fell_back("ask", "large", "small", Outcome.TIMEOUT)
    telemetry.shed("queue_full", "default")
    telemetry.scored("ask", "confidence", 0.5)
    telemetry.cache.hit("ask", "near", 0.0, 0.0)
    telemetry.cache.missed("ask")
    telemetry.batched(4)
    telemetry.set_memory_mb(12.5)
    page.update("one", telemetry.samples())
    assert list(values(page, "dspy_requests_total")) == [
        (("model", "back\\slash"), ("program", 'a"b'), ("status", "success"))
    ]
    names = {family.name for family in text_string_to_metric_families(page.render().decode())}
    assert names >= {
        "dspy_requests",
        "dspy_request_duration_seconds",
        "dspy_quality_score",
        "dspy_active_requests",
        "dspy_memory_usage_mb",
        "dspy_cache_hits",
        "dspy_cache_misses",
        "dspy_fallbacks",
        "dspy_batch_size",
        "dspy_shed",
    }
    assert values(page, "dspy_fallbacks_total") == {
        (("from_model", "large"), ("program", "ask"), ("reason", "timeout"), ("to_model", "small")): 1
    }


def test_buckets_of_a_histogram_are_cumulative_and_end_in_its_count() -> None:
    page = MetricsPage()
    page.update("one", busy(2).samples())
    page.update("two", busy(3).samples())
    buckets = list(values(page, "dspy_request_duration_seconds_bucket").values())
    assert buckets == sorted(buckets)
    assert buckets[-1] == 5
