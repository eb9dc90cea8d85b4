"""A model that is wrong more often than its prior says: the router notices, if it may.

The real ingress, router, model replicas and control plane in one process, over real HTTP to the simulator.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Self

import pytest

from serve_app.adapters.dspy_engine import LMPool
from serve_app.adapters.dspy_program import load_program
from serve_app.adapters.telemetry import Telemetry
from serve_app.config import AppConfig, RecordConfig
from serve_app.deployments import control_link
from serve_app.deployments.control_link import ControlLink
from serve_app.deployments.control_plane import ControlPlane
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.router import Router
from serve_app.simulator.profile import ModelProfile, Profile
from serve_app.simulator.server import background
from serve_app.trainset import load_trainset, read_archive, write_rows

CATEGORIES = ("billing", "bug", "account")
EXCHANGED_S = 5.0


def right(args, pred) -> float:
    """The reward: every ticket names its category."""
    return float(pred.category in args["ticket"])


class Handle:
    """The control plane as a handle shows it, without the processes in between."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane

    def __getattr__(self, method: str) -> SimpleNamespace:
        return SimpleNamespace(remote=getattr(self._plane, method))


class Service:
    """Everything but the cache, wired as ``graphs.compact`` does it."""

    def __init__(self, provider_url: str, record: str | None = None, **routing) -> None:
        self.config = config = AppConfig.model_validate(
            {
                "programs": [
                    {
                        "name": "triage",
                        "program": "ticket -> category: Literal['billing', 'bug', 'account']",
                        "reward": f"{__name__}:right",
                        "record": {"path": record} if record else None,
                        "cache": {"ttl_s": 0},
                        "levels": {"full": {"models": ["medium", "small"]}},
                    }
                ],
                "models": [
                    {"name": name, "lm": f"openai/sim-{name}", "api_base": f"{provider_url}/v1", "latency_s": 0.5}
                    | more
                    for name, more in {
                        "medium": {"quality": 0.85, "price": {"output_usd_per_1m_tokens": 10}},
                        "small": {"quality": 0.9, "price": {"output_usd_per_1m_tokens": 1}},
                    }.items()
                ],
                "default_model": "medium",
            }
        )
        self.plane = ControlPlane(config)
        self.plane.reconfigure({"routing": routing, "degradation": {"pin": "full"}})
        self.pool = LMPool()
        self.links: list[ControlLink] = []
        self.stages = stages = {}
        for model in config.models:
            telemetry, link = self.link(f"Model-{model.name}")
            stages[model.name] = ModelReplica(model, self.programs(), self.pool, telemetry, link)
        telemetry, link = self.link("Ingress")
        self.ingress = Ingress(config, self.programs(), Router(config, stages, telemetry, link), telemetry, link)

    def programs(self) -> dict:
        return {program.name: load_program(program) for program in self.config.programs}

    def link(self, deployment: str) -> tuple[Telemetry, ControlLink]:
        telemetry = Telemetry()
        self.links.append(ControlLink(Handle(self.plane), deployment, telemetry))
        return telemetry, self.links[-1]

    async def exchanged(self) -> None:
        """Wait until everyone has told the control plane, and then heard of it."""
        for _ in range(2):
            before = [link.snapshot for link in self.links]
            give_up = time.monotonic() + EXCHANGED_S
            while any(link.snapshot is old for link, old in zip(self.links, before, strict=True)):
                assert time.monotonic() < give_up, "a replica does not exchange"
                await asyncio.sleep(0.01)

    async def __aenter__(self) -> Self:
        for link in self.links:
            link.start()
        await self.exchanged()
        return self

    async def __aexit__(self, *_) -> None:
        for link in self.links:
            link.stop()
        await self.pool.aclose()


@pytest.fixture(autouse=True)
def exchange_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_link, "EXCHANGE_INTERVAL_S", 0.02)


@pytest.fixture(scope="module")
def provider_url() -> Iterator[str]:
    quick = {"ttft_s": 0.001, "tokens_per_s": 100_000, "jitter": 0}
    models = {"sim-medium": ModelProfile(**quick), "sim-small": ModelProfile(**quick, quality=0.3)}
    with ExitStack() as opened:
        yield opened.enter_context(background(Profile(models=models)))


async def asked(service: Service, calls: int = 200, between_looks: int = 20) -> list[str]:
    """The models that answered, in turn; everyone exchanges after every ``between_looks`` calls."""
    answered = []
    for number in range(calls):
        ticket = f"Ticket {number} is about {CATEGORIES[number % 3]}."
        reply = await service.ingress.predict("triage", {"ticket": ticket}, {"complexity": "medium"})
        answered.append(reply["meta"]["model"])
        if (number + 1) % between_looks == 0:
            await service.exchanged()
    return answered


async def test_with_learning_the_router_leaves_the_model_that_scores_badly_within_200_calls(provider_url) -> None:
    async with Service(provider_url, learn_quality=True) as service:
        answered = await asked(service)
        status = (await service.plane.status())["quality"]
    assert answered[:20] == ["small"] * 20
    assert Counter(answered[100:])["medium"] >= 95
    small, medium = status["programs"]["triage"]["models"]["small"], status["programs"]["triage"]["models"]["medium"]
    assert (status["learning"], small["prior"]) == (True, 0.9)
    assert small["learned"]["full"] < 0.8 < medium["learned"]["full"]
    assert small["scores"][0]["mean"] == pytest.approx(0.3, abs=0.2)


async def test_without_learning_it_stays_and_status_shows_what_would_be_learned(provider_url) -> None:
    async with Service(provider_url) as service:
        answered = await asked(service)
        status = (await service.plane.status())["quality"]
        page = (await service.plane.metrics()).decode()
    assert set(answered) == {"small"}
    small = status["programs"]["triage"]["models"]["small"]
    assert status["learning"] is False
    assert small["learned"]["full"] < small["prior"]
    assert 'dspy_quality_score_count{metric_type="reward",program="triage"} 200.0' in page
    assert 'dspy_quality_mean{level="full",metric_type="reward",model="small",program="triage",version="' in page


async def test_what_was_recorded_and_judged_comes_back_as_a_trainset(provider_url, tmp_path) -> None:
    async with Service(provider_url, record=str(tmp_path / "record")) as service:
        await asked(service, calls=40)
        reply = await service.ingress.predict("triage", {"ticket": "This one is about a bug."}, request_id="mine")
        await service.exchanged()
        assert (await service.ingress.feedback.give("mine", 0.125, "no")).model == reply["meta"]["model"]
        for stage in service.stages.values():
            await stage.scoring.aclose()
        await service.ingress.feedback.aclose()
    archive = read_archive(RecordConfig(path=str(tmp_path / "record")), "triage")
    (tmp_path / "trainset.jsonl").write_text("".join(write_rows(archive.rows())))
    trainset = load_trainset(tmp_path / "trainset.jsonl")
    assert (len(trainset), archive.unmatched, archive.unreadable) == (41, 0, 0)
    for example in trainset[:40]:
        assert example.score == right(example.inputs().toDict(), example.labels())
    assert (trainset[40].ticket, trainset[40].score, trainset[40].comment) == ("This one is about a bug.", 0.125, "no")
