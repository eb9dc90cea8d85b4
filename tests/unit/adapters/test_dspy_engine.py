from __future__ import annotations

import asyncio
import base64
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

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(24)).decode()


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


@pytest.mark.parametrize(
    ("asked", "bound", "finish", "is_cut_off"),
    [
        (None, 64, "length", True),
        (500, 64, "length", True),
        (64, 64, "length", False),
        (32, 64, "length", False),
        (500, None, "length", False),
        (500, 64, "stop", False),
    ],
)
async def test_a_scope_is_told_that_its_bound_ended_an_answer(asked, bound, finish, is_cut_off, server, pool):
    choice = {"message": {"role": "assistant", "content": "hel"}, "finish_reason": finish}
    server.answer = reply(200, {**COMPLETION, "choices": [choice]})
    _, engine = engines(pool, server)
    with call_scope(5, bound) as scope:
        await engine.complete(request(config=lm15.Config(max_tokens=asked)))
    assert scope.is_cut_off is is_cut_off
    assert scope.is_truncated is (finish == "length")


@pytest.mark.parametrize(("own", "is_cut_off"), [(None, True), (64, False)])
async def test_the_models_own_limit_is_not_the_scopes(own, is_cut_off, server, pool):
    choice = {**COMPLETION["choices"][0], "finish_reason": "length"}
    server.answer = reply(200, {**COMPLETION, "choices": [choice]})
    with call_scope(5, 64) as scope:
        await predict(pool.lm(model(server, max_tokens=own)))
    assert scope.is_cut_off is is_cut_off


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


async def test_a_copied_program_keeps_the_pool(server, pool):
    program = dspy.Predict("question -> answer")
    program.lm = pool.lm(model(server))
    with dspy.context(adapter=dspy.ChatAdapter(), trace=[]):
        assert (await deepcopy(program).acall(question="?")).answer == "Paris"
