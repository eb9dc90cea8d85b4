"""Whether a stored answer may be used, and how long a new one is worth keeping.

Ages run left to right; ``ttl`` is the program's, or the shorter one of an answer with low confidence:

    0 ── fresh ── ttl ── stale-while-revalidate ── ttl+swr ┐
                     └── stale-if-error ───────── ttl+sie ─┴── expired

A request may be stricter than that with ``Cache-Control`` (RFC 9111 §5.2.1), never laxer:

    ================  ======================================================================================
    no-store          the cache is left alone (``BYPASS``); nothing is stored
    no-cache          a stored answer is not used; the new one is stored
    max-age=N         a stored answer older than N, or stale, is not served at once; on an error RFC 5861 §4
                      lets stale-if-error serve it all the same
    only-if-cached    what may not be served at once is ``UNSATISFIABLE``: 504, no model is asked
    ================  ======================================================================================

``no-store`` with ``only-if-cached`` reads: §5.2.1.5 forbids storing the answer, not using one already stored.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from serve_app.config import ProgramCache
from serve_app.core.cache_entry import Entry
from serve_app.messages import CacheStatus, Call, Freshness, Result

MAX_DELTA_S: Final = 2.0**31
"""What RFC 9111 §1.2.2 reads in a number of seconds too large to hold."""

_DIRECTIVE = re.compile(r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,"]+))?""")


class Decision(StrEnum):
    """What a stored answer, or its absence, is good for."""

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


def decide(config: ProgramCache, freshness: Freshness, age_s: float | None, ttl_s: float = 0.0) -> Decision:
    """What to do, given a stored answer ``age_s`` old that is fresh for ``ttl_s``; ``None`` is no stored answer."""
    if config.ttl_s == 0 or (freshness.no_store and not freshness.only_if_cached):
        return Decision.UNSATISFIABLE if freshness.only_if_cached else Decision.BYPASS
    stored = Decision.MISS if age_s is None or freshness.no_cache else _stored(config, freshness, age_s, ttl_s)
    if freshness.only_if_cached and stored not in (Decision.FRESH, Decision.STALE):
        return Decision.UNSATISFIABLE
    return stored


def decide_entry(config: ProgramCache, freshness: Freshness, entry: Entry | None, unix_now: float) -> Decision:
    """``decide`` for an entry; a TTL shortened in the configuration since it was stored holds at once."""
    if entry is None:
        return decide(config, freshness, None)
    current = min(entry.ttl_s, ttl_s(config, entry.confidence))
    return decide(config, freshness, entry.age_s(unix_now), current)


def _stored(config: ProgramCache, freshness: Freshness, age_s: float, ttl_s: float) -> Decision:
    is_wanted = freshness.max_age_s is None or age_s <= freshness.max_age_s
    if age_s < ttl_s and is_wanted:
        return Decision.FRESH
    if freshness.max_age_s is None and age_s < ttl_s + config.stale_while_revalidate_s:
        return Decision.STALE
    if config.stale_if_error_s > 0 and age_s < ttl_s + config.stale_if_error_s:
        return Decision.IF_ERROR
    return Decision.MISS


def ttl_s(config: ProgramCache, confidence: float | None) -> float:
    """Seconds an answer of that confidence is fresh; never longer for a doubtful one than for a sure one."""
    doubt = config.low_confidence
    if doubt is not None and confidence is not None and confidence < doubt.below:
        return min(doubt.ttl_s, config.ttl_s)
    return config.ttl_s


def keep_s(config: ProgramCache, ttl_s: float) -> float:
    """Seconds after which a stored answer is good for nothing; 0 for one not worth storing."""
    return ttl_s + max(config.stale_while_revalidate_s, config.stale_if_error_s) if ttl_s > 0 else 0.0


def entry_of(config: ProgramCache, call: Call, result: Result, unix_now: float) -> Entry | None:
    """What to store of a result; ``None`` for one that must not be stored.

    That is an error, a stale answer, a call without a key or with ``no-store``, an answer at another level than the
    key names, and one with a TTL of 0. A hit of a farther tier keeps its age, so a nearer one may store it.
    """
    fresh_s = ttl_s(config, result.confidence)
    is_kept_out = not call.key or call.freshness.no_store or result.level != call.level or fresh_s <= 0
    if result.error is not None or result.outputs is None or result.cache is CacheStatus.STALE or is_kept_out:
        return None
    return Entry(
        program=call.program,
        outputs=result.outputs,
        model=result.model,
        level=result.level,
        usage=result.usage,
        cost_usd=result.cost_usd,
        latency_s=sum(attempt.latency_s for attempt in result.attempts),
        created_at=unix_now - result.age_s,
        ttl_s=fresh_s,
        confidence=result.confidence,
    )


def parse_cache_control(header: str) -> Freshness:
    """A request's ``Cache-Control``; unknown directives are ignored (RFC 9111 §5.2.3).

    Of a repeated ``max-age`` the smallest counts; one that is not a whole number of seconds counts as 0, since a
    caller that cannot be understood had better get a new answer (§4.2.1).
    """
    found: dict[str, list[str]] = {}
    for name, value in _DIRECTIVE.findall(header):
        found.setdefault(name.lower(), []).append(value.strip('"'))
    return Freshness(
        no_cache="no-cache" in found,
        no_store="no-store" in found,
        only_if_cached="only-if-cached" in found,
        max_age_s=min(map(_delta_s, found["max-age"])) if "max-age" in found else None,
    )


def _delta_s(text: str) -> float:
    if not (text.isascii() and text.isdigit()):
        return 0.0
    return min(float(text[:20]), MAX_DELTA_S)
