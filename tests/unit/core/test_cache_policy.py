from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import CacheRule, LowConfidence, ProgramCache
from serve_app.core.cache_control import parse_cache_control
from serve_app.core.cache_entry import Entry
from serve_app.core.cache_policy import Decision, decide, decide_entry, entry_of, keep_s, ttl_s
from serve_app.core.clock import ManualClock
from serve_app.errors import NoRoute
from serve_app.messages import Attempt, CacheStatus, Call, Freshness, Level, Outcome, Result, Usage

# ttl 100, stale-while-revalidate until 110, stale-if-error until 200.
CONFIG = ProgramCache(ttl_s=100, stale_while_revalidate_s=10, stale_if_error_s=100)
FRESH, STALE, IF_ERROR = Decision.FRESH, Decision.STALE, Decision.IF_ERROR
MISS, BYPASS, UNSATISFIABLE = Decision.MISS, Decision.BYPASS, Decision.UNSATISFIABLE

TABLE = [
    # (rule, Cache-Control, age or None, decision)
    ("9111 §4.2: fresh while age < lifetime", "", 0, FRESH),
    ("9111 §4.2: fresh while age < lifetime", "", 99.9, FRESH),
    ("9111 §4.2: age = lifetime is stale; 5861 §3 serves it and revalidates", "", 100, STALE),
    ("5861 §3: until the end of stale-while-revalidate", "", 109.9, STALE),
    ("5861 §4: then only if a new answer cannot be had", "", 110, IF_ERROR),
    ("5861 §4: until the end of stale-if-error", "", 199.9, IF_ERROR),
    ("9111 §4.2.4: nothing allows it any more", "", 200, MISS),
    ("9111 §3: nothing is stored", "", None, MISS),
    ("9111 §5.2.1.1: age = max-age is accepted", "max-age=50", 50, FRESH),
    ("9111 §5.2.1.1: older than max-age is not; 5861 §4 disregards freshness on error", "max-age=50", 51, IF_ERROR),
    ("9111 §5.2.1.1: max-age does not lengthen the lifetime, nor accept stale", "max-age=1000", 100, IF_ERROR),
    ("9111 §5.2.1.1: max-age=0 accepts what was made this instant only", "max-age=0", 0, FRESH),
    ("9111 §5.2.1.1: max-age=0", "max-age=0", 1, IF_ERROR),
    ("9111 §5.2.1.1: past every window", "max-age=50", 200, MISS),
    ("9111 §5.2.1.2: max-stale=N accepts what has been stale for less, whatever stale-while-revalidate says", "max-stale=50", 149, STALE),
    ("9111 §5.2.1.2: max-stale=N accepts no more than that, though stale-while-revalidate would", "max-stale=5", 106, IF_ERROR),
    ("9111 §5.2.1.2: what is fresh is served as ever", "max-stale=5", 99, FRESH),
    ("9111 §5.2.1.2: max-stale=0 accepts fresh answers only", "max-stale=0", 100, IF_ERROR),
    ("9111 §5.2.1.2: max-stale alone accepts anything that is kept", "max-stale", 199.9, STALE),
    ("9111 §5.2.1.2: and nothing is kept past every window", "max-stale", 200, MISS),
    ("9111 §5.2.1.2: nor with a number", "max-stale=5000", 200, MISS),
    ("9111 §5.2.1.1: with max-stale, max-age no longer refuses what is stale", "max-age=150, max-stale", 149, STALE),
    ("9111 §5.2.1.1: but still what is older", "max-age=150, max-stale", 151, IF_ERROR),
    ("9111 §5.2.1.3: min-fresh=N accepts what stays fresh as long", "min-fresh=10", 90, FRESH),
    ("9111 §5.2.1.3: not what ends sooner", "min-fresh=10", 91, IF_ERROR),
    ("9111 §5.2.1.3: nor what is stale already", "min-fresh=0", 105, IF_ERROR),
    ("9111 §5.2.1.3: longer than any answer is fresh accepts none", "min-fresh=101", 0, IF_ERROR),
    ("9111 §5.2.1.3: of contradicting wishes the stricter counts", "min-fresh=1, max-stale=50", 120, IF_ERROR),
    ("9111 §5.2.1.4: no-cache does not use a fresh answer", "no-cache", 0, MISS),
    ("9111 §5.2.1.4: nor a stale one, on error either", "no-cache", 150, MISS),
    ("9111 §5.2.1.5: no-store leaves the cache alone", "no-store", 0, BYPASS),
    ("9111 §5.2.1.5: no-store", "no-store", None, BYPASS),
    ("9111 §5.2.1.7: only-if-cached serves what is fresh", "only-if-cached", 0, FRESH),
    ("9111 §5.2.1.7: and what may be served stale", "only-if-cached", 105, STALE),
    ("9111 §5.2.1.7: else 504; no model is asked, so there is no error to fall back from", "only-if-cached", 150, UNSATISFIABLE),
    ("9111 §5.2.1.7: else 504", "only-if-cached", None, UNSATISFIABLE),
    ("9111 §5.2.1.7: within the other constraints of the request", "only-if-cached, max-age=50", 51, UNSATISFIABLE),
    ("9111 §5.2.1.7: within the other constraints of the request", "only-if-cached, max-age=50", 49, FRESH),
    ("9111 §5.2.1.7: within the other constraints of the request", "only-if-cached, max-stale=60", 150, STALE),
    ("9111 §5.2.1.7: no-cache leaves nothing to serve", "only-if-cached, no-cache", 0, UNSATISFIABLE),
    ("9111 §5.2.1.5: no-store does not forbid what is stored already", "only-if-cached, no-store", 0, FRESH),
    ("9111 §5.2.3: an unknown directive is ignored", "min-vers=3, x", 0, FRESH),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "header", "age_s", "decision"), TABLE)
