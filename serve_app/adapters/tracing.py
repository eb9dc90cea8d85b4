"""Traces: which one the running code is part of, and spans of it when somebody collects them.

A caller's context comes in with ``join`` and goes out with every call to the next part and every request to a
provider, whether or not spans are collected. Spans are collected when the standard variables of OpenTelemetry say
where to (``serve_app.adapters.otel_spans``); without them ``traced`` hands back the very coroutine and ``lm_span`` a
constant that does nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

from serve_app.messages import Result, TraceContext

if TYPE_CHECKING:
    from dspy import lm15

    from serve_app.adapters.lm_upstream import Upstream

log = logging.getLogger("switchyard.tracing")

P = ParamSpec("P")

EXPORTERS = {"otlp", "none"}
"""What ``OTEL_TRACES_EXPORTER`` may name."""


class LMSpan(Protocol):
    """The span of one request to a provider."""

    def replied(self, response: lm15.Response, tokens: tuple[int, int]) -> None:
        """Note what came back: model, tokens, why it ended; never a word of it."""


class Spans(Protocol):
    """Whoever collects spans."""

    def stage(self, name: str, *, is_entry: bool) -> contextlib.AbstractContextManager[Callable[[Result], Result]]:
        """The span of one part's work on a call; yields what notes the result."""

    def lm(self, upstream: Upstream, request: lm15.Request) -> contextlib.AbstractContextManager[LMSpan]:
        """The span of one request to a provider."""

    def close(self) -> None:
        """Send what is left; blocks, for a bounded time."""


class _NoLMSpan:
    def replied(self, response: lm15.Response, tokens: tuple[int, int]) -> None:
        """Nobody wants to know."""


_NO_SPAN: contextlib.AbstractContextManager[LMSpan] = contextlib.nullcontext(_NoLMSpan())
_joined: ContextVar[TraceContext | None] = ContextVar("switchyard_trace", default=None)
_spans: Spans | None = None


def join(trace: TraceContext | None) -> None:
    """Make what this task does part of a trace that began elsewhere, or of none."""
    _joined.set(trace)


def joined_trace() -> TraceContext | None:
    """What this task joined."""
    return _joined.get()


def current_trace() -> TraceContext | None:
    """What the running code is part of: the innermost OpenTelemetry span, else what the task joined."""
    api = sys.modules.get("opentelemetry.trace")  # code that has a span has imported it
    if api is not None:
        span = api.get_current_span().get_span_context()
        if span.is_valid:
            traceparent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
            return TraceContext(traceparent, span.trace_state.to_header())
    return _joined.get()


def trace_headers() -> list[tuple[str, str]]:
    """The headers that carry the current trace to a provider."""
    trace = current_trace()
    if trace is None:
        return []
    headers = [("traceparent", trace.traceparent)]
    return [*headers, ("tracestate", trace.tracestate)] if trace.tracestate else headers


def traced(
    name: str, *, is_entry: bool = False
) -> Callable[[Callable[P, Coroutine[Any, Any, Result]]], Callable[P, Coroutine[Any, Any, Result]]]:
    """Give a span to each run of a coroutine function that answers a call.

    Args:
        name: of the span; ``{argument}`` in it is that argument of the function, a name from the configuration.
        is_entry: whether this is where calls come in.
    """

    def decorate(function: Callable[P, Coroutine[Any, Any, Result]]) -> Callable[P, Coroutine[Any, Any, Result]]:
        signature = inspect.signature(function)

        async def run(spans: Spans, *args: P.args, **kwargs: P.kwargs) -> Result:
            full_name = name.format(**signature.bind(*args, **kwargs).arguments) if "{" in name else name
            with spans.stage(full_name, is_entry=is_entry) as noted:
                return noted(await function(*args, **kwargs))

        @wraps(function)
        def start(*args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Result]:
            return function(*args, **kwargs) if _spans is None else run(_spans, *args, **kwargs)

        return start

    return decorate


def lm_span(upstream: Upstream, request: lm15.Request) -> contextlib.AbstractContextManager[LMSpan]:
    """The span of one request to a provider, if spans are collected."""
    return _NO_SPAN if _spans is None else _spans.lm(upstream, request)


def configure_tracing(deployment: str) -> None:
    """Collect this process' spans if the environment asks for it; what stands in the way is logged, and calls go on.

    These variables are often set for all programs of a cluster at once, so they must not keep one from serving.
    """
    if not is_asked_for(os.environ) or _spans is not None:
        return
    try:
        collect(_open(deployment))
    except (ImportError, ValueError) as error:
        log.error("tracing.off", extra={"why": str(error)})  # noqa: TRY400 - the sentence says it all
    else:
        log.info("tracing.on", extra={"deployment": deployment})


def collect(spans: Spans | None) -> None:
    """From now on, give spans to ``spans``."""
    global _spans  # noqa: PLW0603 - one collector a process, as in OpenTelemetry itself
    _spans = spans


def close_tracing() -> None:
    """Send what is left and collect no more; blocks, for a bounded time."""
    spans = _spans
    collect(None)
    if spans is not None:
        spans.close()


def is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the standard variables ask for spans: an exporter is named, or an endpoint is."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return exporter != "none"
    return any(
        environment.get(name, "").strip()
        for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    )


def _open(deployment: str) -> Spans:
    """The collector that the environment names.

    Raises:
        ImportError: the extra ``otel`` is not installed.
        ValueError: the environment asks for something else than OTLP over HTTP.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter not in EXPORTERS:
        raise ValueError(f"OTEL_TRACES_EXPORTER is {exporter!r}; what there is: {', '.join(sorted(EXPORTERS))}")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name, "").strip()
        if protocol not in {"", "http/protobuf"}:
            raise ValueError(f"{name} is {protocol!r}; what there is: http/protobuf")
    try:
        from serve_app.adapters.otel_spans import open_otlp  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'dspy-switchyard[otel]'") from error
    return open_otlp(deployment)
