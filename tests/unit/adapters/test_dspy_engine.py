from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import logging
import subprocess
import sys
import threading
import time
from copy import deepcopy
from typing import Literal

import dspy
import pydantic
import pytest
from dspy import lm15
from lm_fault_server import COMPLETION, FaultServer, reply, silence, sse

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig
from serve_app.errors import ConfigError

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()


@pytest.fixture
async def server():
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def pool():
    pool = LMPool()
    yield pool
    await pool.aclose()


def model(server, name="small", **settings):
    return ModelConfig(name=name, **{"lm": "openai/small", "api_base": server.url} | settings)


def engines(pool, server, **settings):
    lm = pool.lm(model(server, **settings))
    return lm._engine_spec, lm._async_engine_spec


def request(**fields):
    return lm15.Request(**{"model": "openai/small", "messages": lm15.Message.user("hi")} | fields)


async def predict(lm, **inputs):
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]):
        return await dspy.Predict("question -> answer").acall(**inputs or {"question": "capital of France?"})


# ── what is asked ────────────────────────────────────────────────────────────────────────────────────


async def test_a_program_is_answered_over_the_pool(server, pool):
    assert (await predict(pool.lm(model(server)))).answer == "Paris"
    assert server.requests[0].target == "/v1/chat/completions"
    assert server.requests[0].json["model"] == "small"


async def test_the_models_settings_are_sent(server, pool):
    await predict(pool.lm(model(server, temperature=0.3, max_tokens=77)))
    sent = server.requests[0].json
    assert sent["temperature"] == 0.3
    assert sent.get("max_completion_tokens", sent.get("max_tokens")) == 77


async def test_everything_a_request_holds_is_sent(server, pool):
    tool = lm15.FunctionTool(name="find", description="Finds.", parameters={"type": "object", "properties": {}})
    messages = (
        lm15.Message.user("first"),
        lm15.Message.assistant("second"),
        lm15.Message(role="user", parts=(lm15.TextPart("see"), lm15.ImagePart(data=PNG, media_type="image/png"))),
    )
    config = lm15.Config(
        max_tokens=50,
        temperature=0.5,
        top_p=0.9,
        stop=("END",),
        seed=7,
        response_format={"type": "json_object"},
        tool_choice=lm15.ToolChoice(mode="required"),
    )
    _, engine = engines(pool, server)
    await engine.complete(request(messages=messages, system="be brief", tools=(tool,), config=config))
    sent = server.requests[0].json
    assert [message["role"] for message in sent["messages"]][1:] == ["user", "assistant", "user"]
    assert sent["messages"][0]["content"] == "be brief"
    assert sent["messages"][3]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert sent["tools"][0]["function"]["name"] == "find"
    assert sent["tool_choice"] == "required"
    assert (sent["stop"], sent["seed"], sent["top_p"], sent["temperature"]) == (["END"], 7, 0.9, 0.5)
    assert sent["response_format"] == {"type": "json_object"}


class Ticket(pydantic.BaseModel):
    category: Literal["bug", "question"]


async def test_a_typed_program_with_an_image_goes_through_dspys_own_adapter(server, pool):
    class Sort(dspy.Signature):
        """Sort it."""

        picture: dspy.Image = dspy.InputField()
        ticket: Ticket = dspy.OutputField()

    server.answer = reply(
        200,
        {
            **COMPLETION,
            "choices": [
                {
                    "message": {"role": "assistant", "content": '{"ticket": {"category": "bug"}}'},
                    "finish_reason": "stop",
                }
            ],
        },
    )
    with dspy.context(lm=pool.lm(model(server)), adapter=dspy.JSONAdapter(), trace=[]):
        result = await dspy.Predict(Sort).acall(picture=dspy.Image(f"data:image/png;base64,{PNG}"))
    assert result.ticket == Ticket(category="bug")
    assert PNG in server.requests[0].body.decode()


async def test_a_capable_model_is_asked_for_a_schema(server, pool):
    lm = pool.lm(model(server, lm="openai/gpt-4o"))
    assert lm.supports_response_schema
    assert lm.supports_function_calling
    server.answer = reply(
        200,
        {
            **COMPLETION,
            "choices": [{"message": {"role": "assistant", "content": '{"answer": "x"}'}, "finish_reason": "stop"}],
        },
    )
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter(), trace=[]):
        await dspy.Predict("question -> answer").acall(question="?")
    assert server.requests[0].json["response_format"]["type"] == "json_schema"


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────


