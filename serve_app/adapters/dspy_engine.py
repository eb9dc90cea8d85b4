"""Language models for DSPy programs: DSPy's own clients over one pool of connections, bound to the call in progress.

``dspy.LM`` hands an engine a ``dspy.lm15.Request`` and takes back a ``Response``. The engines here add what a
served call needs: its deadline, its bound on output tokens, the count of what it spent, and its journal, all read
from ``serve_app.adapters.call_scope``. They send once: who is asked next is the router's to decide. What an earlier
attempt at the call was answered already is not sent at all, and costs nothing; streams are always sent.

What a fault becomes, checked against real sockets:

=====================================================  ====================  ========================
fault                                                  dspy.lm15             dspy (from ``acall``)
=====================================================  ====================  ========================
refused, name not found, no connection in time, TLS    TransportError        LMTransportError
reset or closed before headers, reply is not HTTP      TransportError        LMTransportError
truncated body, broken chunking or compression         TransportError        LMTransportError
silence, deadline over or call given up (asked or      TimeoutError          LMTimeoutError
not), 408, 504
malformed or truncated JSON, HTML or redirect, not a   ProviderError         LMProviderError
reply of the provider's, no content and no tokens
malformed chunk in a stream                            ProviderError         LMProviderError
stream ends without its end                            StreamAssemblyError   LMStreamAssemblyError
500, 502, 503, 529, error body in a 200                ServerError           LMServerError
429                                                    RateLimitError        LMRateLimitError
402, 429 of an exhausted quota                         BillingError          LMBillingError
401, 403                                               AuthError             LMAuthError
404 naming the model                                   UnsupportedModelError LMUnsupportedModelError
400 over the context window                            ContextLengthError    ContextWindowExceededError
content policy (``provider_code`` says so), withheld   InvalidRequestError   LMInvalidRequestError
reply (``provider_code="content_filter"``), other 4xx
nothing to send to, pool closed                        ConfigurationError    LMConfigurationError
=====================================================  ====================  ========================

``retry_after`` (seconds) is there whenever the reply had a ``Retry-After``, in seconds or as a date. A message may
quote the first bytes of a malformed reply: log codes, not messages. LiteLLM reports a broken connection as a
ServerError, and reads fewer error codes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import dspy
from dspy import lm15

from serve_app.adapters.call_scope import CallScope, current_scope
from serve_app.adapters.litellm_upstream import LiteLLMUpstream
from serve_app.adapters.lm_step import dump_response, load_response, request_fingerprint
from serve_app.adapters.lm_transport import AiohttpTransport
from serve_app.adapters.lm_upstream import ClientUpstream, Upstream, upstream_for
from serve_app.adapters.loop_thread import LoopThread
from serve_app.adapters.tracing import current_trace, join, lm_span
from serve_app.errors import ConfigError
from serve_app.messages import StepKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Generator, Mapping

    from serve_app.config import ModelConfig

_log = logging.getLogger("switchyard.engine")

T = TypeVar("T")

_GRACE_S = 1.0

NO_DEFAULTS: Mapping[str, object] = MappingProxyType({})
"""A model whose configuration sets nothing."""


class AsyncEngine:
    """One model for programs on the event loop.

    Args:
        upstream: the way to the model.
        defaults: settings of a request that come from the model's configuration unless the program says otherwise.
    """

    def __init__(self, upstream: Upstream, defaults: Mapping[str, object] = NO_DEFAULTS) -> None:
        self._upstream = upstream
        self._defaults = defaults

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copied program goes on using the replica's connections

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """Ask once, unless an earlier attempt at the call was answered already.

        Raises:
            lm15.TimeoutError: the deadline has passed or the call was given up; asked or not.
            lm15.LM15Error: what went wrong, see the table of the module.
        """
        scope = current_scope()
        if scope is None or scope.journal is None:
            return await self._send(scope, request)
        ask = scope.journal.ask(StepKind.LM, request_fingerprint(request, self._defaults))
        replayed = scope.journal.replay(ask, load_response)
        if replayed is not None:
            _note_end(scope, request.config, replayed.finish_reason)
            return replayed
        try:
            response = await self._send(scope, request)
        except BaseException:
            scope.journal.failed(ask)
            raise
        scope.journal.record(ask, dump_response(response))
        return response

    async def _send(self, scope: CallScope | None, request: lm15.Request) -> lm15.Response:
        fitted, began = self._begin(scope, request), time.monotonic()
        with lm_span(self._upstream, fitted) as span:
            try:
                response = await _held(scope, self._upstream.complete(fitted))
            except lm15.StreamAssemblyError as error:
                self._spend(scope, error.partial, began)
                raise
            self._spend(scope, response, began)
            _note_end(scope, request.config, response.finish_reason)
            span.replied(response, self._upstream.tokens(response.usage))
            _refuse_nothing(response)
            return response

    async def stream(self, request: lm15.Request) -> AsyncGenerator[Any, None]:
        """Ask once and yield the reply event by event; raises as ``complete`` does."""
        scope = current_scope()
        last, began = None, time.monotonic()
        async with aclosing(self._upstream.stream(self._begin(scope, request))) as events:
            while (event := await _held(scope, anext(events, None))) is not None:
                last = event.type
                if last == "end":
                    self._spend(scope, event, began)
                    _note_end(scope, request.config, event.finish_reason)
                yield event
        if last not in {"end", "error"}:
            raise lm15.StreamAssemblyError("the stream broke off before its end")

    def _begin(self, scope: CallScope | None, request: lm15.Request) -> lm15.Request:
        config = request.config
        if scope is not None:
            if scope.remaining_s() <= 0:
                raise lm15.TimeoutError("the call's deadline has passed; the provider was not asked")
            config = _bounded(config, scope.max_tokens)
            scope.lm_calls += 1
            if scope.trace and current_trace() is None:
                join(scope.trace)
        return replace(request, model=self._upstream.model, config=config)

    def _spend(self, scope: CallScope | None, reply: Any, began: float) -> None:  # noqa: ANN401 - two types of lm15
        """Count a response or an end event; a call that broke off may have neither."""
        if scope is not None and reply is not None and reply.usage is not None:
            scope.spend(*self._upstream.tokens(reply.usage), time.monotonic() - began)


async def _held(scope: CallScope | None, work: Awaitable[T]) -> T:
    """What ``work`` gives, unless its call is given up meanwhile."""
    if scope is None:
        return await work
    try:
        return await scope.hold(work)
    except TimeoutError as error:
        if isinstance(error, lm15.LM15Error):
            raise
        raise lm15.TimeoutError("the call was given up") from error


def _bounded(config: lm15.Config, max_tokens: int | None) -> lm15.Config:
    if max_tokens is None or (config.max_tokens is not None and config.max_tokens <= max_tokens):
        return config
    return replace(config, max_tokens=max_tokens)


def _note_end(scope: CallScope | None, config: lm15.Config, finish_reason: str | None) -> None:
    """Tell the scope when a token limit ended the answer, and when that was its own and not the request's."""
    if scope is not None and finish_reason == "length":
        scope.is_truncated = True
        scope.is_cut_off |= _bounded(config, scope.max_tokens) is not config


