"""The HTTP face over a real ingress and a fake stage: statuses, problems, headers."""

import asyncio
import json

import httpx
import pytest
from deployment_fakes import FakeStage, app_config, failed, link, ok, programs, settle

from serve_app.config import LimitsConfig
from serve_app.core.clock import ManualClock
from serve_app.deployments.http_api import build_api
from serve_app.deployments.ingress import Ingress
from serve_app.errors import (
    BadOutput,
    NoRoute,
    ProgramError,
    RateLimited,
    UpstreamRefused,
)
from serve_app.messages import Outcome, Result

ASK = "/v1/programs/ask"
GOOD = {"inputs": {"question": "why?"}}


class Bench:
    def __init__(self, answer=ok, **config) -> None:
        self.config = app_config(**config)
        self.clock = ManualClock()
        self.stage = FakeStage(answer)
        self.link = link()
        self.ingress = Ingress(
            self.config, programs(self.config), self.stage, self.link._telemetry, self.link, unix_clock=self.clock
        )
        transport = httpx.ASGITransport(build_api(self.ingress), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def ask(self, body=GOOD, **options) -> httpx.Response:
        return await self.client.post(ASK, json=body, **options)

    def counted(self) -> dict[str, float]:
        families = {family.name: family for family in self.link._telemetry.samples()}
        rows = families["dspy_requests"].samples if "dspy_requests" in families else ()
        return {dict(labels)["status"]: value for name, labels, value in rows if name.endswith("_total")}


async def test_an_answer_comes_with_its_meta_and_is_counted_once() -> None:
    bench = Bench()
    reply = await bench.ask(headers={"x-request-id": "mine"})
    assert reply.status_code == 200
    assert reply.json()["outputs"] == {"answer": "fine"}
    meta = reply.json()["meta"]
    assert (meta["request_id"], meta["program"], meta["model"], meta["level"]) == ("mine", "ask", "large", "full")
    assert meta["attempts"][0]["outcome"] == "ok"
    assert reply.headers["cache-status"] == "Switchyard; fwd=miss"
    assert bench.counted() == {"success": 1}


async def test_a_repeated_call_is_a_near_hit_with_its_age() -> None:
    bench = Bench()
    await bench.ask()
    bench.clock.advance(12)
    reply = await bench.ask()
    assert reply.json()["meta"]["cache"] == "hit"
    assert reply.headers["age"] == "12"
    assert reply.headers["cache-status"] == "Switchyard; hit; ttl=88; detail=near"
    assert len(bench.stage.calls) == 1
    assert bench.counted() == {"success": 2}


async def test_no_store_passes_the_near_cache() -> None:
    bench = Bench()
    for _ in range(2):
        await bench.ask(headers={"cache-control": "no-store"})
    assert len(bench.stage.calls) == 2


async def test_a_cache_control_on_two_lines_is_one_header() -> None:
    bench = Bench()
    for _ in range(2):
        await bench.ask(headers=[("cache-control", "max-age=60"), ("cache-control", "no-store")])
    assert len(bench.stage.calls) == 2


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (NoRoute("down", 2.4), 503, "no_route", "3"),
        (RateLimited("cooling", 0.2), 429, "rate_limited", "1"),
        (BadOutput("?"), 502, "bad_output", None),
        (ProgramError("the program failed"), 500, "program_error", None),
        (UpstreamRefused("policy", outcome=Outcome.CONTENT_POLICY), 422, "refused", None),
    ],
)
async def test_each_error_is_the_documented_problem(error, status, code, retry_after) -> None:
    def answer(asked):
        return Result(asked.id, error=error, attempts=failed(asked, Outcome.TIMEOUT).attempts)

    bench = Bench(answer)
    reply = await bench.ask(headers={"x-request-id": "mine"})
    assert reply.status_code == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers.get("retry-after") == retry_after
    body = reply.json()
    assert (body["code"], body["status"], body["request_id"]) == (code, status, "mine")
    assert body["attempts"][0]["outcome"] == "timeout"
    assert bench.counted() == {code: 1}


