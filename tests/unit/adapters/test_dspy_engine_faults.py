from __future__ import annotations

import asyncio
import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import dspy
import pytest
from dspy import lm15
from lm_fault_server import COMPLETION, FaultServer, raw, reply, reset, silence, sse

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig

OK_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
BODY = json.dumps(COMPLETION).encode()


def error(**fields):
    return {"error": {"message": "no", **fields}}


def completion(**fields):
    return reply(200, {**COMPLETION, **fields})


FAULTS = {
    "reset before headers": (reset, lm15.TransportError, dspy.LMTransportError),
    "closed before headers": (raw(b""), lm15.TransportError, dspy.LMTransportError),
    "not HTTP": (raw(b"220 mail ready\r\n\r\n"), lm15.TransportError, dspy.LMTransportError),
    "truncated body": (raw(OK_HEAD + b"content-length: 900\r\n\r\n{"), lm15.TransportError, dspy.LMTransportError),
    "broken chunking": (
        raw(OK_HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
        lm15.TransportError,
        dspy.LMTransportError,
    ),
    "truncated chunk": (
        raw(OK_HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\n{"),
        lm15.TransportError,
        dspy.LMTransportError,
    ),
    "broken compression": (
        reply(200, b"not gzip", content_encoding="gzip"),
        lm15.TransportError,
        dspy.LMTransportError,
    ),
    "silence": (silence, lm15.TimeoutError, dspy.LMTimeoutError),
    "408": (reply(408, error()), lm15.TimeoutError, dspy.LMTimeoutError),
    "504": (reply(504, error()), lm15.TimeoutError, dspy.LMTimeoutError),
    "malformed JSON": (reply(200, b"{nope"), lm15.ProviderError, dspy.LMProviderError),
    "truncated JSON": (reply(200, BODY[:60]), lm15.ProviderError, dspy.LMProviderError),
    "empty body": (reply(200, b""), lm15.ProviderError, dspy.LMProviderError),
    "HTML in a 200": (reply(200, b"<html>", content_type="text/html"), lm15.ProviderError, dspy.LMProviderError),
    "redirect": (reply(302, b"", location="http://127.0.0.1:1/"), lm15.ProviderError, dspy.LMProviderError),
    "null": (reply(200, b"null"), lm15.ProviderError, dspy.LMProviderError),
    "a list": (reply(200, []), lm15.ProviderError, dspy.LMProviderError),
    "an empty object": (reply(200, {}), lm15.ProviderError, dspy.LMProviderError),
    "no choices, no tokens": (completion(choices=[], usage=None), lm15.ProviderError, dspy.LMProviderError),
    "usage of another shape": (completion(usage="much"), lm15.ProviderError, dspy.LMProviderError),
    "deep nesting": (reply(200, b"[" * 200_000), lm15.ProviderError, dspy.LMProviderError),
    "not UTF-8": (reply(200, b"\xff\xfe" + BODY), lm15.ProviderError, dspy.LMProviderError),
    "error body in a 200": (reply(200, error(type="server_error")), lm15.ServerError, dspy.LMServerError),
    "500": (reply(500, error()), lm15.ServerError, dspy.LMServerError),
    "HTML in a 502": (reply(502, b"<html>", content_type="text/html"), lm15.ServerError, dspy.LMServerError),
    "529": (reply(529, error()), lm15.ServerError, dspy.LMServerError),
    "429": (reply(429, error()), lm15.RateLimitError, dspy.LMRateLimitError),
    "quota": (reply(429, error(code="insufficient_quota")), lm15.BillingError, dspy.LMBillingError),
    "401": (reply(401, error()), lm15.AuthError, dspy.LMAuthError),
    "403": (reply(403, error()), lm15.AuthError, dspy.LMAuthError),
    "402": (reply(402, error()), lm15.BillingError, dspy.LMBillingError),
    "unknown model": (
        reply(404, error(code="model_not_found")),
        lm15.UnsupportedModelError,
        dspy.LMUnsupportedModelError,
    ),
    "context window": (
        reply(400, error(code="context_length_exceeded")),
        lm15.ContextLengthError,
        dspy.ContextWindowExceededError,
    ),
    "content policy": (
        reply(400, error(code="content_policy_violation")),
        lm15.InvalidRequestError,
        dspy.LMInvalidRequestError,
    ),
    "withheld reply": (
        completion(choices=[{"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}]),
        lm15.InvalidRequestError,
        dspy.LMInvalidRequestError,
    ),
    "other 400": (reply(400, error()), lm15.InvalidRequestError, dspy.LMInvalidRequestError),
}


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
async def server():
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def pool():
    pool = LMPool()
    yield pool
    await pool.aclose()


def ask(pool, server, **settings):
    lm = pool.lm(ModelConfig(name="small", lm="openai/small", api_base=server.url, **settings))
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with dspy.context(lm=lm, adapter=adapter, trace=[]):
        return asyncio.ensure_future(dspy.Predict("question -> answer").acall(question="capital of France?"))


@pytest.mark.parametrize("name", FAULTS)
async def test_every_fault_surfaces_as_its_dspy_error_caused_by_its_lm15_error(name, server, pool):
    server.answer, canonical, public = FAULTS[name]
    with call_scope(0.3 if name == "silence" else 10) as scope, pytest.raises(dspy.LMError) as caught:
        await ask(pool, server)
    assert type(caught.value) is public
    assert type(caught.value.__cause__) is canonical
    assert len(server.requests) == scope.lm_calls == 1


@pytest.mark.parametrize("name", FAULTS)
async def test_every_fault_surfaces_alike_to_a_synchronous_program(name, server, pool):
    server.answer, canonical, public = FAULTS[name]
    lm = pool.lm(ModelConfig(name="small", lm="openai/small", api_base=server.url))
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    context = dspy.context(lm=lm, adapter=adapter, trace=[])
    with call_scope(0.3 if name == "silence" else 10) as scope, context, pytest.raises(dspy.LMError) as caught:
        await asyncio.to_thread(dspy.Predict("question -> answer"), question="capital of France?")
    assert type(caught.value) is public
    assert type(caught.value.__cause__) is canonical
    assert len(server.requests) == scope.lm_calls == 1


async def test_a_refused_connection_is_a_transport_error(pool):
    async with FaultServer() as gone:
        pass
    with pytest.raises(dspy.LMTransportError) as caught:
        await ask(pool, gone)
    assert type(caught.value.__cause__) is lm15.TransportError


async def test_a_server_without_tls_behind_https_is_a_transport_error(pool):
    async def greet(_, writer):
        writer.write(b"220 no TLS here\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        lm = pool.lm(ModelConfig(name="tls", lm="openai/small", api_base=f"https://127.0.0.1:{port}/v1"))
        with dspy.context(lm=lm), call_scope(5), pytest.raises(dspy.LMTransportError):
            await dspy.Predict("question -> answer").acall(question="?")


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_in_seconds_comes_back(status, server, pool):
    server.answer = reply(status, error(), retry_after="7")
    with pytest.raises((dspy.LMRateLimitError, dspy.LMServerError)) as caught:
        await ask(pool, server)
    assert caught.value.retry_after == 7


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_as_a_date_comes_back_in_seconds(status, server, pool):
    server.answer = reply(status, error(), retry_after=format_datetime(datetime.now(UTC) + timedelta(minutes=5), True))
    with pytest.raises((dspy.LMRateLimitError, dspy.LMServerError)) as caught:
        await ask(pool, server)
    assert 290 < caught.value.retry_after <= 300


async def test_an_error_reply_cut_short_keeps_its_status_and_retry_after(server, pool):
    server.answer = raw(b"HTTP/1.1 429 Slow\r\nretry-after: 9\r\ncontent-length: 900\r\n\r\nabc")
    with pytest.raises(dspy.LMRateLimitError) as caught:
        await ask(pool, server)
    assert caught.value.retry_after == 9


@pytest.mark.parametrize(
    ("name", "code"), [("content policy", "content_policy_violation"), ("withheld reply", "content_filter")]
)
async def test_a_refusal_by_policy_names_its_code(name, code, server, pool):
    server.answer = FAULTS[name][0]
    with pytest.raises(dspy.LMInvalidRequestError) as caught:
        await ask(pool, server)
    assert caught.value.provider_code == code


async def test_a_withheld_reply_is_paid_for(server, pool):
    server.answer = FAULTS["withheld reply"][0]
    with call_scope(10) as scope, pytest.raises(dspy.LMInvalidRequestError):
        await ask(pool, server)
    assert (scope.usage.input_tokens, scope.usage.output_tokens) == (120, 12)


async def test_a_compressed_reply_is_read(server, pool):
    server.answer = reply(200, gzip.compress(BODY), content_encoding="gzip")
    assert (await ask(pool, server)).answer == "Paris"


async def test_a_passed_deadline_asks_nobody(server, pool):
    with call_scope(0) as scope, pytest.raises(dspy.LMTimeoutError):
        await ask(pool, server)
    assert not server.requests
    assert scope.lm_calls == 0


async def test_the_deadline_is_kept_to_the_tenth_of_a_second(server, pool):
    server.answer = silence
    started = time.monotonic()
    with call_scope(0.4), pytest.raises(dspy.LMTimeoutError):
        await ask(pool, server)
    assert 0.4 <= time.monotonic() - started < 0.7


async def test_a_failed_call_leaves_the_pool_usable(server, pool):
    server.answer = reset
    with pytest.raises(dspy.LMTransportError):
        await ask(pool, server)
    server.answer = reply()
    assert (await ask(pool, server)).answer == "Paris"


def chunk(text=None, finish=None):
    delta = {} if text is None else {"role": "assistant", "content": text}
    return {"id": "c", "model": "small", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


USAGE = {"id": "c", "model": "small", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
STREAM_FAULTS = {
    "cut": (sse(chunk("he")), lm15.StreamAssemblyError),
    "empty": (sse(), lm15.StreamAssemblyError),
    "no stream at all": (reply(), lm15.StreamAssemblyError),
    "malformed chunk": (sse(chunk("he"), "{nope"), lm15.ProviderError),
    "stall": (sse(chunk("he"), close=False), lm15.TimeoutError),
    "cut inside a chunk": (
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\ndata"),
        lm15.TransportError,
    ),
    "429": (reply(429, error(), retry_after="4"), lm15.RateLimitError),
}


def engine_of(pool, server):
    lm = pool.lm(ModelConfig(name="small", lm="openai/small", api_base=server.url))
    return lm._async_engine_spec


REQUEST = lm15.Request(model="openai/small", messages=lm15.Message.user("hi"))


@pytest.mark.parametrize("name", STREAM_FAULTS)
async def test_every_fault_of_a_stream_is_its_lm15_error(name, server, pool):
    server.answer, expected = STREAM_FAULTS[name]
    with call_scope(0.5 if name == "stall" else 10), pytest.raises(lm15.LM15Error) as caught:
        async for _ in engine_of(pool, server).stream(REQUEST):
            pass
    assert type(caught.value) is expected


async def test_a_stream_yields_its_text_and_counts_its_tokens(server, pool):
    server.answer = sse(chunk("he"), chunk("llo"), chunk(finish="stop"), USAGE, "[DONE]")
    with call_scope(10) as scope:
        events = [event async for event in engine_of(pool, server).stream(REQUEST)]
    assert [event.type for event in events] == ["start", "delta", "delta", "end"]
    assert "".join(event.delta.text for event in events[1:3]) == "hello"
    assert (scope.usage.input_tokens, scope.usage.output_tokens, scope.lm_calls) == (3, 2, 1)


@pytest.mark.parametrize("finish", ["length", "stop"])
async def test_a_stream_says_that_the_calls_bound_ended_it(finish, server, pool):
    server.answer = sse(chunk("he"), chunk(finish=finish), USAGE, "[DONE]")
    with call_scope(10, 5) as scope:
        _ = [event async for event in engine_of(pool, server).stream(REQUEST)]
    assert scope.is_cut_off is (finish == "length")


async def test_an_error_inside_a_stream_is_an_error_event(server, pool):
    server.answer = sse(chunk("he"), error(type="server_error"))
    events = [event async for event in engine_of(pool, server).stream(REQUEST)]
    assert events[-1].type == "error"
    assert events[-1].error.code == "server"
