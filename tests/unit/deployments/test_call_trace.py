"""One call through the plain classes and real HTTP to a provider: its spans, its log lines, and what leaves the house."""

import asyncio
import json
import logging
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dspy
import pytest
from deployment_fakes import app_config, link, programs
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serve_app.adapters import tracing
from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.json_log import JsonFormatter
from serve_app.adapters.otel_spans import OtelSpans
from serve_app.core.trace_context import trace_context
from serve_app.deployments.cache import Cache
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.router import Router
from serve_app.errors import InvalidInputs, NoRoute
from serve_app.messages import Freshness

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
GOOD = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "congo=t61rcWkgMzE"}
SECRET, ANSWER = "my password is hunter2", "keep it to yourself"


class Provider:
    """Answers as OpenAI does, save for models in ``broken``; remembers the headers it got."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.headers: list[dict[str, str]] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                model = json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]
                provider.headers.append({name.lower(): value for name, value in self.headers.items()})
                self._send(500, {"error": {"message": SECRET}}) if model in provider.broken else self._send(
                    200, reply(model)
                )

            def _send(self, status: int, body: dict) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_) -> None:
                """Be quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def reply(model: str) -> dict:
    text = f"[[ ## answer ## ]]\n{ANSWER}\n\n[[ ## completed ## ]]"
    return {
        "id": "chatcmpl-1",
        "model": f"{model}-2026",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19},
    }


@pytest.fixture
async def provider():
    with Provider() as provider:
        yield provider


class Batching(dspy.Module):
    """Asks one question of the model for all that it is asked at once."""

    signature = dspy.Signature("question -> answer")

    def __init__(self) -> None:
        super().__init__()
        self.all = dspy.Predict("questions -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.all.acall(questions=question)

    async def aforward_batch(self, inputs: list[dict]) -> list[dspy.Prediction]:
        logging.getLogger("switchyard.mine").info("batch.asked")
        answer = (await self.all.acall(questions=str(inputs))).answer
        return [dspy.Prediction(answer=answer) for _ in inputs]


class InThreads(dspy.Module):
    """Asks the model in threads that DSPy starts, and in its own."""

    signature = dspy.Signature("question -> answer")

    def __init__(self) -> None:
        super().__init__()
        self.one = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        parallel = dspy.Parallel(num_threads=2, disable_progress_bar=True)
        parallel([(self.one, {"question": f"{question} {n}"}) for n in range(2)])
        return self.one(question=question)


@pytest.fixture
def program() -> str:
    return "question -> answer"


@pytest.fixture
async def ingress(provider, monkeypatch, program):
    monkeypatch.setenv("SECRET_KEY_OF_TESTS", "sk-never-shown")
    config = app_config()
    config = config.model_copy(update={"programs": (config.programs[0].model_copy(update={"program": program}),)})
    access = {"api_base": provider.url, "api_key_env": "SECRET_KEY_OF_TESTS"}
    models = [model.model_copy(update=access) for model in config.models]
    config = config.model_copy(update={"models": tuple(models)})
    made, known, pool = link(), programs(config), LMPool()
    replicas = {model.name: ModelReplica(model, known, pool, made._telemetry, made) for model in config.models}
    cache = Cache(config, Router(config, replicas, made._telemetry, made), made._telemetry, made)
    yield Ingress(config, known, cache, made._telemetry, made)
    await cache.aclose()
    await pool.aclose()


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.collect(OtelSpans(provider))
    yield exporter.get_finished_spans
    tracing.close_tracing()


@contextmanager
def lines():
    """What is logged meanwhile, as it is written."""
    written: list[dict] = []

    class Keep(logging.Handler):
        def emit(self, record) -> None:
            written.append(json.loads(JsonFormatter().format(record)))

    root, keep = logging.getLogger("switchyard"), Keep()
    level = root.level
    root.addHandler(keep)
    root.setLevel(logging.INFO)
    yield written
    root.removeHandler(keep)
    root.setLevel(level)


async def ask(ingress: Ingress, question: str = SECRET, trace=None, **arguments) -> dict:
    arguments = {"request_id": "r-1", "options": {"complexity": "low", "deadline_s": 20}} | arguments
    return await ingress.predict("ask", {"question": question}, trace=trace, **arguments)


def tree(spans) -> dict[str, str | None]:
    """The name of each span's parent by the span's name."""
    names = {span.context.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent.span_id, "caller") if span.parent else None for span in spans}


