"""XFetch: which hit of a fresh answer has it made anew."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import ProgramCache
from serve_app.core.cache_entry import Entry
from serve_app.core.early_refresh import refreshes_early
from serve_app.messages import Call, Freshness, Level, Usage

CONFIG = ProgramCache(ttl_s=100)
CALL = Call("1", "r", "ask", {}, 60.0, key="k")


def entry(latency_s: float = 2.0, level: Level = Level.FULL) -> Entry:
    return Entry("ask", {"a": 1}, "large", level, Usage(), 0.0, latency_s, 0.0, 100.0)


def refreshes(age_s: float, drawn: float, config: ProgramCache = CONFIG, call: Call = CALL, **changes) -> bool:
    return refreshes_early(config, call, entry(**changes), age_s, lambda: drawn)


@pytest.mark.parametrize(
    ("age_s", "u", "expected"),
    [
        (98.0, math.exp(-1), True),  # 2 s left, 2 s to make: u = 1/e is the edge
        (98.0, math.exp(-1) + 1e-9, False),
        (90.0, math.exp(-5) - 1e-9, True),
        (90.0, math.exp(-5) + 1e-9, False),
        (0.0, 1e-9, False),
        (99.9999, 0.5, True),
        (99.9999, 1.0, False),
    ],
)
def test_a_hit_refreshes_when_the_drawn_time_reaches_the_end(age_s: float, u: float, expected: bool) -> None:
    assert refreshes(age_s, 1 - u) is expected


def test_the_chance_is_what_the_formula_says() -> None:
    draw = random.Random(7).random
    hits = 20_000
    for remaining_s in (0.5, 2.0, 6.0):
        early = sum(refreshes_early(CONFIG, CALL, entry(), 100 - remaining_s, draw) for _ in range(hits))
        assert early / hits == pytest.approx(math.exp(-remaining_s / 2.0), abs=0.02)


def test_an_answer_that_takes_longer_to_make_or_a_greater_beta_begins_earlier() -> None:
    eager = ProgramCache(ttl_s=100, early_refresh_beta=10)
    assert not refreshes(90, 0.9)
    assert refreshes(90, 0.9, latency_s=20.0)
    assert refreshes(90, 0.9, config=eager)


@pytest.mark.parametrize("drawn", [0.0, 0.5, 1 - 2**-53])
def test_zero_waits_for_the_end(drawn: float) -> None:
    assert not refreshes(99.999, drawn, config=ProgramCache(ttl_s=100, early_refresh_beta=0))
    assert not refreshes(99.999, drawn, latency_s=0.0)


@pytest.mark.parametrize(
    "call",
    [
        Call("1", "r", "ask", {}, 60.0, key="k", freshness=Freshness(only_if_cached=True)),
        Call("1", "r", "ask", {}, 60.0, key="k", freshness=Freshness(only_if_cached=True, no_store=True)),
        Call("1", "r", "ask", {}, 60.0, key="k", level=Level.DEGRADED, level_keys=("f", "k")),
    ],
)
def test_no_model_is_asked_for_who_wants_none_nor_for_an_answer_of_another_level(call: Call) -> None:
    assert refreshes(99.9, 0.99)
    assert not refreshes(99.9, 0.99, call=call)


@given(st.floats(0, 99), st.floats(0, 1, exclude_max=True), st.floats(0, 1e6), st.floats(0, 1e6))
def test_any_draw_and_any_latency_have_an_answer(age_s: float, drawn: float, latency_s: float, beta: float) -> None:
    config = ProgramCache(ttl_s=100, early_refresh_beta=beta)
    assert refreshes(age_s, drawn, config=config, latency_s=latency_s) in (True, False)


def test_a_hot_key_is_refreshed_about_once_before_it_ends_and_a_cold_one_hardly_ever() -> None:
    draw, answer = random.Random(3).random, entry()
    lives, hot, cold = 300, 0, 0
    last_quarter = [tick / 100 for tick in range(7_500, 10_000)]  # no refresh before it counts
    for _ in range(lives):
        hot += any(refreshes_early(CONFIG, CALL, answer, age_s, draw) for age_s in last_quarter)
        cold += any(refreshes_early(CONFIG, CALL, answer, age_s, draw) for age_s in (10.0, 50.0, 80.0))
    assert hot >= 0.99 * lives
    assert cold == 0
