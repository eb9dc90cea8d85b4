"""OpenTelemetry spans over OTLP/HTTP: the only file that needs the extra ``otel``.

Where to and how much comes from the standard variables, which the SDK reads itself: ``OTEL_EXPORTER_OTLP_*``,
``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, ``OTEL_SERVICE_NAME``, ``OTEL_RESOURCE_ATTRIBUTES``.

Attributes of LM spans follow the GenAI semantic conventions 1.37.0 (status: development;
https://github.com/open-telemetry/semantic-conventions/blob/v1.37.0/docs/gen-ai/gen-ai-spans.md); what they have no
name for is under ``switchyard.``. Inputs, outputs, messages of errors and keys are in none.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from serve_app.adapters.tracing import LMSpan, joined_trace
from serve_app.messages import Result

if TYPE_CHECKING:
    from dspy import lm15
    from opentelemetry.context import Context

    from serve_app.adapters.lm_upstream import Upstream

SCHEMA_URL = "https://opentelemetry.io/schemas/1.37.0"
FLUSH_S = 3.0
"""How long the end of a process waits for its last spans to leave."""

PROVIDERS = {
    "openai-chat": "openai",
    "azure": "azure.ai.openai",
    "azure-chat": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "vertex-express": "gcp.vertex_ai",
    "vertex_ai": "gcp.vertex_ai",
    "bedrock": "aws.bedrock",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
"""DSPy's and LiteLLM's names of providers where ``gen_ai.provider.name`` has another."""

_PARENT = TraceContextTextMapPropagator()


def open_otlp(deployment: str) -> OtelSpans:
    """Spans that leave over OTLP/HTTP in batches, from a thread of their own."""
    service = {"service.name": "switchyard", "service.version": metadata.version("dspy-switchyard")}
    defaults = Resource.create({**service, "switchyard.deployment": deployment})
    resource = defaults.merge(OTELResourceDetector().detect())  # which would else give way to what the code says
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelSpans(provider)


class OtelSpans:
    """Spans of one process.

    Args:
        provider: who samples, batches and sends them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        version = metadata.version("dspy-switchyard")
        self._tracer = provider.get_tracer("switchyard", version, schema_url=SCHEMA_URL)

    @contextmanager
    def stage(self, name: str, *, is_entry: bool) -> Iterator[Callable[[Result], Result]]:
        """The span of one part's work on a call; yields what notes the result."""
        with self._span(name, SpanKind.SERVER if is_entry else SpanKind.INTERNAL) as span:

            def note(result: Result) -> Result:
                if span.is_recording():
                    _note_result(span, result)
                return result

            yield note

    def lm(self, upstream: Upstream, request: lm15.Request) -> AbstractContextManager[LMSpan]:
        """The span of one request to a provider."""
        return self._lm(upstream, request)

    @contextmanager
    def _lm(self, upstream: Upstream, request: lm15.Request) -> Iterator[LMSpan]:
        with self._span(f"chat {upstream.model}", SpanKind.CLIENT) as span:
            noted = _OtelLMSpan(span)
            noted.asked(upstream, request)
            yield noted

    def close(self) -> None:
        """Send what is left; blocks for ``FLUSH_S`` at most, and what is still there then is dropped.

        The SDK itself goes by no time limit here: with a collector that hangs it takes up to a minute.
        """
        sending = threading.Thread(target=self._provider.shutdown, name="spans-end", daemon=True)
        sending.start()
        sending.join(FLUSH_S)

    @contextmanager
    def _span(self, name: str, kind: SpanKind) -> Iterator[Span]:
        span = self._tracer.start_span(name, context=_parent(), kind=kind)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield span
            except BaseException as error:
                _fail(span, getattr(error, "code", None) or type(error).__name__)
                raise


class _OtelLMSpan:
    """What an LM span says of question and reply."""

    def __init__(self, span: Span) -> None:
        self._span = span

    def asked(self, upstream: Upstream, request: lm15.Request) -> None:
        """Note whom and with which settings."""
        config = request.config
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": PROVIDERS.get(upstream.provider, upstream.provider),
            "gen_ai.request.model": upstream.model,
            "gen_ai.request.max_tokens": config.max_tokens,
            "gen_ai.request.temperature": config.temperature,
            "gen_ai.request.top_p": config.top_p,
        }
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def replied(self, response: lm15.Response, tokens: tuple[int, int]) -> None:
        """Note what came back: model, tokens, why it ended; never a word of it."""
        self._span.set_attributes(
            {
                "gen_ai.response.id": response.id or "",
                "gen_ai.response.model": response.model,
                "gen_ai.response.finish_reasons": [str(response.finish_reason)],
                "gen_ai.usage.input_tokens": tokens[0],
                "gen_ai.usage.output_tokens": tokens[1],
            }
        )


def _parent() -> Context | None:
    """The innermost span of this code when there is one, else where the task joined a trace."""
    joined = joined_trace()
    if joined is None or trace.get_current_span().get_span_context().is_valid:
        return None
    return _PARENT.extract({"traceparent": joined.traceparent, "tracestate": joined.tracestate})


def _note_result(span: Span, result: Result) -> None:
    span.set_attributes(
        {
            "switchyard.level": result.level.value,
            "switchyard.cache": result.cache.value,
            "switchyard.attempts": len(result.attempts),
            "switchyard.cost_usd": result.cost_usd,
        }
    )
    if result.model:
        span.set_attribute("switchyard.model", result.model)
    if result.tier:
        span.set_attribute("switchyard.cache.tier", result.tier)
    if result.attempts:
        span.set_attribute("switchyard.outcome", result.attempts[-1].outcome.value)
    if result.error is not None:
        _fail(span, result.error.code)


def _fail(span: Span, kind: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(Status(StatusCode.ERROR))
