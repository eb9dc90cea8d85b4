"""Every example program, over HTTP, in both graphs and both modes."""

import json

import pytest
from running_cluster import Cluster

INPUTS = {
    "triage": lambda text: {"ticket": text},
    "research": lambda text: {"question": f"What is a volcano? {text}"},
    "sentiment": lambda text: {"text": text},
    "math": lambda text: {"question": text},
    "summarize": lambda text: {"text": f"{text} {text}", "sentences": 1},
}
OUTPUTS = {
    "triage": {"category", "priority", "summary", "confidence"},
    "research": {"answer", "sources"},
    "sentiment": {"sentiment", "confidence"},
    "math": {"answer"},
    "summarize": {"summary", "words_saved"},
}


def call_program(cluster: Cluster, graph: str, program: str, text: str) -> None:
    with cluster.client(graph) as client:
        reply = client.post(f"/v1/programs/{program}", json={"inputs": INPUTS[program](text)})
        assert reply.status_code == 200, reply.text
        body = reply.json()
        assert body["meta"]["level"] == "full", (body, client.get("/v1/status").json())
    assert body["outputs"].keys() == OUTPUTS[program]
    meta = body["meta"]
    assert meta["program"] == program
    assert meta["cache"] == "miss"
    assert [attempt["outcome"] for attempt in meta["attempts"]] == ["ok"]
    assert meta["usage"]["output_tokens"] > 0
    assert meta["cost_usd"] > 0
    assert reply.headers.get_list("x-request-id") == [meta["request_id"]]


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
@pytest.mark.parametrize("program", INPUTS)
def test_a_program_answers_in_throughput_mode(cluster, unique, graph, program) -> None:
    call_program(cluster, graph, program, unique())


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
@pytest.mark.parametrize("program", INPUTS)
def test_a_program_answers_in_plain_mode(plain_cluster, unique, graph, program) -> None:
    call_program(plain_cluster, graph, program, unique())


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_a_repeated_call_is_answered_from_the_near_cache(cluster, unique, graph) -> None:
    body = {"inputs": {"ticket": unique()}}
    with cluster.client(graph) as client:
        first = client.post("/v1/programs/triage", json=body)
        second = client.post("/v1/programs/triage", json=body)
    assert first.json()["outputs"] == second.json()["outputs"]
    assert second.json()["meta"]["cache"] == "hit"
    assert second.json()["meta"]["cost_usd"] == 0
    assert second.headers["cache-status"].startswith("Switchyard; hit")


def test_the_shared_cache_answers_what_another_graph_never_saw(cluster, unique) -> None:
    """The two applications have a store each; what one knows the other must not claim to."""
    body = {"inputs": {"ticket": unique()}}
    with cluster.client("standard") as one, cluster.client("compact") as other:
        assert one.post("/v1/programs/triage", json=body).json()["meta"]["cache"] == "miss"
        assert other.post("/v1/programs/triage", json=body).json()["meta"]["cache"] == "miss"


def test_the_programs_are_listed_with_their_types(cluster) -> None:
    with cluster.client() as client:
        rows = {row["name"]: row for row in client.get("/v1/programs").json()["programs"]}
        triage = client.get("/v1/programs/triage").json()
    assert rows.keys() == INPUTS.keys()
    assert rows["triage"]["models"] == ["large", "medium", "small"]
    assert triage["inputs"]["properties"].keys() == {"ticket", "context"}
    assert triage["outputs"]["properties"]["category"]["enum"][0] == "billing"
    assert triage["levels"]["minimal"]["drop_inputs"] == ["context"]


def test_openapi_shows_each_programs_types_and_docs_needs_no_internet(cluster) -> None:
    with cluster.client() as client:
        document = client.get("/openapi.json").json()
        page = client.get("/docs").text
        script = client.get("/docs/assets/swagger-ui-bundle.js")
    route = document["paths"]["/v1/programs/triage"]["post"]
    reference = route["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    assert reference == "triageRequest"
    assert "ticket" in json.dumps(document["components"]["schemas"])
    assert "http://" not in page
    assert "https://" not in page
    assert script.status_code == 200


def test_health_ready_and_status_say_what_runs(cluster) -> None:
    with cluster.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").status_code == 200
        status = client.get("/v1/status").json()
    assert status["models"].keys() == {"large", "medium", "small"}
    assert status["level"]["level"] == "full"
    assert status["replicas"] == {
        "Cache": 1,
        "Ingress": 1,
        "Model-large": 1,
        "Model-medium": 1,
        "Model-small": 1,
        "Router": 1,
    }
