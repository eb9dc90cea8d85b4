"""The end of a process waits for its last spans, but not for a collector that hangs."""

import threading
from collections.abc import Iterator, Sequence
from importlib import metadata

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from serve_app.adapters import otel_spans
from serve_app.adapters.otel_spans import OtelSpans

OURS = metadata.version("dspy-switchyard")


class Collector(SpanExporter):
    """Takes spans while it is well; a sick one hangs."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.well = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.well.wait(30)
        self.names += [span.name for span in spans]
        return SpanExportResult.SUCCESS


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.well.set()


@pytest.fixture
def spans(collector) -> OtelSpans:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(collector, schedule_delay_millis=60_000))
    spans = OtelSpans(provider)
    with spans.stage("call ask", is_entry=True):
        pass
    return spans


@pytest.mark.parametrize(
    ("environment", "name", "version"),
    [
        ({}, "switchyard", OURS),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine", OURS),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=mine,service.version=9"}, "mine", "9"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=other", "OTEL_SERVICE_NAME": "mine"}, "mine", OURS),
    ],
)
def test_the_environment_says_whose_spans_they_are(monkeypatch, environment, name, version) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    spans = otel_spans.open_otlp("Router")
    attributes = spans._provider.resource.attributes
    spans.close()
    assert (attributes["service.name"], attributes["service.version"]) == (name, version)
    assert attributes["switchyard.deployment"] == "Router"


def test_what_is_left_leaves_before_the_end(spans, collector) -> None:
    collector.well.set()
    spans.close()
    assert collector.names == ["call ask"]


def test_the_end_waits_for_no_collector_that_hangs(spans, collector, monkeypatch) -> None:
    monkeypatch.setattr(otel_spans, "FLUSH_S", 0.01)
    ending = threading.Thread(target=spans.close)
    ending.start()
    ending.join(10)
    assert not ending.is_alive()
    assert collector.names == []
