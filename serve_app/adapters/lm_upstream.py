"""The way to one model: DSPy's own client of its provider, or LiteLLM where DSPy has none.

An upstream takes a ``dspy.lm15.Request``, sends it once, and raises ``dspy.lm15`` errors.
"""

from __future__ import annotations

import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Protocol

from dspy import lm15
from dspy.clients.engines import LM15Engine

from serve_app.adapters.litellm_upstream import LiteLLMUpstream, litellm_knows
from serve_app.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from serve_app.adapters.lm_transport import AiohttpTransport
    from serve_app.config import ModelConfig

NO_KEY = "no-key"
"""Sent as the key where none is configured: servers without keys ignore it, the others answer 401."""

_CANNOT_READ = (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)
_DISJOINT_REASONING = frozenset({"gemini", "vertex", "vertex-express", "xai"})


class Upstream(Protocol):
    """One model, one attempt at a time."""

    @property
    def model(self) -> str:
        """The name that requests to this upstream carry."""

    @property
    def provider(self) -> str:
        """Whose model it is, as DSPy spells the provider."""

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """The whole reply."""

    def stream(self, request: lm15.Request) -> AsyncGenerator[Any, None]:
        """The reply, event by event."""

    def tokens(self, usage: lm15.Usage) -> tuple[int, int]:
        """Input and output tokens a bill counts; what the provider does not report is 0."""


class ClientUpstream:
    """DSPy's client of one provider.

    Args:
        client: for example a ``dspy.lm15.AsyncOpenAIChatLM``.
        model: the model's name on the wire.
        provider: the client's provider as ``dspy.lm15`` spells it.
    """

    engine = "lm15"

    def __init__(self, client: Any, model: str, provider: str) -> None:  # noqa: ANN401 - lm15's clients share no public base
        self._client = client
        self.model = model
        self.provider = provider
        self._counts_cached_apart = "anthropic" in provider
        self._counts_reasoning_apart = provider in _DISJOINT_REASONING

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """The whole reply.

        Raises:
            lm15.ProviderError: the reply is no reply of this provider's.
            lm15.LM15Error: any other failure.
        """
        try:
            response: lm15.Response = await self._client.complete(request)
        except _CANNOT_READ as error:
            raise self._unreadable(request, error) from error
        return response

    async def stream(self, request: lm15.Request) -> AsyncGenerator[Any, None]:
        """The reply, event by event; raises as ``complete`` does."""
        async with aclosing(self._client.stream(request)) as events:
            try:
                async for event in events:
                    yield event
            except _CANNOT_READ as error:
                raise self._unreadable(request, error) from error

    def tokens(self, usage: lm15.Usage) -> tuple[int, int]:
        """Anthropic counts cached input apart, Gemini and xAI reasoning; a bill counts both (lm15's ``Usage``)."""
        sent, received = usage.input_tokens or 0, usage.output_tokens or 0
        if self._counts_cached_apart:
            sent += (usage.cache_read_tokens or 0) + (usage.cache_write_tokens or 0)
        if self._counts_reasoning_apart:
            received += usage.reasoning_tokens or 0
        return sent, received

    def _unreadable(self, request: lm15.Request, error: Exception) -> lm15.LM15Error:
        """Tell a reply the client stumbles over from a request it cannot build: only the latter fails in a plan."""
        self._client.plan(request)
        return lm15.ProviderError(f"malformed reply: {error!r}", provider=self._client.provider)


def upstream_for(model: ModelConfig, transport: AiohttpTransport) -> ClientUpstream | LiteLLMUpstream:
    """The way to ``model``: over ``transport`` if DSPy has a client for its provider, else LiteLLM.

    Raises:
        ConfigError: the variable of its key is unset or empty, or what its provider needs is missing.
    """
    key = _key(model)
    declared = _declared()
    found = _resolved(model, declared)
    if found is None:
        return _litellm(model, key)
    if key is None and not found.credential_policy.endswith("-chain"):
        key = NO_KEY  # a cloud's chain finds an identity of its own; nothing else is guessed from the environment
    config = lm15.RouterConfig(
        api_keys={found.provider: key} if key else None,
        base_urls={found.provider: model.api_base} if model.api_base else None,
        transport=transport,
        providers=declared,
    )
    try:
        client = lm15.AsyncLMRouter(config).lm(f"{found.provider}:{found.model}")
        transport.check(client.base_url)
    except lm15.LM15Error as error:
        raise ConfigError([f"models: {model.name}: {error}"]) from error
    return ClientUpstream(client, found.model, found.provider)


def knows_provider(model: ModelConfig) -> bool:
    """Whether DSPy or LiteLLM, which is imported only if DSPy does not, has a way to ``model``."""
    return _resolved(model, _declared()) is not None or litellm_knows(model.lm, model.api_base)


def _declared() -> tuple[lm15.ProviderDefinition, ...]:
    return tuple(binding.definition for binding in lm15.registered_providers())


def _resolved(model: ModelConfig, declared: tuple[lm15.ProviderDefinition, ...]) -> Any | None:  # noqa: ANN401 - lm15's
    """The provider and the model as DSPy's own clients know them; ``None`` where they do not."""
    try:
        return LM15Engine(lm15.RouterConfig(env={}, providers=declared), model_type=model.model_type).resolve(model.lm)
    except (lm15.UnknownModelError, lm15.UnsupportedFeatureError):
        return None


def _litellm(model: ModelConfig, key: str | None) -> LiteLLMUpstream:
    options = {"api_base": model.api_base} if model.api_base else {}
    if key or model.api_base:
        options["api_key"] = key or NO_KEY  # with neither, LiteLLM finds its provider's own credentials
    return LiteLLMUpstream(model.lm, model.model_type, **options)


def _key(model: ModelConfig) -> str | None:
    if model.api_key_env is None:
        return None
    key = os.environ.get(model.api_key_env, "").strip()  # keys read from a file tend to end in a newline
    if not key:
        raise ConfigError([f"models: {model.name}: api_key_env: the variable {model.api_key_env} is not set"])
    return key