def _refuse_nothing(response: lm15.Response) -> None:
    """Raise for a reply without content that would else look like a bad answer of the model's."""
    if any(part.type != "text" or part.text for part in response.message.parts):
        return
    if response.finish_reason == "content_filter":
        raise lm15.InvalidRequestError("the provider withheld its reply", provider_code="content_filter")
    if not response.usage.output_tokens:
        raise lm15.ProviderError("malformed reply: no content and no output tokens")


class Engine:
    """The same model for programs that block a thread: the work is done on a loop of the pool's own.

    DSPy reads a model's capabilities here. On a thread that runs an event loop, such a call stops that loop
    until the reply is there; this is logged once as ``engine.loop_blocked``.

    Args:
        engine: does the work.
        thread: where it is done.
        model: name in the log.
        capabilities: an LM on DSPy's own engine; it knows what the model can do.
    """

    def __init__(self, engine: AsyncEngine, thread: LoopThread, model: str, capabilities: dspy.LM) -> None:
        self._engine = engine
        self._thread = thread
        self._model = model
        self._has_warned = False
        self.supports_function_calling: bool = capabilities.supports_function_calling
        self.supports_reasoning: bool = capabilities.supports_reasoning
        self.supports_response_schema: bool = capabilities.supports_response_schema
        self.supported_params: frozenset[str] = frozenset(capabilities.supported_params)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """As ``AsyncEngine.complete``, blocking the calling thread and nothing else."""
        self._warn_on_loop()
        return self._wait(self._engine.complete(request))

    def stream(self, request: lm15.Request) -> Generator[Any, None, None]:
        """As ``AsyncEngine.stream``, blocking the calling thread between events."""
        self._warn_on_loop()
        events = self._engine.stream(request)
        try:
            while (event := self._wait(_next(events))) is not None:
                yield event
        finally:
            self._thread.run(events.aclose(), _GRACE_S)

    def _wait(self, work: Any) -> Any:  # noqa: ANN401 - a coroutine in, its result out
        scope = current_scope()
        try:
            # The work keeps the deadline itself; the grace only saves a thread from a loop that does not answer.
            return self._thread.run(work, None if scope is None else scope.remaining_s() + _GRACE_S)
        except TimeoutError as error:
            if isinstance(error, lm15.LM15Error):
                raise
            raise lm15.TimeoutError("no reply before the call's deadline") from error
        except CancelledError as error:
            if self._thread.is_closed:
                raise lm15.ConfigurationError("the connection pool is closed") from error
            raise

    def _warn_on_loop(self) -> None:
        if self._has_warned:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self._has_warned = True
        _log.warning("engine.loop_blocked", extra={"model": self._model})