async def test_finish_reason_reasoning_tool_calls_and_usage_come_back(server, pool):
    message = {
        "role": "assistant",
        "content": "calling",
        "reasoning_content": "thinking",
        "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}],
    }
    server.answer = reply(200, {**COMPLETION, "choices": [{"message": message, "finish_reason": "tool_calls"}]})
    _, engine = engines(pool, server)
    response = await engine.complete(request())
    parts = {part.type: part for part in response.message.parts}
    assert response.finish_reason == "tool_call"
    assert (parts["thinking"].text, parts["text"].text) == ("thinking", "calling")
    assert (parts["tool_call"].name, parts["tool_call"].input) == ("find", {"q": 1})
    assert response.usage.input_tokens == 120


async def test_an_empty_answer_that_cost_tokens_is_the_models_own(server, pool):
    server.answer = reply(
        200, {**COMPLETION, "choices": [{"message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]}
    )
    _, engine = engines(pool, server)
    assert (await engine.complete(request())).finish_reason == "stop"


# ── the call's scope ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("asked", "bound", "sent"), [(None, 64, 64), (500, 64, 64), (32, 64, 32), (500, None, 500)])
async def test_output_tokens_are_bounded_by_the_scope(asked, bound, sent, server, pool):
    _, engine = engines(pool, server)
    with call_scope(5, bound):
        await engine.complete(request(config=lm15.Config(max_tokens=asked)))
    body = server.requests[0].json
    assert body.get("max_completion_tokens", body.get("max_tokens")) == sent


async def test_calls_and_tokens_are_counted_for_each_call_alone(server, pool):
    lm = pool.lm(model(server))

    async def one(calls):
        with call_scope(10) as scope:
            for _ in range(calls):
                await predict(lm)
        return scope.lm_calls, scope.usage.input_tokens, scope.usage.output_tokens

    assert await asyncio.gather(one(1), one(3)) == [(1, 120, 12), (3, 360, 36)]


async def test_a_failed_call_is_counted_and_costs_nothing_known(server, pool):
    server.answer = reply(500, {"error": {"message": "no"}})
    with call_scope(10) as scope, pytest.raises(dspy.LMServerError):
        await predict(pool.lm(model(server)))
    assert (scope.lm_calls, scope.usage.input_tokens) == (1, 0)


async def test_without_a_scope_a_call_is_made_all_the_same(server, pool):
    _, engine = engines(pool, server)
    assert (await engine.complete(request())).usage.output_tokens == 12


# ── concurrency and cancellation ─────────────────────────────────────────────────────────────────────


async def test_a_hundred_calls_at_once_share_a_bounded_pool(server):
    pool = LMPool(max_connections=10)
    lm = pool.lm(model(server))
    for _ in range(2):
        answers = await asyncio.gather(*(predict(lm) for _ in range(100)))
        assert {answer.answer for answer in answers} == {"Paris"}
    await pool.aclose()
    assert len(server.requests) == 200
    assert server.most_open == server.connections == 10


async def test_cancelling_a_call_closes_the_upstream_request_within_100_ms(server, pool):
    server.answer = silence
    task = asyncio.ensure_future(predict(pool.lm(model(server))))
    await server.until(lambda s: s.requests)
    task.cancel()
    await server.until(lambda s: s.open_now == 0, within_s=0.1)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_leaving_a_stream_early_closes_the_upstream_request(server, pool):
    chunk = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
    server.answer = sse(chunk, close=False)
    _, engine = engines(pool, server)
    events = engine.stream(request())
    async for event in events:
        if event.type == "delta":
            break
    await events.aclose()
    await server.until(lambda s: s.open_now == 0, within_s=0.1)


# ── which model, which key ───────────────────────────────────────────────────────────────────────────


async def test_two_models_with_different_bases_each_reach_their_own(server, pool):
    async with FaultServer() as other:
        await asyncio.gather(predict(pool.lm(model(server))), predict(pool.lm(model(other, name="large"))))
        assert len(server.requests) == len(other.requests) == 1


async def test_one_model_is_built_once(server, pool):
    assert pool.lm(model(server)) is pool.lm(model(server))
    assert pool.lm(model(server)) is not pool.lm(model(server, temperature=0.1))


async def test_the_key_of_the_named_variable_is_sent_without_its_newline(server, pool, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-1\n")
    await predict(pool.lm(model(server, api_key_env="MY_KEY")))
    assert server.requests[0].headers["authorization"] == "Bearer sk-1"


async def test_no_variable_sends_a_placeholder_and_never_the_environments_key(server, pool, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody")
    await predict(pool.lm(model(server)))
    assert server.requests[0].headers["authorization"] == "Bearer no-key"


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_missing_key_is_a_configuration_error_that_names_the_variable(value, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="MY_KEY"):
        LMPool().lm(ModelConfig(name="small", lm="openai/small", api_key_env="MY_KEY"))


def test_settings_that_dspy_refuses_are_a_configuration_error():
    with pytest.raises(ConfigError, match="small: .*16000"):
        LMPool().lm(ModelConfig(name="small", lm="openai/gpt-5", max_tokens=100))


# ── dialects ─────────────────────────────────────────────────────────────────────────────────────────

ANTHROPIC = {
    "id": "m1", "type": "message", "role": "assistant", "model": "c", "stop_reason": "end_turn",
    "content": [{"type": "text", "text": "hello"}],
    "usage": {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 7},
}  # fmt: skip
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5, "thoughtsTokenCount": 40, "totalTokenCount": 55},
}  # fmt: skip
RESPONSES = {
    "id": "r1", "object": "response", "status": "completed", "model": "g",
    "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hello"}]}],
    "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
}  # fmt: skip
DIALECTS = [
    ("openai/gpt-4o", "responses", RESPONSES, "/v1/responses", ("authorization", "Bearer key"), (10, 5)),
    ("anthropic/claude-x", "chat", ANTHROPIC, "/v1/messages", ("x-api-key", "key"), (117, 5)),
    ("gemini/gemini-x", "chat", GEMINI, "/v1/models/gemini-x:generateContent", ("x-goog-api-key", "key"), (10, 45)),
    ("groq/llama", "chat", COMPLETION, "/v1/chat/completions", ("authorization", "Bearer key"), (120, 12)),
    ("ollama/llama3:8b", "chat", COMPLETION, "/v1/chat/completions", ("authorization", "Bearer key"), (120, 12)),
]


