"""The way to a provider that DSPy has no client for: DSPy's LiteLLM engine, asked once and bounded in time."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from dspy import lm15
from dspy.clients.engines import AsyncLiteLLMEngine

from serve_app.adapters.call_scope import current_scope

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

# LiteLLM reads this when it is first imported, which DSPy does on first use: without it, it downloads a price list.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")

_DEFAULT_TOTAL_S = 600.0
_NO_PROVIDER = "LLM Provider NOT provided"
"""How LiteLLM begins to say that it knows no provider of that name; it has no class and no code for it."""


class LiteLLMUpstream:
    """DSPy's LiteLLM engine: one attempt, no cache, bounded by the call's deadline.

    LiteLLM keeps connections of its own: when one breaks before a reply, it sends the request a second time, and
    below some providers (DeepInfra) its SDK retries whatever it is told. The deadline ends that too.

    Args:
        model: DSPy model string; LiteLLM reads the provider off it.
        model_type: ``chat`` or ``responses``.
        options: LiteLLM client options (``api_key``, ``api_base``).
    """

    engine = "litellm"

    def __init__(self, model: str, model_type: str, **options: str) -> None:
        self.model = model
        self.provider = model.partition("/")[0]
        # LiteLLM keeps a client, and so its connections, for each timeout it meets: a deadline must not be one.
        self._engine = AsyncLiteLLMEngine(model_type=model_type, timeout=_DEFAULT_TOTAL_S, **options)

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """The whole reply, or a ``dspy.lm15`` error."""
        remaining_s = _remaining_s()
        try:
            async with asyncio.timeout(remaining_s):
                response: lm15.Response = await self._engine.complete(request)
        except (lm15.LM15Error, TimeoutError) as error:
            raise _explained(error, remaining_s) from error.__cause__
        return response

    async def stream(self, request: lm15.Request) -> AsyncGenerator[Any, None]:
        """The reply, event by event, or a ``dspy.lm15`` error."""
        remaining_s = _remaining_s()
        async with aclosing(self._engine.stream(request)) as events:
            while True:
                try:
                    async with asyncio.timeout(_remaining_s()):
                        event = await anext(events, None)
                except (lm15.LM15Error, TimeoutError) as error:
                    raise _explained(error, remaining_s) from error.__cause__
                if event is None:
                    return
                yield event

    def tokens(self, usage: lm15.Usage) -> tuple[int, int]:
        """LiteLLM has made every provider's counters mean the same."""
        return usage.input_tokens or 0, usage.output_tokens or 0


def _remaining_s() -> float:
    scope = current_scope()
    return _DEFAULT_TOTAL_S if scope is None else scope.remaining_s()


def litellm_knows(lm: str, api_base: str | None) -> bool:
    """Whether LiteLLM has a provider for that model string; the first time it takes seconds, to import LiteLLM."""
    if lm.partition("/")[0] in litellm_providers():
        return True
    import litellm  # noqa: PLC0415 - slow

    litellm.suppress_debug_info = True  # as DSPy does; else it prints what it does not know
    try:
        litellm.get_llm_provider(lm, api_base=api_base)
    except litellm.exceptions.BadRequestError as error:
        return _NO_PROVIDER not in str(error)
    return True


def litellm_providers() -> list[str]:
    """The providers that LiteLLM names."""
    import litellm  # noqa: PLC0415 - slow

    return [str(getattr(name, "value", name)) for name in litellm.provider_list]


def _explained(error: Exception, timeout_s: float) -> lm15.LM15Error:
    """The error as lm15's, with the ``Retry-After`` that LiteLLM keeps beside its exceptions.

    LiteLLM calls a provider that it does not know a bad request, which is the caller's; the model string is not.
    """
    if not isinstance(error, lm15.LM15Error):
        return lm15.TimeoutError(f"no whole reply within {timeout_s:.1f} s")
    if _NO_PROVIDER in str(error.__cause__):
        return lm15.UnknownModelError("LiteLLM knows no such provider", provider_code="unknown_provider")
    headers = getattr(error.__cause__, "litellm_response_headers", None) or {}
    if error.retry_after is None and "retry-after" in headers:
        error.retry_after = retry_after_s(str(headers["retry-after"]))
    return error


def retry_after_s(value: str) -> float | None:
    """Seconds a ``Retry-After`` header asks for (RFC 9110 §10.2.3: a number or a date); ``None`` if unreadable."""
    if value.isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
