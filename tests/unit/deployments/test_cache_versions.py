"""While replicas are replaced, a program of one version answers calls whose keys are of another: no cache keeps that."""

import asyncio
from collections import Counter

from deployment_fakes import app_config, link, programs, settle
from test_cache_stage import FakeRedis
from test_model_replica import FakePool, FakeProgram

from serve_app.adapters.dspy_program import Answer
from serve_app.deployments.cache import Cache
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.lane import Lane
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.router import Router

INPUTS = {"question": "why?"}


class Versioned(FakeProgram):
    """Answers with its version."""

    def __init__(self, config, version: str) -> None:
        super().__init__(config)
        self.version = version

    async def run(self, asked, lm) -> Answer:
        return Answer({"answer": self.version}, None)


class House:
    """An ingress, a cache over Redis and a router, all new, in front of model replicas of the version that is set."""

    def __init__(self, version: str) -> None:
        self.config = app_config()
        self.redis = FakeRedis()
        made = link()
        self.router = Router(self.config, self._models(version), made._telemetry, made)
        self.cache = Cache(self.config, self.router, made._telemetry, made)
        self.cache.store.redis = self.redis
        self.ingress = Ingress(self.config, programs(self.config), self.cache, made._telemetry, made)
        self.version = self.ingress.programs["ask"].version

    def _models(self, version: str) -> dict[str, ModelReplica]:
        made, program = link(), self.config.programs[0]
        return {
            model.name: ModelReplica(model, {"ask": Versioned(program, version)}, FakePool(), made._telemetry, made)
            for model in self.config.models
        }

    def replace_models(self, version: str) -> None:
        self.router._lanes = {name: Lane(stage) for name, stage in self._models(version).items()}

    async def ask(self) -> tuple[str, str]:
        reply = await self.ingress.predict("ask", INPUTS)
        await settle()
        return reply["outputs"]["answer"], reply["meta"]["cache"]


async def test_an_answer_of_the_old_version_is_given_and_stored_nowhere_under_the_new_ones_key() -> None:
    house = House("old")
    assert await house.ask() == ("old", "miss")
    assert (house.redis.data, len(house.ingress.near)) == ({}, 0)
    house.replace_models(house.version)
    assert await house.ask() == (house.version, "miss")
    assert await house.ask() == (house.version, "hit")
    assert (len(house.redis.data), len(house.ingress.near)) == (1, 1)


async def test_a_herd_shares_an_answer_of_the_old_version_and_stores_none() -> None:
    house = House("old")
    told = Counter(await asyncio.gather(*(house.ask() for _ in range(20))))
    assert told == {("old", "miss"): 1, ("old", "coalesced"): 19}
    assert (house.redis.data, len(house.ingress.near)) == ({}, 0)
