"""An operator's orders on a real cluster: carried out everywhere within a second, and taken from operators only."""

import socket
import time
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest
from running_cluster import NO_STORE, OPERATOR_KEY, Cluster

HEARD_S = 1.0
"""Seconds within which every replica has heard of an order: four exchanges."""
ORDERS = (
    ("POST", "/v1/models/large/isolate", {"reason": "a test"}),
    ("POST", "/v1/models/large/reset", {}),
    ("PUT", "/v1/level", {"pin": "minimal"}),
    ("DELETE", "/v1/cache", None),
    ("DELETE", "/v1/cache/triage", None),
)
FORGED = ({}, {"x-forwarded-for": "127.0.0.1"}, {"x-forwarded-for": "::1"}, {"host": "127.0.0.1:8000"})


def give(cluster: Cluster, graph: str, method: str, path: str, body: dict | None, **options) -> httpx.Response:
    with cluster.client(graph) as client:
        return client.request(method, path, **({} if body is None else {"json": body}) | options)


def ask(cluster: Cluster, graph: str, text: str, headers: dict[str, str] = NO_STORE) -> dict:
    """The ``meta`` of a call that ``large`` answers unless something speaks against it."""
    body = {"inputs": {"question": text}, "options": {"complexity": "high", "deadline_s": 10}}
    with cluster.client(graph) as client:
        return client.post("/v1/programs/math", json=body, headers=headers).raise_for_status().json()["meta"]


def until(condition: Callable[[], bool], bound_s: float, what: str) -> None:
    give_up = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < give_up, what


@pytest.fixture(params=Cluster.GRAPHS)
def graph(request, cluster, calm) -> Iterator[str]:
    """A graph whose orders are taken back afterwards."""
    del calm
    yield request.param
    for model in ("large", "medium", "small"):
        give(cluster, request.param, "POST", f"/v1/models/{model}/reset", {}).raise_for_status()
    give(cluster, request.param, "PUT", "/v1/level", {"pin": None}).raise_for_status()
    until(lambda: ask(cluster, request.param, "Back?")["level"] == "full", 5, "the level is full again")


def test_an_isolated_model_is_asked_no_more_and_a_reset_brings_it_back(cluster, provider, unique, graph) -> None:
    until(lambda: ask(cluster, graph, unique())["model"] == "large", 10, "large answers")
    shown = give(cluster, graph, "POST", "/v1/models/large/isolate", {"reason": "wrong answers"}).raise_for_status()
    assert shown.json()["breaker"] == "open"
    until(lambda: ask(cluster, graph, unique())["model"] == "medium", HEARD_S, "calls go elsewhere")
    time.sleep(HEARD_S)  # by then the last router has heard of it, too
    provider.reset_stats()
    for _ in range(20):
        assert [attempt["model"] for attempt in ask(cluster, graph, unique())["attempts"]] == ["medium"]
    assert provider.stats()["models"]["sim-large"]["requests"] == 0
    with cluster.client(graph) as client:
        model = client.get("/v1/status").json()["models"]["large"]
    assert (model["breaker"], model["healthy"]) == ("open", False)
    assert "wrong answers" in model["reason"]
    assert give(cluster, graph, "POST", "/v1/models/large/reset", {}).json()["breaker"] == "closed"
    until(lambda: ask(cluster, graph, unique())["model"] == "large", HEARD_S, "large answers again")


def test_a_pinned_level_is_that_of_every_call_until_it_is_let_go(cluster, unique, graph) -> None:
    for level in ("minimal", "degraded"):
        give(cluster, graph, "PUT", "/v1/level", {"pin": level}).raise_for_status()
        until(lambda: ask(cluster, graph, unique())["level"] == level, HEARD_S, f"{level} is in force")  # noqa: B023
    give(cluster, graph, "PUT", "/v1/level", {"pin": None}).raise_for_status()
    until(lambda: ask(cluster, graph, unique())["level"] == "full", HEARD_S, "the policy's own pin holds again")


