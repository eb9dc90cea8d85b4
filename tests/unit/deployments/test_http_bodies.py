"""Bodies, types and headers that a client may get wrong, and pages an operator opens."""

import asyncio
import json
import re

import pytest
from deployment_fakes import FakeStage, app_config, link, ok
from test_http_api import ASK, GOOD, Bench

from serve_app.config import LimitsConfig
from serve_app.deployments.cache import Cache
from serve_app.deployments.http_api import build_api
from serve_app.deployments.lane import Lane
from serve_app.messages import CacheStatus, Result

MAX_BYTES = 2048
SMALL = {"limits": LimitsConfig(max_body_bytes=MAX_BYTES).model_dump()}


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json", "application/json ;charset=x"],
)
async def test_json_by_any_of_its_names_is_taken(content_type) -> None:
    reply = await Bench().client.post(ASK, content=json.dumps(GOOD), headers={"content-type": content_type})
    assert reply.status_code == 200


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
async def test_anything_else_is_415_and_counted(content_type) -> None:
    bench = Bench()
    reply = await bench.client.post(ASK, content=json.dumps(GOOD), headers={"content-type": content_type})
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type")
    assert bench.counted() == {"unsupported_media_type": 1}
    assert bench.link._pending.calls == 0


async def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    bench, was_read = Bench(**SMALL), []

    async def chunks():
        was_read.append(True)
        yield b"{}"

    headers = {"content-type": "application/json", "content-length": str(MAX_BYTES + 1)}
    reply = await bench.client.post(ASK, content=chunks(), headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")
    assert bench.counted() == {"too_large": 1}


async def test_a_body_that_only_turns_out_to_be_too_large_is_read_no_further() -> None:
    bench, sent = Bench(**SMALL), []
    chunk = {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def receive():
        sent.append(1)
        return chunk

    (start, body) = await raw(bench, receive, [(b"content-type", b"application/json")])
    assert start["status"] == 413
    assert json.loads(body["body"])["code"] == "too_large"
    assert len(sent) == 3


@pytest.mark.parametrize("length", ["9" * 5000, "²", "-1", "x"])
async def test_a_length_that_is_no_length_is_no_crash(length) -> None:
    async def receive():
        return {"type": "http.request", "body": json.dumps(GOOD).encode(), "more_body": False}

    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode("latin-1"))]
    (start, _) = await raw(Bench(), receive, headers)
    assert start["status"] in (200, 413)


async def test_a_client_that_hangs_up_in_the_middle_is_client_closed() -> None:
    bench = Bench()
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return messages.pop(0)

    (start, _) = await raw(bench, receive, [(b"content-type", b"application/json")])
    assert start["status"] == 499
    assert bench.counted() == {"client_closed": 1}


async def raw(bench, receive, headers):
    """One POST at the level of ASGI; what was sent back."""
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": ASK,
        "raw_path": ASK.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": ("test", 80),
        "scheme": "http",
    }
    async with asyncio.timeout(5):
        await build_api(bench.ingress)(scope, receive, send)
    return sent


async def test_a_defect_of_ours_is_a_problem_that_tells_nothing(caplog) -> None:
    bench = Bench()

    class Broken:
        def answer(self, _):
            raise RuntimeError("a secret")

    bench.ingress.near = Broken()
    reply = await bench.ask(headers={"x-request-id": "mine"})
    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert (body["code"], body["request_id"], body["retryable"]) == ("internal", "mine", False)
    assert "secret" not in reply.text
    assert bench.counted() == {"internal": 1}
    (record,) = [record for record in caplog.records if record.message == "http.failed"]
    assert record.request_id == "mine"


async def test_invalid_json_is_counted_once() -> None:
    bench = Bench()
    reply = await bench.client.post(ASK, content=b"{", headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_inputs")
    assert bench.counted() == {"invalid_inputs": 1}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", ASK, 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/programs/aks", 404, "unknown_program"),
        ("POST", "/v1/programs/ask/extra", 404, "unknown_program"),
    ],
)
async def test_what_is_not_there_is_a_problem_too(method, path, status, code) -> None:
    reply = await Bench().client.request(method, path)
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert (body["code"], body["status"], body["retryable"]) == (code, status, False)
    assert body["request_id"]


@pytest.mark.parametrize("given", ["", "x" * 129, "tab\there"])
async def test_a_request_id_that_is_unfit_is_replaced(given) -> None:
    reply = await Bench().ask(headers={"x-request-id": given})
    made = reply.json()["meta"]["request_id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


@pytest.mark.parametrize(
    ("status", "age_s", "header"),
    [
        (CacheStatus.HIT, 0.0, "0"),
        (CacheStatus.HIT, 12.9, "12"),
        (CacheStatus.STALE, 130.0, "130"),
        (CacheStatus.MISS, 0.0, None),
        (CacheStatus.COALESCED, 0.0, None),
    ],
)
async def test_a_stored_answer_comes_with_its_age_and_a_new_one_without(status, age_s, header) -> None:
    def answer(asked):
        return Result(asked.id, {"answer": "x"}, model="large", cache=status, tier="redis", age_s=age_s)

    assert (await Bench(answer).ask()).headers.get("age") == header


async def test_only_if_cached_with_nothing_stored_is_504() -> None:
    bench = Bench()
    config, made = app_config(), link()
    models = FakeStage(ok)
    cache = Cache(config, models, made._telemetry, made)
    bench.ingress.lane = Lane(cache)
    reply = await bench.ask(headers={"cache-control": "only-if-cached"})
    assert (reply.status_code, reply.json()["code"]) == (504, "deadline_exceeded")
    assert models.calls == []


async def test_the_docs_page_loads_nothing_from_elsewhere() -> None:
    bench = Bench()
    page = (await bench.client.get("/docs")).text
    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert loaded
    for address in loaded:
        assert not re.match(r"(https?:)?//", address), address
        assert (await bench.client.get(f"/{address}")).status_code == 200
    assert "openapi.json" in page


async def test_programs_are_listed_and_described() -> None:
    bench = Bench()
    (row,) = (await bench.client.get("/v1/programs")).json()["programs"]
    assert row.keys() == {"name", "description", "version", "models"}
    assert row["models"] == ["large", "medium", "small"]
    one = (await bench.client.get(ASK)).json()
    assert one["inputs"]["properties"].keys() == {"question"}
    assert one["outputs"]["properties"].keys() == {"answer"}
    assert one["levels"].keys() == {"full", "degraded", "minimal"}


async def test_metrics_are_prometheus_text() -> None:
    reply = await Bench().client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_a_call_of_no_program_is_counted_under_none_whatever_it_is_called() -> None:
    bench = Bench()
    for name in ("aks", "ask/extra", "../secret"):
        assert (await bench.client.post(f"/v1/programs/{name}", json={"inputs": {}})).status_code == 404
    families = {family.name: family for family in bench.link._telemetry.samples()}
    rows = [dict(labels) for name, labels, _ in families["dspy_requests"].samples if name.endswith("_total")]
    assert rows == [{"program": "none", "model": "none", "status": "unknown_program"}]
