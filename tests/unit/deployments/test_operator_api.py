"""Orders over HTTP, with a real control plane behind the link: who may give them, what they do, what is refused."""

import asyncio
import json
import logging

import httpx
import pytest
from deployment_fakes import FakeStage, app_config, programs

from serve_app.adapters.telemetry import Telemetry
from serve_app.core.clock import ManualClock
from serve_app.core.operator_access import OperatorAccess
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.control_plane import ControlPlane
from serve_app.deployments.http_api import build_api
from serve_app.deployments.ingress import Ingress

KEY = "c0rrect-horse"
BEARER = {"authorization": f"Bearer {KEY}"}
ORDERS = {
    "isolate": ("POST", "/v1/models/large/isolate", {"reason": "wrong answers"}),
    "reset": ("POST", "/v1/models/large/reset", {}),
    "pin": ("PUT", "/v1/level", {"pin": "degraded"}),
    "forget": ("DELETE", "/v1/cache/ask", None),
    "forget all": ("DELETE", "/v1/cache", None),
}


class Handle:
    """A handle whose calls reach a control plane of this process, pickling nothing."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane

    def __getattr__(self, method: str):
        class Method:
            remote = staticmethod(getattr(self.plane, method))

        return Method()


class Bench:
    def __init__(self, access: OperatorAccess | None = None, *, is_reachable: bool = True) -> None:
        config = app_config()
        self.plane = ControlPlane(config, clock=ManualClock(), unix_clock=ManualClock(1000.0))
        link = ControlLink(Handle(self.plane) if is_reachable else None, "Ingress", Telemetry())
        ingress = Ingress(config, programs(config), FakeStage(), link._telemetry, link)
        api = build_api(ingress, access)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://127.0.0.1:8000")

    async def give(self, order: str, **options) -> httpx.Response:
        method, path, body = ORDERS[order]
        return await self.client.request(method, path, **({} if body is None else {"json": body}) | options)

    async def state(self) -> tuple:
        status = await self.plane.status()
        return status["models"]["large"]["breaker"], status["level"]["level"], dict(self.plane._orders.forgotten)


UNTOUCHED = ("closed", "full", {})


@pytest.fixture
def bench() -> Bench:
    return Bench(OperatorAccess(KEY.encode()))


def problem_of(reply: httpx.Response, status: int, code: str) -> dict:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.json()["status"], reply.json()["code"]) == (status, code)
    return reply.json()


async def test_a_model_is_isolated_with_the_reason_and_reset(bench) -> None:
    isolated = (await bench.give("isolate", headers=BEARER)).raise_for_status().json()
    assert isolated["breaker"] == "open"
    assert "wrong answers" in isolated["reason"]
    assert (await bench.state())[0] == "open"
    assert (await bench.give("reset", headers=BEARER)).raise_for_status().json()["breaker"] == "closed"
    assert await bench.state() == UNTOUCHED


async def test_reset_needs_no_body_but_the_content_type(bench) -> None:
    headers = BEARER | {"content-type": "application/json"}
    assert (await bench.client.post("/v1/models/large/reset", headers=headers)).status_code == 200
    problem_of(await bench.client.post("/v1/models/large/reset", headers=BEARER), 415, "unsupported_media_type")


async def test_a_level_is_pinned_and_let_go(bench) -> None:
    for level in ("degraded", "minimal", "full"):
        reply = await bench.client.put("/v1/level", json={"pin": level}, headers=BEARER)
        assert reply.raise_for_status().json()["level"] == level
        assert (await bench.state())[1] == level
        assert bench.plane._orders.pin == level
    assert (await bench.client.put("/v1/level", json={"pin": None}, headers=BEARER)).status_code == 200
    assert bench.plane._orders.pin is None


async def test_stored_answers_are_forgotten(bench) -> None:
    assert (await bench.give("forget", headers=BEARER)).raise_for_status().json() == {"ask": 1000.0}
    before = (await bench.state())[2]["ask"]
    assert (await bench.give("forget all", headers=BEARER)).status_code == 200
    assert (await bench.state())[2]["ask"] > before


@pytest.mark.parametrize("order", ORDERS)
async def test_without_the_key_an_order_is_refused_and_changes_nothing(bench, order) -> None:
    for headers in ({}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
        reply = await bench.give(order, headers=headers)
        problem_of(reply, 401, "key_required")
        assert reply.headers["www-authenticate"].startswith("Bearer ")
    problem_of(await bench.give(order, headers={"authorization": "Bearer wrong"}), 403, "forbidden")
    assert await bench.state() == UNTOUCHED


@pytest.mark.parametrize("order", ORDERS)
async def test_unless_somebody_says_who_an_operator_is_nobody_is(order) -> None:
    bench = Bench()
    problem_of(await bench.give(order, headers=BEARER), 403, "forbidden")
    assert await bench.state() == UNTOUCHED


@pytest.mark.parametrize("order", ORDERS)
async def test_with_no_key_set_this_machine_may_give_orders(order) -> None:
    bench = Bench(OperatorAccess(is_local=True))
    assert (await bench.give(order)).status_code == 200
    assert (await bench.give(order, headers={"origin": "http://127.0.0.1:8000"})).status_code == 200


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:3000"},
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"host": "evil.example:8000"},
        {"x-forwarded-for": "127.0.0.1"},
        {"x-real-ip": "127.0.0.1"},
        {"via": "1.1 proxy"},
        {"forwarded": "for=127.0.0.1"},
    ],
    ids=str,
)
async def test_with_no_key_set_a_page_or_a_proxy_on_this_machine_may_not(order, headers) -> None:
    bench = Bench(OperatorAccess(is_local=True))
    problem_of(await bench.give(order, headers=headers), 403, "forbidden")
    assert await bench.state() == UNTOUCHED


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
async def test_what_a_form_of_another_site_can_send_is_no_order(content_type) -> None:
    bench = Bench(OperatorAccess(is_local=True))
    headers = {} if content_type is None else {"content-type": content_type}
    for order in ("isolate", "reset", "pin"):
        method, path, body = ORDERS[order]
        reply = await bench.client.request(method, path, content=json.dumps(body), headers=headers)
        problem_of(reply, 415, "unsupported_media_type")
    assert await bench.state() == UNTOUCHED


async def test_a_page_that_asks_whether_it_may_is_not_told_so() -> None:
    bench = Bench(OperatorAccess(is_local=True))
    asked = {"origin": "http://evil.example", "access-control-request-method": "DELETE"}
    for _, path, _ in ORDERS.values():
        reply = await bench.client.options(path, headers=asked)
        assert reply.status_code == 405
        assert not [name for name in reply.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    ("order", "body", "named"),
    [
        ("isolate", b"{}", "reason"),
        ("isolate", b'{"reason": ""}', "reason"),
        ("isolate", b'{"reason": "  "}', "reason"),
        ("isolate", b'{"reason": 3}', "reason"),
        ("isolate", json.dumps({"reason": "x" * 201}).encode(), "reason"),
        ("isolate", b'{"reason": "x", "for": 3}', "for"),
        ("isolate", b'"x"', "body"),
        ("isolate", b"{", "JSON"),
        ("isolate", b"", "JSON"),
        ("reset", b'{"all": true}', "all"),
        ("reset", b"[]", "body"),
        ("pin", b"{}", "pin"),
        ("pin", b'{"pin": "half"}', "pin"),
        ("pin", b'{"pin": 0}', "pin"),
        ("pin", b'{"level": "full"}', "level"),
        ("pin", b"null", "body"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_by_name(bench, order, body, named) -> None:
    headers = BEARER | {"content-type": "application/json"}
    method, path, _ = ORDERS[order]
    reply = await bench.client.request(method, path, content=body, headers=headers)
    assert named in problem_of(reply, 422, "invalid_inputs")["detail"]
    assert await bench.state() == UNTOUCHED


async def test_a_body_is_read_up_to_a_bound(bench) -> None:
    problem_of(await bench.give("isolate", json={"reason": "x" * 5000}, headers=BEARER), 413, "too_large")


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "nearest"),
    [
        ("POST", "/v1/models/lrge/isolate", {"reason": "x"}, "unknown_model", "large"),
        ("POST", "/v1/models/smal/reset", {}, "unknown_model", "small"),
        ("POST", "/v1/models/a/b/reset", {}, "unknown_model", "a/b"),
        ("DELETE", "/v1/cache/aks", None, "unknown_program", "ask"),
        ("DELETE", "/v1/cache/a/b", None, "unknown_program", "a/b"),
    ],
)
async def test_an_unknown_name_is_a_404_with_the_nearest(bench, method, path, body, code, nearest) -> None:
    reply = await bench.client.request(method, path, json=body, headers=BEARER)
    assert nearest in problem_of(reply, 404, code)["detail"]
    problem_of(await bench.client.request(method, path, json=body), 401, "key_required")
    assert await bench.state() == UNTOUCHED


@pytest.mark.parametrize("order", ORDERS)
async def test_a_control_plane_out_of_reach_is_a_503_worth_another_try(order) -> None:
    bench = Bench(OperatorAccess(KEY.encode()), is_reachable=False)
    reply = await bench.give(order, headers=BEARER)
    assert problem_of(reply, 503, "control_plane_unreachable")["retryable"] is True
    assert reply.headers["retry-after"] == "1"


async def test_the_status_shows_the_policy_to_operators_only(bench) -> None:
    shown = (await bench.client.get("/v1/status", headers=BEARER)).json()
    assert "policy_problems" in shown
    assert shown["policy"]["breaker"]
    for headers in ({}, {"authorization": "Bearer wrong"}):
        reply = await bench.client.get("/v1/status", headers=headers)
        assert reply.status_code == 200
        assert reply.json().keys() == shown.keys() - {"policy", "policy_problems"}


async def test_with_no_key_set_a_page_with_a_foreign_name_sees_no_policy() -> None:
    bench = Bench(OperatorAccess(is_local=True))
    assert "policy" in (await bench.client.get("/v1/status")).json()
    assert "policy" not in (await bench.client.get("/v1/status", headers={"host": "evil.example"})).json()


async def test_a_refused_order_is_logged_and_no_key_is(bench, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    await bench.give("isolate", headers={"authorization": "Bearer gu3ssed"})
    await bench.give("isolate", headers=BEARER)
    written = str([record.__dict__ for record in caplog.records])
    assert "operator.refused" in written
    assert "breaker.isolated" in written
    assert "gu3ssed" not in written
    assert KEY not in written


async def test_the_openapi_document_has_the_orders_with_their_bodies_and_the_key(bench) -> None:
    made = (await bench.client.get("/openapi.json")).json()
    isolate = made["paths"]["/v1/models/{model}/isolate"]["post"]
    schema = isolate["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert made["components"]["schemas"][schema]["required"] == ["reason"]
    assert made["components"]["securitySchemes"]["operator"] == {"type": "http", "scheme": "bearer"}
    for path, method in {"/v1/level": "put", "/v1/cache": "delete", "/v1/cache/{program}": "delete"}.items():
        operation = made["paths"][path][method]
        assert {"operator": []} in operation["security"]
        assert operation["responses"].keys() == {"200", "4XX", "503"}
        assert ("requestBody" in operation) is (method == "put")
    assert "security" not in made["paths"]["/v1/status"]["get"]


async def test_orders_given_at_once_are_all_carried_out(bench) -> None:
    replies = await asyncio.gather(*(bench.give(order, headers=BEARER) for order in ORDERS))
    assert {reply.status_code for reply in replies} == {200}
