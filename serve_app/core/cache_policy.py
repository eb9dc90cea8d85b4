"""Whether a stored answer may be used, and how long a new one is worth keeping.

Ages run left to right; ``ttl`` is the program's, that of the first rule that the answer matches, or the shorter one of
an answer with low confidence:

    0 ── fresh ── ttl ── stale-while-revalidate ── ttl+swr ┐
                     └── stale-if-error ───────── ttl+sie ─┴── expired

A request may narrow or widen that with ``Cache-Control`` (RFC 9111 §5.2.1), never past ``expired``, where nothing is
kept any more:

    ================  ======================================================================================
    no-store          the cache is left alone (``BYPASS``); nothing is stored
    no-cache          a stored answer is not used; the new one is stored
    max-age=N         a stored answer older than N, or stale, is not served at once; on an error RFC 5861 §4
                      lets stale-if-error serve it all the same
    min-fresh=N       nor is one that stays fresh for less than N
    max-stale[=N]     one that is stale by up to N (by anything) is served at once: N takes the place of
                      stale-while-revalidate; max-age, where given, still bounds the age
    only-if-cached    what may not be served at once is ``UNSATISFIABLE``: 504, no model is asked
    ================  ======================================================================================

``no-store`` with ``only-if-cached`` reads: §5.2.1.5 forbids storing the answer, not using one already stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from serve_app.config import ProgramCache
from serve_app.core.cache_entry import Entry
from serve_app.messages import CacheStatus, Call, Freshness, Result


class Decision(StrEnum):
    """What a stored answer, or its absence, is good for; best first."""

    FRESH = "fresh"
    """Serve it."""
    STALE = "stale"
    """Serve it, and make a new one in the background (RFC 5861 §3)."""
    IF_ERROR = "if_error"
    """Make a new one; serve this one if no model can answer (RFC 5861 §4)."""
    MISS = "miss"
    """Make a new one."""
    BYPASS = "bypass"
    """Make a new one, and neither read nor write."""
    UNSATISFIABLE = "unsatisfiable"
    """Answer 504: the caller wanted a stored answer only."""


def may_use_stored(call: Call) -> bool:
    """Whether looking for a stored answer can be of use to the call."""
    wanted = call.freshness
    return bool(call.key) and not wanted.no_cache and (wanted.only_if_cached or not wanted.no_store)


def decide(config: ProgramCache, freshness: Freshness, age_s: float | None, ttl_s: float = 0.0) -> Decision:
    """What to do, given a stored answer ``age_s`` old that is fresh for ``ttl_s``; ``None`` is no stored answer."""
    if config.ttl_s == 0 or (freshness.no_store and not freshness.only_if_cached):
        return Decision.UNSATISFIABLE if freshness.only_if_cached else Decision.BYPASS
    stored = Decision.MISS if age_s is None or freshness.no_cache else _stored(config, freshness, age_s, ttl_s)
    if freshness.only_if_cached and stored not in (Decision.FRESH, Decision.STALE):
        return Decision.UNSATISFIABLE
    return stored


def decide_entry(config: ProgramCache, freshness: Freshness, entry: Entry | None, unix_now: float) -> Decision:
    """``decide`` for an entry."""
    if entry is None:
        return decide(config, freshness, None)
    return decide(config, freshness, entry.age_s(unix_now), current_ttl_s(config, entry))


def _stored(config: ProgramCache, freshness: Freshness, age_s: float, ttl_s: float) -> Decision:
    is_young = freshness.max_age_s is None or age_s <= freshness.max_age_s
    if is_young and age_s < ttl_s and age_s + (freshness.min_fresh_s or 0.0) <= ttl_s:
        return Decision.FRESH
    if is_young and ttl_s <= age_s < min(ttl_s + _max_stale_s(config, freshness), keep_s(config, ttl_s)):
        return Decision.STALE
    if config.stale_if_error_s > 0 and age_s < ttl_s + config.stale_if_error_s:
        return Decision.IF_ERROR
    return Decision.MISS


def _max_stale_s(config: ProgramCache, freshness: Freshness) -> float:
    """How stale an answer may be served at once; not at all to a caller with ``max-age`` or ``min-fresh`` (§5.2.1)."""
    if freshness.min_fresh_s is not None:
        return 0.0
    if freshness.max_stale_s is not None:
        return freshness.max_stale_s
    return config.stale_while_revalidate_s if freshness.max_age_s is None else 0.0


def ttl_s(config: ProgramCache, outputs: Mapping[str, object], confidence: float | None) -> float:
    """Seconds an answer is fresh: by what it says, and never longer for a doubtful one than for a sure one."""
    told_s = next((rule.ttl_s for rule in config.rules if rule.matches(outputs)), config.ttl_s)
    doubt = config.low_confidence
    if doubt is not None and confidence is not None and confidence < doubt.below:
        return min(doubt.ttl_s, told_s)
    return told_s


def current_ttl_s(config: ProgramCache, entry: Entry) -> float:
    """Seconds a stored answer is fresh; a TTL shortened in the configuration since it was stored holds at once."""
    return min(entry.ttl_s, ttl_s(config, entry.outputs, entry.confidence))


def keep_s(config: ProgramCache, ttl_s: float) -> float:
    """Seconds after which a stored answer is good for nothing; 0 for one not worth storing."""
    return ttl_s + max(config.stale_while_revalidate_s, config.stale_if_error_s) if ttl_s > 0 else 0.0


def entry_of(config: ProgramCache, call: Call, result: Result, unix_now: float) -> Entry | None:
    """What to store of a result under ``call.key_at(result.level)``; ``None`` for one that must not be stored.

    That is an error, a stale answer, a call without a key or with ``no-store``, an answer of a worse level than the
    call's or of another version of the program, one that a token limit cut off, and one with a TTL of 0. A hit of a
    farther tier keeps its age and its life, so a nearer one may store it.
    """
    if result.error is not None or result.outputs is None or result.cache is CacheStatus.STALE:
        return None
    if result.is_other_version or result.is_truncated:
        return None
    fresh_s = ttl_s(config, result.outputs, result.confidence)
    if result.fresh_for_s is not None:
        fresh_s = min(fresh_s, result.age_s + result.fresh_for_s)
    is_worse = result.level.rank > call.level.rank
    if is_worse or not call.key_at(result.level) or call.freshness.no_store or fresh_s <= 0:
        return None
    return Entry(
        program=call.program,
        outputs=result.outputs,
        model=result.model,
        level=result.level,
        usage=result.usage,
        cost_usd=result.cost_usd + result.saved_cost_usd,
        latency_s=sum(attempt.latency_s for attempt in result.attempts) + result.saved_s,
        created_at=unix_now - result.age_s,
        ttl_s=fresh_s,
        confidence=result.confidence,
    )
