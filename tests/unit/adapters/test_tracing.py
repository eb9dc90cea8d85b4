"""When spans are collected, and what it costs when they are not."""

import contextlib
import json
import logging
import sys

import pytest

from serve_app.adapters import tracing
from serve_app.messages import Result

VARIABLES = (
    "OTEL_SDK_DISABLED",
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    yield
    tracing.close_tracing()


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
    ],
)
def test_the_standard_variables_decide(environment, asked) -> None:
    assert tracing.is_asked_for(environment) is asked


async def answer(result: Result) -> Result:
    return result


async def test_without_collected_spans_a_traced_function_is_the_function_itself() -> None:
    started = tracing.traced("stage")(answer)(Result("c1"))
    assert started.cr_code is answer.__code__
    assert await started == Result("c1")


async def test_a_name_may_take_an_argument_of_the_function() -> None:
    names = []

    class Spans:
        @contextlib.contextmanager
        def stage(self, name, *, is_entry):
            names.append((name, is_entry))
            yield lambda result: result

        def close(self) -> None:
            names.append("closed")

    @tracing.traced("attempt {model}", is_entry=True)
    async def attempt(call: Result, model: str) -> Result:
        return call

    tracing.collect(Spans())
    assert await attempt(Result("c1"), "small") == Result("c1")
    assert await attempt(Result("c1"), model="large") == Result("c1")
    tracing.close_tracing()
    assert names == [("attempt small", True), ("attempt large", True), "closed"]


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "OTEL_TRACES_EXPORTER is 'jaeger'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf"),
    ],
)
def test_what_cannot_be_collected_is_said_and_serving_goes_on(monkeypatch, caplog, environment, why) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracing.configure_tracing("Router")
    (record,) = caplog.records
    assert (record.levelno, record.message) == (logging.ERROR, "tracing.off")
    assert why in record.why


def test_a_missing_extra_is_named(monkeypatch, caplog) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    monkeypatch.delitem(sys.modules, "serve_app.adapters.otel_spans", raising=False)
    tracing.configure_tracing("Router")
    assert "pip install 'dspy-switchyard[otel]'" in caplog.records[0].why
    assert json.dumps(caplog.records[0].why)
