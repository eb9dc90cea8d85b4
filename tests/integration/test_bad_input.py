"""Bad input gets the documented 4xx with a problem document that names what is wrong; nothing runs."""

import json

import httpx
import pytest
from running_cluster import Cluster

GOOD = {"inputs": {"ticket": "My invoice is wrong."}}
DEEP = '{"inputs": {"ticket": ' + "[" * 10_000 + "]" * 10_000 + "}}"

BAD = {
    "wrong type": ({"inputs": {"ticket": 3}}, 422, "inputs.ticket"),
    "missing field": ({"inputs": {}}, 422, "inputs.ticket"),
    "unknown field": ({"inputs": {"ticket": "x", "tickt": "y"}}, 422, "inputs.tickt"),
    "no inputs": ({"options": {}}, 422, "inputs"),
    "inputs no object": ({"inputs": [1]}, 422, "inputs"),
    "unknown key": (GOOD | {"option": {}}, 422, "'option'"),
    "body no object": ([1], 422, "object"),
    "deadline of 0": (GOOD | {"options": {"deadline_s": 0}}, 422, "options.deadline_s"),
    "endless deadline": (GOOD | {"options": {"deadline_s": 1e9}}, 422, "options.deadline_s"),
    "negative budget": (GOOD | {"options": {"budget_usd": -1}}, 422, "options.budget_usd"),
    "unknown option": (GOOD | {"options": {"complexty": "low"}}, 422, "options.complexty"),
    "unknown model": (GOOD | {"options": {"model": "larg"}}, 422, "did you mean 'large'"),
    "unknown complexity": (GOOD | {"options": {"complexity": "huge"}}, 422, "options.complexity"),
    "2 MB body": ({"inputs": {"ticket": "x" * 2_000_000}}, 413, "1048576"),
    "invalid JSON": ('{"inputs": ', 422, "not valid JSON"),
    "empty body": ("", 422, "not valid JSON"),
    "lone surrogate": (r'{"inputs": {"ticket": "\ud800"}}', 422, "not valid JSON"),
    "lone surrogate key": (r'{"inputs": {"\udfff": "x"}}', 422, "not valid JSON"),
    "invalid UTF-8": (b'{"inputs": {"ticket": "\xff"}}', 422, "not valid JSON"),
    "NaN": ('{"inputs": {"ticket": NaN}}', 422, "not valid JSON"),
    "infinity": ('{"inputs": {"ticket": 1e999}}', 422, "infinity"),
    "10,000 deep": (DEEP, 422, "not valid JSON"),
}


def send(client: httpx.Client, body: object, path: str = "/v1/programs/triage", kind: str = "application/json"):
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(path, content=content, headers={"content-type": kind})


def check(reply: httpx.Response, status: int, code: str, words: str) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json()
    assert problem["status"] == status
    assert problem["code"] == code
    assert words in problem["detail"]
    assert problem["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("graph", Cluster.GRAPHS)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_the_next_call_is_answered(cluster, graph, case) -> None:
    body, status, words = BAD[case]
    code = {413: "too_large", 422: "invalid_inputs"}[status]
    with cluster.client(graph) as client:
        check(send(client, body), status, code, words)
        assert send(client, GOOD).status_code == 200


def test_an_unknown_program_is_404_with_the_nearest_name(cluster) -> None:
    with cluster.client() as client:
        check(send(client, GOOD, "/v1/programs/triag"), 404, "unknown_program", "'triage'")
        check(client.get("/v1/programs/triag"), 404, "unknown_program", "'triage'")
        check(send(client, GOOD, "/v1/programs/%F0%9F%92%A9"), 404, "unknown_program", "no program")


def test_another_content_type_is_415(cluster) -> None:
    with cluster.client() as client:
        reply = send(client, GOOD, kind="text/plain")
        check(reply, 415, "unsupported_media_type", "application/json")


def test_a_chunked_body_is_bounded_too(cluster) -> None:
    chunks = (b'{"inputs": {"ticket": "', *(b"x" * 65_536 for _ in range(32)), b'"}}')
    with cluster.client() as client:
        headers = {"content-type": "application/json"}
        reply = client.post("/v1/programs/triage", content=iter(chunks), headers=headers)
        check(reply, 413, "too_large", "1048576")
        assert send(client, GOOD).status_code == 200


def test_an_unknown_path_and_a_wrong_method_are_problems_too(cluster) -> None:
    with cluster.client() as client:
        check(client.get("/v2/programs"), 404, "not_found", "Not Found")
        check(client.delete("/v1/programs"), 405, "method_not_allowed", "Method Not Allowed")


def test_a_strange_request_id_is_replaced(cluster) -> None:
    with cluster.client() as client:
        reply = client.post("/v1/programs/triage", json=GOOD, headers={"x-request-id": "mine-1"})
    assert reply.json()["meta"]["request_id"] == "mine-1"


def test_unicode_survives_the_way_there_and_back(cluster) -> None:
    question = 'Wie viele Äpfel? 数学 👩‍🔬 \u2028 \\ " \x00'
    with cluster.client() as client:
        reply = client.post("/v1/programs/math", json={"inputs": {"question": question}})
    assert reply.status_code == 200
