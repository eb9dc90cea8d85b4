"""From a ``Result`` to what a caller sees: body and headers."""

from __future__ import annotations

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
        "cache": result.cache.value,
        "attempts": attempts_json(result.attempts),
        "usage": usage,
        "cost_usd": result.cost_usd,
        "latency_s": round(latency_s, 6),
    }
    return {"outputs": result.outputs, "meta": meta}


def cache_status_header(result: Result) -> str:
    """``Cache-Status`` (RFC 9211): a hit, or why the call was forwarded."""
    match result.cache:
        case CacheStatus.HIT:
            return f"Switchyard; hit; detail={result.tier}" if result.tier else "Switchyard; hit"
        case CacheStatus.STALE:
            return "Switchyard; hit; detail=stale"  # §2.1: either a hit or forwarded, never both
        case CacheStatus.COALESCED:
            return "Switchyard; fwd=miss; collapsed"
        case CacheStatus.BYPASS:
            return "Switchyard; fwd=bypass"
        case _:
            return "Switchyard; fwd=miss"