def attributes(spans, name: str) -> dict:
    (found,) = [dict(span.attributes) for span in spans if span.name == name]
    return found


async def test_a_call_that_falls_back_is_one_tree_under_its_callers_span(ingress, provider, spans) -> None:
    provider.broken = {"small"}
    answer = await ask(ingress, trace=GOOD)
    assert [attempt["outcome"] for attempt in answer["meta"]["attempts"]] == ["server_error", "ok"]
    assert tree(spans()) == {
        "call ask": "caller",
        "cache": "call ask",
        "router": "cache",
        "attempt small": "router",
        "chat small": "attempt small",
        "attempt medium": "router",
        "chat medium": "attempt medium",
    }
    assert {f"{span.context.trace_id:032x}" for span in spans()} == {TRACE}


async def test_an_lm_span_has_the_conventions_attributes(ingress, spans) -> None:
    await ask(ingress, options={"max_tokens": 50, "model": "small"})
    assert attributes(spans(), "chat small") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "small",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.model": "small-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 7,
    }


async def test_a_failed_attempt_says_what_kind_of_failure(ingress, provider, spans) -> None:
    provider.broken = {"small"}
    await ask(ingress)
    failed = attributes(spans(), "attempt small")
    assert (failed["error.type"], failed["switchyard.outcome"]) == ("no_route", "server_error")
    assert attributes(spans(), "chat small")["error.type"]
    assert "error.type" not in attributes(spans(), "call ask")


async def test_a_refused_call_is_a_span_of_its_own(ingress, spans) -> None:
    with pytest.raises(InvalidInputs):
        await ingress.predict("ask", {"questio": "typo"})
    assert attributes(spans(), "call ask")["error.type"] == "invalid_inputs"


async def test_an_answer_from_memory_says_so(ingress, spans) -> None:
    await ask(ingress)
    before = len(spans())
    await ask(ingress)
    (hit,) = spans()[before:]
    assert (hit.name, hit.attributes["switchyard.cache"]) == ("call ask", "hit")


async def test_no_span_holds_an_input_an_output_an_error_text_or_a_key(ingress, provider, spans) -> None:
    provider.broken = {"small"}
    await ask(ingress)
    provider.broken = {"small", "medium", "large"}
    with pytest.raises(NoRoute):
        await ask(ingress, f"{SECRET}, again")
    shown = "".join(span.to_json() for span in spans())
    assert len(spans()) > 10
    for word in ("hunter2", ANSWER, "sk-never-shown"):
        assert word not in shown


async def test_the_provider_gets_the_lm_spans_context(ingress, provider, spans) -> None:
    await ask(ingress, trace=GOOD)
    (sent,) = provider.headers
    (lm,) = [span for span in spans() if span.name.startswith("chat")]
    assert sent["traceparent"] == f"00-{TRACE}-{lm.context.span_id:016x}-{lm.context.trace_flags:02x}"
    assert sent["tracestate"] == GOOD["tracestate"]


async def test_without_collected_spans_the_provider_gets_the_callers_own_context(ingress, provider) -> None:
    await ask(ingress, trace=GOOD)
    (sent,) = provider.headers
    assert {name: sent[name] for name in GOOD} == GOOD


@pytest.mark.parametrize("trace", [None, {}, {"traceparent": "nonsense", "tracestate": "a=1"}])
async def test_a_call_without_a_trace_or_with_a_malformed_one_sends_none_on(ingress, provider, trace) -> None:
    await ask(ingress, trace=GOOD)
    await ask(ingress, "another", trace=trace)  # in the same task: the trace before must not stick
    assert "traceparent" in provider.headers[0]
    assert not provider.headers[1].keys() & {"traceparent", "tracestate"}


async def test_calls_of_one_batch_keep_their_own_traces(ingress, provider) -> None:
    other = {"traceparent": f"00-{'b' * 32}-00f067aa0ba902b7-00"}
    traces = [trace_context(GOOD), trace_context(other), None]
    calls = [ingress._call("ask", {"question": f"q{n}"}, {}, f"r{n}", Freshness()) for n in range(3)]
    calls = [replace(call, trace=trace) for call, trace in zip(calls, traces, strict=True)]
    for future in ingress.lane.ask_all(calls):
        await future
    sent = sorted(headers.get("traceparent", "") for headers in provider.headers)
    assert sent == ["", GOOD["traceparent"], other["traceparent"]]


