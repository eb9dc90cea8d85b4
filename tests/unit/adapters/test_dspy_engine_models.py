from __future__ import annotations

import asyncio

import dspy
import pytest
from dspy import lm15
from lm_fault_server import COMPLETION, FaultServer, reply

from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.config import ModelConfig
from serve_app.errors import ConfigError


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
    with pytest.raises(ConfigError, match=r"small: .*16000"):
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


@pytest.mark.parametrize("case", DIALECTS, ids=lambda case: f"{case[0]}-{case[1]}")
async def test_each_provider_is_spoken_to_in_its_dialect(case, server, pool, monkeypatch):
    lm, model_type, body, target, (header, value), billed = case
    monkeypatch.setenv("MY_KEY", "key")
    server.answer = reply(200, body)
    _, engine = engines(pool, server, lm=lm, model_type=model_type, api_key_env="MY_KEY")
    with call_scope(5) as scope:
        response = await engine.complete(request(model=lm))
    assert response.message.text
    assert server.requests[0].target == target
    assert server.requests[0].headers[header] == value
    assert (scope.usage.input_tokens, scope.usage.output_tokens) == billed
