import asyncio
import socket

import httpx
import openai
import pytest

from serve_app.simulator.app import create_app
from serve_app.simulator.exchange import CutError
from serve_app.simulator.profile import ModelProfile, Profile
from serve_app.simulator.server import background

PROFILE = Profile(models={"m": ModelProfile(ttft_s=0, jitter=0, tokens_per_s=2000), "other": ModelProfile(ttft_s=0)})
ASK = [{"role": "user", "content": "The first sentence is here. " * 30}]


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
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=5) as made:
        yield made


def put(http, *faults):
    reply = http.put("/faults/m", json=list(faults))
    assert reply.status_code == 200, reply.text


def ask(http, *, stream=False, timeout=5):
    body = {"model": "m", "messages": ASK, "stream": stream}
    return http.post("/v1/chat/completions", json=body, timeout=timeout)


def outcomes(http):
    return http.get("/stats").json()["models"]["m"]["outcomes"]


@pytest.mark.parametrize(
    ("status", "error", "code"),
    [
        (401, openai.AuthenticationError, "invalid_api_key"),
        (403, openai.PermissionDeniedError, None),
        (429, openai.RateLimitError, "rate_limit_exceeded"),
        (500, openai.InternalServerError, None),
        (503, openai.InternalServerError, None),
    ],
)
def test_a_status_is_raised_by_the_openai_package_as_its_own_error(http, client, status, error, code):
    put(http, {"kind": "status", "status": status})
    with pytest.raises(error) as caught:
        client.chat.completions.create(model="m", messages=ASK)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert outcomes(http) == {f"status_{status}": 1}


def test_retry_after_is_sent_when_given_and_only_then(http):
    put(
        http,
        {"kind": "status", "status": 429, "retry_after_s": 7, "count": 1},
        {"kind": "status", "status": 503, "retry_after_s": 0.25, "count": 1},
        {"kind": "status", "status": 503, "message": "down", "code": "x"},
    )
    replies = [ask(http) for _ in range(3)]
    assert [reply.headers.get("retry-after") for reply in replies] == ["7", "0.25", None]
    assert replies[2].json()["error"] == {"message": "down", "type": "server_error", "param": None, "code": "x"}


@pytest.mark.parametrize(
    ("kind", "code"),
    [("context_length", "context_length_exceeded"), ("content_policy", "content_policy_violation")],
)
def test_a_refusal_is_openais_400(http, client, kind, code):
    put(http, {"kind": kind})
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=ASK)
    assert caught.value.code == code
    assert outcomes(http) == {kind: 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_reset_comes_before_any_header_and_is_a_real_one(url, http, stream):
    put(http, {"kind": "reset", "count": 1})
    with pytest.raises(httpx.ReadError, match="reset by peer"):
        ask(http, stream=stream)
    assert ask(http).status_code == 200
    assert outcomes(http) == {"reset": 1, "ok": 1}


def test_no_answer_says_nothing_until_the_client_leaves(http):
    put(http, {"kind": "no_answer", "count": 1})
    with pytest.raises(httpx.ReadTimeout):
        ask(http, timeout=0.3)
    assert ask(http).status_code == 200


def test_no_answer_ends_in_a_reset_after_its_bound(http):
    put(http, {"kind": "no_answer", "max_s": 0.1})
    with pytest.raises(httpx.ReadError):
        ask(http)


def test_a_slow_first_token_is_late_but_right(http):
    right = ask(http).json()["choices"]
    put(http, {"kind": "slow_first_token", "delay_s": 0.4})
    reply = ask(http)
    assert reply.elapsed.total_seconds() >= 0.4
    assert reply.json()["choices"] == right
    assert outcomes(http) == {"ok": 2}


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_ends_the_connection_within_the_body(http, stream):
    put(http, {"kind": "stream_cut"})
    with (  # noqa: PT012 - it breaks while it is read
        pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)),
        http.stream("POST", "/v1/chat/completions", json={"model": "m", "messages": ASK, "stream": stream}) as reply,
    ):
        assert reply.status_code == 200
        reply.read()
    assert outcomes(http) == {"stream_cut": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stall_falls_silent_within_the_body(http, stream):
    put(http, {"kind": "stream_stall"})
    received = b""
    with (  # noqa: PT012 - it stalls while it is read
        pytest.raises(httpx.ReadTimeout),
        http.stream(
            "POST", "/v1/chat/completions", json={"model": "m", "messages": ASK, "stream": stream}, timeout=0.5
        ) as reply,
    ):
        for part in reply.iter_bytes():
            received += part
    assert received
    assert b"[DONE]" not in received


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["malformed_chunk", "truncated_json"])
def test_broken_json_comes_over_sound_http(http, client, kind, stream):
    put(http, {"kind": kind})
    reply = ask(http, stream=stream)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == ("text/event-stream" if stream else "application/json")
    with pytest.raises(ValueError):  # noqa: PT012 - a stream breaks while it is read
        result = client.chat.completions.create(model="m", messages=ASK, stream=stream)
        list(result)