@pytest.mark.parametrize("program", [f"{__name__}:InThreads"])
async def test_what_a_program_asks_in_threads_is_part_of_its_calls_trace(ingress, provider, spans) -> None:
    await ask(ingress, trace=GOOD)
    asked = [span for span in spans() if span.name == "chat small"]
    assert len(asked) == 3
    (attempt,) = [span.context.span_id for span in spans() if span.name == "attempt small"]
    assert {span.parent.span_id for span in asked if span.parent} == {attempt}
    assert {f"{span.context.trace_id:032x}" for span in spans()} == {TRACE}
    assert {sent["traceparent"].split("-")[1] for sent in provider.headers} == {TRACE}


@pytest.mark.parametrize("program", [f"{__name__}:Batching"])
async def test_a_call_that_is_alone_in_its_batch_keeps_trace_and_request_id(ingress, provider, spans) -> None:
    with lines() as written:
        await ask(ingress, trace=GOOD)
    assert tree(spans())["chat small"] == "attempt small"
    assert provider.headers[0]["traceparent"].split("-")[1] == TRACE
    assert provider.headers[0]["tracestate"] == GOOD["tracestate"]
    assert [line.get("request_id") for line in written if line["event"] == "batch.asked"] == ["r-1"]


@pytest.mark.parametrize("program", [f"{__name__}:Batching"])
async def test_what_several_calls_ask_together_is_part_of_the_first_trace_among_them(ingress, provider) -> None:
    other = {"traceparent": f"00-{'b' * 32}-00f067aa0ba902b7-01"}
    with lines() as written:
        await asyncio.gather(*(ask(ingress, f"q{n}", trace=trace) for n, trace in enumerate((None, GOOD, other))))
    (sent,) = provider.headers
    assert {name: sent[name] for name in GOOD} == GOOD
    assert [line.get("request_id") for line in written if line["event"] == "batch.asked"] == [None]


async def test_a_finished_call_is_one_line_without_its_inputs_outputs_or_keys(ingress, provider) -> None:
    provider.broken = {"small"}
    with lines() as written:
        await ask(ingress, trace=GOOD)
    (finished,) = [line for line in written if line["event"] == "call.finished"]
    assert {name: finished[name] for name in ("request_id", "program", "model", "status", "code", "cache")} == {
        "request_id": "r-1",
        "program": "ask",
        "model": "medium",
        "status": 200,
        "code": "success",
        "cache": "miss",
    }
    assert (finished["level"], finished["level_of_service"]) == ("info", "full")
    assert [(a["model"], a["outcome"]) for a in finished["attempts"]] == [("small", "server_error"), ("medium", "ok")]
    assert (finished["input_tokens"], finished["output_tokens"], finished["trace_id"]) == (12, 7, TRACE)
    assert finished["cost_usd"] > 0
    assert finished["latency_s"] > 0
    for word in ("hunter2", ANSWER, "sk-never-shown"):
        assert word not in json.dumps(written)


async def test_a_refused_and_a_failed_call_are_lines_too(ingress, provider) -> None:
    provider.broken = {"small", "medium", "large"}
    with lines() as written:
        with pytest.raises(InvalidInputs):
            await ingress.predict("ask", {"questio": SECRET}, request_id="r-2")
        with pytest.raises(NoRoute):
            await ask(ingress)
    ends = [(line["request_id"], line["status"], line["code"]) for line in written if line["event"] == "call.finished"]
    assert ends == [("r-2", 422, "invalid_inputs"), ("r-1", 503, "no_route")]


async def test_lines_of_other_parts_have_the_calls_request_id(ingress, monkeypatch) -> None:
    async def defect(*_) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(ModelReplica, "answer", defect)
    with lines() as written, pytest.raises(Exception, match="internal failure"):
        await ask(ingress)
    assert {line["request_id"] for line in written} == {"r-1"}
    assert "call.failed" in {line["event"] for line in written}


async def test_a_span_of_the_callers_own_process_is_found_by_the_client(spans) -> None:
    assert tracing.trace_headers() == []
    span = TracerProvider(shutdown_on_exit=False).get_tracer("caller").start_span("work")
    with otel.use_span(span):
        (header,) = tracing.trace_headers()
    assert header == (
        "traceparent",
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}",
    )
