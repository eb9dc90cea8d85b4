"""Callers' verdicts over HTTP, with several ingress replicas and a real control plane."""

import asyncio
import json
from types import SimpleNamespace

import httpx
import pytest
from deployment_fakes import FakeStage, app_config, failed, ok, programs

from serve_app.adapters.telemetry import Telemetry
from serve_app.core.clock import ManualClock
from serve_app.deployments import feedback
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.control_plane import ControlPlane
from serve_app.deployments.http_api import build_api
from serve_app.deployments.ingress import Ingress
from serve_app.messages import Outcome
from serve_app.reports import MetricType

ASK = "/v1/programs/ask"


class Handle:
    """The control plane as a handle shows it.

    Attributes:
        is_away: makes it silent.
        loses: the next reply of these methods is lost: they do their work, and nobody hears of it.
        settling: how many settlements have been asked for, each of which waits for ``gate``.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self.is_away = False
        self.loses: set[str] = set()
        self.settling = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def __getattr__(self, method: str) -> SimpleNamespace:
        async def remote(*args):
            if self.is_away:
                raise TimeoutError
            if method == "settle":
                self.settling += 1
                await self.gate.wait()
            reply = await getattr(self._plane, method)(*args)
            if method in self.loses:
                self.loses.discard(method)
                raise TimeoutError
            return reply

        return SimpleNamespace(remote=remote)


class Replica:
    """One ingress replica over HTTP."""

    def __init__(self, handle: Handle, answer, **config) -> None:
        self.link = ControlLink(handle, "Ingress", Telemetry())
        made = app_config(**config)
        self.ingress = Ingress(made, programs(made), FakeStage(answer), self.link._telemetry, self.link)
        transport = httpx.ASGITransport(build_api(self.ingress), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def ask(self, request_id: str, question: str = "why") -> httpx.Response:
        body = {"inputs": {"question": question}}
        return await self.client.post(ASK, json=body, headers={"x-request-id": request_id})

    async def verdict(self, **body) -> httpx.Response:
        return await self.client.post("/v1/feedback", json=body)


class Cluster:
    def __init__(self, answer=ok, **config) -> None:
        self.plane = ControlPlane(app_config(), clock=ManualClock())
        self.handle = Handle(self.plane)
        self.replicas = [Replica(self.handle, answer, **config) for _ in range(2)]

    async def exchange(self) -> None:
        for replica in self.replicas:
            await replica.link._exchange()

    def counted(self) -> list[tuple[MetricType, float, float]]:
        sums = [score for replica in self.replicas for score in replica.link.scores.sums()]
        return [(score.metric_type, round(score.weight), round(score.total, 2)) for score in sums]


@pytest.fixture(autouse=True)
def no_wait(monkeypatch) -> None:
    monkeypatch.setattr(feedback, "SECOND_LOOK_S", 0.0)


async def test_whichever_replica_gets_the_verdict_finds_the_call() -> None:
    cluster = Cluster()
    first, second = cluster.replicas
    await first.ask("mine")
    await cluster.exchange()
    reply = await second.verdict(request_id="mine", score=0.25, comment="not quite")
    assert reply.status_code == 200
    assert reply.json() == {"request_id": "mine", "program": "ask", "model": "large"}
    await cluster.exchange()
    status = (await cluster.plane.status())["quality"]["programs"]["ask"]["models"]["large"]
    (score,) = status["scores"]
    assert (score["metric_type"], score["level"], score["mean"]) == ("feedback", "full", 0.25)
    assert score["version"] == first.ingress.programs["ask"].version
    page = (await cluster.plane.metrics()).decode()
    assert 'dspy_quality_score_sum{metric_type="feedback",program="ask"} 0.25' in page


async def test_an_answer_from_the_cache_takes_a_verdict_for_the_model_that_made_it() -> None:
    cluster = Cluster()
    replica = cluster.replicas[0]
    await replica.ask("first")
    assert (await replica.ask("second")).json()["meta"]["cache"] == "hit"
    await cluster.exchange()
    assert (await replica.verdict(request_id="second", score=1)).json()["model"] == "large"


async def test_the_first_verdict_counts() -> None:
    cluster = Cluster()
    first, second = cluster.replicas
    await first.ask("mine")
    await cluster.exchange()
    assert (await first.verdict(request_id="mine", score=1)).status_code == 200
    again = await second.verdict(request_id="mine", score=0)
    assert (again.status_code, again.json()["code"]) == (409, "already_scored")
    assert second.link.scores.sums() == ()


@pytest.mark.parametrize("again", [0, 1])
async def test_a_verdict_whose_claim_got_no_reply_counts_when_it_is_given_again_wherever_that_is(again) -> None:
    cluster = Cluster()
    verdict = {"request_id": "mine", "score": 1, "comment": "good"}
    await cluster.replicas[0].ask("mine")
    await cluster.exchange()
    cluster.handle.loses = {"claim"}
    lost = await cluster.replicas[0].verdict(**verdict)
    assert (lost.status_code, cluster.counted()) == (503, [])
    assert (await cluster.replicas[again].verdict(**verdict)).status_code == 200
    for replica in cluster.replicas:
        assert (await replica.verdict(**verdict)).status_code == 409
    assert cluster.counted() == [(MetricType.FEEDBACK, 1, 1.0)]


@pytest.mark.parametrize("other", [{"score": 0, "comment": "good"}, {"score": 1, "comment": "bad"}])
async def test_after_a_lost_reply_another_verdict_is_a_second_one(other) -> None:
    cluster = Cluster()
    await cluster.replicas[0].ask("mine")
    await cluster.exchange()
    cluster.handle.loses = {"claim"}
    await cluster.replicas[0].verdict(request_id="mine", score=1, comment="good")
    assert (await cluster.replicas[0].verdict(request_id="mine", **other)).status_code == 409
    assert cluster.counted() == []


async def test_a_verdict_whose_settlement_got_no_reply_has_counted() -> None:
    cluster = Cluster()
    first, second = cluster.replicas
    await first.ask("mine")
    await cluster.exchange()
    cluster.handle.loses = {"settle"}
    assert (await first.verdict(request_id="mine", score=1)).status_code == 200
    assert (await second.verdict(request_id="mine", score=1)).status_code == 409
    assert cluster.counted() == [(MetricType.FEEDBACK, 1, 1.0)]


async def settling(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(5):
        while cluster.handle.settling < count:
            await asyncio.sleep(0)


async def test_of_equal_verdicts_given_at_once_one_counts() -> None:
    cluster = Cluster()
    await cluster.replicas[0].ask("mine")
    await cluster.exchange()
    cluster.handle.gate.clear()
    both = [asyncio.create_task(replica.verdict(request_id="mine", score=1)) for replica in cluster.replicas]
    await settling(cluster, 2)
    cluster.handle.gate.set()
    assert sorted(reply.status_code for reply in await asyncio.gather(*both)) == [200, 409]
    assert cluster.counted() == [(MetricType.FEEDBACK, 1, 1.0)]


async def test_a_caller_who_leaves_while_the_call_is_settled_has_given_the_verdict() -> None:
    cluster = Cluster()
    ingress = cluster.replicas[0].ingress
    await cluster.replicas[0].ask("mine")
    await cluster.exchange()
    cluster.handle.gate.clear()
    giving = asyncio.create_task(ingress.feedback.give("mine", 1.0))
    await settling(cluster, 1)
    giving.cancel()
    await asyncio.gather(giving, return_exceptions=True)
    cluster.handle.gate.set()
    await ingress.feedback.aclose()
    assert cluster.counted() == [(MetricType.FEEDBACK, 1, 1.0)]


async def test_a_call_answered_a_moment_ago_is_looked_for_twice() -> None:
    cluster = Cluster()
    first, second = cluster.replicas
    await first.ask("mine")
    verdict = asyncio.create_task(second.verdict(request_id="mine", score=1))
    while not second.ingress.feedback._second_looks:
        await asyncio.sleep(0)
    await first.link._exchange()
    assert (await verdict).status_code == 200


@pytest.mark.parametrize("answer", [ok, lambda asked: failed(asked, Outcome.SERVER_ERROR)])
async def test_an_unknown_call_is_404_and_so_is_one_that_failed(answer) -> None:
    cluster = Cluster(answer)
    await cluster.replicas[0].ask("failed" if answer is not ok else "another")
    await cluster.exchange()
    reply = await cluster.replicas[0].verdict(request_id="failed", score=1)
    assert (reply.status_code, reply.json()["code"]) == (404, "unknown_request")
    assert reply.headers["content-type"] == "application/problem+json"
    assert cluster.replicas[0].ingress.feedback._second_looks == 0


async def test_without_the_control_plane_it_is_503_and_may_be_tried_again() -> None:
    cluster = Cluster()
    cluster.handle.is_away = True
    reply = await cluster.replicas[0].verdict(request_id="mine", score=1)
    assert (reply.status_code, reply.json()["code"], reply.json()["retryable"]) == (
        503,
        "control_plane_unreachable",
        True,
    )


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"request_id": "r", "score": 1.1}, "score"),
        ({"request_id": "r", "score": "1"}, "score"),
        ({"request_id": "r", "score": True}, "score"),
        ({"request_id": "", "score": 1}, "request_id"),
        ({"request_id": "r"}, "score"),
        ({"score": 1}, "request_id"),
        ({"request_id": "r", "score": 1, "comment": "x" * 4001}, "comment"),
        ({"request_id": "r", "score": 1, "rating": 5}, "rating"),
    ],
)
async def test_what_is_no_verdict_is_422_and_names_the_field(body, field) -> None:
    reply = await Cluster().replicas[0].verdict(**body)
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_inputs")
    assert field in reply.json()["detail"]
    assert "xxx" not in reply.text


@pytest.mark.parametrize(("content", "status"), [(b"{", 422), (b"[]", 422), (b"NaN", 422), (b"x" * 2_000_000, 413)])
async def test_a_body_that_is_no_verdict_at_all_is_refused(content, status) -> None:
    headers = {"content-type": "application/json"}
    reply = await Cluster().replicas[0].client.post("/v1/feedback", content=content, headers=headers)
    assert reply.status_code == status


async def test_the_comment_goes_into_the_record_and_nowhere_else(tmp_path, caplog) -> None:
    config = app_config().model_dump(mode="json", exclude_none=True)["programs"]
    config[0]["record"] = {"path": str(tmp_path)}
    cluster = Cluster(programs=config)
    first, second = cluster.replicas
    await first.ask("mine")
    await cluster.exchange()
    await second.verdict(request_id="mine", score=0, comment="far too rude")
    await second.ingress.feedback.aclose()
    (file,) = (tmp_path / "ask").iterdir()
    line = json.loads(file.read_text())
    assert (line["request_id"], line["score"], line["comment"]) == ("mine", 0, "far too rude")
    assert line["call_id"]
    assert "rude" not in caplog.text
    assert "rude" not in (await cluster.plane.metrics()).decode()
    assert all(MetricType.FEEDBACK is score.metric_type for score in second.link.scores.sums())


async def test_the_route_is_documented() -> None:
    document = (await Cluster().replicas[0].client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/feedback"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["request_id", "score"]
    assert {"404", "409", "422", "503"} <= operation["responses"].keys()
