"""What a hit of ours is measured beside: a FastAPI ingress that returns a constant, and FastAPI over DSPy's cache."""

from __future__ import annotations

from typing import Any

import dspy
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

CONSTANT = {
    "outputs": {"answer": "Paris"},
    "meta": {"request_id": "0" * 32, "program": "ask", "model": "m", "level": "full", "cache": "hit", "attempts": []},
}


def bare_api() -> FastAPI:
    """The least an ingress with FastAPI can do."""
    api = FastAPI()

    @api.get("/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @api.post("/ask")
    async def ask() -> dict[str, Any]:
        return CONSTANT

    return api


class Bare:
    """A deployment with nothing behind it."""


def bare(_: dict[str, Any]) -> Application:
    """The application for Ray Serve, with the same room for calls as ours."""
    deployment = serve.deployment(
        name="Bare", max_ongoing_requests=4100, ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_timeout_s=2
    )
    return deployment(serve.ingress(bare_api())(Bare)).bind()


class Inputs(BaseModel):
    """What a caller sends."""

    question: str


class Body(BaseModel):
    """The same body as ours."""

    inputs: Inputs


def tutorial_api(api_base: str) -> FastAPI:
    """The server of DSPy's deployment tutorial, asynchronous: its own cache answers what was asked before."""
    dspy.configure(lm=dspy.LM("openai/m", api_base=api_base, api_key="x", cache=True, num_retries=0))
    program = dspy.Predict("question -> answer")
    api = FastAPI()

    @api.get("/ready")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @api.post("/ask")
    async def ask(body: Body) -> dict[str, Any]:
        prediction = await program.acall(question=body.inputs.question)
        return {"outputs": prediction.toDict()}

    return api
