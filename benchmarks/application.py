"""The application that the throughput benchmarks serve: one program, with everything on, in both graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PATHS = {"standard": "", "compact": "/compact"}
"""Where each graph is served; both are applications of one cluster."""
NAMES = {"standard": "switchyard", "compact": "compact"}
PROGRAM = "question -> answer"
MODELS = ("large", "medium", "small")
PINNED: dict[str, Any] = {"degradation": {"pin": "full"}}
"""Policy: under the load of a benchmark the level would fall, and with it the work of a call."""


def model(name: str, provider: str, **changes: Any) -> dict[str, Any]:
    """One model of the simulated provider."""
    quality = {"large": 0.95, "medium": 0.85, "small": 0.7}.get(name, 0.8)
    price = {"input_usd_per_1m_tokens": 10 * quality**4, "output_usd_per_1m_tokens": 20 * quality**4}
    base = {"name": name, "lm": f"openai/{name}", "api_base": f"{provider}/v1", "quality": quality, "price": price}
    return base | {"latency_s": 0.2, "max_ongoing_requests": 512} | changes


def application(graph: str, provider: str, **changes: Any) -> dict[str, Any]:
    """One graph: three models to route between, breakers, retry budget, cache with an embedded Valkey, metrics.

    Args:
        graph: ``standard`` or ``compact``.
        provider: root URL of the simulator.
        changes: of the application's ``args``.
    """
    args = {
        "programs": [{"name": "ask", "program": PROGRAM, "levels": {"full": {"models": list(MODELS)}}}],
        "models": [model(name, provider) for name in MODELS],
        "default_model": "medium",
        "cache": {"redis_url": "embedded"},
    }
    return {
        "name": NAMES[graph],
        "route_prefix": PATHS[graph] or "/",
        "import_path": f"graphs.{graph}:build",
        "args": args | changes,
        "deployments": [{"name": "ControlPlane", "user_config": PINNED}],
    }


def upstream(latency_s: float = 0.0, names: tuple[str, ...] = MODELS) -> Mapping[str, Mapping[str, Any]]:
    """Models of a simulator that answers after ``latency_s``, always equally."""
    return {name: {"ttft_s": latency_s, "tokens_per_s": 1e9, "jitter": 0} for name in names}


def url(base: str, graph: str, program: str = "ask") -> str:
    """Where a program of that graph is called."""
    return f"{base}{PATHS[graph]}/v1/programs/{program}"
