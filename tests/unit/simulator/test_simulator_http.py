import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from serve_app.errors import ConfigError
from serve_app.simulator.profile import ModelProfile, Profile
from serve_app.simulator.server import background, run

QUICK = {"ttft_s": 0, "jitter": 0, "tokens_per_s": 1e6}
PROFILE = Profile(
    models={
        "quick": ModelProfile(**QUICK),
        "vendor/other": ModelProfile(**QUICK),
        "narrow": ModelProfile(ttft_s=0.2, jitter=0, tokens_per_s=1e6, max_concurrency=2),
        "rationed": ModelProfile(**QUICK, requests_per_minute=3),
        "short": ModelProfile(**QUICK, context_window=50),
        "paced": ModelProfile(ttft_s=0.1, jitter=0, tokens_per_s=100),
        "asleep": ModelProfile(ttft_s=30, jitter=0),
    }
)
ASK = [{"role": "user", "content": "Where is the parcel 4711? It should be in Berlin."}]


@pytest.fixture(scope="module")
def url():
    with background(PROFILE) as root:
        yield root


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=10, trust_env=False) as client:
        client.delete("/stats")
        yield client
        client.delete("/faults")


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=10) as made:
        yield made


def ask(http, model="quick", **more):
    return http.post("/v1/chat/completions", json={"model": model, "messages": ASK, **more})


def wait_until(condition, timeout_s=5.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


def test_a_completion_is_read_by_the_openai_package(client):
    reply = client.chat.completions.create(model="quick", messages=ASK)
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == "quick"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 10


def test_a_stream_has_the_same_words_and_ends_with_its_usage(client):
    whole = client.chat.completions.create(model="quick", messages=ASK)
    chunks = list(
        client.chat.completions.create(model="quick", messages=ASK, stream=True, stream_options={"include_usage": True})
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


def test_a_stream_without_the_option_has_no_usage_and_ends_with_done(http):
    with http.stream("POST", "/v1/chat/completions", json={"model": "quick", "messages": ASK, "stream": True}) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line[6:]) for line in lines[:-1])


def test_a_stream_comes_at_the_models_pace(http):
    began = time.monotonic()
    moments = []
    with http.stream("POST", "/v1/chat/completions", json={"model": "paced", "messages": ASK, "stream": True}) as reply:
        moments.extend(time.monotonic() - began for line in reply.iter_lines() if line)
    assert moments[0] >= 0.1
    assert moments[-1] - moments[0] >= 0.1


def test_the_token_limit_cuts_the_answer_and_says_so(client):
    reply = client.chat.completions.create(model="quick", messages=ASK, max_completion_tokens=2)
    assert len(reply.choices[0].message.content) == 8
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.completion_tokens == 2


def test_a_stop_word_ends_the_answer_before_it(client):
    reply = client.chat.completions.create(model="quick", messages=ASK, stop=["about"], seed=4, temperature=0.3)
    assert reply.choices[0].message.content == "You asked "


def test_several_choices_are_several_answers(client):
    messages = [{"role": "user", "content": " ".join(f"Sentence number {i} is here." for i in range(20))}]
    reply = client.chat.completions.create(model="quick", messages=messages, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) > 1


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
            "required": ["city", "days"],
        },
    },
}


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_tool_is_called_with_arguments_from_the_question(client, is_stream):
    reply = client.chat.completions.create(model="quick", messages=ASK, tools=[WEATHER], stream=is_stream)
    if is_stream:
        parts = [c.choices[0].delta.tool_calls[0] for c in reply if c.choices and c.choices[0].delta.tool_calls]
        name, arguments = parts[0].function.name, "".join(part.function.arguments or "" for part in parts)
    else:
        assert reply.choices[0].finish_reason == "tool_calls"
        assert reply.choices[0].message.content is None
        call = reply.choices[0].message.tool_calls[0]
        name, arguments = call.function.name, call.function.arguments
    assert name == "weather"
    assert json.loads(arguments)["city"] == "Berlin"
    assert 1 <= json.loads(arguments)["days"] <= 7


def test_a_tools_result_is_answered_in_words(client):
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "It rains in Berlin."},
    ]
    reply = client.chat.completions.create(model="quick", messages=messages, tools=[WEATHER])
    assert "It rains in Berlin." in reply.choices[0].message.content


def test_no_tool_is_called_when_the_caller_forbids_it(client):
    reply = client.chat.completions.create(model="quick", messages=ASK, tools=[WEATHER], tool_choice="none")
    assert reply.choices[0].message.content


def test_a_json_schema_is_met(client):
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "late": {"type": "boolean"}},
        "required": ["city", "late"],
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    reply = client.chat.completions.create(model="quick", messages=ASK, response_format=wanted)
    value = json.loads(reply.choices[0].message.content)
    assert value["city"] == "Berlin"
    assert isinstance(value["late"], bool)
    reply = client.chat.completions.create(model="quick", messages=ASK, response_format={"type": "json_object"})
    assert json.loads(reply.choices[0].message.content)


