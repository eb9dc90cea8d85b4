from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from lm_fault_server import FaultServer, reply, silence

from serve_app.adapters.litellm_upstream import retry_after_s


@pytest.fixture
async def server():
    async with FaultServer() as server:
        yield server


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


async def result_of(script: str, *arguments: str):
    """What the script prints last, as JSON, from a process of its own: importing LiteLLM takes seconds and warns."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    return json.loads(out.decode().splitlines()[-1])


async def test_a_provider_without_a_client_is_asked_through_litellm(server):
    server.answer = by_question
    answered, limited, ignored = await result_of(LITELLM_RUN, server.url)
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


UNKNOWN_PROVIDER = """
import asyncio, json, sys
import dspy
from serve_app.adapters.call_scope import call_scope
from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.lm_upstream import knows_provider
from serve_app.adapters.program_errors import translate
from serve_app.config import ModelConfig

def model(lm, **settings):
    return ModelConfig(name="m", lm=lm, **settings)

async def outcome(lm):
    with call_scope(20.0, None), dspy.context(lm=lm):
        try:
            await dspy.Predict("question -> answer").acall(question="?")
        except dspy.LMError as error:
            return [translate(error).outcome, str(translate(error))]

known = {lm: knows_provider(model(lm)) for lm in ("openai/a", "anthropic/a")}
imported = "litellm" in sys.modules
known |= {lm: knows_provider(model(lm)) for lm in ("together_ai/a", "opnai/a", "meta-llama/a")}
at_groq = knows_provider(model("meta-llama/a", api_base="https://api.groq.com/openai/v1"))
print(json.dumps([known, imported, at_groq, asyncio.run(outcome(LMPool().lm(model("opnai/a"))))]))
"""


async def test_a_provider_that_nobody_knows_is_told_before_and_is_the_operators_fault_in_a_call():
    known, was_imported, at_groq, outcome = await result_of(UNKNOWN_PROVIDER)
    assert known == {
        "openai/a": True,
        "anthropic/a": True,
        "together_ai/a": True,
        "opnai/a": False,
        "meta-llama/a": False,
    }
    assert not was_imported, "LiteLLM takes seconds to import"
    assert at_groq, "LiteLLM knows some providers by their address"
    assert outcome == ["denied", "the model's provider denied access (unknown_provider)"]


def test_retry_after_is_read_as_seconds_or_as_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    assert retry_after_s("7") == 7
    assert 290 < retry_after_s(soon) <= 300
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after_s("soon") is None
    assert retry_after_s("-5") is None
