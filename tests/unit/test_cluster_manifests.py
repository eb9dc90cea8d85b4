"""The manifests parse, hold one configuration between them, and name metrics that exist."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from test_house_rules import ROOT

from serve_app.adapters.telemetry import Telemetry
from serve_app.config_check import check_file

CLUSTER = ROOT / "cluster"
SCHEMA = Path(os.environ.get("SWITCHYARD_RAYSERVICE_SCHEMA", ROOT.parent / "shared/kuberay/rayservice-v1.schema.json"))
FROM_THE_CONTROL_PLANE = {"dspy_breaker_state", "dspy_degradation_level", "dspy_queue_depth"}


def rayservice() -> dict:
    return yaml.safe_load((CLUSTER / "kuberay/rayservice.yaml").read_text())


def test_the_container_serves_what_the_laptop_serves(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    assert check_file(CLUSTER / "serve_config.yaml") == ()
    ours, laptop = (yaml.safe_load((at / "serve_config.yaml").read_text()) for at in (CLUSTER, ROOT))
    assert ours["http_options"].pop("host") == "0.0.0.0"
    assert ours["applications"][0]["args"].pop("cache") == {"redis_url": "redis://redis:6379/0"}
    del laptop["http_options"]["host"], laptop["applications"][0]["args"]["cache"]
    assert ours == laptop


def test_kuberay_serves_the_containers_configuration() -> None:
    inside = yaml.safe_load(rayservice()["spec"]["serveConfigV2"])
    assert inside == yaml.safe_load((CLUSTER / "serve_config.yaml").read_text())


@pytest.mark.skipif(not SCHEMA.exists(), reason=f"no RayService schema at {SCHEMA}")
def test_the_rayservice_fits_its_schema() -> None:
    jsonschema.validate(rayservice(), json.loads(SCHEMA.read_text()))


def test_alerts_name_metrics_that_exist() -> None:
    telemetry = Telemetry()
    telemetry.call_finished("ask", "large", "success", 0.1)
    known = {name for family in telemetry.samples() for name, _, _ in family.samples} | FROM_THE_CONTROL_PLANE
    rules = yaml.safe_load((CLUSTER / "monitoring/alerts.yml").read_text())["groups"][0]["rules"]
    named = {name for rule in rules for name in re.findall(r"dspy_\w+", rule["expr"])}
    assert named
    assert named <= known


def test_compose_parses() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed here")
    command = [docker, "compose", "-f", str(CLUSTER / "compose.yaml"), "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
