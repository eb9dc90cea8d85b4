"""XFetch: an answer in demand is made anew shortly before it ends, by one caller instead of by all of them at once.

Each hit draws ``u`` from (0, 1] and refreshes when ``age - δ·β·ln u ≥ ttl``, where ``δ`` is how long the answer took to
make. So the chance that one hit refreshes is ``exp((age - ttl) / (δ·β))``: nothing for most of an answer's life, and
near its end the likelier the more often it is asked for and the longer it takes to make. From A. Vattani, F.
Chierichetti, K. Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB 8(8), 2015; ``β = 1`` is theirs.

Here the caller never waits: it gets the fresh answer, and the new one is made in the background.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from serve_app.config import ProgramCache
from serve_app.core.cache_entry import Entry
from serve_app.core.cache_policy import current_ttl_s
from serve_app.messages import Call

Draw = Callable[[], float]
"""A uniform number in [0, 1), as ``random.random`` gives."""


def refreshes_early(config: ProgramCache, call: Call, entry: Entry, unix_now: float, draw: Draw) -> bool:
    """Whether this hit of a fresh ``entry`` is the one to have it made anew.

    Not for a caller that wants no model asked, and not for an answer of another level: its successor would be another.
    """
    lead_s = entry.latency_s * config.early_refresh_beta
    if lead_s <= 0 or not may_refresh(call) or entry.level is not call.level:
        return False
    remaining_s = current_ttl_s(config, entry) - entry.age_s(unix_now)
    return -lead_s * math.log(1.0 - draw()) >= remaining_s


def may_refresh(call: Call) -> bool:
    """Whether a model may be asked in the background of this call, and the answer kept."""
    return not (call.freshness.only_if_cached or call.freshness.no_store or call.shed)