@pytest.mark.parametrize(("lm", "model_type", "body", "target", "header", "billed"), DIALECTS)
async def test_each_provider_is_spoken_to_in_its_dialect(
    lm, model_type, body, target, header, billed, server, pool, monkeypatch
):
    monkeypatch.setenv("MY_KEY", "key")
    server.answer = reply(200, body)
    _, engine = engines(pool, server, lm=lm, model_type=model_type, api_key_env="MY_KEY")
    with call_scope(5) as scope:
        response = await engine.complete(request(model=lm))
    assert response.message.text
    assert server.requests[0].target == target
    assert server.requests[0].headers[header[0]] == header[1]
    assert (scope.usage.input_tokens, scope.usage.output_tokens) == billed


# ── programs that block ──────────────────────────────────────────────────────────────────────────────


async def in_thread(work):
    """Run ``work`` as a replica runs a synchronous program: in a thread, in a copy of the context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(None, context.run, work)


async def test_a_synchronous_program_shares_the_scope_and_leaves_the_loop_free(server, pool):
    lm = pool.lm(model(server))
    release, ticks = asyncio.Event(), 0

    async def slowly(received, writer):
        await release.wait()
        await reply()(received, writer)

    server.answer = slowly
    with call_scope(10) as scope, dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]):
        work = asyncio.ensure_future(in_thread(lambda: dspy.Predict("question -> answer")(question="?")))
        await server.until(lambda s: s.requests)
        while ticks < 100:  # the loop turns while the program waits
            await asyncio.sleep(0)
            ticks += 1
        release.set()
        assert (await work).answer == "Paris"
    assert (scope.lm_calls, scope.usage.output_tokens) == (1, 12)


async def test_many_synchronous_programs_at_once_reuse_connections(server, pool):
    blocking, _ = engines(pool, server)
    for _ in range(3):
        await asyncio.gather(*(in_thread(lambda: blocking.complete(request())) for _ in range(20)))
    assert len(server.requests) == 60
    assert server.connections <= 20


async def test_a_synchronous_call_ends_with_its_deadline(server, pool):
    server.answer = silence
    blocking, _ = engines(pool, server)
    started = time.monotonic()
    with call_scope(0.3), pytest.raises(lm15.TimeoutError):
        await in_thread(lambda: blocking.complete(request()))
    assert time.monotonic() - started < 0.8
    await server.until(lambda s: s.open_now == 0)


async def test_a_synchronous_stream_yields_as_it_arrives(server, pool):
    chunk = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
    end = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    server.answer = sse(chunk, end, "[DONE]")
    blocking, _ = engines(pool, server)
    events = await in_thread(lambda: list(blocking.stream(request())))
    assert [event.type for event in events] == ["start", "delta", "end"]


async def test_a_synchronous_stream_left_early_closes_the_upstream_request(server, pool):
    chunk = {"id": "c", "model": "small", "choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
    server.answer = sse(chunk, close=False)
    blocking, _ = engines(pool, server)

    def first():
        events = blocking.stream(request())
        event = next(events)
        events.close()
        return event

    assert (await in_thread(first)).type == "start"
    await server.until(lambda s: s.open_now == 0, within_s=0.5)


async def test_a_synchronous_call_on_a_running_loop_is_answered_and_logged_once(pool, caplog):
    address, stop = [], threading.Event()

    def serve():
        async def main():
            async with FaultServer() as server:
                address.append(server.url)
                await asyncio.to_thread(stop.wait)

        asyncio.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    while not address:
        await asyncio.sleep(0)
    lm = pool.lm(ModelConfig(name="small", lm="openai/small", api_base=address[0]))
    with caplog.at_level(logging.WARNING, "serve_app"), dspy.context(lm=lm, adapter=dspy.ChatAdapter(), trace=[]):
        for _ in range(2):
            assert dspy.Predict("question -> answer")(question="?").answer == "Paris"
    stop.set()
    await asyncio.to_thread(thread.join)
    assert [record.message for record in caplog.records] == ["engine.loop_blocked"]


async def test_closing_the_pool_closes_both_loops_connections_and_ends_the_thread(server):
    pool = LMPool()
    blocking, engine = engines(pool, server)
    await engine.complete(request())
    await in_thread(lambda: blocking.complete(request()))
    assert server.open_now == 2
    await pool.aclose()
    await server.until(lambda s: s.open_now == 0)
    assert "lm-pool" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(lm15.ConfigurationError):
        await engine.complete(request())
    with pytest.raises(lm15.ConfigurationError):
        await in_thread(lambda: blocking.complete(request()))


async def test_a_copied_program_keeps_the_pool(server, pool):
    program = dspy.Predict("question -> answer")
    program.lm = pool.lm(model(server))
    with dspy.context(adapter=dspy.ChatAdapter(), trace=[]):
        assert (await deepcopy(program).acall(question="?")).answer == "Paris"


# ── LiteLLM, for whom DSPy has no client ─────────────────────────────────────────────────────────────

LITELLM_RUN = """
import asyncio, json, sys
import dspy
from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig

