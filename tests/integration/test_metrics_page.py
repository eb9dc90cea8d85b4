"""The metrics page of a running cluster: what promtool says of it, and that a Prometheus can scrape it."""

import shutil
import subprocess
import time
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from running_cluster import ROOT, Cluster, free_ports

ALERTS = ROOT / "cluster" / "monitoring" / "prometheus" / "alerts.yml"
NAME_OF_THE_CONTRACT = "dspy_memory_usage_mb metric names should not contain abbreviated units"


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed (Debian: prometheus)")


def page_after_a_call(cluster: Cluster, graph: str, text: str) -> str:
    """The page once it counts a call that was made and a hit on its answer."""
    with cluster.client(graph) as client:
        before = total(client.get("/metrics").text, "dspy_requests_total")
        for _ in range(2):
            assert client.post("/v1/programs/triage", json={"inputs": {"ticket": text}}).status_code == 200
        give_up = time.monotonic() + 20
        while total(page := client.get("/metrics").text, "dspy_requests_total") < before + 2:
            assert time.monotonic() < give_up, page
            time.sleep(0.1)
    return page


def total(page: str, name: str) -> float:
    families = text_string_to_metric_families(page)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@needs("promtool")
@pytest.mark.parametrize("graph", Cluster.GRAPHS)
def test_promtool_objects_to_nothing_on_the_page_but_a_name_of_the_contract(cluster, unique, graph) -> None:
    page = page_after_a_call(cluster, graph, unique())
    command = ["promtool", "check", "metrics"]
    found = subprocess.run(command, input=page, capture_output=True, text=True, timeout=60, check=False)
    assert found.stderr.splitlines() == [NAME_OF_THE_CONTRACT]


@needs("prometheus")
def test_a_prometheus_scrapes_the_cluster_as_one_target_and_judges_the_alerts(cluster, unique, tmp_path) -> None:
    """With the ServiceMonitor's relabelling: two pods behind the service are one target, so nothing counts twice."""
    page = page_after_a_call(cluster, "standard", unique())
    (port,) = free_ports(1)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(scraping(cluster.base.removeprefix("http://"))))
    options = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("wb") as log:
        command = ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"]
        prometheus = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1") as api:
            scraped = wait_for_samples(api, tmp_path / "log")
            (target,) = api.get("/targets").json()["data"]["activeTargets"]
            rules = [rule for group in api.get("/rules").json()["data"]["groups"] for rule in group["rules"]]
    finally:
        prometheus.terminate()
        prometheus.wait(20)
    assert scraped == total(page, "dspy_requests_total")
    assert (target["health"], target["labels"]["job"]) == ("up", "switchyard")
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert len(rules) == sum(len(group["rules"]) for group in yaml.safe_load(ALERTS.read_text())["groups"])


def scraping(address: str) -> dict:
    """The rules, and two pods that are one service, relabelled as ``monitors.yaml`` has it."""
    manifests = yaml.safe_load_all((ROOT / "cluster/monitoring/monitors.yaml").read_text())
    monitor = next(found for found in manifests if found["kind"] == "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    relabelings = [{names.get(key, key): value for key, value in each.items()} for each in endpoint["relabelings"]]
    for each in relabelings:
        if each.get("target_label") == "__address__":
            each["replacement"] = address  # no DNS of a Kubernetes here
    service = {"__meta_kubernetes_service_name": "switchyard-serve-svc", "__meta_kubernetes_namespace": "switchyard"}
    pods = [
        {"targets": [f"10.0.0.{n}:8000"], "labels": {"pod": f"worker-{n}", "container": "ray-worker", **service}}
        for n in (1, 2)
    ]
    job = {"job_name": "any", "static_configs": pods, "relabel_configs": relabelings}
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [job | {"metrics_path": endpoint["path"]}],
    }


def wait_for_samples(api: httpx.Client, log: Path) -> float:
    give_up = time.monotonic() + 60
    while True:
        try:
            found = api.get("/query", params={"query": "sum(dspy_requests_total)"}).json()["data"]["result"]
            if found:
                return float(found[0]["value"][1])
        except httpx.TransportError:
            pass
        assert time.monotonic() < give_up, log.read_text()[-4000:]
        time.sleep(0.2)
