"""Which level's stored answer a call gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import ProgramCache
from serve_app.core.cache_entry import Entry
from serve_app.core.cache_policy import Decision, decide_entry
from serve_app.core.stored_answers import Stored, choose, forward_reason, keys_to_read
from serve_app.messages import Call, Freshness, Level, Usage

# ttl 100, stale-while-revalidate until 110, stale-if-error until 200.
CONFIG = ProgramCache(ttl_s=100, stale_while_revalidate_s=10, stale_if_error_s=100)
NO_STAND_IN = ProgramCache(ttl_s=100, stale_while_revalidate_s=10)
KEYS = ("f", "d", "m")
FULL, DEGRADED, MINIMAL = Level
NOW = 1000.0


def call(level: Level = FULL, **changes) -> Call:
    fields = {"key": KEYS[level.rank], "level_keys": KEYS} | changes
    return Call("1", "r", "ask", {}, 60.0, level=level, **fields)


def stored(level: Level, age_s: float) -> Stored:
    return Stored(Entry("ask", {"of": level.value}, "large", level, Usage(), 0.0, 1.0, NOW - age_s, 100.0), "memory")


def chosen(level: Level, ages: dict[Level, float], config: ProgramCache = CONFIG, **changes):
    found = {KEYS[of.rank]: stored(of, age_s) for of, age_s in ages.items()}
    decision, taken = choose(config, call(level, **changes), found, NOW)
    return decision, taken.entry.level if taken else None


@pytest.mark.parametrize(
    ("level", "ages", "expected"),
    [
        # nothing, or the call's own level alone
        (FULL, {}, (Decision.MISS, None)),
        (DEGRADED, {DEGRADED: 50}, (Decision.FRESH, DEGRADED)),
        (DEGRADED, {DEGRADED: 105}, (Decision.STALE, DEGRADED)),
        (DEGRADED, {DEGRADED: 150}, (Decision.IF_ERROR, DEGRADED)),
        # a better level's answer serves a worse level
        (DEGRADED, {FULL: 50}, (Decision.FRESH, FULL)),
        (MINIMAL, {FULL: 50, DEGRADED: 10, MINIMAL: 1}, (Decision.FRESH, FULL)),
        (MINIMAL, {DEGRADED: 50, MINIMAL: 1}, (Decision.FRESH, DEGRADED)),
        (DEGRADED, {FULL: 105}, (Decision.STALE, FULL)),
        (DEGRADED, {FULL: 150}, (Decision.IF_ERROR, FULL)),
        # but what is fresh goes before what is better
        (DEGRADED, {FULL: 105, DEGRADED: 50}, (Decision.FRESH, DEGRADED)),
        (DEGRADED, {FULL: 150, DEGRADED: 105}, (Decision.STALE, DEGRADED)),
        # a worse level's answer, however fresh, only stands in for an error
        (FULL, {DEGRADED: 0}, (Decision.IF_ERROR, DEGRADED)),
        (FULL, {MINIMAL: 105}, (Decision.IF_ERROR, MINIMAL)),
        (FULL, {DEGRADED: 150, MINIMAL: 0}, (Decision.IF_ERROR, DEGRADED)),
        (FULL, {FULL: 150, DEGRADED: 0}, (Decision.IF_ERROR, FULL)),
        (FULL, {FULL: 50, DEGRADED: 0}, (Decision.FRESH, FULL)),
        (DEGRADED, {MINIMAL: 0}, (Decision.IF_ERROR, MINIMAL)),
        (FULL, {DEGRADED: 200}, (Decision.MISS, DEGRADED)),
    ],
)
def test_a_better_levels_answer_serves_a_worse_level_and_never_the_other_way(level, ages, expected) -> None:
    decision, of = chosen(level, ages)
    assert (decision, of) == expected


@pytest.mark.parametrize("age_s", [0, 50, 105])
def test_without_stale_if_error_a_worse_levels_answer_is_of_no_use(age_s) -> None:
    assert chosen(FULL, {DEGRADED: age_s}, config=NO_STAND_IN)[0] is Decision.MISS


def test_who_wants_no_model_asked_gets_no_worse_levels_answer() -> None:
    wanted = Freshness(only_if_cached=True)
    assert chosen(FULL, {DEGRADED: 0}, freshness=wanted)[0] is Decision.UNSATISFIABLE
    assert chosen(DEGRADED, {FULL: 0}, freshness=wanted) == (Decision.FRESH, FULL)


def test_an_answer_under_another_levels_key_is_no_answer() -> None:
    assert choose(CONFIG, call(FULL), {"f": stored(DEGRADED, 0)}, NOW) == (Decision.MISS, None)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, KEYS),
        ({"level_keys": ()}, ("f",)),
        ({"key": "", "level_keys": ()}, ()),
        ({"freshness": Freshness(no_cache=True)}, ()),
        ({"freshness": Freshness(no_store=True)}, ()),
        ({"freshness": Freshness(no_store=True, only_if_cached=True)}, KEYS),
    ],
)
def test_what_is_of_no_use_is_not_read(changes, keys) -> None:
    assert keys_to_read(call(**changes)) == keys


LEVELS, AGES = st.sampled_from(Level), st.floats(0, 300)


@given(LEVELS, st.dictionaries(LEVELS, AGES), st.sampled_from([CONFIG, NO_STAND_IN]), st.booleans())
def test_what_is_served_at_once_is_of_this_level_or_a_better_one(level, ages, config, is_last_resort) -> None:
    freshness = Freshness(only_if_cached=is_last_resort)
    decision, of = chosen(level, ages, config=config, freshness=freshness)
    if decision in (Decision.FRESH, Decision.STALE):
        assert of.rank <= level.rank
    if decision is Decision.IF_ERROR and of.rank > level.rank:
        assert config.stale_if_error_s > 0
    own = stored(level, ages[level]).entry if level in ages else None
    order = list(Decision)
    assert order.index(decision) <= order.index(decide_entry(config, freshness, own, NOW))


@pytest.mark.parametrize(
    ("freshness", "ages", "reason"),
    [
        (Freshness(), {}, ""),
        (Freshness(no_cache=True), {}, "request"),
        (Freshness(max_age_s=5), {FULL: 50}, "request"),
        (Freshness(min_fresh_s=80), {FULL: 50}, "request"),
        (Freshness(), {FULL: 150}, "stale"),
        (Freshness(max_age_s=5), {FULL: 150}, "stale"),
        (Freshness(), {DEGRADED: 0}, ""),
    ],
)
def test_why_a_model_is_asked_is_told(freshness, ages, reason) -> None:
    found = {KEYS[of.rank]: stored(of, age_s) for of, age_s in ages.items()}
    assert forward_reason(CONFIG, call(freshness=freshness), found, NOW) == reason
