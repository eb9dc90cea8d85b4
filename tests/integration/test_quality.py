"""Scores in a real cluster: what replicas and callers say of answers arrives in one status and one page."""

import time
import uuid
from collections.abc import Callable

import httpx
import pytest
from running_cluster import Cluster

ARRIVES_S = 15


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + ARRIVES_S
    while not condition():
        assert time.monotonic() < give_up, "the scores did not arrive"
        time.sleep(0.1)


def samples(client: httpx.Client, metric_type: str) -> float:
    """How many scores of the triage program count at the moment, over all models."""
    programs = client.get("/v1/status").json()["quality"]["programs"]
    scores = [score for model in programs.get("triage", {"models": {}})["models"].values() for score in model["scores"]]
    return sum(score["samples"] for score in scores if score["metric_type"] == metric_type)


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_every_kind_of_score_arrives_in_the_status_and_the_metrics(cluster, unique, graph) -> None:
    with cluster.client(graph) as client:
        before = {kind: samples(client, kind) for kind in ("confidence", "reward", "feedback")}
        request_ids = [uuid.uuid4().hex for _ in range(60)]
        for request_id in request_ids:
            body = {"inputs": {"ticket": unique()}}
            reply = client.post("/v1/programs/triage", json=body, headers={"x-request-id": request_id})
            assert reply.json()["meta"]["request_id"] == request_id
        for request_id in request_ids[-5:]:
            told = client.post("/v1/feedback", json={"request_id": request_id, "score": 0.5, "comment": "fair"})
            assert (told.status_code, told.json()["program"]) == (200, "triage")
        wait_for(lambda: samples(client, "confidence") > before["confidence"] + 55)
        wait_for(lambda: samples(client, "feedback") > before["feedback"] + 4)
        wait_for(lambda: samples(client, "reward") > before["reward"])  # a tenth of 60
        page = client.get("/metrics").text
        for kind in ("confidence", "reward", "feedback"):
            assert f'dspy_quality_score_count{{metric_type="{kind}",program="triage"}}' in page
        assert 'dspy_quality_mean{level="full",metric_type="feedback"' in page


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_a_verdict_counts_once_and_an_unknown_call_is_told_so(cluster, unique, graph) -> None:
    with cluster.client(graph) as client:
        client.post("/v1/programs/triage", json={"inputs": {"ticket": unique()}}, headers={"x-request-id": "twice"})
        statuses = [client.post("/v1/feedback", json={"request_id": "twice", "score": 1}).status_code for _ in range(2)]
        assert statuses == [200, 409]
        reply = client.post("/v1/feedback", json={"request_id": uuid.uuid4().hex, "score": 1})
        assert (reply.status_code, reply.json()["code"]) == (404, "unknown_request")