def test_each_rule_of_rfc_9111_and_5861_that_applies(
    rule: str, header: str, age_s: float | None, decision: Decision
) -> None:
    clock = ManualClock(1_700_000_000)
    entry = None if age_s is None else stored(clock())
    clock.advance(age_s or 0)
    assert decide_entry(CONFIG, parse_cache_control(header), entry, clock()) is decision, rule
    assert decide(CONFIG, parse_cache_control(header), age_s, 100) is decision, rule


def stored(created_at: float, *, ttl_s: float = 100, confidence: float | None = None) -> Entry:
    return Entry("triage", {"a": 1}, "large", Level.FULL, Usage(1, 2), 0.1, 2.0, created_at, ttl_s, confidence)


def test_without_stale_windows_an_answer_ends_with_its_time() -> None:
    config = ProgramCache(ttl_s=100)
    assert decide(config, Freshness(), 99.9, 100) is FRESH
    assert decide(config, Freshness(), 100, 100) is MISS
    assert decide(config, Freshness(max_age_s=10), 50, 100) is MISS


def test_a_program_without_caching_is_bypassed() -> None:
    config = ProgramCache(ttl_s=0, stale_if_error_s=100)
    assert decide(config, Freshness(), 0, 100) is BYPASS
    assert decide(config, Freshness(only_if_cached=True), 0, 100) is UNSATISFIABLE


def test_a_ttl_shortened_in_the_configuration_holds_for_what_is_stored_and_a_longer_one_does_not() -> None:
    entry = stored(0, ttl_s=100)
    assert decide_entry(ProgramCache(ttl_s=10), Freshness(), entry, 11) is MISS
    assert decide_entry(ProgramCache(ttl_s=1000), Freshness(), entry, 101) is MISS


def test_an_answer_from_a_clock_that_is_ahead_is_as_old_as_now() -> None:
    assert stored(1000).age_s(900) == 0
    assert decide_entry(CONFIG, Freshness(max_age_s=0), stored(1000), 900) is FRESH


DOUBTFUL = ProgramCache(ttl_s=100, low_confidence=LowConfidence(below=0.7, ttl_s=5))


@pytest.mark.parametrize(
    ("config", "confidence", "expected"),
    [
        (CONFIG, None, 100),
        (CONFIG, 0.0, 100),
        (DOUBTFUL, None, 100),
        (DOUBTFUL, 0.7, 100),
        (DOUBTFUL, 0.69, 5),
        (DOUBTFUL, 0.0, 5),
        (ProgramCache(ttl_s=3, low_confidence=LowConfidence(below=0.7, ttl_s=5)), 0.1, 3),
        (ProgramCache(ttl_s=100, low_confidence=LowConfidence(below=0.7, ttl_s=0)), 0.1, 0),
    ],
)
def test_a_doubtful_answer_lives_shorter_never_longer(
    config: ProgramCache, confidence: float | None, expected: float
) -> None:
    assert ttl_s(config, {}, confidence) == expected


def test_an_answer_is_kept_until_its_last_use() -> None:
    assert keep_s(CONFIG, 100) == 200
    assert keep_s(ProgramCache(stale_while_revalidate_s=60), 5) == 65
    assert keep_s(ProgramCache(), 5) == 5
    assert keep_s(CONFIG, 0) == 0