async def ask(lm, question, remaining_s):
    seen = {}
    with call_scope(remaining_s, 20) as scope, dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        try:
            seen["answer"] = (await dspy.Predict("question -> answer").acall(question=question)).answer
        except dspy.LMError as error:
            seen |= {"error": type(error).__name__, "retry_after": error.retry_after, "cause": type(error.__cause__).__name__}
    return seen | {"calls": scope.lm_calls, "tokens": [scope.usage.input_tokens, scope.usage.output_tokens]}

async def main(base):
    pool = LMPool()
    lm = pool.lm(ModelConfig(name="m", lm="together_ai/m", api_base=base, max_tokens=50))
    seen = [await ask(lm, "answer me", 20), await ask(lm, "limit me", 20), await ask(lm, "ignore me", 0.5)]
    await pool.aclose()
    print(json.dumps(seen))

asyncio.run(main(sys.argv[1]))
"""


async def by_question(received, writer):
    if b"ignore me" in received.body:
        await silence(received, writer)
    limited = reply(429, {"error": {"message": "no"}}, retry_after="7")
    await (limited if b"limit me" in received.body else reply())(received, writer)


async def test_a_provider_without_a_client_is_asked_through_litellm(server):
    # In a process of its own: importing LiteLLM takes seconds, warns, and stays.
    server.answer = by_question
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LITELLM_RUN, server.url,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    answered, limited, ignored = json.loads(out.decode().splitlines()[-1])
    assert answered == {"answer": "Paris", "calls": 1, "tokens": [120, 12]}
    assert limited == {
        "error": "LMRateLimitError",
        "retry_after": 7.0,
        "cause": "RateLimitError",
        "calls": 1,
        "tokens": [0, 0],
    }
    assert (ignored["error"], ignored["cause"], ignored["calls"]) == ("LMTimeoutError", "TimeoutError", 1)
    assert len(server.requests) == 3
    sent = server.requests[0]
    assert sent.json.get("max_completion_tokens", sent.json.get("max_tokens")) == 20
    assert sent.headers["authorization"] == "Bearer no-key"