def test_an_unparseable_answer_is_a_valid_completion(http, client):
    put(http, {"kind": "unparseable"})
    reply = client.chat.completions.create(model="m", messages=ASK)
    assert "[[ ##" not in reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "stop"


def test_faults_are_set_seen_and_cleared_while_running(http):
    assert http.put("/faults/m", json={"kind": "reset", "rate": 0}).status_code == 200
    assert http.get("/faults").json() == {"m": [{"kind": "reset", "rate": 0.0, "happened": 0}]}
    assert ask(http).status_code == 200
    assert http.delete("/faults/m").json() == {}
    put(http, {"kind": "status", "status": 500})
    assert http.delete("/faults").json() == {}
    assert ask(http).status_code == 200


def test_the_fault_of_one_model_leaves_the_others_alone(http):
    put(http, {"kind": "status", "status": 500})
    reply = http.post("/v1/chat/completions", json={"model": "other", "messages": ASK})
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not JSON"),
        (b'{"kind": "explode"}', "explode"),
        (b'{"kind": "status", "status": 42}', "status"),
        (b'{"kind": "reset", "rat": 1}', "rat"),
        (b"3", "valid dictionary"),
    ],
)
def test_a_fault_that_makes_no_sense_is_422_with_the_reason(http, body, words):
    reply = http.put("/faults/m", content=body)
    assert reply.status_code == 422
    assert words in reply.json()["error"]["message"]
    assert http.get("/faults").json() == {}


def test_a_fault_for_an_unknown_model_is_404(http):
    assert http.put("/faults/gpt-99", json={"kind": "reset"}).status_code == 404


@pytest.fixture
async def bare():
    """The bare application, as under a server that cannot reset connections."""
    transport = httpx.ASGITransport(create_app(PROFILE))
    async with asyncio.timeout(10), httpx.AsyncClient(transport=transport, base_url="http://simulator") as client:
        yield client


async def test_under_another_server_a_reset_is_what_a_proxy_would_make_of_it(bare):
    await bare.put("/faults/m", json={"kind": "reset"})
    assert (await bare.post("/v1/chat/completions", json={"model": "m", "messages": ASK})).status_code == 502
    assert (await bare.get("/stats")).json()["outcomes"] == {"reset": 1}


async def test_under_another_server_a_cut_is_raised_for_the_server_to_act_on(bare):
    await bare.put("/faults/m", json={"kind": "stream_cut"})
    with pytest.raises(CutError):
        await bare.post("/v1/chat/completions", json={"model": "m", "messages": ASK, "stream": True})
    assert (await bare.get("/stats")).json()["outcomes"] == {"stream_cut": 1}


def test_requests_cut_off_half_way_do_not_disturb_the_provider(url, http):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert ask(http).status_code == 200