async def _next(events: AsyncGenerator[Any, None]) -> Any:  # noqa: ANN401 - lm15 has no public type for "any event"
    return await anext(events, None)


class LMPool:
    """All language models of one replica over one connection pool.

    Args:
        max_connections: most connections open at once, to all providers together.
    """

    def __init__(self, *, max_connections: int = 256) -> None:
        self._transport = AiohttpTransport(max_connections=max_connections)
        self._thread = LoopThread("lm-pool")
        self._lms: dict[ModelConfig, dspy.LM] = {}

    def lm(self, model: ModelConfig) -> dspy.LM:
        """The ``dspy.LM`` for ``model``; the same one each time.

        Raises:
            ConfigError: its key's variable is unset, or DSPy refuses the model's settings.
        """
        found = self._lms.get(model)
        if found is None:
            found = self._lms[model] = self._build(model)
        return found

    async def aclose(self) -> None:
        """Close every connection, for good; calls in flight fail, later ones are refused."""
        await self._transport.aclose()
        await asyncio.to_thread(self._close_thread)

    def _close_thread(self) -> None:
        if self._thread.is_running:
            self._thread.run(self._transport.aclose())
        self._thread.close()

    def _build(self, model: ModelConfig) -> dspy.LM:
        upstream = upstream_for(model, self._transport)
        engine = AsyncEngine(upstream, {"temperature": model.temperature, "max_tokens": model.max_tokens})
        try:
            blocking = Engine(engine, self._thread, model.name, _capabilities(model, upstream))
            return dspy.LM(
                model.lm,
                model_type=model.model_type,
                temperature=model.temperature,
                max_tokens=model.max_tokens,
                cache=False,
                num_retries=0,
                engine=blocking,
                async_engine=engine,
            )
        except (dspy.LMError, ValueError) as error:
            raise ConfigError([f"models: {model.name}: {error}"]) from error


def _capabilities(model: ModelConfig, upstream: ClientUpstream | LiteLLMUpstream) -> dspy.LM:
    return dspy.LM(model.lm, model_type=model.model_type, engine=upstream.engine)