@given(
    st.builds(
        ProgramCache,
        ttl_s=st.floats(1, 1000),
        stale_while_revalidate_s=st.floats(0, 1000),
        stale_if_error_s=st.floats(0, 1000),
    ),
    st.builds(
        Freshness,
        *[st.booleans()] * 3,
        st.none() | st.floats(0, 5000),
        st.none() | st.floats(0, 5000),
        st.none() | st.floats(0, 5000),
    ),
    st.floats(0, 5000),
)
def test_nothing_is_served_after_the_time_it_is_kept_and_only_max_stale_makes_a_cache_laxer(
    config: ProgramCache, freshness: Freshness, age_s: float
) -> None:
    decision = decide(config, freshness, age_s, config.ttl_s)
    if age_s >= keep_s(config, config.ttl_s):
        assert decision in (MISS, BYPASS, UNSATISFIABLE)
    order = [FRESH, STALE, IF_ERROR, MISS, BYPASS, UNSATISFIABLE]
    widest = Freshness(max_stale_s=freshness.max_stale_s)
    assert order.index(decision) >= order.index(decide(config, widest, age_s, config.ttl_s))


CALL = Call("1", "r", "triage", {}, 60.0, key="k")
RESULT = Result(
    "1",
    {"category": "billing"},
    model="medium",
    attempts=(
        Attempt("large", Outcome.TIMEOUT, 2.0, Usage(10, 0), 0.01),
        Attempt("medium", Outcome.OK, 1.0, Usage(10, 5), 0.02),
    ),
    usage=Usage(20, 5),
    cost_usd=0.03,
    confidence=0.9,
)


def changed(value: Call | Result, **changes: object) -> object:
    fields = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return type(value)(**(fields | changes))


def test_a_new_answer_is_stored_with_what_it_cost() -> None:
    assert entry_of(CONFIG, CALL, RESULT, 1000.0) == Entry(
        "triage", {"category": "billing"}, "medium", Level.FULL, Usage(20, 5), 0.03, 3.0, 1000.0, 100.0, 0.9
    )


def test_a_hit_of_a_farther_tier_keeps_its_age_its_life_and_what_it_took_to_make() -> None:
    original = Entry("triage", {"a": 1}, "large", Level.FULL, Usage(1, 2), 0.1, 2.0, 960.0, 70.0, 0.9)
    hit = original.answer("1", status=CacheStatus.HIT, tier="redis", unix_now=1000.0)
    assert entry_of(CONFIG, CALL, hit, 1000.0) == replace(original, usage=Usage())
    assert entry_of(ProgramCache(ttl_s=50), CALL, hit, 1000.0).ttl_s == 50


@pytest.mark.parametrize(
    ("level", "level_keys", "answered", "is_kept"),
    [
        (Level.DEGRADED, ("f", "k"), Level.FULL, True),
        (Level.MINIMAL, ("f", "d", "k"), Level.DEGRADED, True),
        (Level.MINIMAL, ("f", "d", "k"), Level.MINIMAL, True),
        (Level.FULL, ("k", "d", "m"), Level.DEGRADED, False),
        (Level.DEGRADED, ("f", "k", "m"), Level.MINIMAL, False),
        (Level.DEGRADED, (), Level.FULL, False),
    ],
)
def test_an_answer_is_kept_under_the_key_of_its_own_level_and_never_under_a_better_one(
    level: Level, level_keys: tuple[str, ...], answered: Level, is_kept: bool
) -> None:
    call = changed(CALL, level=level, level_keys=level_keys)
    entry = entry_of(CONFIG, call, changed(RESULT, level=answered, cache=CacheStatus.HIT), 1000.0)
    assert (entry is not None) is is_kept
    if entry is not None:
        assert call.key_at(entry.level) == (level_keys[answered.rank])


RULED = ProgramCache(
    ttl_s=100,
    low_confidence=LowConfidence(below=0.7, ttl_s=30),
    rules=(
        CacheRule(field="category", equals="unknown", ttl_s=5),
        CacheRule(field="count", equals=1, ttl_s=1000),
        CacheRule(field="is_spam", equals=True, ttl_s=0),
        CacheRule(field="next", equals=None, ttl_s=7),
    ),
)


@pytest.mark.parametrize(
    ("outputs", "confidence", "expected"),
    [
        ({"category": "billing"}, 0.9, 100),
        ({"category": "unknown"}, 0.9, 5),
        ({"category": "unknown", "count": 1}, 0.9, 5),
        ({"count": 1}, 0.9, 1000),
        ({"count": 1.0}, 0.9, 1000),
        ({"count": True}, 0.9, 100),
        ({"count": "1"}, 0.9, 100),
        ({"is_spam": True}, 0.9, 0),
        ({"is_spam": 1}, 0.9, 100),
        ({"next": None}, 0.9, 7),
        ({}, 0.9, 100),
        ({"count": 1}, 0.1, 30),
        ({"category": "unknown"}, 0.1, 5),
    ],
)
def test_the_first_rule_that_an_answer_matches_says_how_long_it_lives_and_doubt_shortens_it(
    outputs: dict[str, object], confidence: float, expected: float
) -> None:
    assert ttl_s(RULED, outputs, confidence) == expected
    entry = entry_of(RULED, CALL, changed(RESULT, outputs=outputs, confidence=confidence), 1000.0)
    assert (entry.ttl_s if entry is not None else 0) == expected


