"""A fault of each kind on the primary, in both graphs: somebody else answers, and ``meta.attempts`` says so."""

import time

import pytest
from running_cluster import NO_STORE, Cluster

pytestmark = pytest.mark.usefixtures("calm")

ANSWERED_BY_THE_NEXT = {
    "500": ({"kind": "status", "status": 500}, "server_error"),
    "503 with Retry-After": ({"kind": "status", "status": 503, "retry_after_s": 1}, "server_error"),
    "429 with Retry-After": ({"kind": "status", "status": 429, "retry_after_s": 1}, "rate_limited"),
    "429 without": ({"kind": "status", "status": 429}, "rate_limited"),
    "401": ({"kind": "status", "status": 401}, "denied"),
    "403": ({"kind": "status", "status": 403}, "denied"),
    "402": ({"kind": "status", "status": 402}, "denied"),
    "unknown model": ({"kind": "status", "status": 404, "code": "model_not_found"}, "denied"),
    "reset": ({"kind": "reset"}, "unreachable"),
    "no answer": ({"kind": "no_answer"}, "timeout"),
    "slow first token": ({"kind": "slow_first_token", "delay_s": 20}, "timeout"),
    "cut": ({"kind": "stream_cut"}, "unreachable"),
    "stall": ({"kind": "stream_stall"}, "timeout"),
    "malformed chunk": ({"kind": "malformed_chunk"}, "malformed"),
    "truncated JSON": ({"kind": "truncated_json"}, "malformed"),
    "unparseable": ({"kind": "unparseable"}, "bad_output"),
    "context length": ({"kind": "context_length"}, "context_window"),
}


def ask(cluster: Cluster, graph: str, text: str, **options):
    body = {"inputs": {"question": text}, "options": {"complexity": "high", "deadline_s": 6} | options}
    with cluster.client(graph) as client:
        return client.post("/v1/programs/math", json=body, headers=NO_STORE)


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
@pytest.mark.parametrize("fault", ANSWERED_BY_THE_NEXT)
def test_the_next_model_answers(cluster, provider, unique, graph, fault) -> None:
    body, outcome = ANSWERED_BY_THE_NEXT[fault]
    provider.fault("sim-large", body)
    reply = ask(cluster, graph, unique())
    assert reply.status_code == 200, reply.text
    meta = reply.json()["meta"]
    attempts = [(attempt["model"], attempt["outcome"]) for attempt in meta["attempts"]]
    assert attempts == [("large", outcome), ("medium", "ok")]
    assert meta["model"] == "medium"
    assert meta["latency_s"] < 6


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_a_content_policy_refusal_is_passed_on_and_nobody_else_is_asked(cluster, provider, unique, graph) -> None:
    provider.fault("sim-large", {"kind": "content_policy"})
    provider.reset_stats()
    reply = ask(cluster, graph, unique())
    problem = reply.json()
    assert reply.status_code == 422
    assert problem["code"] == "refused"
    assert problem["retryable"] is False
    assert [attempt["outcome"] for attempt in problem["attempts"]] == ["content_policy"]
    assert provider.stats()["models"]["sim-medium"]["requests"] == 0


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_with_every_model_down_the_answer_is_503_with_retry_after_within_the_deadline(
    cluster, provider, unique, graph
) -> None:
    for model in ("sim-large", "sim-medium", "sim-small"):
        provider.fault(model, {"kind": "status", "status": 500})
    started = time.monotonic()
    reply = ask(cluster, graph, unique(), deadline_s=5)
    assert time.monotonic() - started < 5
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    problem = reply.json()
    assert problem["code"] == "no_route"
    assert [attempt["model"] for attempt in problem["attempts"]] == ["large", "medium", "small"]


def test_an_answer_no_model_can_write_properly_is_502(cluster, provider, unique) -> None:
    for model in ("sim-large", "sim-medium", "sim-small"):
        provider.fault(model, {"kind": "unparseable"})
    reply = ask(cluster, "standard", unique())
    assert reply.status_code == 502
    assert [attempt["model"] for attempt in reply.json()["attempts"]] == ["large", "medium"]


def test_an_open_breaker_keeps_calls_away_from_a_broken_model(cluster, provider, unique) -> None:
    provider.fault("sim-large", {"kind": "status", "status": 500})
    provider.reset_stats()
    for _ in range(20):
        assert ask(cluster, "compact", unique()).status_code == 200
    assert 1 <= provider.stats()["models"]["sim-large"]["requests"] < 15


def test_a_deadline_ends_a_call_and_is_a_504(cluster, provider, unique) -> None:
    for model in ("sim-large", "sim-medium", "sim-small"):
        provider.fault(model, {"kind": "no_answer"})
    started = time.monotonic()
    reply = ask(cluster, "standard", unique(), deadline_s=1)
    assert reply.status_code == 504
    assert reply.json()["code"] == "deadline_exceeded"
    assert time.monotonic() - started < 2
