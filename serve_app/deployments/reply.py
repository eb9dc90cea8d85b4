"""From a ``Result`` to what a caller sees: body and headers."""

from __future__ import annotations

import math
from typing import Any

from serve_app.deployments.http_problems import attempts_json
from serve_app.messages import CacheStatus, Result


def reply(program: str, request_id: str, result: Result, latency_s: float) -> dict[str, Any]:
    """``{"outputs": {…}, "meta": {…}}``."""
    usage = {"input_tokens": result.usage.input_tokens, "output_tokens": result.usage.output_tokens}
    meta = {
        "request_id": request_id,
        "program": program,
        "model": result.model,
        "level": result.level.value,
        **({"level_reason": result.level_reason} if result.level_reason else {}),
        "cache": result.cache.value,
        **({"truncated": True} if result.is_truncated else {}),
        "attempts": attempts_json(result.attempts),
        "usage": usage,
        "cost_usd": result.cost_usd,
        "latency_s": round(latency_s, 6),
    }
    return {"outputs": result.outputs, "meta": meta}


def cache_headers(result: Result) -> dict[str, str]:
    """``Cache-Status``, and ``Age`` for a stored answer (RFC 9111 §5.1)."""
    headers = {"Cache-Status": cache_status_header(result)}
    if result.cache in (CacheStatus.HIT, CacheStatus.STALE):
        headers["Age"] = str(math.floor(result.age_s))
    return headers


def cache_status_header(result: Result) -> str:
    """``Cache-Status`` (RFC 9211): a hit, or why the call was forwarded and what became of the answer.

    ``ttl`` is how long the answer stays fresh, negative for a stale one (§2.4); ``detail`` is the tier that had it.
    """
    parts = ["Switchyard", *_parts(result)]
    return "; ".join(part for part in parts if part)


def _parts(result: Result) -> tuple[str, ...]:
    ttl = "" if result.fresh_for_s is None else f"ttl={math.floor(result.fresh_for_s)}"
    stored = "" if result.fresh_for_s is None else "stored"
    forwarded = f"fwd={result.forwarded or 'miss'}"
    match result.cache:
        case CacheStatus.HIT | CacheStatus.STALE:  # §2.1: either a hit or forwarded, never both
            return "hit", ttl, f"detail={result.tier}" if result.tier else ""
        case CacheStatus.COALESCED:
            return forwarded, "collapsed", stored, ttl
        case CacheStatus.BYPASS:
            return ("fwd=bypass",)
        case _:
            return forwarded, stored, ttl
