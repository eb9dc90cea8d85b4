"""The manifests of ``cluster/``: they parse, they fit their schemas, and they name only what exists."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.schema import ServeDeploySchema

from serve_app import errors
from serve_app.adapters.telemetry import MetricsPage, Telemetry
from serve_app.config import AppConfig
from serve_app.config_check import check_file
from serve_app.deployments.control_plane import ControlPlane
from serve_app.launcher import environment
from serve_app.messages import Attempt, Outcome, Report, Usage

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted(path for kind in ("*.yaml", "*.yml") for path in CLUSTER.rglob(kind))
SERVE_CONFIGS = [CLUSTER / "kuberay" / environment / "serve_config.yaml" for environment in ("base", "prod")]
SCHEMA = Path(os.environ.get("SWITCHYARD_RAYSERVICE_SCHEMA", ROOT.parent / "shared/kuberay/rayservice-v1.schema.json"))
PROMETHEUS_OWN = {"up"}

needs_schema = pytest.mark.skipif(not SCHEMA.exists(), reason=f"no RayService schema at {SCHEMA}")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch) -> None:
    """Programs are imported from the working directory, as in the image."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENAI_API_KEY", "as-from-the-secret")


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_a_manifest_is_yaml(path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SERVE_CONFIGS, ids=name_of)
def test_a_configuration_passes_switchyards_check_and_rays_schema(path) -> None:
    assert [str(problem) for problem in check_file(path)] == []
    ServeDeploySchema.model_validate(load(path))


def test_the_clusters_configuration_is_the_roots_but_for_host_and_cache() -> None:
    expected = load(ROOT / "serve_config.yaml")
    expected["http_options"]["host"] = "0.0.0.0"
    expected["applications"][0]["args"]["cache"] = {"redis_url": "redis://switchyard-cache:6379/0"}
    assert load(CLUSTER / "kuberay/base/serve_config.yaml") == expected


# ── KubeRay ──────────────────────────────────────────────────────────────────────────────────────────


