"""``docs/http.md`` lists the routes that are served, each of them and no others."""

import re
from pathlib import Path

from deployment_fakes import FakeStage, app_config, link, programs
from fastapi.routing import APIRoute

from serve_app.deployments.http_api import build_api
from serve_app.deployments.ingress import Ingress

PAGE = Path(__file__).parents[3] / "docs" / "http.md"


def served() -> set[tuple[str, str]]:
    config, control = app_config(), link()
    ingress = Ingress(config, programs(config), FakeStage(), control._telemetry, control)
    routes = [route for route in build_api(ingress).routes if isinstance(route, APIRoute)]
    named = {f"/v1/programs/{name}" for name in ingress.programs}
    found = {(method, route.path) for route in routes for method in route.methods if route.path not in named}
    return {(method, re.sub(r":\w+}", "}", path)) for method, path in found}


def test_the_table_of_endpoints_is_what_is_served() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Endpoints")[2].partition("\n## ")[0]
    documented = {(method, path) for method, path in re.findall(r"`([A-Z]+) (/\S*)`", table)}
    assert documented == served()