def test_a_rule_added_since_an_answer_was_stored_shortens_its_life_and_never_lengthens_it() -> None:
    config = ProgramCache(ttl_s=100, rules=(CacheRule(field="a", equals=1, ttl_s=10),))
    assert decide_entry(config, Freshness(), stored(0), 11) is MISS
    config = ProgramCache(ttl_s=100, rules=(CacheRule(field="a", equals=1, ttl_s=1000),))
    assert decide_entry(config, Freshness(), stored(0), 101) is MISS


@pytest.mark.parametrize(
    ("config", "call", "result"),
    [
        (CONFIG, CALL, changed(RESULT, outputs=None, error=NoRoute("none"))),
        (CONFIG, CALL, changed(RESULT, error=NoRoute("none"))),
        (CONFIG, CALL, changed(RESULT, outputs=None)),
        (CONFIG, CALL, changed(RESULT, cache=CacheStatus.STALE)),
        (CONFIG, CALL, changed(RESULT, is_other_version=True)),
        (CONFIG, CALL, changed(RESULT, is_truncated=True)),
        (CONFIG, CALL, changed(RESULT, level=Level.DEGRADED)),
        (CONFIG, changed(CALL, level=Level.DEGRADED), RESULT),
        (CONFIG, changed(CALL, key=""), RESULT),
        (CONFIG, changed(CALL, freshness=Freshness(no_store=True)), RESULT),
        (ProgramCache(ttl_s=0), CALL, RESULT),
        (ProgramCache(low_confidence=LowConfidence(below=0.95, ttl_s=0)), CALL, RESULT),
    ],
)
def test_what_must_not_be_stored_is_not(config: ProgramCache, call: Call, result: Result) -> None:
    assert entry_of(config, call, result, 1000.0) is None


def test_no_cache_stores_the_new_answer() -> None:
    assert entry_of(CONFIG, changed(CALL, freshness=Freshness(no_cache=True)), RESULT, 1000.0) is not None


@pytest.mark.parametrize(
    ("header", "freshness"),
    [
        ("", Freshness()),
        ("no-cache", Freshness(no_cache=True)),
        ("NO-CACHE , No-Store,,only-if-cached", Freshness(no_cache=True, no_store=True, only_if_cached=True)),
        ("max-age=60", Freshness(max_age_s=60)),
        ('max-age="60"', Freshness(max_age_s=60)),
        ("max-age = 60", Freshness(max_age_s=60)),
        ("max-age=60, max-age=5", Freshness(max_age_s=5)),
        ("max-age=99999999999999999999999999", Freshness(max_age_s=2.0**31)),
        ("max-age", Freshness(max_age_s=0)),
        ("max-age=", Freshness(max_age_s=0)),
        ("max-age=soon", Freshness(max_age_s=0)),
        ("max-age=-1", Freshness(max_age_s=0)),
        ("max-age=1.5", Freshness(max_age_s=0)),
        ("max-age=²", Freshness(max_age_s=0)),
        ('no-cache="Set-Cookie, X"', Freshness(no_cache=True)),
        ('x="no-store, max-age=1", max-age=2', Freshness(max_age_s=2)),
        ('x="a\\"b, no-store"', Freshness()),
        ("no-cached, xno-store, max-ages=1", Freshness()),
        ("max-stale=60, min-fresh=5, no-transform", Freshness(max_stale_s=60, min_fresh_s=5)),
        ("max-stale", Freshness(max_stale_s=2.0**31)),
        ("max-stale, max-stale=5", Freshness(max_stale_s=5)),
        ("max-stale=soon", Freshness(max_stale_s=0)),
        ("min-fresh=5, min-fresh=9", Freshness(min_fresh_s=9)),
        ("min-fresh", Freshness(min_fresh_s=2.0**31)),
    ],
)
def test_cache_control_is_read_as_rfc_9111_writes_it(header: str, freshness: Freshness) -> None:
    assert parse_cache_control(header) == freshness


@given(st.text(max_size=200))
def test_any_header_is_read_without_an_error(header: str) -> None:
    freshness = parse_cache_control(header)
    for seconds in (freshness.max_age_s, freshness.max_stale_s, freshness.min_fresh_s):
        assert seconds is None or 0 <= seconds <= 2.0**31