async def test_past_its_deadline_a_call_is_504_and_its_work_is_cancelled() -> None:
    bench = Bench(lambda _: asyncio.Event().wait())
    reply = await bench.ask(GOOD | {"options": {"deadline_s": 0.01}})
    await settle()
    assert reply.status_code == 504
    assert len(bench.stage.cancelled) == 1
    assert bench.counted() == {"deadline_exceeded": 1}


async def test_past_the_bound_a_call_is_429_and_the_place_is_free_again() -> None:
    gate = asyncio.Event()

    async def answer(asked):
        await gate.wait()
        return ok(asked)

    bench = Bench(answer, limits=LimitsConfig(max_queued_requests=1).model_dump())
    first = asyncio.create_task(bench.ask())
    while not bench.stage.calls:
        await asyncio.sleep(0)
    refused = await bench.ask({"inputs": {"question": "another"}})
    assert refused.status_code == 429
    assert refused.json()["code"] == "shed"
    assert int(refused.headers["retry-after"]) >= 1
    gate.set()
    assert (await first).status_code == 200
    assert (await bench.ask({"inputs": {"question": "a third"}})).status_code == 200


async def test_a_caller_who_leaves_is_counted_and_holds_no_place() -> None:
    bench = Bench(lambda _: asyncio.Event().wait())
    task = asyncio.create_task(bench.ask())
    while not bench.stage.calls:
        await asyncio.sleep(0)
    task.cancel()
    await settle(50)
    assert bench.counted() == {"client_closed": 1}
    assert len(bench.stage.cancelled) == 1


async def test_bad_input_never_reaches_the_stage_nor_makes_a_label() -> None:
    bench = Bench()
    for body in ({"inputs": {"question": 3}}, {"inputs": {}}, {"input": {}}, GOOD | {"options": {"model": "x"}}):
        assert (await bench.ask(body)).status_code == 422
    assert (await bench.client.post("/v1/programs/evil", json=GOOD)).status_code == 404
    assert bench.stage.calls == []
    assert set(bench.counted()) == {"invalid_inputs", "unknown_program"}
    assert "evil" not in str(list(bench.link._telemetry.samples()))


async def test_text_that_is_not_valid_unicode_is_written_with_escapes() -> None:
    reply = await Bench(lambda asked: ok(asked, text="\ud800")).ask()
    assert json.loads(reply.content)["outputs"] == {"answer": "\ud800"}


async def test_every_reference_of_the_openapi_document_resolves() -> None:
    document = (await Bench().client.get("/openapi.json")).json()
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "#/components/schemas/')[1:]}
    assert references
    assert references <= document["components"]["schemas"].keys()
    assert document["components"]["schemas"]["askRequest"]["properties"].keys() == {"inputs", "options"}


async def test_without_a_control_plane_status_and_metrics_say_what_is_known() -> None:
    bench = Bench()
    await bench.ask()
    assert (await bench.client.get("/v1/status")).json()["control_plane"] == "unreachable"
    page = (await bench.client.get("/metrics")).text
    assert 'dspy_requests_total{model="large",program="ask",status="success"} 1.0' in page


async def test_not_ready_is_503() -> None:
    bench = Bench()
    assert (await bench.client.get("/ready")).status_code == 200
    bench.link._handle = object()
    assert (await bench.client.get("/ready")).status_code == 503
    assert (await bench.client.get("/health")).status_code == 200


@pytest.mark.parametrize("path", [f"/prefix{ASK}", ASK])
async def test_below_a_route_prefix_programs_are_found_as_everything_else_is(path) -> None:
    """Ray Serve tells the prefix as ASGI's ``root_path``, and leaves it in the path."""
    bench = Bench()
    transport = httpx.ASGITransport(build_api(bench.ingress), root_path="/prefix")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        reply = await client.post(path, json=GOOD)
        assert reply.status_code == 200
        assert (await client.get(path)).status_code == 200
        assert (await client.put(path, json=GOOD)).status_code == 405
        assert (await client.post(f"{path}s", json=GOOD)).json()["code"] == "unknown_program"
