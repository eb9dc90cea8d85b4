"""The OpenAPI document: each program's route with its real input and output types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.json_schema import models_json_schema

from serve_app.adapters.dspy_program import Program
from serve_app.deployments.operator_api import BODIES
from serve_app.deployments.requests import OptionsBody
from serve_app.messages import Level

_REF = "#/components/schemas/{model}"


class AttemptBody(BaseModel):
    """One model asked once."""

    model_config = ConfigDict(title="Attempt")
    model: str
    outcome: str
    latency_s: float
    resumed: int = Field(description="LM steps taken over from earlier attempts.")


class UsageBody(BaseModel):
    """Tokens spent, failed attempts included."""

    model_config = ConfigDict(title="Usage")
    input_tokens: int
    output_tokens: int


class MetaBody(BaseModel):
    """How the answer was made."""

    model_config = ConfigDict(title="Meta")
    request_id: str
    program: str
    model: str
    level: str
    level_reason: str | None = None
    cache: str
    truncated: bool = Field(default=False, description="Whether a token limit ended what a model wrote.")
    attempts: list[AttemptBody]
    usage: UsageBody
    cost_usd: float
    latency_s: float


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    retryable: bool
    retry_after_s: float | None
    attempts: list[AttemptBody]


def request_model(program: Program) -> type[BaseModel]:
    """The body of ``POST /v1/programs/{program}``."""
    return create_model(
        _type_name(program, "Request"), inputs=(program.inputs, ...), options=(OptionsBody, OptionsBody())
    )


def response_model(program: Program) -> type[BaseModel]:
    """What it answers."""
    return create_model(_type_name(program, "Response"), outputs=(program.outputs, ...), meta=(MetaBody, ...))


def describe(program: Program) -> dict[str, Any]:
    """One row of ``GET /v1/programs``."""
    levels = program.config.levels
    models = dict.fromkeys(name for level in Level for name in levels.at(level).models)
    return {
        "name": program.name,
        "description": program.description,
        "version": program.version,
        "models": list(models),
    }


def describe_in_full(program: Program) -> dict[str, Any]:
    """``GET /v1/programs/{program}``: the row, the types as JSON Schema, and the levels."""
    levels = {level.value: program.config.levels.at(level).model_dump(mode="json") for level in Level}
    return describe(program) | {
        "inputs": program.inputs.model_json_schema(),
        "outputs": program.outputs.model_json_schema(mode="serialization"),
        "levels": levels,
    }


def add_program_types(document: dict[str, Any], programs: Mapping[str, Program]) -> dict[str, Any]:
    """Give each program's route its request, response and problem schemas."""
    bodies = {name: (request_model(program), response_model(program)) for name, program in programs.items()}
    wanted: list[tuple[type[BaseModel], Any]] = [(Problem, "serialization")]
    for request, response in bodies.values():
        wanted += [(request, "validation"), (response, "serialization")]
    references, definitions = models_json_schema(wanted, ref_template=_REF)
    document.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
    problem = _content("application/problem+json", references[Problem, "serialization"])
    for name, (request, response) in bodies.items():
        route = document["paths"][f"/v1/programs/{name}"]["post"]
        route["requestBody"] = {"required": True} | _content("application/json", references[request, "validation"])
        answer = _content("application/json", references[response, "serialization"])
        route["responses"] = {
            "200": {"description": "The answer."} | answer,
            "4XX": {"description": "Refused; nothing ran."} | problem,
            "5XX": {"description": "It did not work out."} | problem,
        }
    return document


def add_operator_types(document: dict[str, Any]) -> dict[str, Any]:
    """Give the operator's routes their bodies, their problems and the key."""
    references, definitions = models_json_schema([(body, "validation") for body in BODIES.values()], ref_template=_REF)
    components = document["components"]
    components["schemas"].update(definitions["$defs"])
    components["securitySchemes"] = {"operator": {"type": "http", "scheme": "bearer"}}
    problem = _content("application/problem+json", {"$ref": _REF.format(model=Problem.__name__)})
    for path, operations in document["paths"].items():
        for method, route in operations.items():
            if "operator" not in route.get("tags", ()):
                continue
            route["security"] = [{"operator": []}, {}]  # from this machine it may go without
            route["responses"] = {
                "200": {"description": "Done; what it is now."} | _content("application/json", {"type": "object"}),
                "4XX": {"description": "Refused; nothing changed."} | problem,
                "503": {"description": "The control plane cannot be asked."} | problem,
            }
            if (body := BODIES.get((path, method))) is not None:
                schema = references[body, "validation"]
                route["requestBody"] = {"required": True} | _content("application/json", schema)
    return document


def _type_name(program: Program, suffix: str) -> str:
    return re.sub(r"\W", "_", program.name) + suffix


def _content(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {media_type: {"schema": schema}}}