def test_the_responses_dialect_answers_in_text_tools_and_json(client):
    plain = client.responses.create(model="quick", input="Where is the parcel?", instructions="Be brief.")
    assert plain.output_text == "You asked about this: Where is the parcel?"
    assert plain.usage.total_tokens > 0
    tool = {"type": "function", **WEATHER["function"]}
    called = client.responses.create(model="quick", input=ASK, tools=[tool])
    assert (called.output[0].type, called.output[0].name) == ("function_call", "weather")
    answered = [*ASK, {"type": "function_call_output", "call_id": "c", "output": "It rains there."}]
    assert "It rains there." in client.responses.create(model="quick", input=answered, tools=[tool]).output_text
    schema = {"type": "object", "properties": {"late": {"type": "boolean"}}, "required": ["late"]}
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    assert set(json.loads(client.responses.create(model="quick", input=ASK, text=wanted).output_text)) == {"late"}
    cut = client.responses.create(model="quick", input=ASK, max_output_tokens=1)
    assert (cut.status, cut.output_text) == ("incomplete", "You ")


def test_a_streamed_response_and_a_response_to_nothing_are_refused(client):
    with pytest.raises(openai.BadRequestError, match="does not stream"):
        client.responses.create(model="quick", input="x", stream=True)
    with pytest.raises(openai.BadRequestError, match="'input'"):
        client.responses.create(model="quick", input=[])


def test_the_models_are_listed(client):
    assert {model.id for model in client.models.list()} == set(PROFILE.models)
    assert client.models.retrieve("vendor/other").id == "vendor/other"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-99", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-99")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None), (b"[]", None), (b"{}", "model"), (b'{"model": 3}', "model"), (b'{"model": "quick"}', "messages"),
        (b'{"model": "quick", "messages": []}', "messages"), (b'{"model": "quick", "messages": ["x"]}', "messages"),
        (b'{"model": "quick", "messages": [{}], "max_tokens": 0}', "max_tokens"),
        (b'{"model": "quick", "messages": [{}], "n": "two"}', "n"), (b"\xff\xfe", None), (b"[" * 100_000, None),
    ],
)  # fmt: skip
def test_a_bad_request_is_400_with_the_parameter_at_fault(http, body, param):
    reply = http.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "odd",
    [
        {"messages": [{"role": "user", "content": 7}]}, {"messages": [{}]}, {"tools": "x"}, {"tools": [1]}, {"tools": [{}]},
        {"response_format": "json"}, {"stop": [1, None, ""]}, {"stop": 5}, {"stream_options": 3, "stream": True}, {"tool_choice": 9},
        {"tools": [{"function": {"name": "f", "parameters": {"properties": [], "required": 3}}}]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere", "enum": []}}}},
        {"response_format": {"type": "json_schema", "json_schema": "x"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": 1}}}}},
    ],
)  # fmt: skip
def test_odd_requests_never_break_the_provider(http, odd):
    reply = http.post("/v1/chat/completions", json={"model": "quick", "messages": ASK, **odd})
    assert reply.status_code in {200, 400}
    assert ask(http).status_code == 200


def test_an_unknown_path_is_an_openai_error(http):
    reply = http.post("/v1/embeddings", json={})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "unknown_url")
    assert http.get("/v1/chat/completions").status_code == 405


def test_too_many_at_once_are_refused_with_retry_after(http):
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: ask(http, "narrow"), range(6)))
    assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429, 429, 429]
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert http.get("/stats").json()["models"]["narrow"]["outcomes"] == {"ok": 2, "rate_limited": 4}


def test_more_than_the_minute_allows_are_refused_with_retry_after(http):
    assert [ask(http, "rationed").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert 50 <= int(ask(http, "rationed").headers["retry-after"]) <= 60


def test_a_prompt_beyond_the_window_is_a_context_length_error(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="short", messages=[{"role": "user", "content": "long " * 100}])
    assert caught.value.code == "context_length_exceeded"


def test_a_client_that_leaves_is_counted_as_cancelled(http):
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json={"model": "asleep", "messages": ASK}, timeout=0.3)
    wait_until(lambda: http.get("/stats").json()["models"]["asleep"]["in_flight"] == 0)
    assert http.get("/stats").json()["models"]["asleep"]["outcomes"] == {"cancelled": 1}


def test_health_answers(http):
    assert http.get("/health").json() == {"status": "ok"}


def test_a_port_in_use_is_one_line(url):
    port = int(url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the port is in use"):
        run("127.0.0.1", port, PROFILE)


def test_an_unknown_host_is_one_line():
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid:1: "):
        run("no-such-host.invalid", 1, PROFILE)


def test_the_background_server_ends_at_once_and_frees_its_port_even_with_a_request_in_flight():
    with ThreadPoolExecutor(1) as pool:
        with background(PROFILE) as root:
            body = {"model": "asleep", "messages": ASK}
            waiting = pool.submit(httpx.post, f"{root}/v1/chat/completions", json=body, timeout=20, trust_env=False)
            wait_until(lambda: httpx.get(f"{root}/stats", trust_env=False).json()["in_flight"] == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert isinstance(waiting.exception(timeout=5), httpx.HTTPError)
    port = int(root.rpartition(":")[2])
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
