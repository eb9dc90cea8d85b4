"""A request's ``Cache-Control`` header (RFC 9111 §5.2.1) as a ``Freshness``.

A caller that cannot be understood had better get a new answer (§4.2.1): a number of seconds that is none, and of a
repeated directive the one that accepts least, count.
"""

from __future__ import annotations

import re
from typing import Final

from serve_app.messages import Freshness

MAX_DELTA_S: Final = 2.0**31
"""What RFC 9111 §1.2.2 reads in a number of seconds too large to hold."""

_DIRECTIVE = re.compile(r"""([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^\s,"]+))?""")
_NOTHING_ASKED: Final = Freshness()


def parse_cache_control(header: str) -> Freshness:
    """What the header asks for; unknown directives are ignored (§5.2.3)."""
    if not header:
        return _NOTHING_ASKED
    found: dict[str, list[str]] = {}
    for name, value in _DIRECTIVE.findall(header):
        found.setdefault(name.lower(), []).append(value.strip('"'))
    return Freshness(
        no_cache="no-cache" in found,
        no_store="no-store" in found,
        only_if_cached="only-if-cached" in found,
        max_age_s=min((_delta_s(text, 0.0) for text in found.get("max-age", ())), default=None),
        max_stale_s=min((_max_stale_s(text) for text in found.get("max-stale", ())), default=None),
        min_fresh_s=max((_delta_s(text, MAX_DELTA_S) for text in found.get("min-fresh", ())), default=None),
    )


def _max_stale_s(text: str) -> float:
    """§5.2.1.2: without a number, stale by any time is accepted."""
    return _delta_s(text, 0.0) if text else MAX_DELTA_S


def _delta_s(text: str, otherwise: float) -> float:
    if not (text.isascii() and text.isdigit()):
        return otherwise
    return min(float(text[:20]), MAX_DELTA_S)
