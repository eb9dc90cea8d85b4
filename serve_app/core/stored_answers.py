"""Which of an answer's stored forms a call gets: one for each level of service.

    ============================  ======================================================
    stored for the call's level   by its age, as ``cache_policy`` decides
    stored for a better level     the same: it is at least as good an answer
    stored for a worse level      only if no model can answer, and ``stale_if_error_s``
                                  allows it; fresh or stale
    ============================  ======================================================

Of several, the one that may be served soonest; of equals, the better level's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from serve_app.config import ProgramCache
from serve_app.core.cache_entry import Entry
from serve_app.core.cache_policy import Decision, decide, decide_entry, may_use_stored
from serve_app.messages import Call, Freshness, Level

_ORDER = {decision: place for place, decision in enumerate(Decision)}


class Stored(NamedTuple):
    """An answer, and the tier of the cache that has it."""

    entry: Entry
    tier: str


def keys_to_read(call: Call) -> tuple[str, ...]:
    """Where an answer that is of use to the call may be stored, best level first."""
    return (call.level_keys or (call.key,)) if may_use_stored(call) else ()


def choose(
    config: ProgramCache, call: Call, found: Mapping[str, Stored], unix_now: float
) -> tuple[Decision, Stored | None]:
    """What to do, and with which of the stored answers that were ``found`` under ``keys_to_read``."""
    known = [(level, found[key]) for level, key in _levels(call) if key in found and found[key].entry.level is level]
    judged = [(_decide(config, call, level, stored.entry, unix_now), stored) for level, stored in known]
    nothing = (decide(config, call.freshness, None), None)
    return min((*judged, nothing), key=lambda pair: _ORDER[pair[0]])


def forward_reason(config: ProgramCache, call: Call, found: Mapping[str, Stored], unix_now: float) -> str:
    """Why a model is asked although the cache took part (RFC 9211 §2.2): ``request``, ``stale``, or "" for a miss."""
    if call.freshness.no_cache:
        return "request"
    own = found.get(call.key)
    if own is None:
        return ""
    is_fresh = decide_entry(config, Freshness(), own.entry, unix_now) is Decision.FRESH
    return "request" if is_fresh else "stale"


def _levels(call: Call) -> Iterable[tuple[Level, str]]:
    if not may_use_stored(call):
        return ()
    return zip(Level, call.level_keys, strict=False) if call.level_keys else ((call.level, call.key),)


def _decide(config: ProgramCache, call: Call, level: Level, entry: Entry, unix_now: float) -> Decision:
    decision = decide_entry(config, call.freshness, entry, unix_now)
    if level.rank <= call.level.rank or decision not in (Decision.FRESH, Decision.STALE):
        return decision
    if call.freshness.only_if_cached:
        return Decision.UNSATISFIABLE
    return Decision.IF_ERROR if config.stale_if_error_s > 0 else Decision.MISS