def stored(cluster: Cluster, graph: str, text: str) -> int:
    """200 when whichever replica is asked, over a new connection, has the answer; 504 when it has not."""
    body = {"inputs": {"question": text}, "options": {"complexity": "high"}}
    with cluster.client(graph) as client:
        return client.post("/v1/programs/math", json=body, headers={"cache-control": "only-if-cached"}).status_code


@pytest.mark.parametrize("path", ["/v1/cache", "/v1/cache/math"])
def test_forgotten_answers_are_in_no_cache_and_made_anew(cluster, unique, graph, path) -> None:
    text = unique()
    assert ask(cluster, graph, text, {})["cache"] == "miss"
    until(lambda: {stored(cluster, graph, text) for _ in range(10)} == {200}, 5, "the answer is stored")
    forgotten = give(cluster, graph, "DELETE", path, None).raise_for_status().json()
    assert forgotten["math"] == pytest.approx(time.time(), abs=5)
    time.sleep(HEARD_S)
    assert {stored(cluster, graph, text) for _ in range(20)} == {504}
    assert ask(cluster, graph, text, {})["cache"] == "miss"
    until(lambda: stored(cluster, graph, text) == 200, 5, "the new answer is stored")


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[1])
def test_a_page_of_another_site_gives_no_orders_to_a_laptop(cluster, order) -> None:
    method, path, body = order
    port = cluster.base.rpartition(":")[2]
    pages = ({"origin": "http://evil.example"}, {"origin": "null"}, {"host": f"evil.example:{port}"})
    for headers in (*pages, {"x-forwarded-for": "10.0.0.1"}):
        reply = give(cluster, "standard", method, path, body, headers=headers)
        assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), headers
    with cluster.client() as client:
        assert "policy" in client.get("/v1/status").json()
        assert "policy" not in client.get("/v1/status", headers=pages[2]).json()


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order[1])
def test_where_others_can_reach_it_nobody_gives_orders_without_a_key_whatever_the_headers_say(
    open_cluster, order
) -> None:
    port = int(open_cluster.base.rpartition(":")[2])
    method, path, body = order
    for address in {"127.0.0.1", own_address()}:
        for headers in FORGED:
            sent = {} if body is None else {"json": body}
            reply = httpx.request(method, f"http://{address}:{port}{path}", headers=headers, timeout=30, **sent)
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), (address, headers)
            shown = httpx.get(f"http://{address}:{port}/v1/status", headers=headers, timeout=30).raise_for_status()
            assert "models" in shown.json()
            assert "policy" not in shown.json()


def own_address() -> str:
    """An address of this machine that is not loopback, where it has one."""
    found = [
        item.address for items in psutil.net_if_addrs().values() for item in items if item.family == socket.AF_INET
    ]
    return next((address for address in found if not address.startswith("127.")), "127.0.0.1")


def test_the_key_of_the_environment_is_asked_for_by_every_graph_and_is_in_no_log(plain_cluster, unique) -> None:
    for graph in Cluster.GRAPHS:
        for method, path, body in ORDERS:
            refused = give(plain_cluster, graph, method, path, body)
            assert (refused.status_code, refused.json()["code"]) == (401, "key_required")
            assert refused.headers["www-authenticate"].startswith("Bearer")
            wrong = give(plain_cluster, graph, method, path, body, headers={"authorization": "Bearer wr0ng-k3y"})
            assert (wrong.status_code, wrong.json()["code"]) == (403, "forbidden")
        right = {"authorization": f"Bearer {OPERATOR_KEY}"}
        for method, path, body in ORDERS:
            give(plain_cluster, graph, method, path, body, headers=right).raise_for_status()
        give(plain_cluster, graph, "PUT", "/v1/level", {"pin": None}, headers=right).raise_for_status()
        until(lambda: ask(plain_cluster, graph, unique())["level"] == "full", 5, "the level is full again")  # noqa: B023
        with plain_cluster.client(graph) as client:
            assert "policy" not in client.get("/v1/status").json()
            assert "policy" in client.get("/v1/status", headers=right).json()
    log = plain_cluster.log.read_text()
    assert "operator.refused" in log
    assert OPERATOR_KEY not in log
    assert "wr0ng-k3y" not in log
