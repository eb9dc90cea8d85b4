"""Each program's route with its own types, however much the names resemble each other."""

import httpx
import pytest
from deployment_fakes import FakeStage, app_config, link, programs

from serve_app.deployments.http_api import build_api
from serve_app.deployments.ingress import Ingress

NESTED = "items: list[dict[str, int]], mood: Literal['a', 'b'] -> score: float, names: list[str]"


async def document(*declared: tuple[str, str], prefix: str = "") -> dict:
    """``/openapi.json`` of an ingress that serves these programs, below a ``route_prefix`` if it has one."""
    levels = {"full": {"models": ["large"]}}
    config = app_config(programs=[{"name": name, "program": code, "levels": levels} for name, code in declared])
    made = link()
    api = build_api(Ingress(config, programs(config), FakeStage(), made._telemetry, made))
    transport = httpx.ASGITransport(api, root_path=prefix)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test{prefix}") as client:
        return (await client.get("/openapi.json")).json()


def schema(made: dict, holder: dict) -> dict:
    """What a content's reference leads to."""
    (content,) = holder["content"].values()
    found = made
    for part in content["schema"]["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found


def resolve(made: dict, part: dict) -> dict:
    return schema(made, {"content": {"_": {"schema": part}}}) if "$ref" in part else part


def inputs_of(made: dict, name: str) -> dict:
    body = schema(made, made["paths"][f"/v1/programs/{name}"]["post"]["requestBody"])
    return resolve(made, body["properties"]["inputs"])["properties"]


async def test_types_are_the_programs_own() -> None:
    made = await document(("nested", NESTED))
    inputs = inputs_of(made, "nested")
    assert inputs["mood"]["enum"] == ["a", "b"]
    assert inputs["items"]["type"] == "array"
    answer = schema(made, made["paths"]["/v1/programs/nested"]["post"]["responses"]["200"])
    assert resolve(made, answer["properties"]["outputs"])["properties"]["score"]["type"] == "number"


async def test_paths_are_below_the_applications_prefix() -> None:
    assert (await document(("plain", "question -> answer"), prefix="/app"))["servers"] == [{"url": "/app"}]
    assert "servers" not in await document(("plain", "question -> answer"))


@pytest.mark.parametrize("names", [("a-b", "a_b"), ("a.b", "a-b"), ("x", "X")])
async def test_programs_with_names_alike_keep_their_own_types(names) -> None:
    made = await document((names[0], "first -> out"), (names[1], "second -> out"))
    assert inputs_of(made, names[0]).keys() == {"first"}
    assert inputs_of(made, names[1]).keys() == {"second"}


def references(part) -> set[str]:
    if isinstance(part, dict):
        found = {part["$ref"]} if isinstance(part.get("$ref"), str) else set()
        return found.union(*map(references, part.values()))
    return set().union(*map(references, part)) if isinstance(part, list) else set()


async def test_every_reference_leads_somewhere() -> None:
    made = await document(("nested", NESTED), ("plain", "question -> answer"), ("a-b", "x -> y"), ("a_b", "z -> y"))
    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made)
    assert references(made) <= known


async def test_problems_are_described_for_refusals_and_failures() -> None:
    made = await document(("plain", "question -> answer"))
    responses = made["paths"]["/v1/programs/plain"]["post"]["responses"]
    for status in ("4XX", "5XX"):
        assert responses[status]["content"].keys() == {"application/problem+json"}
        assert {"code", "retryable", "attempts"} <= schema(made, responses[status])["properties"].keys()


async def test_every_operation_has_an_id_of_its_own_and_the_catch_all_is_hidden() -> None:
    made = await document(("a-b", "x -> y"), ("a_b", "z -> y"), ("a.b", "z -> y"))
    ids = [operation["operationId"] for path in made["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert "post" not in made["paths"].get("/v1/programs/{program}", {})