def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """What ``kubectl apply -k`` would send, by kind and name."""
    command = ["kubectl", "kustomize", str(CLUSTER / "kuberay" / overlay)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return {f"{found['kind']}/{found['metadata']['name']}": found for found in yaml.safe_load_all(output)}


def rayservice_problems(manifest: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(manifest)]


@needs_schema
def test_the_base_is_a_rayservice() -> None:
    assert rayservice_problems(load(CLUSTER / "kuberay/base/rayservice.yaml")) == []


@needs_schema
def test_a_misspelt_key_would_be_noticed() -> None:
    manifest = load(CLUSTER / "kuberay/base/rayservice.yaml")
    manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParam"] = {}
    assert len(rayservice_problems(manifest)) == 1


@needs_kubectl
@needs_schema
@pytest.mark.parametrize("overlay", ["dev", "prod"])
def test_an_overlay_renders_to_a_rayservice(overlay) -> None:
    assert rayservice_problems(rendered(overlay)["RayService/switchyard"]) == []


@needs_kubectl
@pytest.mark.parametrize(("overlay", "source"), [("dev", "base"), ("prod", "prod")])
def test_an_overlay_carries_its_configuration_as_a_string(overlay, source) -> None:
    text = (CLUSTER / "kuberay" / source / "serve_config.yaml").read_text(encoding="utf-8")
    manifests = rendered(overlay)
    assert manifests["RayService/switchyard"]["spec"]["serveConfigV2"] == text
    assert manifests["ConfigMap/switchyard-serve-config"]["data"] == {"serve_config.yaml": text}


def containers(rayservice: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = rayservice["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return {found["name"]: found for group in groups for found in group["template"]["spec"]["containers"]}


def test_the_head_takes_no_replicas_and_no_traffic() -> None:
    spec = load(CLUSTER / "kuberay/base/rayservice.yaml")["spec"]
    assert spec["excludeHeadPodFromServeSvc"] is True
    assert spec["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"] is True


def test_keys_come_from_a_secret_by_reference_and_stand_in_no_manifest() -> None:
    for container in containers(load(CLUSTER / "kuberay/base/rayservice.yaml")).values():
        assert [source["secretRef"]["name"] for source in container["envFrom"]] == ["switchyard-provider-keys"]
    for path in MANIFESTS:
        assert not re.search(r"sk-\w{8}|kind: Secret\b", path.read_text(encoding="utf-8")), path


def test_ray_has_one_version_in_the_manifest_and_the_image() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    version = load(CLUSTER / "kuberay/base/rayservice.yaml")["spec"]["rayClusterConfig"]["rayVersion"]
    assert pinned is not None
    assert version == pinned[1]


def test_the_cache_that_the_configurations_name_is_there_in_kubernetes_and_compose() -> None:
    named = {load(path)["applications"][0]["args"]["cache"]["redis_url"] for path in SERVE_CONFIGS}
    cache = {
        document["kind"]: document for document in yaml.safe_load_all((CLUSTER / "kuberay/base/cache.yaml").read_text())
    }
    service = cache["Service"]
    host, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert named == {f"redis://{host}:{port}/0"}
    assert service["spec"]["selector"].items() <= cache["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    assert host in load(CLUSTER / "compose.yaml")["services"]


# ── the image and compose ────────────────────────────────────────────────────────────────────────────


def test_the_image_sets_both_throughput_flags_and_is_not_run_by_root() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in dockerfile
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in dockerfile
    assert re.search(r"install -y --no-install-recommends bash ca-certificates wget", dockerfile)
    assert re.search(r"^USER 1000:1000$", dockerfile, re.MULTILINE)
    assert dockerfile.index("USER ") < dockerfile.index("\nCMD ")


def test_the_image_reports_to_the_autoscaler_as_often_as_a_run_on_one_machine() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    intervals = {name: value for name, value in environment({}, plain=False).items() if "AUTOSCALING_METRIC" in name}
    assert len(intervals) == 3
    for name, value in intervals.items():
        assert f"{name}={value}" in dockerfile


def test_the_image_copies_only_what_the_build_may_see() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    sources = [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert set(sources) == allowed
    assert all((ROOT / name).exists() for name in sources)


def test_compose_mounts_what_exists_and_bounds_every_service() -> None:
    compose = load(CLUSTER / "compose.yaml")
    assert {"switchyard", "switchyard-cache", "prometheus"} == set(compose["services"])
    for name, service in compose["services"].items():
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert service["healthcheck"]["test"], name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (CLUSTER / source).exists(), volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_docker_understands_the_compose_file() -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run([docker, "compose", "version"], capture_output=True, timeout=60, check=False).returncode
    ):
        pytest.skip("docker with its compose plugin is not installed")
    command = [docker, "compose", "-f", str(CLUSTER / "compose.yaml"), "config", "-q"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr


# ── monitoring ───────────────────────────────────────────────────────────────────────────────────────


def alerts() -> dict[str, str]:
    groups = load(CLUSTER / "monitoring/alerts.yml")["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


async def served_metrics() -> dict[str, set[str]]:
    """Every sample name of a real metrics page, with the labels that it has."""
    telemetry = Telemetry()
    telemetry.call_finished("p", "m", "success", 0.1)
    telemetry.attempt_finished("p", Attempt("m", Outcome.OK, 0.1, Usage(1, 1), 0.1))
    telemetry.fell_back("p", "m", "n", "timeout")
    telemetry.scored("p", "confidence", 0.5)
    telemetry.cache.hit("p", "near", 0.0, 0.0)
    telemetry.cache.missed("p")
    telemetry.shed("full", "default")
    telemetry.batched(1)
    config = load(ROOT / "serve_config.yaml")["applications"][0]["args"]
    plane = ControlPlane(AppConfig.model_validate(config))
    await plane.exchange(Report("r", "Model-m", gauges={"queue_depth": 1}, metrics=telemetry.samples()))
    page = MetricsPage()
    page.update("r", telemetry.samples())
    found: dict[str, set[str]] = {}
    for text in (await plane.metrics(), page.render()):
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("alert", alerts())
async def test_an_alert_names_metrics_and_labels_that_exist(alert) -> None:
    expression, served = alerts()[alert], await served_metrics()
    used = set(re.findall(r"\b(dspy_\w+|up)\b", expression))
    assert used
    assert used - PROMETHEUS_OWN <= served.keys()
    labels = {name for inner in re.findall(r"by \(([\w, ]+)\)", expression) for name in inner.split(", ")}
    labels |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expression)) - {"job"}
    assert labels <= set().union(*(served[name] for name in used - PROMETHEUS_OWN), set())


def test_the_statuses_that_alerts_count_as_failures_are_codes_of_errors() -> None:
    kinds = [found for found in vars(errors).values() if isinstance(found, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, errors.SwitchyardError)}
    counted = re.findall(r'status=~"([\w|]+)"', "".join(alerts().values()))
    assert counted
    assert {code for group in counted for code in group.split("|")} <= codes


def test_prometheus_reads_the_rules_and_scrapes_the_service_of_compose() -> None:
    config = load(CLUSTER / "monitoring/prometheus.yml")
    assert [name for name in config["rule_files"] if not (CLUSTER / "monitoring" / name).exists()] == []
    ((job,),) = [config["scrape_configs"]]
    assert job["job_name"] == "switchyard"
    assert job["static_configs"] == [{"targets": ["switchyard:8000"]}]


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: the package prometheus)")
    command = [promtool, "check", "config", str(CLUSTER / "monitoring/prometheus.yml")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
